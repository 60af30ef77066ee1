//! Every option of the tables: what a right value becomes, and how a wrong one is refused, wherever it comes from: the
//! command line, a job's section, the API, `/etc/vzdump.conf`. What an option does to a run is tested where each entry says.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use vzkeep::config::VzdumpConf;
use vzkeep::schema::tables::{QMRESTORE, VZDUMP};
use vzkeep::schema::{
    Compress, Kind, MailNotification, Mode, NotificationMode, Opt, Params, RestoreOptions, VzdumpOptions,
    VzdumpRequest, check_value,
};

type Check = fn(&VzdumpOptions) -> bool;

/// One option of `vzdump`.
struct Entry {
    name: &'static str,
    /// Values and what must hold with them.
    right: Vec<(String, Check)>,
    /// Values and the reason they are refused with.
    wrong: Vec<(String, String)>,
    /// Whether it can stand in `/etc/vzdump.conf`.
    conf: bool,
    /// Where its effect on a run is tested; `#` marks the issue that brings it.
    effect: &'static str,
}

impl Entry {
    fn right(mut self, value: &str, check: Check) -> Self {
        self.right.push((value.to_owned(), check));
        self
    }

    fn wrong(mut self, value: &str, reason: &str) -> Self {
        self.wrong.push((value.to_owned(), reason.to_owned()));
        self
    }

    /// Each of these values is refused with the reason, in which `@` stands for the value.
    fn all_wrong(self, values: &[&str], reason: &str) -> Self {
        values.iter().fold(self, |entry, value| entry.wrong(value, &reason.replace('@', value)))
    }

    fn boolean(self) -> Self {
        self.all_wrong(&["maybe", "2", "1\n", "1\0"], "type check ('boolean') failed - got '@'")
    }

    fn integer(self) -> Self {
        let many = ["abc", "1.5", "", "5\n", "5\0", "0x10", "1 2"];
        self.all_wrong(&many, "type check ('integer') failed - got '@'")
    }

    fn not_negative(self) -> Self {
        self.integer()
            .wrong("-1", "value must have a minimum value of 0")
            .wrong("99999999999999999999", "type check ('integer') failed - got '99999999999999999999'")
    }

    fn one_of(self, words: &str) -> Self {
        let reason = format!("value '@' does not have a value in the enumeration '{words}'");
        let capitals = words.split(", ").last().unwrap().to_uppercase();
        self.all_wrong(&["live", "", &capitals, "stop\n", "auto\0"], &reason)
    }

    fn one_line(self) -> Self {
        self.wrong("/a\nb", "contains a line feed")
            .wrong("/a\rb", "contains a line feed")
            .wrong("/a\0b", "contains a NUL character")
    }

    fn path(self) -> Self {
        self.one_line().wrong(&"x".repeat(4097), "value may only be 4096 characters long")
    }
}

fn entry(name: &'static str, conf: bool, effect: &'static str) -> Entry {
    Entry { name, right: Vec::new(), wrong: Vec::new(), conf, effect }
}

