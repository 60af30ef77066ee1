//! Containers are backed up while they write: what is in the archive is one instant of all their volumes, and of the backup
//! nothing is left, whatever becomes of it.

#![expect(clippy::unwrap_used, reason = "tests")]

mod lab;

use anyhow::{Context, Result, ensure};
use lab::container_node::require_container;
use lab::diary_check::check;
use lab::{Container, Node, mib, require};
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

fn container() -> Container {
    let all = Container::new(200).name("ct01").rootfs(mib(48)).mp(0, "/data", mib(24), "backup=1");
    all.mp(1, "/nobackup", mib(16), "").bind(2, "/srv/shared", "/srv", "")
}

/// The newest archive of the container.
fn newest(node: &Node) -> Result<PathBuf> {
    let dir = node.path("/var/lib/vz/dump");
    let mut names: Vec<PathBuf> = std::fs::read_dir(dir)?.map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.to_string_lossy().contains("vzdump-lxc-200-") && path.to_string_lossy().contains(".tar"));
    names.sort();
    names.pop().context("there is no archive")
}

/// What stock GNU tar makes of an archive.
fn unpack(archive: &Path) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    let done = Command::new("tar").arg("-xpf").arg(archive).arg("-C").arg(dir.path()).output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(dir)
}

fn names(archive: &Path) -> Result<Vec<String>> {
    let listed = Command::new("tar").arg("-tf").arg(archive).output()?;
    ensure!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    Ok(String::from_utf8(listed.stdout)?.lines().map(str::to_owned).collect())
}

#[test]
fn stopped_and_suspended() -> Result<()> {
    if !require_container("stopped_and_suspended") || !require("stopped_and_suspended", &["zstd"]) {
        return Ok(());
    }
    let node = Node::new()?.container(container())?;
    node.ct_start(200)?;
    for mode in ["suspend", "stop", "snapshot"] {
        let run = node.vzdump(&["200", "--mode", mode, "--compress", "zstd", "--exclude-path", "/root/"])?;
        ensure!(run.code == 0, "{mode}: {}{}", run.stdout, run.stderr);
        let said = &run.stdout;
        for wanted in [
            "INFO: excluding volume mount point mp1 ('/nobackup') from backup (disabled)",
            "INFO: excluding bind mount point mp2 ('/srv') from backup (not a volume)",
            "INFO: NOT in this backup: volume mount point mp1 ('/nobackup') from 'local:200/",
            "INFO: NOT in this backup: bind mount point mp2 ('/srv') from '/srv/shared' (not a volume)",
            "exclude-path '/root/' excludes nothing",
            "INFO: Total bytes written: ",
            "INFO: guest is online again after ",
        ] {
            ensure!(said.contains(wanted), "{mode}: '{wanted}' is not in\n{said}");
        }
        ensure!(said.contains("mode failure - some volumes") == (mode == "snapshot"), "{said}");
        node.ct_unharmed(200)?;
        let archive = newest(&node)?;
        let members = names(&archive)?;
        assert_eq!(members[..2], ["./etc/vzdump/pct.conf", "./etc/vzdump/pct.fw"], "{mode}");
        let tree = unpack(&archive)?;
        let instant = check(tree.path())?;
        ensure!(instant.last.len() == 2, "{mode}: {:?}", instant.last);
        let config = std::fs::read_to_string(tree.path().join("etc/vzdump/pct.conf"))?;
        ensure!(config.contains("rootfs: ") && !config.contains("lock:"), "{config}");
    }
    Ok(())
}

#[test]
fn snapshots_of_two_volumes_are_one_instant() -> Result<()> {
    let name = "snapshots_of_two_volumes_are_one_instant";
    if !require_container(name) || !require(name, &["btrfs", "mkfs.btrfs", "zstd"]) {
        return Ok(());
    }
    let container =
        Container::new(200).name("ct01").unprivileged().rootfs(mib(48)).on("tank").mp(0, "/data", 0, "backup=1");
    let node = Node::new()?.btrfs_storage("tank", mib(512))?.container(container.on("tank").subvolume())?;
    open_to_others(&node)?;
    node.ct_start(200)?;
    for round in 0..2 {
        if round == 1 {
            // As a killed run of the original's leaves it.
            let subvolume = node.ct_volume(200, "mp0")?;
            let left = format!("{}@vzdump", subvolume.display());
            ensure!(
                Command::new("btrfs")
                    .args(["-q", "subvolume", "snapshot", "-r"])
                    .arg(&subvolume)
                    .arg(&left)
                    .status()?
                    .success()
            );
            let path = node.ct_config_path(200);
            let config = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            std::fs::write(&path, format!("{config}\n[vzdump]\nsnapstate: prepare\n"))?;
        }
        let run = node.vzdump(&["200", "--mode", "snapshot", "--compress", "zstd"])?;
        ensure!(run.code == 0, "{}{}", run.stdout, run.stderr);
        for wanted in [
            "backup mode: snapshot",
            "suspend vm to make snapshot",
            "create storage snapshot 'vzdump'",
            "resume vm",
            "cleanup temporary 'vzdump' snapshot",
        ] {
            ensure!(run.stdout.contains(wanted), "'{wanted}' is not in\n{}", run.stdout);
        }
        ensure!(run.stdout.contains("found old vzdump snapshot") == (round == 1), "{}", run.stdout);
        node.ct_unharmed(200)?;
        let tree = unpack(&newest(&node)?)?;
        check(tree.path())?;
        // Its root is root in the archive.
        use std::os::unix::fs::MetadataExt;
        assert_eq!(tree.path().join("etc/passwd").metadata().context("passwd")?.uid(), 0);
        assert_eq!(tree.path().join("etc/vzdump/pct.conf").metadata().context("pct.conf")?.uid(), 0);
    }
    Ok(())
}

