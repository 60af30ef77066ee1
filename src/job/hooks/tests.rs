use super::*;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

struct Bench {
    dir: tempfile::TempDir,
    host: Host,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::with_root(dir.path().to_owned());
        Self { dir, host }
    }

    fn hook(&self, text: &str) -> Hook {
        // Written by a child of ours: a descriptor open for writing, inherited by the child of another test between
        // fork and exec, would make the script "busy".
        let path = self.dir.path().join("hook");
        let mut tee = Command::new("sh")
            .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        io::Write::write_all(&mut tee.stdin.take().unwrap(), text.as_bytes()).unwrap();
        assert!(tee.wait().unwrap().success());
        Hook::new(&self.host, "/hook").unwrap()
    }
}

fn run(hook: &Hook, args: &[&str], env: &HookEnv) -> (Result<(), HookError>, Vec<String>) {
    run_within(hook, args, Given { env: env.pairs().collect(), input: None }, None)
}

fn run_within(
    hook: &Hook,
    args: &[&str],
    given: Given<'_>,
    timeout: Option<Duration>,
) -> (Result<(), HookError>, Vec<String>) {
    let mut lines = Vec::new();
    let limits = Limits { cancel: &Cancel::new(), clean_up: false, timeout };
    let result = hook.run(args, given, limits, &mut |l| lines.push(l.to_owned()));
    (result, lines)
}

#[test]
fn arguments_and_an_emptied_environment() {
    let bench = Bench::new();
    let hook = bench.hook("#!/bin/sh\necho \"$# $*\"\npwd\n/usr/bin/env | /usr/bin/sort\ncat </dev/stdin\n");
    let env = HookEnv {
        storeid: Some("bk".into()),
        dumpdir: Some("/mnt/bk/dump".into()),
        vmtype: Some("qemu".into()),
        target: Some("/mnt/bk/dump/a.vma".into()),
        ..HookEnv::default()
    };
    let (result, lines) = run(&hook, &["backup-start", "stop", "101"], &env);
    result.unwrap();
    assert_eq!(lines[..2], ["3 backup-start stop 101", "/"]);
    // The shell itself adds PWD and perhaps OLDPWD, SHLVL and _.
    let vars: Vec<_> =
        lines[2..].iter().filter(|l| !["PWD=", "OLDPWD=", "SHLVL=", "_="].iter().any(|p| l.starts_with(p))).collect();
    assert_eq!(
        vars,
        [
            "DUMPDIR=/mnt/bk/dump",
            "LC_ALL=C",
            "LVM_SUPPRESS_FD_WARNINGS=1",
            "STOREID=bk",
            "TARGET=/mnt/bk/dump/a.vma",
            "VMTYPE=qemu"
        ]
    );
}

#[test]
fn failures_in_the_words_people_know() {
    let bench = Bench::new();
    let hook = bench.hook("#!/bin/sh\necho out\necho err >&2\nprintf tail\nexit 3\n");
    let (result, mut lines) = run(&hook, &["job-start"], &HookEnv::default());
    assert_eq!(result.unwrap_err().to_string(), "command '/hook job-start' failed: exit code 3");
    lines.sort();
    assert_eq!(lines, ["err", "out", "tail"]);
    let (result, lines) = run(&bench.hook("no such command\n"), &["job-init"], &HookEnv::default());
    assert_eq!(result.unwrap_err().to_string(), "command '/hook job-init' failed: exit code 127");
    assert!(lines[0].contains("not found"), "{lines:?}");
    let (result, _) = run(&bench.hook("#!/bin/sh\nkill -9 $$\n"), &["job-init"], &HookEnv::default());
    assert_eq!(result.unwrap_err().to_string(), "command '/hook job-init' failed: got signal 9");

    let missing = Hook::new(&bench.host, "/nosuch/hook").unwrap_err().to_string();
    assert_eq!(missing, "Error: The hook script '/nosuch/hook' does not exist.");
    let path: &Path = &bench.dir.path().join("hook");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let denied = Hook::new(&bench.host, "/hook").unwrap_err().to_string();
    assert_eq!(denied, "Error: The hook script '/hook' is not executable.");
}