fn entries() -> Vec<Entry> {
    const UNDEFINED: &str = "property is not defined in schema and the schema does not allow additional properties";
    let keys = |name: &str, key: &str| format!("invalid format - format error\n{name}.{key}: ");
    let no_key = "invalid format - value without key, but schema does not define a default key";
    let twice = |key: &str| format!("invalid format - duplicate key in comma-separated list property: {key}");
    let vmid = "invalid format - value does not look like a valid VM ID";
    vec![
        entry("vmid", false, "tests/golden_replay.rs")
            .right("0102", |o| o.vmids.iter().map(|v| v.get()).eq([102]) && !o.all)
            .right("102,101;100 100", |o| o.vmids.len() == 4)
            .all_wrong(&["abc", "99", "1000000000", "100,x", "1e3"], vmid)
            .all_wrong(&["", ",", "\0", "\n"], "property is missing"),
        entry("all", false, "tests/golden_replay.rs, tests/selection.rs")
            .right("1", |o| o.all)
            .right("TRUE", |o| o.all)
            .wrong("0", "property is missing")
            .boolean(),
        entry("bwlimit", true, "tests/limits.rs")
            .right("0", |o| o.bwlimit == 0)
            .right("+5", |o| o.bwlimit == 5)
            .right("9223372036854775807", |o| o.bwlimit.checked_mul(1024).is_some())
            .not_negative(),
        entry("compress", true, "tests/round_trip.rs")
            .right("0", |o| o.compress == Compress::None)
            .right("1", |o| o.compress == Compress::Lzo)
            .right("lzo", |o| o.compress == Compress::Lzo)
            .right("gzip", |o| o.compress == Compress::Gzip)
            .right("zstd", |o| o.compress == Compress::Zstd)
            .one_of("0, 1, gzip, lzo, zstd"),
        entry("dumpdir", true, "tests/golden_replay.rs")
            .right("/mnt/usb/", |o| o.dumpdir.as_deref() == Some(Path::new("/mnt/usb")) && o.storage.is_none())
            .wrong("", "value must be at least 1 characters long")
            .path(),
        entry("exclude", false, "tests/selection.rs")
            .right("100,0101", |o| o.exclude.iter().map(|v| v.get()).eq([100, 101]) && o.all)
            .right("100\n101\x00102", |o| o.exclude.len() == 3)
            .right("", |o| o.exclude.is_empty() && o.all)
            .all_wrong(&["abc", "99", "1000000000", "100,x"], vmid),
        entry("exclude-path", true, "# containers").right("*.log", |o| o.exclude_path == ["*.log"]).one_line(),
        entry("fleecing", true, "tests/slow_target.rs")
            .right("1,storage=bk", |o| o.fleecing.enabled && o.fleecing.storage.as_deref() == Some("bk"))
            .right("enabled=no", |o| !o.fleecing.enabled)
            .wrong("enabled=1", "invalid format - 'storage' parameter is required when 'enabled' is set")
            .wrong("maybe", &(keys("fleecing", "enabled") + "type check ('boolean') failed - got 'maybe'"))
            .wrong("foo=1", &(keys("fleecing", "foo") + UNDEFINED))
            .wrong("0,enabled=1", &twice("enabled"))
            .wrong(
                "1,storage=a\nb",
                &(keys("fleecing", "storage") + "invalid format - storage ID 'a\nb' contains illegal characters"),
            ),
        entry("ionice", true, "tests/limits.rs")
            .right("0", |o| o.ionice == 0)
            .right("8", |o| o.ionice == 8)
            .integer()
            .wrong("-1", "value must have a minimum value of 0")
            .all_wrong(&["9", "99999999999999999999"], "value must have a maximum value of 8"),
        entry("job-id", true, "tests/jobs.rs")
            .right("backup-1", |o| o.job_id.as_deref() == Some("backup-1"))
            .all_wrong(&["", "a b", "a\n", "a\0"], "value does not match the regex pattern")
            .wrong(&"x".repeat(257), "value may only be 256 characters long"),
        entry("lockwait", true, "tests/golden_replay.rs")
            .right("0", |o| o.lockwait == 0)
            .right("9223372036854775807", |o| o.lockwait.checked_mul(60).is_some())
            .not_negative(),
        entry("mailnotification", true, "tests/notify.rs")
            .right("always", |o| o.mailnotification == MailNotification::Always)
            .right("failure", |o| o.mailnotification == MailNotification::Failure)
            .one_of("always, failure"),
        entry("mailto", true, "tests/notify.rs")
            .right("root, a.b+c@x-y.z;d", |o| o.mailto == ["root", "a.b+c@x-y.z", "d"])
            .right("root\na", |o| o.mailto.len() == 2)
            .right("", |o| o.mailto.is_empty())
            .all_wrong(
                &["not valid!!", "a@", "@b", "a@b@c"],
                "invalid format - value does not look like a valid email address or user name",
            ),
        entry("mode", true, "tests/golden_replay.rs")
            .right("snapshot", |o| o.mode == Mode::Snapshot)
            .right("suspend", |o| o.mode == Mode::Suspend)
            .right("stop", |o| o.mode == Mode::Stop)
            .one_of("snapshot, suspend, stop"),
        entry("node", false, "tests/golden_replay.rs")
            .right("pve-1", |o| o.node.as_deref() == Some("pve-1"))
            .all_wrong(
                &["", "-x", "x-", "a.b", "pve1\n", "pve1\0"],
                "invalid format - value does not look like a valid node name",
            ),
        entry("notes-template", true, "tests/golden_replay.rs")
            .right("{{guestname}} \\n", |o| o.notes_template.as_deref() == Some("{{guestname}} \\n"))
            .right(&"é".repeat(1024), |o| o.notes_template.is_some())
            .wrong(&"x".repeat(1025), "value may only be 1024 characters long")
            .wrong("a\nb", "contains a line feed")
            .wrong("a\0b", "contains a NUL character")
            .wrong("{{foo}}", "found unknown: variable 'foo' at char 4")
            .wrong("a\\t", "found unknown: escape sequence '\\t' at char 1"),
        entry("notification-mode", true, "tests/notify.rs")
            .right("auto", |o| o.notification_mode == NotificationMode::Auto)
            .right("legacy-sendmail", |o| o.notification_mode == NotificationMode::LegacySendmail)
            .right("notification-system", |o| o.notification_mode == NotificationMode::NotificationSystem)
            .one_of("auto, legacy-sendmail, notification-system"),
        entry("pbs-change-detection-mode", true, "tests/pbs.rs")
            .right("metadata", |o| o.pbs_change_detection_mode.as_deref() == Some("metadata"))
            .one_of("legacy, data, metadata"),
        entry("performance", true, "tests/limits.rs")
            .right("max-workers=4", |o| (o.performance.max_workers, o.performance.pbs_entries_max) == (4, 1_048_576))
            .right("pbs-entries-max=7", |o| (o.performance.max_workers, o.performance.pbs_entries_max) == (16, 7))
            .wrong("4", no_key)
            .wrong("max-workers=0", &(keys("performance", "max-workers") + "value must have a minimum value of 1"))
            .wrong("max-workers=257", &(keys("performance", "max-workers") + "value must have a maximum value of 256"))
            .wrong("max-workers=x", &(keys("performance", "max-workers") + "type check ('integer') failed - got 'x'"))
            .wrong(
                "pbs-entries-max=0",
                &(keys("performance", "pbs-entries-max") + "value must have a minimum value of 1"),
            )
            .wrong("foo=1", &(keys("performance", "foo") + UNDEFINED)),
        entry("pigz", true, "src/job")
            .right("0", |o| o.gzip_threads(8) == 1)
            .right("1", |o| o.gzip_threads(7) == 4)
            .right("3", |o| o.gzip_threads(8) == 3)
            .right("9223372036854775807", |o| o.gzip_threads(8) == 256)
            .integer(),
        entry("pool", false, "tests/selection.rs")
            .right("prod/web", |o| o.pool.as_deref() == Some("prod/web") && !o.all)
            .wrong("", "property is missing")
            .one_line(),
        entry("protected", true, "tests/golden_replay.rs")
            .right("1", |o| o.protected)
            .right("off", |o| !o.protected)
            .boolean(),
        entry("prune-backups", true, "tests/golden_replay.rs, src/storage")
            .right("keep-last=3,keep-daily=0", |o| o.prune_backups.unwrap().to_string() == "keep-last=3")
            .right("", |o| o.prune_backups.unwrap().all)
            .wrong("3", no_key)
            .wrong("keep-last=-1", &(keys("prune-backups", "keep-last") + "value must have a minimum value of 0"))
            .wrong("keep-last=x", &(keys("prune-backups", "keep-last") + "type check ('integer') failed - got 'x'"))
            .wrong("keep-last=1\n", &(keys("prune-backups", "keep-last") + "type check ('integer') failed - got '1\n'"))
            .wrong("keep-foo=1", &(keys("prune-backups", "keep-foo") + UNDEFINED))
            .wrong("keep-last=1,keep-last=2", &twice("keep-last"))
            .wrong("keep-all=1,keep-last=2", "invalid format - keep-all cannot be set together with other options."),
        entry("quiet", false, "tests/golden_replay.rs").right("1", |o| o.quiet).right("0", |o| !o.quiet).boolean(),
        entry("remove", true, "tests/golden_replay.rs").right("0", |o| !o.remove).right("Yes", |o| o.remove).boolean(),
        entry("script", true, "tests/golden_replay.rs")
            .right("/root/hook.pl", |o| o.script.as_deref() == Some("/root/hook.pl"))
            .right("", |o| o.script.is_none())
            .path(),
        entry("stdexcludes", true, "# containers")
            .right("0", |o| !o.stdexcludes)
            .right("on", |o| o.stdexcludes)
            .boolean(),
        entry("stdout", false, "tests/golden_replay.rs").right("1", |o| o.stdout).right("0", |o| !o.stdout).boolean(),
        entry("stop", false, "tests/golden_replay.rs").right("1", |o| o.stop).right("0", |o| !o.stop).boolean(),
        entry("stopwait", true, "tests/golden_replay.rs")
            .right("3", |o| o.stopwait == 3)
            .right("9223372036854775807", |o| o.stopwait.checked_mul(60).is_some())
            .not_negative(),
        entry("storage", true, "tests/golden_replay.rs")
            .right("bk-2.x_y", |o| o.storage.as_deref() == Some("bk-2.x_y") && o.dumpdir.is_none())
            .all_wrong(
                &["", "a b", "a", "1a", "bk\n", "bk\0", "a/b"],
                "invalid format - storage ID '@' contains illegal characters",
            ),
        entry("tmpdir", true, "tests/golden_replay.rs")
            .right("/var/tmp", |o| o.tmpdir.as_deref() == Some(Path::new("/var/tmp")))
            .wrong("", "value must be at least 1 characters long")
            .path(),
        entry("zstd", true, "tests/golden_replay.rs")
            .right("0", |o| o.zstd_threads(7) == 4)
            .right("-3", |o| o.zstd_threads(8) == 4)
            .right("3", |o| o.zstd_threads(8) == 3)
            .right("9223372036854775807", |o| o.zstd_threads(8) == 256)
            .integer(),
    ]
}

