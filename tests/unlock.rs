//! `vzkeep unlock`: removes a lock only when whoever set it is provably gone, and says what it found.

mod lab;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Dice, Format, Guest, Node, mib};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

fn node() -> Result<Node> {
    Node::new()?.guest(Guest::new(100).disk("scsi0", Format::Raw, mib(1)))
}

/// Puts a lock into the guest's config, as somebody did who is not there any more.
fn lock(node: &Node, lock: &str) -> Result<()> {
    let text = fs::read_to_string(node.config_path(100))?;
    Ok(fs::write(node.config_path(100), format!("lock: {lock}\n{text}"))?)
}

fn is_locked(node: &Node) -> Result<bool> {
    Ok(node.config(100)?.get("lock").is_some())
}

/// `vzkeep unlock` refuses with these words and leaves the lock.
fn refuses(node: &Node, words: &str) -> Result<()> {
    let output = node.run("vzkeep", &["unlock", "100"])?;
    ensure!(output.code == 255 && output.stdout.is_empty(), "exit {}: {}", output.code, output.stdout);
    ensure!(output.stderr.contains(words), "'{words}' is missing in: {}", output.stderr);
    ensure!(is_locked(node)?, "the lock is gone");
    Ok(())
}

/// `vzkeep unlock` says these words and removes the lock.
fn removes(node: &Node, words: &[&str]) -> Result<()> {
    let output = node.ok("vzkeep", &["unlock", "100"])?;
    output.says(words)?;
    ensure!(!is_locked(node)?, "the lock is still there: {}", output.stdout);
    Ok(())
}

/// A living process that could be a backup job, killed when dropped, and its task's id.
struct Stranger {
    child: Child,
    upid: String,
}

impl Stranger {
    fn new(id: &str) -> Result<Self> {
        let child = Command::new("sleep").arg("300").spawn()?;
        let start = vzkeep::host::procfs::start_time(child.id())?;
        let upid = format!("UPID:pve1:{:08X}:{start:08X}:6B02B435:vzdump:{id}:root@pam:", child.id());
        Ok(Self { child, upid })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).ok();
    }
}

#[test]
fn what_is_nobodys_goes_and_everything_else_stays() -> Result<()> {
    if !lab::require("what_is_nobodys_goes_and_everything_else_stays", &["qemu-img"]) {
        return Ok(());
    }
    let node = node()?;
    let output = node.ok("vzkeep", &["unlock", "100"])?;
    output.says(&["VM 100 is not locked, and no killed run left anything of it: nothing to do"])?;
    for (words, wanted) in [
        (&["unlock", "999"][..], "there is no VM 999 on this node"),
        (&["unlock", "99"], "invalid value '99'"),
        (&["unlock"], "required arguments"),
    ] {
        let output = node.run("vzkeep", words)?;
        ensure!(output.code == 255 && output.stderr.contains(wanted), "{words:?}: {}", output.stderr);
    }
    fs::create_dir_all(node.path("/etc/pve/nodes/pve2/qemu-server"))?;
    fs::write(node.path("/etc/pve/nodes/pve2/qemu-server/300.conf"), "lock: backup\n")?;
    fs::write(node.path("/etc/pve/nodes/pve1/lxc/200.conf"), "lock: backup\n")?;
    let output = node.run("vzkeep", &["unlock", "300"])?;
    ensure!(output.code == 255 && output.stderr.contains("VM 300 lives on node 'pve2'"), "{}", output.stderr);
    node.ok("vzkeep", &["unlock", "200"])?.says(&["removed lock 'backup' of VM 200"])?;
    assert_eq!(fs::read_to_string(node.path("/etc/pve/nodes/pve1/lxc/200.conf"))?, "");
    fs::write(node.path("/etc/pve/nodes/pve1/lxc/200.conf"), "lock: migrate\n")?;
    let output = node.run("vzkeep", &["unlock", "200"])?;
    ensure!(output.code == 255 && output.stderr.contains("'pct unlock 200'"), "{}", output.stderr);

    // Other locks are not ours to judge.
    let config = fs::read_to_string(node.config_path(100))?;
    lock(&node, "migrate")?;
    refuses(&node, "its lock is 'migrate', which no backup sets\n")?;
    refuses(&node, "'qm unlock 100'")?;
    fs::write(node.config_path(100), &config)?;

    // A job that meets a lock of somebody who is gone says so, in a line of its own.
    lock(&node, "backup")?;
    let output = node.vzdump(&["100", "--storage", "backup"])?;
    output.failed_with(&[
        "ERROR: Backup of VM 100 failed - VM is locked (backup)",
        "INFO: the lock was left behind by a backup job that is gone: none that could have set it is alive on this \
         node; 'vzkeep unlock 100' removes it",
        "INFO: Failed at ",
    ])?;
    let output = node.ok("vzkeep", &["unlock", "100", "--dry-run"])?;
    output.says(&["VM 100 is locked (backup); the lock was left behind by ", "would remove: lock 'backup'"])?;
    ensure!(is_locked(&node)?, "a dry run removed the lock");
    removes(&node, &["VM 100 is locked (backup)", "removed lock 'backup' of VM 100"])?;
    ensure!(fs::read_to_string(node.config_path(100))? == config, "more than the lock changed");
    node.backup(100, &[])?;
    Ok(())
}