#[test]
fn lines_come_as_they_are_written_and_a_background_child_does_not_hold_us() {
    let bench = Bench::new();
    let hook = bench.hook("#!/bin/sh\necho first\n/bin/sleep 1\necho second\n/bin/sleep 20 &\n");
    let start = Instant::now();
    let mut times = Vec::new();
    let limits = Limits { cancel: &Cancel::new(), clean_up: false, timeout: None };
    hook.run(&["job-start"], Given::default(), limits, &mut |_| times.push(start.elapsed())).unwrap();
    assert!(times[0] < Duration::from_millis(900) && times[1] >= Duration::from_secs(1), "{times:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_wish_to_stop_ends_the_script() {
    let bench = Bench::new();
    let hook = bench.hook("#!/bin/sh\nexec /bin/sleep 30\n");
    let cancel = Cancel::new();
    let setter = cancel.clone();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        setter.set();
    });
    let start = Instant::now();
    let limits = Limits { cancel: &cancel, clean_up: false, timeout: None };
    let error = hook.run(&["job-start"], Given::default(), limits, &mut |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "interrupted by signal");
    assert!(start.elapsed() < Duration::from_secs(4));
    thread.join().unwrap();
}

#[test]
fn a_phase_that_cleans_up_is_ended_by_the_second_wish_only() {
    let bench = Bench::new();
    let hook = bench.hook("#!/bin/sh\nexec /bin/sleep 30\n");
    for asked_before in [true, false] {
        let cancel = Cancel::new();
        if asked_before {
            cancel.set();
        }
        let setter = cancel.clone();
        let start = Instant::now();
        let thread = std::thread::spawn(move || {
            for _ in usize::from(asked_before)..2 {
                std::thread::sleep(Duration::from_millis(400));
                setter.set();
            }
        });
        let limits = Limits { cancel: &cancel, clean_up: true, timeout: None };
        let error = hook.run(&["log-end"], Given::default(), limits, &mut |_| {}).unwrap_err();
        thread.join().unwrap();
        assert_eq!(error.to_string(), "command '/hook log-end' failed: ended by a second signal");
        let least = Duration::from_millis(if asked_before { 400 } else { 800 });
        assert!(start.elapsed() >= least && start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }
}

#[test]
fn a_hook_that_hangs_is_ended_with_all_it_started() {
    let bench = Bench::new();
    // Neither listens to TERM; the second is a child that the first waits for.
    let stubborn = "#!/bin/sh\ntrap 'echo no' TERM\necho $$\n/bin/sh -c 'trap \"\" TERM; echo $$; /bin/sleep 60; /bin/sleep 60' &\n\
                    while :; do wait; /bin/sleep 1; done\n";
    let begun = Instant::now();
    let (result, lines) = run_within(
        &bench.hook(stubborn),
        &["backup-end", "stop", "100"],
        Given::default(),
        Some(Duration::from_secs(1)),
    );
    let error = result.unwrap_err().to_string();
    let wanted = "failed: not finished after 1 seconds (hook-timeout in /etc/vzkeep.conf)";
    assert_eq!(error, format!("command '/hook backup-end stop 100' {wanted}"));
    assert!(begun.elapsed() >= Duration::from_secs(1), "it was given its second");
    assert!(lines.contains(&"no".to_owned()), "TERM came first, and its last words are not lost: {lines:?}");
    let pids: Vec<u32> = lines.iter().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(pids.len(), 2, "{lines:?}");
    let deadline = Instant::now() + Duration::from_secs(10);
    let lives =
        |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    while pids.iter().any(lives) {
        assert!(Instant::now() < deadline, "{pids:?} are left");
        std::thread::sleep(TICK);
    }
    // One that is in time is not touched.
    let (result, lines) =
        run_within(&bench.hook("#!/bin/sh\necho hi\n"), &["job-end"], Given::default(), Some(Duration::from_secs(60)));
    assert!(result.is_ok() && lines == ["hi"]);
}

#[test]
fn standard_input_may_be_read_or_not() {
    let bench = Bench::new();
    let input = vec![b'x'; 1 << 20];
    let given = || Given { env: Vec::new(), input: Some(input.clone()) };
    let (result, lines) = run_within(&bench.hook("#!/bin/sh\n/usr/bin/wc -c\n"), &["job-init"], given(), None);
    assert!(result.is_ok() && lines == ["1048576"], "{lines:?}");
    for text in ["#!/bin/sh\nexit 0\n", "#!/bin/sh\nexec 0<&-\n/bin/sleep 0.2\n", "#!/bin/sh\n/usr/bin/head -c 10\n"] {
        let (result, _) = run_within(&bench.hook(text), &["job-init"], given(), None);
        assert!(result.is_ok(), "{text}");
    }
}

#[test]
fn variables_of_old() {
    let env = HookEnv { target: Some("/d/a.vma".into()), ..HookEnv::default() };
    let pairs: Vec<_> = env.legacy_pairs().collect();
    assert!(pairs.contains(&("TARFILE", "/d/a.vma")) && pairs.iter().any(|(name, _)| *name == "PATH"));
    assert_eq!(HookEnv::default().legacy_pairs().count(), 1);
}