/// What must stand beside an option so that nothing else is wrong.
fn beside(name: &str) -> &'static [(&'static str, &'static str)] {
    match name {
        "vmid" | "all" | "exclude" | "pool" => &[],
        "notes-template" | "protected" => &[("vmid", "102"), ("storage", "bk")],
        _ => &[("vmid", "102")],
    }
}

fn pairs<'a>(name: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    beside(name).iter().copied().chain([(name, value)]).collect()
}

/// The same as words of a command line.
fn words(name: &str, value: &str) -> Vec<String> {
    let word = |(name, value): (&str, &str)| match name {
        "vmid" => vec![value.to_owned()],
        _ => vec![format!("--{name}"), value.to_owned()],
    };
    pairs(name, value).into_iter().flat_map(word).collect()
}

fn merged(request: &VzdumpRequest, conf: &Params) -> VzdumpOptions {
    VzdumpOptions::merge(request, conf).unwrap()
}

fn option(name: &str) -> &'static Opt {
    VZDUMP.option(name).unwrap()
}

#[test]
fn every_option_has_its_entry() {
    let tested: BTreeSet<_> = entries().iter().map(|entry| entry.name).collect();
    let known: BTreeSet<_> = VZDUMP.positionals().iter().chain(VZDUMP.options).map(|opt| opt.name).collect();
    assert_eq!(tested, known);
    for entry in entries() {
        assert!(!entry.right.is_empty() && !entry.wrong.is_empty() && !entry.effect.is_empty(), "{}", entry.name);
    }
}

