//! `vzdump`: what holds for one job, from what was asked for ([`VzdumpRequest`]), `/etc/vzdump.conf` and the defaults.

use std::path::PathBuf;

use super::{Keep, Params, Properties, Vmid, VzdumpRequest, tables, tables::VZDUMP};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $($word:literal)|+,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            fn from_word(word: &str) -> Option<Self> {
                match word { $($($word)|+ => Some(Self::$variant),)+ _ => None }
            }

            /// The word for it on the command line.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => [$($word),+][0],)+ }
            }
        }
    };
}

words! {
    /// How a running guest is treated.
    Mode {
        /// It keeps running.
        Snapshot = "snapshot",
        /// It is suspended for a moment.
        Suspend = "suspend",
        /// It is shut down and started again.
        Stop = "stop",
    }
}
words! {
    /// How the archive is compressed.
    Compress {
        /// Not at all.
        None = "0",
        /// With lzop.
        Lzo = "lzo" | "1",
        /// As gzip members.
        Gzip = "gzip",
        /// As zstd frames.
        Zstd = "zstd",
    }
}
words! {
    /// When a mail is sent.
    MailNotification {
        /// After every job.
        Always = "always",
        /// After a job that failed.
        Failure = "failure",
    }
}
words! {
    /// Which way notifications go.
    NotificationMode {
        /// By mail if `mailto` is set, else the notification system.
        Auto = "auto",
        /// By mail.
        LegacySendmail = "legacy-sendmail",
        /// The notification system.
        NotificationSystem = "notification-system",
    }
}

/// Where overwritten blocks go while the backup runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fleecing {
    /// Whether a storage is used for them.
    pub enabled: bool,
    /// That storage.
    pub storage: Option<String>,
}

/// Settings for speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Performance {
    /// Requests in flight per disk, at most.
    pub max_workers: u64,
    /// Only of use with a backup server.
    pub pbs_entries_max: u64,
}

/// Options that cannot be used together. Printed as it is; the exit code is 255.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Two options exclude each other.
    #[error("cannot use options '{0}' and '{1}' at the same time")]
    Conflict(&'static str, &'static str),
}

/// Everything that holds for one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VzdumpOptions {
    /// The guests named, in the order given, with repetitions.
    pub vmids: Vec<Vmid>,
    /// All guests of the node (also when only `exclude` was given).
    pub all: bool,
    /// Guests left out.
    pub exclude: Vec<Vmid>,
    /// The guests of this pool.
    pub pool: Option<String>,
    /// Only run on this node.
    pub node: Option<String>,
    /// How running guests are treated.
    pub mode: Mode,
    /// The storage archives go to; `None` with a directory.
    pub storage: Option<String>,
    /// The directory archives go to; `None` with a storage.
    pub dumpdir: Option<PathBuf>,
    /// Compression.
    pub compress: Compress,
    /// `pigz` as given: 0 gzip, 1 half of the cores, else threads.
    pub pigz: i64,
    /// `zstd` as given: 0 half of the cores, else threads.
    pub zstd: i64,
    /// Limit in KiB a second, 0 for none.
    pub bwlimit: u64,
    /// I/O priority, 8 is the idle class.
    pub ionice: u8,
    /// Settings for speed.
    pub performance: Performance,
    /// Fleecing.
    pub fleecing: Fleecing,
    /// Minutes to wait for the global lock.
    pub lockwait: u64,
    /// Minutes to wait for a guest to shut down.
    pub stopwait: u64,
    /// Retention of the command line or vzdump.conf; `None` leaves it to the storage, see [`Self::retention`].
    pub prune_backups: Option<Keep>,
    /// Whether old backups may be removed, as given.
    pub remove: bool,
    /// Template of the notes; never without a storage.
    pub notes_template: Option<String>,
    /// Protect the backups; never without a storage.
    pub protected: bool,
    /// The hook script.
    pub script: Option<String>,
    /// Leave temporary files of containers out.
    pub stdexcludes: bool,
    /// Globs of paths in containers to leave out.
    pub exclude_path: Vec<String>,
    /// Directory for temporary files.
    pub tmpdir: Option<PathBuf>,
    /// Receivers of mails.
    pub mailto: Vec<String>,
    /// When mails are sent.
    pub mailnotification: MailNotification,
    /// Which way notifications go.
    pub notification_mode: NotificationMode,
    /// Stop the running job.
    pub stop: bool,
    /// The archive goes to standard output.
    pub stdout: bool,
    /// Nothing on the terminal.
    pub quiet: bool,
    /// The job this is a run of.
    pub job_id: Option<String>,
    /// Only of use with a backup server.
    pub pbs_change_detection_mode: Option<String>,
    /// The call as the log shows it.
    pub command_line: String,
}

