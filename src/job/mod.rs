//! One backup job: which guests in which order, the phases and their hooks, the global lock, the task record and the log, and
//! what became of it all. The phases are the node's contract, see "One job" in the facts about vzdump.
//!
//! Copying data is [`crate::transfer`]'s, holding a guest still is [`crate::qemu`]'s and [`crate::guest`]'s.

mod after;
pub mod cluster;
mod container_copy;
mod container_run;
mod container_snapshot;
mod copy;
mod destination;
mod global_lock;
mod guest_error;
mod guest_run;
pub mod hooks;
pub mod log;
mod notification;
mod pbs;
mod progress;
mod quota;
mod report;
pub mod selection;
mod steady;
pub(crate) mod syslog;
pub mod tasklog;
pub mod unlock;
pub mod upid;
mod vm_run;

pub use destination::{Destination, DestinationError};
pub use global_lock::{StopError, stop_running};

use std::time::Duration;

use crate::archive::Compression;
use crate::guest::held;
use crate::host::{Cancel, Host};
use crate::schema::{Compress, Vmid, VzdumpOptions};
use crate::storage::Volumes;
use cluster::ClusterError;
use global_lock::{GlobalLock, GlobalLockError};
use hooks::describe::{Outcome, State, Story};
use hooks::set::Hooks;
use hooks::{HookEnv, HookError};
use log::{Kind, LogSink, LogText};
use report::JobReport;
use selection::Selection;

/// A job ended early, or one of its guests failed.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// At least one guest has no backup; the log says which and why.
    #[error("job errors")]
    Guests,
    /// A signal asked the job to stop.
    #[error("interrupted by signal")]
    Interrupted,
    /// Nobody can say what this node has.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A backup server takes no pipe.
    #[error("unable to pipe backup to stdout")]
    NoPipe,
    /// `tmpdir` does not exist.
    #[error("tmpdir '{0}' does not exist")]
    TmpDir(std::path::PathBuf),
    /// The storages cannot be read.
    #[error(transparent)]
    Volume(#[from] crate::storage::VolumeError),
    /// There is nowhere to put archives.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// Another job runs.
    #[error(transparent)]
    Lock(#[from] GlobalLockError),
    /// A hook said no.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// Several things are wrong, one a line.
    #[error("{0}")]
    Several(String),
}

/// Everything one job's guests share.
pub(crate) struct Job<'a> {
    host: &'a Host,
    options: &'a VzdumpOptions,
    volumes: &'a Volumes,
    destination: Destination,
    hooks: Hooks,
    log: LogSink,
    cancel: &'a Cancel,
}

/// Backs up the guests of `selection` as `options` say, as task `upid`, telling everything to `log`.
///
/// # Errors
/// Why the job failed, as its last words.
pub fn run(
    host: &Host,
    options: &VzdumpOptions,
    selection: &Selection,
    upid: &str,
    log: &LogSink,
    cancel: &Cancel,
) -> Result<(), JobError> {
    let mut report = JobReport::new(options);
    let result = work(host, options, selection, upid, log, cancel, &mut report);
    report.end(&result);
    // Nobody waits for us: the global lock is free again.
    notification::tell(host, options, &report, log, cancel);
    result
}

/// The job from its first hook to its last; `report` learns of all of it.
fn work(
    host: &Host,
    options: &VzdumpOptions,
    selection: &Selection,
    upid: &str,
    log: &LogSink,
    cancel: &Cancel,
    report: &mut JobReport,
) -> Result<(), JobError> {
    let volumes = Volumes::load(host)?;
    tell_bad_lines(&volumes.cfg().warnings, log);
    let hooks = Hooks::open(host, options, upid, &mut |line| log.warn(line))?;
    // Before any lock, and before anybody looks at the storage: the hook may be what mounts it.
    let env = HookEnv {
        storeid: options.storage.clone(),
        dumpdir: options.dumpdir.as_ref().map(|dir| dir.display().to_string()),
        ..HookEnv::default()
    };
    let lines = &mut report.before;
    let init =
        hooks.call(&["job-init"], &env, &Story::default(), (cancel, true), &mut |line| log.job_info(line, lines));
    if cancel.is_set() {
        return Err(JobError::Interrupted);
    }
    let destination = all_is_there(init, Destination::open(host, options, &volumes), options)?;
    if options.stdout && destination.pbs.is_some() {
        return Err(JobError::NoPipe);
    }
    let job = Job { host, options, volumes: &volumes, destination, hooks, log: log.clone(), cancel };
    let patience = Duration::from_secs(60 * options.lockwait);
    let _lock = GlobalLock::take(host, upid, patience, cancel, &mut |kind, line| log.announce(kind, line))?;
    held::recover_all(host, &mut |line| log.info(line), &mut |line| log.warn(line));
    set_io_priority(host, options.ionice, log);
    log.announce(Kind::Info, &format!("starting new backup job: {}", options.command_line));
    if !selection.external.is_empty() {
        let names: Vec<String> = selection.external.iter().map(Vmid::to_string).collect();
        log.info(&format!("skip external VMs: {}", names.join(", ")));
    }
    match job.guests(&selection.local, report) {
        Ok(()) => {
            let failed = !report.all_done();
            let end = if failed { "Backup job finished with errors" } else { "Backup job finished successfully" };
            log.announce(Kind::Info, end);
            if failed { Err(JobError::Guests) } else { Ok(()) }
        }
        Err(error) => {
            let told = Outcome { state: State::Failed, error: Some(error.to_string()), ..Outcome::default() };
            let error = match job.job_hook("job-abort", &told.into(), false, &mut report.after) {
                Ok(()) => error,
                Err(hook) => JobError::Several(format!("{error}\n{hook}")),
            };
            log.announce(Kind::Error, &format!("Backup job failed - {error}"));
            Err(error)
        }
    }
}

