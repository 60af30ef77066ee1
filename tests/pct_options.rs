//! Every option of `pct restore`: what a right value becomes, and how a wrong one is refused before anything begins. What a
//! setting does to the new config is tested in `restore::container::plan`, a whole restore in tests/pct_restore.rs.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use vzkeep::schema::ContainerRestoreOptions;
use vzkeep::schema::tables::PCT_RESTORE;

type Right = fn(&ContainerRestoreOptions) -> bool;

/// One option: what it is given as, right values, and wrong ones with the reason.
struct Entry {
    name: &'static str,
    right: Vec<(&'static str, Right)>,
    wrong: Vec<(String, String)>,
}

impl Entry {
    fn wrong(mut self, values: &[&str], reason: &str) -> Self {
        self.wrong.extend(values.iter().map(|value| ((*value).to_owned(), reason.replace('@', value))));
        self
    }

    fn too_long(mut self, most: usize) -> Self {
        self.wrong.push(("x".repeat(most + 1), format!("value may only be {most} characters long")));
        self
    }

    fn one_line(self) -> Self {
        self.wrong(&["a\nb", "a\rb"], "contains a line feed")
    }

    /// The reason of a wrong boolean is the parser's.
    fn boolean(self) -> Self {
        self.wrong(&["maybe", "2"], "")
    }

    fn integer(self, least: u64) -> Self {
        let below = if least == 0 { "-1".to_owned() } else { (least - 1).to_string() };
        self.wrong(&["abc", "1.5", ""], "type check ('integer') failed - got '@'")
            .wrong(&[&below], &format!("value must have a minimum value of {least}"))
    }

    fn number(self) -> Self {
        self.wrong(&["abc", ""], "type check ('number') failed - got '@'")
    }

    fn one_of(self, words: &str) -> Self {
        self.wrong(&["other", ""], &format!("value '@' does not have a value in the enumeration '{words}'"))
    }

    /// Given with a number: `net0`. As another one than `most - 1` at most it is refused.
    fn numbered(mut self, most: u32) -> Self {
        let reason = format!("give it with a number below {most}: '--{}0 ...'", self.name.trim_end_matches("[n]"));
        self.wrong.push((String::new(), reason));
        self
    }
}

fn entry(name: &'static str, right: &[(&'static str, Right)]) -> Entry {
    Entry { name, right: right.to_vec(), wrong: Vec::new() }
}

/// Whether setting `key` has `value`.
fn has(options: &ContainerRestoreOptions, key: &str, value: &str) -> bool {
    options.settings.len() == 1 && options.settings.get(key).is_some_and(|found| found == value)
}

fn entries() -> Vec<Entry> {
    let vmid = "invalid format - value does not look like a valid VM ID";
    let storage = "invalid format - storage ID '@' contains illegal characters";
    vec![
        entry("vmid", &[("0201", |o| o.vmid.get() == 201)]).wrong(&["", "99", "abc", "201\n", "1000000000"], vmid),
        entry("ostemplate", &[("-", |o| o.archive == "-"), ("bk:backup/x.tar", |o| o.archive == "bk:backup/x.tar")])
            .wrong(&[""], "value must be at least 1 characters long")
            .wrong(&["/a\nb"], "contains a line feed")
            .too_long(255),
        entry("arch", &[("arm64", |o| has(o, "arch", "arm64"))]).one_of("amd64, i386, arm64, armhf, riscv32, riscv64"),
        entry("bwlimit", &[("1.5", |o| o.bwlimit == Some(1536)), ("0", |o| o.bwlimit == Some(0))])
            .number()
            .wrong(&["-1"], "value must have a minimum value of 0"),
        entry("cmode", &[("shell", |o| has(o, "cmode", "shell"))]).one_of("shell, console, tty"),
        entry("console", &[("no", |o| has(o, "console", "0")), ("1", |o| has(o, "console", "1"))]).boolean(),
        entry("cores", &[("8192", |o| has(o, "cores", "8192"))])
            .integer(1)
            .wrong(&["8193"], "value must have a maximum value of 8192"),
        entry("cpulimit", &[("0.5", |o| has(o, "cpulimit", "0.5"))]).number(),
        entry("cpuunits", &[("0", |o| has(o, "cpuunits", "0"))])
            .integer(0)
            .wrong(&["500001"], "value must have a maximum value of 500000"),
        entry("debug", &[("on", |o| has(o, "debug", "1"))]).boolean(),
        entry("description", &[("two\nlines: 5%\n", |o| o.description.as_deref() == Some("two\nlines: 5%\n"))])
            .too_long(8192),
        entry("dev[n]", &[("/dev/fuse,mode=0666", |o| has(o, "dev0", "/dev/fuse,mode=0666"))]).numbered(256),
        entry("features", &[("nesting=1", |o| has(o, "features", "nesting=1"))]).one_line(),
        entry("force", &[("1", |o| o.force), ("off", |o| !o.force)]).boolean(),
        entry("hookscript", &[("local:snippets/h.pl", |o| has(o, "hookscript", "local:snippets/h.pl"))]).one_line(),
        entry("hostname", &[("ct.b", |o| has(o, "hostname", "ct.b"))])
            .wrong(&["a_b", "", "-a"], "invalid format - value '@' does not look like a valid DNS name")
            .wrong(&["a\nb"], "contains a line feed")
            .too_long(255),
        entry("ignore-unpack-errors", &[("1", |o| o.ignore_unpack_errors)]).boolean(),
        entry("memory", &[("16", |o| has(o, "memory", "16"))]).integer(16),
        entry("mp[n]", &[("local:4,mp=/data", |o| o.mount_points.get(&0).is_some_and(|v| v == "local:4,mp=/data"))])
            .numbered(256),
        entry("nameserver", &[("::1 10.0.0.1", |o| has(o, "nameserver", "::1 10.0.0.1"))]).one_line(),
        entry("net[n]", &[("name=eth0,bridge=vmbr0", |o| has(o, "net0", "name=eth0,bridge=vmbr0"))]).numbered(32),
        entry("onboot", &[("true", |o| has(o, "onboot", "1"))]).boolean(),
        entry("ostype", &[("debian", |o| has(o, "ostype", "debian"))])
            .wrong(&["", "a b"], "value does not match the regex pattern"),
        entry("pool", &[]).wrong(
            &["p"],
            "not supported; add the container to its pool with 'pvesh set /pools/<pool>' after the restore",
        ),
        entry("protection", &[("1", |o| has(o, "protection", "1"))]).boolean(),
        entry("rootfs", &[("thin:0.5", |o| o.rootfs.as_deref() == Some("thin:0.5"))]).one_line(),
        entry("searchdomain", &[("a.b", |o| has(o, "searchdomain", "a.b"))]).one_line(),
        entry("start", &[("1", |o| o.start), ("0", |o| !o.start)]).boolean(),
        entry("startup", &[("order=1", |o| has(o, "startup", "order=1"))]).one_line(),
        entry("storage", &[("bk", |o| o.storage.as_deref() == Some("bk"))]).wrong(&["", "a b", "bk\n", "1a"], storage),
        entry("swap", &[("0", |o| has(o, "swap", "0"))]).integer(0),
        entry("tags", &[("a;b", |o| has(o, "tags", "a;b"))]).one_line(),
        entry("timezone", &[("host", |o| has(o, "timezone", "host"))]).one_line(),
        entry("tty", &[("6", |o| has(o, "tty", "6"))]).integer(0).wrong(&["7"], "value must have a maximum value of 6"),
        entry("unique", &[("1", |o| o.unique), ("0", |o| !o.unique)]).boolean(),
        entry("unprivileged", &[("1", |o| o.unprivileged == Some(true)), ("0", |o| o.unprivileged == Some(false))])
            .boolean(),
    ]
}