impl VzdumpOptions {
    /// What the command line says, else `conf` (the parameters of `/etc/vzdump.conf`), else the defaults.
    ///
    /// # Errors
    /// When options exclude each other.
    pub fn merge(request: &VzdumpRequest, conf: &Params) -> Result<Self, OptionsError> {
        let cli = request.params();
        if cli.has("storage") && cli.has("dumpdir") {
            return Err(OptionsError::Conflict("storage", "dumpdir"));
        }
        let target = if cli.has("storage") || cli.has("dumpdir") { cli } else { conf };
        let mut storage = target.text("storage").map(str::to_owned);
        let dumpdir = if storage.is_some() { None } else { target.text("dumpdir").map(directory) };
        let stdout = cli.flag("stdout");
        if stdout && storage.is_some() {
            return Err(OptionsError::Conflict("storage", "stdout"));
        }
        if storage.is_none() && dumpdir.is_none() {
            storage = Some("local".to_owned());
        }
        let pick = Pick { cli, conf };
        let vmids =
            |name| -> Vec<Vmid> { cli.items(&VZDUMP, name).iter().filter_map(|item| item.parse().ok()).collect() };
        let fleecing = pick.properties("fleecing");
        let performance = |key| -> u64 {
            let given = |params: &Params| params.properties(&VZDUMP, "performance")?.number(key);
            let default = || tables::PERFORMANCE.key(key)?.default?.parse().ok();
            given(cli).or_else(|| given(conf)).or_else(default).unwrap_or(1)
        };
        Ok(Self {
            vmids: vmids("vmid"),
            all: cli.flag("all")
                || (vmids("vmid").is_empty() && cli.has("exclude") && cli.text("pool").unwrap_or_default().is_empty()),
            exclude: vmids("exclude"),
            pool: cli.text("pool").filter(|pool| !pool.is_empty()).map(str::to_owned),
            node: cli.text("node").map(str::to_owned),
            mode: pick.text("mode").and_then(Mode::from_word).unwrap_or(Mode::Snapshot),
            compress: pick.text("compress").and_then(Compress::from_word).unwrap_or(Compress::None),
            pigz: pick.number("pigz"),
            zstd: pick.number("zstd"),
            bwlimit: pick.number::<u64>("bwlimit").min(u64::MAX / 1024),
            ionice: pick.number("ionice"),
            performance: Performance {
                max_workers: performance("max-workers"),
                pbs_entries_max: performance("pbs-entries-max"),
            },
            fleecing: Fleecing {
                enabled: fleecing.as_ref().is_some_and(|given| given.flag("enabled")),
                storage: fleecing.as_ref().and_then(|given| given.get("storage")).map(str::to_owned),
            },
            lockwait: pick.number::<u64>("lockwait").min(LONGEST_WAIT),
            stopwait: pick.number::<u64>("stopwait").min(LONGEST_WAIT),
            prune_backups: (cli.has("prune-backups") || conf.has("prune-backups"))
                .then(|| pick.properties("prune-backups").map(|given| Keep::from_properties(&given)))
                .flatten(),
            remove: pick.flag("remove"),
            notes_template: pick.text("notes-template").filter(|_| dumpdir.is_none()).map(str::to_owned),
            protected: pick.flag("protected") && dumpdir.is_none(),
            script: pick.text("script").filter(|script| !script.is_empty()).map(str::to_owned),
            stdexcludes: pick.flag("stdexcludes"),
            exclude_path: [conf.items(&VZDUMP, "exclude-path"), cli.items(&VZDUMP, "exclude-path")].concat(),
            tmpdir: pick.text("tmpdir").map(directory),
            mailto: if cli.has("mailto") { cli } else { conf }.items(&VZDUMP, "mailto"),
            mailnotification: pick
                .text("mailnotification")
                .and_then(MailNotification::from_word)
                .unwrap_or(MailNotification::Always),
            notification_mode: pick
                .text("notification-mode")
                .and_then(NotificationMode::from_word)
                .unwrap_or(NotificationMode::Auto),
            stop: cli.flag("stop"),
            stdout,
            quiet: cli.flag("quiet"),
            job_id: pick.text("job-id").map(str::to_owned),
            pbs_change_detection_mode: pick.text("pbs-change-detection-mode").map(str::to_owned),
            command_line: request.command_line(),
            storage,
            dumpdir,
        })
    }

    /// The retention that holds and whether backups may be removed, given what the storage's `prune-backups` says.
    pub fn retention(&self, storage: Option<Keep>) -> (Keep, bool) {
        let keep = self.prune_backups.or(storage).unwrap_or(Keep::ALL);
        (keep, self.remove && !keep.all)
    }

    /// Threads for zstd on a machine with so many cores.
    pub fn zstd_threads(&self, cores: usize) -> usize {
        threads(self.zstd, 0, cores)
    }

    /// Threads for gzip; 1 when `pigz` is 0.
    pub fn gzip_threads(&self, cores: usize) -> usize {
        if self.pigz <= 0 { 1 } else { threads(self.pigz, 1, cores) }
    }
}

/// A century in minutes: longer waits are this one, so that a date can still be computed.
const LONGEST_WAIT: u64 = 100 * 366 * 24 * 60;

/// As many threads as zstd itself takes at most.
const MOST_THREADS: usize = 256;

/// `half` and what lies below it mean half of the cores, rounded up.
fn threads(given: i64, half: i64, cores: usize) -> usize {
    let wanted = if given <= half { cores.div_ceil(2).max(1) } else { usize::try_from(given).unwrap_or(MOST_THREADS) };
    wanted.min(MOST_THREADS)
}

fn directory(path: &str) -> PathBuf {
    let trimmed = path.trim_end_matches('/');
    PathBuf::from(if trimmed.is_empty() { path } else { trimmed })
}

/// Command line, else configuration, else default.
struct Pick<'a> {
    cli: &'a Params,
    conf: &'a Params,
}

impl<'a> Pick<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        let default = || VZDUMP.option(name).and_then(|opt| opt.default);
        self.cli.text(name).or_else(|| self.conf.text(name)).or_else(default)
    }

    fn flag(&self, name: &str) -> bool {
        self.text(name) == Some("1")
    }

    /// Checked before: what does not parse can only be the default of an option that has none.
    fn number<T: std::str::FromStr + Default>(&self, name: &str) -> T {
        self.text(name).and_then(|text| text.trim_start_matches('+').parse().ok()).unwrap_or_default()
    }

    fn properties(&self, name: &'static str) -> Option<Properties> {
        self.cli.properties(&VZDUMP, name).or_else(|| self.conf.properties(&VZDUMP, name))
    }
}