/// The destination, if nothing is in the way; as the original, all that is wrong at once.
fn all_is_there(
    init: Result<(), HookError>,
    destination: Result<Destination, DestinationError>,
    options: &VzdumpOptions,
) -> Result<Destination, JobError> {
    let missing = options.tmpdir.as_ref().filter(|dir| !dir.is_dir()).map(|dir| JobError::TmpDir(dir.clone()));
    let (destination, error) = match destination {
        Ok(destination) => (Some(destination), None),
        Err(error) => (None, Some(JobError::from(error))),
    };
    let mut problems: Vec<JobError> = init.err().map(JobError::from).into_iter().chain(error).chain(missing).collect();
    match (destination, problems.pop()) {
        (Some(destination), None) => Ok(destination),
        (_, Some(only)) if problems.is_empty() => Err(only),
        (_, last) => {
            let texts: Vec<String> = problems.iter().chain(&last).map(JobError::to_string).collect();
            Err(JobError::Several(texts.join("\n")))
        }
    }
}

/// Says which lines of storage.cfg mean nothing, the first of them: a broken file may have thousands.
fn tell_bad_lines(warnings: &[String], log: &LogSink) {
    const SHOWN: usize = 20;
    warnings.iter().take(SHOWN).for_each(|warning| log.line(Kind::Bare, warning));
    if let Some(more) = warnings.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        log.line(Kind::Bare, &format!("... and {more} more lines of this kind"));
    }
}

/// Lowers our own I/O priority and that of our children, as the original does and with the same program.
fn set_io_priority(host: &Host, ionice: u8, log: &LogSink) {
    let pid = std::process::id().to_string();
    let class = format!("-c{}", if ionice >= 8 { 3 } else { 2 });
    let level = format!("-n{ionice}");
    let args: &[&str] = if ionice >= 8 { &[&class, "-p", &pid] } else { &[&class, &level, "-p", &pid] };
    let done = host.command("ionice").args(args).output();
    if !done.is_ok_and(|output| output.status.success()) {
        log.warn("ionice failed: the backup runs at normal I/O priority");
    }
}

impl Job<'_> {
    fn guests(&self, vmids: &[Vmid], report: &mut JobReport) -> Result<(), JobError> {
        // Waiting for the global lock may have taken hours, so it is looked again what there is; after this moment a guest that
        // vanishes is one whose backup was begun.
        let vmlist = cluster::vmlist(self.host)?;
        report.begin(vmids);
        self.job_hook("job-start", &Story::default(), true, &mut report.before)?;
        for vmid in vmids {
            report.guest_ended(guest_run::run(self, *vmid, vmlist.get(*vmid)));
            if self.cancel.is_set() {
                return Err(JobError::Interrupted);
            }
        }
        let failed = !report.all_done();
        let state = if failed { State::Failed } else { State::Done };
        let told = Outcome { state, error: failed.then(|| JobError::Guests.to_string()), ..Outcome::default() };
        Ok(self.job_hook("job-end", &told.into(), true, &mut report.after)?)
    }

    /// What every hook of this job sees.
    fn hook_env(&self) -> HookEnv {
        HookEnv {
            storeid: self.destination.storage_id().map(str::to_owned),
            dumpdir: self.destination.pbs.is_none().then(|| self.destination.dump_dir.display().to_string()),
            ..HookEnv::default()
        }
    }

    /// Calls the hooks for a phase of the whole job; `lines` learns what they say.
    fn job_hook(&self, phase: &str, story: &Story, interruptible: bool, lines: &mut LogText) -> Result<(), HookError> {
        let told = &mut |line: &str| self.log.job_info(line, lines);
        self.hooks.call(&[phase], &self.hook_env(), story, (self.cancel, interruptible), told)
    }

    fn call_hook(&self, args: &[&str], env: &HookEnv, story: &Story, interruptible: bool) -> Result<(), HookError> {
        self.hooks.call(args, env, story, (self.cancel, interruptible), &mut |line| self.log.info(line))
    }

    fn check_interrupted(&self) -> Result<(), HookError> {
        if self.cancel.is_set() { Err(HookError::Interrupted) } else { Ok(()) }
    }

    fn compression(&self) -> Compression {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        match self.options.compress {
            Compress::None => Compression::None,
            Compress::Lzo => Compression::Lzo,
            Compress::Gzip => Compression::Gzip { threads: self.options.gzip_threads(cores) },
            Compress::Zstd => Compression::Zstd { threads: self.options.zstd_threads(cores) },
        }
    }

    /// As in the log: local time to the second.
    fn time(&self) -> String {
        self.host.now().strftime("%Y-%m-%d %H:%M:%S").to_string()
    }

    /// The cluster's name, for notes.
    fn cluster_name(&self) -> String {
        cluster::name(self.host)
    }
}