/// The container's root is a user of the node that has to get to the node's directories, as on a real one.
fn open_to_others(node: &Node) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for dir in node.root().ancestors().take_while(|dir| *dir != Path::new("/")) {
        let mode = dir.metadata()?.permissions().mode();
        if mode & 0o001 == 0 {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode | 0o011))?;
        }
    }
    Ok(())
}

#[test]
fn killed_runs_leave_a_container_that_runs() -> Result<()> {
    let name = "killed_runs_leave_a_container_that_runs";
    if !require_container(name) || !require(name, &["btrfs", "mkfs.btrfs", "zstd"]) {
        return Ok(());
    }
    let container = Container::new(200).name("ct01").ballast(mib(24)).rootfs(mib(96)).on("tank").mp(
        0,
        "/data",
        mib(32),
        "backup=1",
    );
    let node = Node::new()?.btrfs_storage("tank", mib(768))?.container(container.on("tank"))?;
    node.ct_start(200)?;
    // The line after which it is killed, and how long after.
    let moments = [
        ("suspend", "starting final sync", 15),
        ("suspend", "starting first sync", 40),
        ("suspend", "creating vzdump archive", 30),
        ("snapshot", "suspend vm to make snapshot", 25),
        ("snapshot", "creating vzdump archive", 60),
        ("stop", "stopping virtual guest", 60),
        ("stop", "creating vzdump archive", 60),
    ];
    for (mode, line, after) in moments {
        let mut run = node.spawn_vzdump(&["200", "--mode", mode, "--compress", "zstd", "--bwlimit", "20000"])?;
        run.wait_for(line, Duration::from_secs(30))?;
        std::thread::sleep(Duration::from_millis(after));
        run.signal(Signal::SIGKILL)?;
        run.wait(Duration::from_secs(10))?;
        let give_up = Instant::now() + Duration::from_secs(30);
        loop {
            let left = node.ct_leftovers(200)?;
            if left.is_empty() {
                break;
            }
            ensure!(Instant::now() < give_up, "{mode}, killed {after} ms after '{line}', left\n{}", left.join("\n"));
            std::thread::sleep(Duration::from_millis(50));
        }
        node.ct_wait(200, 3)?;
    }
    let run = node.vzdump(&["200", "--mode", "snapshot", "--compress", "zstd"])?;
    ensure!(run.code == 0, "{}{}", run.stdout, run.stderr);
    node.ct_unharmed(200)?;
    check(unpack(&newest(&node)?)?.path())?;
    Ok(())
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_the_guest_fails() -> Result<()> {
    let name = "a_file_that_cannot_be_read_is_named_and_the_guest_fails";
    if !require_container(name) || !require(name, &["btrfs", "mkfs.btrfs"]) {
        return Ok(());
    }
    let tree = tempfile::tempdir()?;
    let pattern: Vec<u8> = b"rotten".iter().cycle().take(8192).copied().collect();
    std::fs::write(tree.path().join("rotten file"), &pattern)?;
    let container = Container::new(200).rootfs(mib(48)).mp(0, "/data", 0, "backup=1").on("tank").subvolume();
    let node = Node::new()?.btrfs_storage("tank", mib(512))?.container(container.holding(tree.path()))?;
    let mut spoilt = pattern;
    spoilt.truncate(64);
    node.spoil_btrfs("tank", &spoilt)?;
    let run = node.vzdump(&["200", "--mode", "stop"])?;
    ensure!(run.code == 255, "{}", run.stdout);
    let error = "ERROR: Backup of VM 200 failed - command 'tar' failed: exit code 2: tar: ./data/rotten file: ";
    ensure!(run.stdout.contains(error) || run.stderr.contains(error), "{}{}", run.stdout, run.stderr);
    ensure!(newest(&node).is_err(), "there is an archive");
    let left = node.ct_leftovers_on_disk(200)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