#[test]
fn right_values_mean_the_same_wherever_they_come_from() {
    let (nothing, bare) = (Params::default(), VzdumpRequest::from_pairs([("vmid", "102")]).unwrap());
    for entry in entries() {
        for (value, holds) in &entry.right {
            let (name, what) = (entry.name, format!("{}={value:?}", entry.name));
            let request = VzdumpRequest::from_pairs(pairs(name, value)).expect(&what);
            let options = merged(&request, &nothing);
            assert!(holds(&options), "{what}: {options:#?}");
            let object = pairs(name, value).into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
            assert_eq!(VzdumpRequest::from_json(&object).as_ref(), Ok(&request), "{what}");
            let again = VzdumpRequest::from_json(&request.to_json()).expect(&what);
            assert!(holds(&merged(&again, &nothing)), "{what}: {:?}", request.to_json());
            // An empty word is no guest, and after a boolean it is none at all.
            if !value.is_empty() {
                assert_eq!(VzdumpRequest::parse(&words(name, value)).as_ref(), Ok(&request), "{what}");
            }
            if entry.conf && !value.is_empty() && !value.contains('\n') {
                let conf = VzdumpConf::parse(&format!("{name}: {value}\n"));
                assert!(conf.warnings.is_empty() && holds(&merged(&bare, &conf.params)), "{what}: {conf:?}");
            }
        }
    }
}

