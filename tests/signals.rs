//! A signal at every phase of a job: the run ends with exit code 255 and says so, the guest is as it was, nothing is left.

mod lab;

use anyhow::{Context, Result, ensure};
use lab::run::Output;
use lab::{Format, Guest, Node, mib};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a run may take to end after the signal.
const SOON: Duration = Duration::from_secs(30);
const VMID: u32 = 101;

/// A hook that tells its phase, writes it down, and at the phase in the file `at` signals the run with what `with` says.
fn hook(node: &Node) -> Result<String> {
    let path = node.path("/tmp/hook");
    let root = node.root().display();
    let text = format!(
        "#!/bin/sh\necho \"HOOK: $*\"\necho \"$*\" >> {root}/tmp/calls\n\
         read -r at < {root}/tmp/at\nread -r with < {root}/tmp/with\n\
         if [ \"$1\" = \"$at\" ]; then kill -s \"$with\" $PPID; fi\n"
    );
    std::fs::write(&path, text)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path.display().to_string())
}

fn arm(node: &Node, at: &str, with: &str) -> Result<()> {
    std::fs::write(node.path("/tmp/calls"), "")?;
    std::fs::write(node.path("/tmp/at"), format!("{at}\n"))?;
    Ok(std::fs::write(node.path("/tmp/with"), format!("{with}\n"))?)
}

fn calls(node: &Node) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(node.path("/tmp/calls"))?;
    Ok(text.lines().map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect())
}

/// Nothing of a run is left: locks, drafts, records, processes; its task is ended and says why.
fn nothing_left(node: &Node, what: &str) -> Result<()> {
    let left = node.leftovers_on_disk(VMID)?;
    ensure!(left.is_empty(), "{what}: left behind: {left:?}");
    ensure!(!node.path("/var/run/vzdump.pid").exists(), "{what}: the pid file is left");
    let records: Vec<_> = std::fs::read_dir(node.path("/var/lib/vzkeep"))
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "json"))
        .collect();
    ensure!(records.is_empty(), "{what}: records are left: {records:?}");
    let active = std::fs::read_to_string(node.path("/var/log/pve/tasks/active")).unwrap_or_default();
    let running: Vec<&str> = active.lines().filter(|line| line.ends_with(" 0")).collect();
    ensure!(running.is_empty(), "{what}: the task is still active: {running:?}");
    let index = std::fs::read_to_string(node.path("/var/log/pve/tasks/index"))?;
    let last = index.lines().last().unwrap_or_default();
    ensure!(last.ends_with("interrupted by signal"), "{what}: the task's end: {last}");
    let upid = last.split(' ').next().unwrap_or_default();
    let log = task_log(&node.path("/var/log/pve/tasks"), upid).context("no task log")?;
    ensure!(log.trim_end().ends_with("TASK ERROR: interrupted by signal"), "{what}: the task's log: {log}");
    Ok(())
}

fn task_log(tasks: &Path, upid: &str) -> Option<String> {
    let dirs = std::fs::read_dir(tasks).ok()?.flatten();
    dirs.filter_map(|dir| std::fs::read_to_string(dir.path().join(upid)).ok()).next()
}

fn interrupted(output: &Output, what: &str) -> Result<()> {
    ensure!(output.code == 255, "{what}: exit {}:\n{}{}", output.code, output.stdout, output.stderr);
    ensure!(output.stderr == "interrupted by signal\n", "{what}: stderr: {}", output.stderr);
    Ok(())
}

/// What follows a signal in each phase: the hooks that are still called, and whether an archive is there afterwards.
const PHASES: &[(&str, &[&str], bool)] = &[
    ("job-init", &["job-init"], false),
    ("job-start", &["job-init", "job-start", "job-abort"], false),
    ("backup-start", &["job-init", "job-start", "backup-start", "backup-abort", "log-end", "job-abort"], false),
    (
        "backup-end",
        &["job-init", "job-start", "backup-start", "backup-end", "backup-abort", "log-end", "job-abort"],
        true,
    ),
    ("log-end", &["job-init", "job-start", "backup-start", "backup-end", "log-end", "job-abort"], true),
    ("job-end", &["job-init", "job-start", "backup-start", "backup-end", "log-end", "job-end", "job-abort"], true),
];

fn node(disk: u64) -> Result<Node> {
    let node = Node::new()?.guest(Guest::new(VMID).disk("scsi0", Format::Raw, disk))?;
    let image = node.disk(VMID, "scsi0")?.0;
    // Data, so that there is something to read and to write.
    let bytes: Vec<u8> = (0..disk).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1).collect();
    std::fs::write(image, bytes)?;
    Ok(node)
}

#[test]
fn every_signal_at_every_phase() -> Result<()> {
    let node = node(mib(1))?;
    let script = hook(&node)?;
    for (round, (phase, wanted, archive)) in PHASES.iter().enumerate() {
        // Two of the four at each phase; with six phases every signal meets three of them.
        for signal in [round % 4, (round + 2) % 4].map(|at| ["TERM", "INT", "HUP", "QUIT"][at]) {
            let what = format!("{signal} at {phase}");
            arm(&node, phase, signal)?;
            let before = node.archives("backup", VMID)?.len();
            let run = node.spawn_vzdump(&[&VMID.to_string(), "--storage", "backup", "--script", &script])?;
            let output = run.wait(SOON)?;
            interrupted(&output, &what)?;
            ensure!(calls(&node)? == *wanted, "{what}: hooks {:?}", calls(&node)?);
            nothing_left(&node, &what)?;
            let made = node.archives("backup", VMID)?.len() - before;
            ensure!(made == usize::from(*archive), "{what}: {made} archives");
            if *phase != "job-init" {
                ensure!(
                    output.stdout.contains("ERROR: Backup job failed - interrupted by signal"),
                    "{}",
                    output.stdout
                );
            }
        }
    }
    Ok(())
}