#[test]
fn every_option_is_here() {
    let tested: BTreeSet<_> = entries().iter().map(|entry| entry.name).collect();
    let known: BTreeSet<_> = PCT_RESTORE.positionals().iter().chain(PCT_RESTORE.options).map(|opt| opt.name).collect();
    assert_eq!(tested, known);
}

fn words(name: &str, value: &str) -> Vec<String> {
    match (name, name.strip_suffix("[n]")) {
        ("vmid", _) => vec![value.to_owned(), "-".to_owned()],
        ("ostemplate", _) => vec!["201".to_owned(), value.to_owned()],
        // A wrong value of one with a number is one without.
        (_, Some(name)) if value.is_empty() => ["201", "-", &format!("--{name}"), "x"].map(str::to_owned).to_vec(),
        (_, Some(name)) => ["201", "-", &format!("--{name}0"), value].map(str::to_owned).to_vec(),
        (name, None) => ["201", "-", &format!("--{name}"), value].map(str::to_owned).to_vec(),
    }
}

#[test]
fn right_values_become_what_they_say() {
    for Entry { name, right, .. } in entries() {
        for (value, holds) in right {
            let options = ContainerRestoreOptions::parse(&words(name, value));
            let options = options.unwrap_or_else(|error| panic!("{name}={value:?}: {error}"));
            assert!(holds(&options), "{name}={value:?}: {options:?}");
        }
    }
}

/// Runs the program; exit code and standard error without empty lines. The node below `root` must stay empty.
fn run(root: &Path, words: &[String]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vzkeep"));
    let output = command.arg("pct-restore").args(words).env("VZKEEP_ROOT", root).stdin(Stdio::null()).output().unwrap();
    assert!(output.stdout.is_empty(), "{words:?}: {output:?}");
    assert_eq!(std::fs::read_dir(root).unwrap().count(), 0, "{words:?}: nothing may have begun");
    let said = String::from_utf8(output.stderr).unwrap();
    let filled: Vec<_> = said.lines().filter(|line| !line.is_empty()).collect();
    (output.status.code(), filled.join("\n") + "\n")
}

#[test]
fn wrong_values_are_refused() {
    let root = tempfile::tempdir().unwrap();
    for Entry { name, wrong, .. } in entries() {
        for (value, reason) in wrong {
            let wanted = match reason.as_str() {
                "" => "400 unable to parse boolean option\n".to_owned(),
                reason => format!("400 Parameter verification failed.\n{name}: {reason}\n"),
            };
            let said = run(root.path(), &words(name, &value));
            assert_eq!(said, (Some(255), wanted + "pct restore <vmid> <ostemplate> [OPTIONS]\n"), "{name}={value:?}");
        }
    }
}