#[test]
fn wrong_values_are_refused_with_the_known_words() {
    for entry in entries() {
        for (value, reason) in &entry.wrong {
            let (name, what) = (entry.name, format!("{}={value:?}", entry.name));
            // A selection that selects nothing is missed under the name of the guests.
            let blamed = if reason == "property is missing" { "vmid" } else { name };
            let refused = VzdumpRequest::from_pairs(pairs(name, value)).expect_err(&what);
            assert_eq!(refused.reasons().collect::<Vec<_>>(), [(blamed, reason.as_str())], "{what}");
            let object = pairs(name, value).into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
            assert_eq!(VzdumpRequest::from_json(&object), Err(refused), "{what}");
            let clean = value.trim() == value && !value.is_empty() && !value.contains(['\n', '\r']);
            if entry.conf && clean && check_value(option(name), value).is_err() {
                let conf = VzdumpConf::parse(&format!("{name}: {value}\n"));
                assert_eq!(
                    conf.warnings,
                    [format!("parse error in '/etc/vzdump.conf' - '{name}': {reason}")],
                    "{what}"
                );
                assert!(!conf.params.has(name), "{what}");
            }
        }
    }
}

/// Runs the program; exit code and standard error. Standard output and the node below `root` must stay empty.
fn run(root: &Path, program: &str, words: &[String]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vzkeep"));
    let output = command.arg(program).args(words).env("VZKEEP_ROOT", root).stdin(Stdio::null()).output().unwrap();
    assert!(output.stdout.is_empty(), "{words:?}: {output:?}");
    assert_eq!(std::fs::read_dir(root).unwrap().count(), 0, "{words:?}: nothing may have begun");
    // Reasons of formats bring line feeds of their own; the recordings have them all.
    let said = String::from_utf8(output.stderr).unwrap();
    let filled: Vec<_> = said.lines().filter(|line| !line.is_empty()).collect();
    (output.status.code(), filled.join("\n") + "\n")
}

#[test]
fn the_program_refuses_wrong_values() {
    let root = tempfile::tempdir().unwrap();
    for entry in entries() {
        for (value, reason) in entry.wrong.iter().filter(|(value, _)| !value.contains('\0')) {
            let (name, what) = (entry.name, format!("{}={value:?}", entry.name));
            let blamed = if reason == "property is missing" { "vmid" } else { name };
            let wanted = match option(name).kind {
                Kind::Bool if reason.starts_with("type check") => "400 unable to parse boolean option\n".to_owned(),
                _ => format!("400 Parameter verification failed.\n{blamed}: {reason}\n"),
            };
            let (code, said) = run(root.path(), "vzdump", &words(name, value));
            assert_eq!((code, said), (Some(255), wanted + "vzdump {<vmid>} [OPTIONS]\n"), "{what}");
        }
    }
}

#[test]
fn options_that_need_another_say_so() {
    let root = tempfile::tempdir().unwrap();
    for opt in VZDUMP.options.iter().filter(|opt| opt.requires.is_some()) {
        let words = ["102", &format!("--{}", opt.name), "1"].map(str::to_owned);
        let other = opt.requires.unwrap();
        let wanted = format!(
            "400 Parameter verification failed.\n{other}: missing property required by '{}'\nvzdump {{<vmid>}} [OPTIONS]\n",
            opt.name
        );
        assert_eq!(run(root.path(), "vzdump", &words), (Some(255), wanted));
    }
}