#[test]
fn a_living_job_of_the_stock_program_keeps_its_lock() -> Result<()> {
    if !lab::require("a_living_job_of_the_stock_program_keeps_its_lock", &["qemu-img"]) {
        return Ok(());
    }
    let node = node()?;
    lock(&node, "backup")?;
    let active = node.path("/var/log/pve/tasks/active");
    let stranger = Stranger::new("100")?;
    fs::write(&active, format!("{} 0\n", stranger.upid))?;
    refuses(&node, &format!("a backup job is alive that may have set the lock: task {}", stranger.upid))?;
    // Its own job does not claim what may be somebody else's.
    let output = node.vzdump(&["100", "--storage", "backup"])?;
    output.failed_with(&["VM is locked (backup)"])?;
    ensure!(!output.stdout.contains("left behind"), "{}", output.stdout);
    let upid = stranger.upid.clone();
    drop(stranger);
    fs::write(&active, format!("{upid} 0\n"))?;
    removes(&node, &[&format!("left behind by task {upid} (process "), "removed lock 'backup'"])?;

    // The node's lock is held: by a job of another guest, by one of several, by nobody knows whom.
    let (pid_file, global) = (node.path("/run/vzdump.pid"), fs::File::create(node.path("/run/vzdump.lock"))?);
    let held = Flock::lock(global, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    let several = Stranger::new("")?;
    lock(&node, "backup")?;
    fs::write(&pid_file, &several.upid)?;
    refuses(&node, &several.upid)?;
    fs::write(&pid_file, &upid)?;
    refuses(&node, "an unknown process, which holds '/var/run/vzdump.lock'")?;
    let other = Stranger::new("101")?;
    fs::write(&pid_file, &other.upid)?;
    removes(&node, &["removed lock 'backup'"])?;
    drop(held);
    Ok(())
}

#[test]
fn our_own_run_keeps_its_lock_until_it_is_killed() -> Result<()> {
    if !lab::require("our_own_run_keeps_its_lock_until_it_is_killed", &["qemu-img"]) {
        return Ok(());
    }
    let node = node()?;
    let hook = node.path("/root/hook");
    fs::create_dir_all(node.path("/root"))?;
    // It outlives the run that is killed, but not the node.
    let wait = format!("echo waiting; while [ -e {} ]; do /bin/sleep 0.2; done", hook.display());
    fs::write(&hook, format!("#!/bin/sh\n[ $1 != backup-end ] || {{ {wait}; }}\n"))?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
    let mut run = node.spawn_vzdump(&["100", "--storage", "backup", "--script", "/root/hook"])?;
    run.wait_for("waiting", Duration::from_secs(30))?;
    let pid = run.pid();
    refuses(&node, &format!("vzdump (process {pid}) is working on it"))?;

    // Killed with its guardian, so that nobody cleans up.
    let guardians = node.guardians()?;
    ensure!(guardians.len() == 1, "guardians: {guardians:?}");
    kill(Pid::from_raw(guardians[0]), Signal::SIGKILL)?;
    run.signal(Signal::SIGKILL)?;
    run.wait(Duration::from_secs(10))?;
    node.wait_for_guardian()?;
    ensure!(is_locked(&node)?, "nobody should have removed the lock");
    let output = node.ok("vzkeep", &["unlock", "100", "--dry-run"])?;
    output.says(&[
        &format!("(backup); the lock was left behind by vzdump (process {pid}), which was killed"),
        "would undo: lock 'backup' in the guest's config",
    ])?;
    ensure!(is_locked(&node)?, "a dry run removed the lock");
    removes(&node, &["which was killed", "removed lock 'backup' of VM 100"])?;
    ensure!(!node.path("/var/lib/vzkeep/100.json").exists(), "the record is still there");
    node.ok("vzkeep", &["unlock", "100"])?.says(&["nothing to do"])?;
    Ok(())
}

#[test]
fn a_backup_inside_qemu_keeps_the_lock() -> Result<()> {
    if !lab::programs::require_guest("a_backup_inside_qemu_keeps_the_lock") {
        return Ok(());
    }
    // More than a job copies before it looks at its speed limit.
    let size = mib(16);
    let node = Node::new()?.guest(Guest::new(100).disk("scsi0", Format::Raw, size))?;
    fs::write(node.disk(100, "scsi0")?.0, Dice::seeded(9).bytes(usize::try_from(size)?))?;
    node.switch_on(100)?;
    lock(&node, "backup")?;
    let blocks = node.qmp(100, "query-block", &json!({}))?;
    let disk = blocks.as_array().into_iter().flatten().find_map(|block| block["inserted"]["node-name"].as_str());
    let disk = disk.context("the guest has no disk")?;
    let target = json!({"driver": "null-co", "node-name": "target", "size": size, "read-zeroes": true});
    node.qmp(100, "blockdev-add", &target)?;
    let job = json!({"job-id": "stock", "device": disk, "target": "target", "sync": "full", "speed": 1});
    node.qmp(100, "blockdev-backup", &job)?;
    refuses(&node, "a backup still runs inside its QEMU (block job 'stock')")?;
    node.qmp(100, "block-job-cancel", &json!({"device": "stock", "force": true}))?;
    let gone = std::time::Instant::now() + Duration::from_secs(20);
    while !node.qmp(100, "query-block-jobs", &json!({}))?.as_array().is_some_and(Vec::is_empty) {
        ensure!(std::time::Instant::now() < gone, "the job does not end");
        std::thread::sleep(Duration::from_millis(50));
    }
    removes(&node, &["removed lock 'backup' of VM 100"])?;
    Ok(())
}