#[test]
fn in_the_middle_of_the_copy() -> Result<()> {
    if !lab::require("in_the_middle_of_the_copy", &["lzop"]) {
        return Ok(());
    }
    let node = node(mib(8))?;
    let script = hook(&node)?;
    arm(&node, "never", "TERM")?;
    for (signal, compress) in [(Signal::SIGHUP, "lzo"), (Signal::SIGQUIT, "gzip"), (Signal::SIGTERM, "0")] {
        let words =
            [&VMID.to_string(), "--bwlimit", "256", "--storage", "backup", "--compress", compress, "--script", &script];
        let mut run = node.spawn_vzdump(&words)?;
        run.wait_for("started backup task", SOON)?;
        run.signal(signal)?;
        let begun = Instant::now();
        let output = run.wait(SOON)?;
        interrupted(&output, compress)?;
        ensure!(begun.elapsed() < Duration::from_secs(10), "{signal}: ended after {:?}", begun.elapsed());
        output.says(&[
            "ERROR: interrupted by signal",
            "INFO: aborting backup job",
            "ERROR: Backup of VM 101 failed - interrupted by signal",
            "INFO: HOOK: backup-abort stop 101",
            "INFO: HOOK: log-end stop 101",
            "INFO: HOOK: job-abort",
            "ERROR: Backup job failed - interrupted by signal",
        ])?;
        nothing_left(&node, compress)?;
        ensure!(node.archives("backup", VMID)?.is_empty(), "{signal}: an archive");
    }
    Ok(())
}

#[test]
fn while_another_job_is_waited_for() -> Result<()> {
    let node = node(mib(1))?;
    let lock = std::fs::File::create(node.path("/var/run/vzdump.lock"))?;
    let _held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).map_err(|(_, e)| e)?;
    let mut run = node.spawn_vzdump(&[&VMID.to_string(), "--storage", "backup"])?;
    run.wait_for("trying to get global lock - waiting...", SOON)?;
    run.signal(Signal::SIGINT)?;
    interrupted(&run.wait(SOON)?, "waiting")?;
    nothing_left(&node, "waiting")
}

/// Ctrl-C goes to everybody in the foreground: to us, to a hook, to whatever the hook has started. What those make of it is
/// no other error.
#[test]
fn ctrl_c_to_the_whole_process_group() -> Result<()> {
    if !lab::require("ctrl_c_to_the_whole_process_group", &["lzop"]) {
        return Ok(());
    }
    let node = node(mib(8))?;
    let slow = node.path("/tmp/slow-hook");
    std::fs::write(&slow, "#!/bin/sh\nif [ \"$1\" = backup-start ]; then echo HOOK: sleeps; sleep 60; fi\n")?;
    std::fs::set_permissions(&slow, std::fs::Permissions::from_mode(0o755))?;
    let slow = slow.display().to_string();
    let id = VMID.to_string();
    for (text, words) in [
        ("HOOK: sleeps", vec!["--script", &slow]),
        ("started backup task", vec!["--bwlimit", "256", "--compress", "lzo"]),
    ] {
        let log = node.path("/tmp/said");
        let mut command: Command = node.command("vzdump");
        command.args([&id, "--storage", "backup"]).args(words).process_group(0).stdin(Stdio::null());
        let out = std::fs::File::create(&log)?;
        let mut child = command.stderr(out.try_clone()?).stdout(out).spawn()?;
        let deadline = Instant::now() + SOON;
        while !std::fs::read_to_string(&log)?.contains(text) {
            ensure!(Instant::now() < deadline && child.try_wait()?.is_none(), "{}", std::fs::read_to_string(&log)?);
            std::thread::sleep(Duration::from_millis(10));
        }
        killpg(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
        while child.try_wait()?.is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let said = std::fs::read_to_string(&log)?;
        ensure!(child.wait()?.code() == Some(255), "{said}");
        ensure!(said.contains("ERROR: Backup of VM 101 failed - interrupted by signal"), "{said}");
        ensure!(said.trim_end().ends_with("interrupted by signal"), "{said}");
        ensure!(!said.contains("got signal"), "{said}");
        nothing_left(&node, text)?;
    }
    Ok(())
}

#[test]
fn stop_ends_the_running_job() -> Result<()> {
    let node = node(mib(8))?;
    let id = VMID.to_string();
    let mut run = node.spawn_vzdump(&[&id, "--storage", "backup", "--bwlimit", "256"])?;
    run.wait_for("started backup task", SOON)?;
    let pid_file = std::fs::read_to_string(node.path("/var/run/vzdump.pid"))?;
    ensure!(pid_file.starts_with("UPID:pve1:"), "pid file: {pid_file}");
    node.ok("vzdump", &["--stop"])?;
    ensure!(
        kill(Pid::from_raw(run.pid()), None).is_err() || !run.is_running()?,
        "--stop came back before the job's end"
    );
    interrupted(&run.wait(SOON)?, "--stop")?;
    nothing_left(&node, "--stop")?;
    // No job: nothing to do, and no error.
    node.ok("vzdump", &["--stop"])?;
    Ok(())
}