/// Right and wrong values of `qmrestore`; of an option that is refused whatever its value, only the refusal.
#[test]
fn every_option_of_qmrestore() {
    type Right = fn(&RestoreOptions) -> bool;
    type Row = (&'static str, Vec<(&'static str, Right)>, Vec<(String, String)>);
    let illegal = |id: &str| format!("invalid format - storage ID '{id}' contains illegal characters");
    let vmid = "invalid format - value does not look like a valid VM ID".to_owned();
    let number = |value: &str| format!("type check ('number') failed - got '{value}'");
    let boolean = String::new;
    let entries: Vec<Row> = vec![
        (
            "archive",
            vec![("-", |o| o.archive == "-"), ("bk:backup/x.vma", |o| o.archive == "bk:backup/x.vma")],
            vec![
                (String::new(), "value must be at least 1 characters long".into()),
                ("x".repeat(256), "value may only be 255 characters long".into()),
                ("/a\nb".into(), "contains a line feed".into()),
            ],
        ),
        (
            "vmid",
            vec![("0300", |o| o.vmid.get() == 300)],
            ["", "99", "abc", "300\n", "1000000000"].map(|value| (value.into(), vmid.clone())).into(),
        ),
        (
            "bwlimit",
            vec![("1.5", |o| o.bwlimit == Some(1536)), ("0", |o| o.bwlimit == Some(0))],
            vec![
                ("abc".into(), number("abc")),
                (String::new(), number("")),
                ("1\n".into(), number("1\n")),
                ("-1".into(), "value must have a minimum value of 0".into()),
            ],
        ),
        ("force", vec![("1", |o| o.force), ("no", |o| !o.force)], vec![("maybe".into(), boolean())]),
        (
            "live-restore",
            vec![("0", |o| !o.live)],
            vec![
                ("maybe".into(), boolean()),
                ("1".into(), "standard input can be read only once and in order; give the archive by its path".into()),
            ],
        ),
        (
            "pool",
            vec![],
            vec![
                (
                    "p".into(),
                    "not supported; add the VM to its pool with 'pvesh set /pools/<pool>' after the restore".into(),
                ),
                ("a\nb".into(), "contains a line feed".into()),
            ],
        ),
        ("start", vec![("1", |o| o.start), ("off", |o| !o.start)], vec![("maybe".into(), boolean())]),
        (
            "storage",
            vec![("bk", |o| o.storage.as_deref() == Some("bk"))],
            ["", "a b", "bk\n", "1a"].map(|id| (id.into(), illegal(id))).into(),
        ),
        ("unique", vec![("1", |o| o.unique), ("0", |o| !o.unique)], vec![("2".into(), boolean())]),
    ];
    let tested: BTreeSet<_> = entries.iter().map(|(name, ..)| *name).collect();
    let known: BTreeSet<_> = QMRESTORE.positionals().iter().chain(QMRESTORE.options).map(|opt| opt.name).collect();
    assert_eq!(tested, known);

    let words = |name: &str, value: &str| -> Vec<String> {
        match name {
            "archive" => vec![value.to_owned(), "300".to_owned()],
            "vmid" => vec!["-".to_owned(), value.to_owned()],
            _ => vec!["-".to_owned(), "300".to_owned(), format!("--{name}"), value.to_owned()],
        }
    };
    let root = tempfile::tempdir().unwrap();
    for (name, right, wrong) in entries {
        for (value, holds) in right {
            let options = RestoreOptions::parse(&words(name, value)).unwrap();
            assert!(holds(&options), "{name}={value:?}: {options:?}");
        }
        for (value, reason) in wrong {
            let wanted = match reason.as_str() {
                "" => "400 unable to parse boolean option\n".to_owned(),
                reason => format!("400 Parameter verification failed.\n{name}: {reason}\n"),
            };
            let said = run(root.path(), "qmrestore", &words(name, &value));
            assert_eq!(said, (Some(255), wanted + "qmrestore <archive> <vmid> [OPTIONS]\n"), "{name}={value:?}");
        }
    }
}
