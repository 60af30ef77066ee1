//! Backups of real containers that write meanwhile: what is restored was so at one instant, after a shutdown where the mode
//! says so; and whatever befalls the run, the container goes on.

mod lab;

use anyhow::{Context, Result, ensure};
use lab::container_node::require_container;
use lab::run::Output;
use lab::{Container, Dice, Node, mib};
use nix::sys::signal::Signal;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a busy machine may take for what takes a quiet one a moment.
const PATIENCE: Duration = Duration::from_secs(120);
/// The container to which archives are restored, only to be looked at.
const RESTORED: u32 = 900;

/// A node with container 200: on btrfs, where it can be snapshotted, or in images of a directory.
fn node(snapshots: bool) -> Result<Node> {
    let container = Container::new(200).name("ct01").ballast(mib(4));
    let container = if snapshots {
        let container = container.rootfs(0).on("bt").subvolume().mp(0, "/data", mib(32), "backup=1").on("bt");
        container.mp(1, "/logs", 0, "backup=1").on("bt").subvolume()
    } else {
        // Copied last: what a copy has to look at before lies between the two diaries.
        container.rootfs(mib(64)).mp(0, "/volumes/data", mib(32), "backup=1")
    };
    let node = Node::new()?;
    let node = if snapshots { node.btrfs_storage("bt", mib(512))? } else { node };
    node.container(container.mp(2, "/scratch", mib(8), ""))
}

fn required(test: &str) -> bool {
    require_container(test) && lab::require(test, &["mkfs.btrfs", "btrfs", "zstd"])
}

/// Restores an archive and reads the diaries in it.
fn restored(node: &Node, archive: &Path) -> Result<lab::diary_check::Instant> {
    let archive = node.inner(archive).display().to_string();
    node.ok("vzkeep", &["pct-restore", &RESTORED.to_string(), &archive, "--storage", "local"])?;
    let found = node.ct_tree(RESTORED)?.check();
    node.ct_remove(RESTORED)?;
    Ok(found?)
}

/// A hook that makes the last copy of suspend mode look at all the ballast once more, which takes longer than an entry.
fn changing_hook(node: &Node, pid: i32) -> Result<String> {
    let path = node.path("/tmp/hook");
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" = pre-stop ]; then /usr/bin/touch /proc/{pid}/root/var/ballast/*/*; fi\nexit 0\n"
    );
    std::fs::write(&path, text)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    Ok(path.display().to_string())
}

fn one_instant(snapshots: bool, mode: &str, words: &[&str]) -> Result<()> {
    let node = node(snapshots)?;
    node.ct_start(200)?;
    let mut dice = Dice::new(mode);
    for round in 0..2 {
        std::thread::sleep(Duration::from_millis(dice.below(50)));
        let before = node.ct_wait(200, 20)?;
        let pid = node.ct_pid(200)?;
        let script = changing_hook(&node, pid)?;
        let (archive, output) = node.backup(200, &["--mode", mode, "--compress", "zstd", "--script", &script])?;
        output.says(words)?;
        ensure!(node.ct_pid(200)? == pid, "the container was started again");
        node.ct_unharmed(200)?;
        let after = node.ct_wait(200, 1)?;
        let found = restored(&node, &archive)?;
        println!("{mode}, round {round}: {found:?}, written {before:?} to {after:?}");
        ensure!(found.last.iter().zip(&before).all(|(n, least)| n >= least), "{found:?} is older than {before:?}");
        ensure!(found.last[0] < after[0], "{found:?} is what was there in the end: nothing was written meanwhile");
        ensure!(found.clean.is_none(), "a running container has no mark of a shutdown");
        std::fs::remove_file(&archive)?;
    }
    Ok(())
}

#[test]
fn a_snapshot_shows_all_volumes_at_one_instant() -> Result<()> {
    if !required("a_snapshot_shows_all_volumes_at_one_instant") {
        return Ok(());
    }
    one_instant(true, "snapshot", &["backup mode: snapshot", "creating vzdump archive", "Finished Backup"])
}

/// Its root is a user of the node that has to get to the node's directories, as on a real one.
fn open_to_others(node: &Node) -> Result<()> {
    for dir in node.root().ancestors().take_while(|dir| *dir != Path::new("/")) {
        let mode = dir.metadata()?.permissions().mode();
        if mode & 0o001 == 0 {
            std::fs::set_permissions(dir, Permissions::from_mode(mode | 0o011))?;
        }
    }
    Ok(())
}

#[test]
fn a_left_over_snapshot_of_a_container_without_privileges_goes_first() -> Result<()> {
    let name = "a_left_over_snapshot_of_a_container_without_privileges_goes_first";
    if !required(name) || !lab::require(name, &["lxc-usernsexec"]) {
        return Ok(());
    }
    let container = Container::new(200).unprivileged().rootfs(mib(48)).on("bt").mp(0, "/data", 0, "backup=1");
    let node = Node::new()?.btrfs_storage("bt", mib(512))?.container(container.on("bt").subvolume())?;
    open_to_others(&node)?;
    node.ct_start(200)?;
    for round in 0..2 {
        if round == 1 {
            // As a killed run of the original's leaves it.
            let subvolume = node.ct_volume(200, "mp0")?.display().to_string();
            node.ok("btrfs", &["-q", "subvolume", "snapshot", "-r", &subvolume, &format!("{subvolume}@vzdump")])?;
            let config = std::fs::read_to_string(node.ct_config_path(200))?;
            std::fs::write(node.ct_config_path(200), format!("{config}\n[vzdump]\nsnapstate: prepare\n"))?;
        }
        let words = ["--mode", "snapshot", "--compress", "zstd", "--exclude-path", "/root/"];
        let (archive, output) = node.backup(200, &words)?;
        ensure!(output.stdout.contains("exclude-path '/root/' excludes nothing"), "{}", output.stdout);
        output.says(&[
            "backup mode: snapshot",
            "suspend vm to make snapshot",
            "create storage snapshot 'vzdump'",
            "resume vm",
            "cleanup temporary 'vzdump' snapshot",
        ])?;
        let found_old = output.stdout.contains("found old vzdump snapshot");
        ensure!(found_old == (round == 1), "round {round}:\n{}", output.stdout);
        node.ct_unharmed(200)?;
        // For stock tar, too, it is one instant, and its root is root.
        let to = node.path(&format!("/tmp/unpacked-{round}"));
        std::fs::create_dir(&to)?;
        node.ok("tar", &["-xpf", &archive.display().to_string(), "-C", &to.display().to_string()])?;
        lab::diary_check::check(&to)?;
        for file in ["etc/passwd", "etc/vzdump/pct.conf"] {
            ensure!(to.join(file).metadata().context(file)?.uid() == 0, "{file} is not root's");
        }
        let config = std::fs::read_to_string(to.join("etc/vzdump/pct.conf"))?;
        ensure!(config.contains("rootfs: ") && !config.contains("lock:") && !config.contains("[vzdump]"), "{config}");
    }
    Ok(())
}

#[test]
fn suspend_shows_all_volumes_at_one_instant() -> Result<()> {
    if !required("suspend_shows_all_volumes_at_one_instant") {
        return Ok(());
    }
    let words = ["backup mode: suspend", "starting first sync", "suspending guest", "starting final sync"];
    one_instant(false, "suspend", &[&words[..], &["resuming guest", "guest is online again after"]].concat())
}

#[test]
fn snapshot_falls_back_to_suspend_where_there_are_none() -> Result<()> {
    if !required("snapshot_falls_back_to_suspend_where_there_are_none") {
        return Ok(());
    }
    let words = ["mode failure - some volumes do not support snapshots", "trying 'suspend' mode instead"];
    one_instant(false, "snapshot", &[&words[..], &["backup mode: suspend", "resuming guest"]].concat())
}

#[test]
fn stop_shows_a_clean_shutdown_and_starts_again() -> Result<()> {
    if !required("stop_shows_a_clean_shutdown_and_starts_again") {
        return Ok(());
    }
    let node = node(false)?;
    node.ct_start(200)?;
    let before = node.ct_wait(200, 20)?;
    let (archive, output) = node.backup(200, &["--mode", "stop", "--compress", "gzip"])?;
    output.says(&[
        "backup mode: stop",
        "stopping virtual guest",
        "creating vzdump archive",
        "restarting vm",
        "guest is online",
    ])?;
    node.ct_unharmed(200)?;
    let found = restored(&node, &archive)?;
    ensure!(found.clean == Some(found.last[0]) && found.last[0] == found.last[1], "no clean shutdown: {found:?}");
    ensure!(found.last[0] >= before[0], "{found:?} is older than {before:?}");
    Ok(())
}

#[test]
fn a_container_that_is_off_stays_off() -> Result<()> {
    if !required("a_container_that_is_off_stays_off") {
        return Ok(());
    }
    let node = node(false)?;
    node.ct_start(200)?;
    node.ct_wait(200, 20)?;
    node.ct_shutdown(200)?;
    let (archive, output) = node.backup(200, &["--mode", "snapshot"])?;
    output.says(&["status = stopped", "backup mode: stop"])?;
    ensure!(node.ok("pct", &["status", "200"])?.stdout == "status: stopped\n", "it was started");
    let left = node.ct_leftovers_on_disk(200)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    ensure!(restored(&node, &archive)?.clean.is_some(), "no clean shutdown");
    Ok(())
}

#[test]
fn volumes_without_backup_are_named() -> Result<()> {
    if !required("volumes_without_backup_are_named") {
        return Ok(());
    }
    let content = tempfile::tempdir()?;
    std::fs::write(content.path().join("precious"), "only here")?;
    let container = Container::new(200).rootfs(mib(16)).mp(0, "/data", mib(8), "").holding(content.path());
    let node = Node::new()?.container(container.bind(1, "/srv/pool", "/pool", ""))?;
    let (archive, output) = node.backup(200, &["--mode", "stop"])?;
    output.says(&[
        "excluding volume mount point mp0 ('/data') from backup (disabled)",
        "excluding bind mount point mp1 ('/pool') from backup (not a volume)",
    ])?;
    let end = output.stdout.split_once("archive file size").context("no size")?.1;
    for mount in ["volume mount point mp0 ('/data')", "bind mount point mp1 ('/pool')"] {
        let named = end.lines().any(|line| line.contains("NOT in this backup") && line.contains(mount));
        ensure!(named, "{mount} is not named at the end of the log:\n{}", output.stdout);
    }
    let mails = std::fs::read_dir(node.path("/var/spool/mails")).into_iter().flatten().flatten();
    let mails: Vec<String> = mails.map(|mail| std::fs::read_to_string(mail.path())).collect::<Result<_, _>>()?;
    ensure!(mails.iter().any(|mail| mail.contains("mp0 (")), "the notification does not name it: {mails:?}");
    let listing = node.ok("tar", &["-tf", &archive.display().to_string()])?.stdout;
    ensure!(listing.starts_with("./etc/vzdump/pct.conf\n") && !listing.contains("precious"), "{listing}");
    Ok(())
}

/// Kills a run at each of these moments: a line of its log, and milliseconds after it. The guardian alone brings all in order,
/// and after the last one the next run does, which comes at once.
fn killed(snapshots: bool, mode: &str, moments: &[(&str, u64)]) -> Result<()> {
    let node = node(snapshots)?;
    node.ct_start(200)?;
    let mut dice = Dice::new(mode);
    let rounds = if std::env::var_os("VZKEEP_SOAK").is_some() { 20 } else { 1 };
    for (line, within) in moments.repeat(rounds) {
        let after = dice.below(within);
        let words = ["200", "--storage", "backup", "--mode", mode, "--bwlimit", "20000"];
        let mut run = node.spawn_vzdump(&words)?;
        run.wait_for(line, PATIENCE)?;
        std::thread::sleep(Duration::from_millis(after));
        // It may be through already.
        run.signal(Signal::SIGKILL).unwrap_or_default();
        run.wait(Duration::from_secs(10))?;
        let what = format!("{mode}, killed {after} ms after '{line}'");
        let deadline = Instant::now() + PATIENCE;
        while !node.ct_leftovers(200)?.is_empty() {
            ensure!(Instant::now() < deadline, "{what}, left\n{}", node.ct_leftovers(200)?.join("\n"));
            std::thread::sleep(Duration::from_millis(20));
        }
        node.ct_unharmed(200).context(what)?;
        for archive in node.archives("backup", 200)? {
            std::fs::remove_file(archive)?;
        }
    }
    let mut run = node.spawn_vzdump(&["200", "--storage", "backup", "--mode", mode])?;
    run.wait_for(moments[0].0, PATIENCE)?;
    run.signal(Signal::SIGKILL)?;
    run.wait(Duration::from_secs(10))?;
    let (archive, output) = node.backup(200, &["--mode", mode])?;
    node.ct_unharmed(200).with_context(|| output.stdout.clone())?;
    // What is restored after all this is as good as ever.
    restored(&node, &archive).map(drop)
}

#[test]
fn killed_in_suspend_mode() -> Result<()> {
    let moments = [("starting final sync", 30), ("starting first sync", 80), ("creating vzdump archive", 60)];
    if required("killed_in_suspend_mode") { killed(false, "suspend", &moments) } else { Ok(()) }
}

#[test]
fn killed_in_snapshot_mode() -> Result<()> {
    let moments = [("suspend vm to make snapshot", 50), ("creating vzdump archive", 120)];
    if required("killed_in_snapshot_mode") { killed(true, "snapshot", &moments) } else { Ok(()) }
}

#[test]
fn killed_in_stop_mode() -> Result<()> {
    let moments = [("stopping virtual guest", 120), ("creating vzdump archive", 120)];
    if required("killed_in_stop_mode") { killed(false, "stop", &moments) } else { Ok(()) }
}

/// What the storage was told to make comes into being although we are gone; it does not stay.
#[test]
fn killed_while_the_storage_makes_its_snapshot() -> Result<()> {
    if !required("killed_while_the_storage_makes_its_snapshot") {
        return Ok(());
    }
    let node = node(true)?;
    let real = lab::programs::find("btrfs").context("no btrfs")?;
    let (slow, begun) = (node.path("/bin/btrfs"), node.path("/tmp/begun"));
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *'subvolume snapshot'*) touch '{}'; sleep 2;; esac\nexec '{}' \"$@\"\n",
        begun.display(),
        real.display()
    );
    std::fs::write(&slow, script)?;
    std::fs::set_permissions(&slow, Permissions::from_mode(0o755))?;
    node.ct_start(200)?;
    let run = node.spawn_vzdump(&["200", "--storage", "backup", "--mode", "snapshot"])?;
    let deadline = Instant::now() + PATIENCE;
    while !begun.exists() {
        ensure!(Instant::now() < deadline, "no snapshot is made: {}", run.stdout_so_far()?);
        std::thread::sleep(Duration::from_millis(5));
    }
    run.signal(Signal::SIGKILL)?;
    run.wait(Duration::from_secs(10))?;
    let deadline = Instant::now() + PATIENCE;
    while !node.ct_leftovers(200)?.is_empty() {
        ensure!(Instant::now() < deadline, "left\n{}", node.ct_leftovers(200)?.join("\n"));
        std::thread::sleep(Duration::from_millis(20));
    }
    // Nor does one come into being after that.
    std::thread::sleep(Duration::from_secs(3));
    let left = node.ct_leftovers(200)?;
    ensure!(left.is_empty(), "came after all was undone: {left:?}");
    node.ct_unharmed(200)
}

/// A container that is off, in directories, with a file of 16 MiB that takes two seconds to read.
fn directories() -> Result<(Node, PathBuf)> {
    let container = Container::new(200).rootfs(0).subvolume().mp(0, "/data", 0, "backup=1").subvolume();
    let node = Node::new()?.container(container)?;
    let data = node.ct_volume(200, "mp0")?;
    std::fs::write(data.join("victim"), vec![b'x'; 16 << 20])?;
    Ok((node, data))
}

/// Backs up and does `harm` when `file` is being read.
fn while_read(node: &Node, file: &Path, harm: impl FnOnce() -> Result<()>) -> Result<Output> {
    let run = node.spawn_vzdump(&["200", "--storage", "backup", "--mode", "stop", "--bwlimit", "8192"])?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_open(node, file)? {
        ensure!(Instant::now() < deadline, "{} is never read: {}", file.display(), run.stdout_so_far()?);
        std::thread::sleep(Duration::from_millis(1));
    }
    harm()?;
    run.wait(Duration::from_secs(60))
}

/// Whether a `tar` of the node has the file open, under whatever path it sees it.
fn is_open(node: &Node, file: &Path) -> Result<bool> {
    let wanted = file.metadata()?.ino();
    for pid in lab::leash::processes(node.root())? {
        for fd in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let open = std::fs::metadata(fd.path()).map(|meta| meta.ino());
            let named = std::fs::read_link(fd.path()).unwrap_or_default();
            if open.is_ok_and(|inode| inode == wanted) && named.file_name() == file.file_name() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn fails_and_names(node: &Node, output: &Output, name: &str, why: &str) -> Result<()> {
    ensure!(output.code == 255, "exit {}, not 255:\n{}{}", output.code, output.stdout, output.stderr);
    let named = output.stdout.lines().any(|line| line.contains(name) && line.contains(why));
    ensure!(named, "no line has '{name}' and '{why}':\n{}", output.stdout);
    output.says(&["ERROR: Backup of VM 200 failed"])?;
    ensure!(node.archives("backup", 200)?.is_empty(), "an archive is left");
    let left = node.ct_leftovers_on_disk(200)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_named() -> Result<()> {
    if !required("a_file_that_shrinks_while_it_is_read_is_named") {
        return Ok(());
    }
    let (node, data) = directories()?;
    let victim = data.join("victim");
    let output =
        while_read(&node, &victim, || Ok(std::fs::OpenOptions::new().write(true).open(&victim)?.set_len(1 << 20)?))?;
    fails_and_names(&node, &output, "./data/victim", "shrank")
}

#[test]
fn a_file_that_changes_while_it_is_read_is_named() -> Result<()> {
    if !required("a_file_that_changes_while_it_is_read_is_named") {
        return Ok(());
    }
    let (node, data) = directories()?;
    let victim = data.join("victim");
    let output = while_read(&node, &victim, || {
        std::io::Write::write_all(&mut std::fs::OpenOptions::new().append(true).open(&victim)?, b"more")?;
        Ok(())
    })?;
    fails_and_names(&node, &output, "./data/victim", "file changed as we read it")
}

#[test]
fn a_file_that_vanishes_before_it_is_read_is_named() -> Result<()> {
    if !required("a_file_that_vanishes_before_it_is_read_is_named") {
        return Ok(());
    }
    let (node, data) = directories()?;
    // The order of a directory is nobody's promise: whichever of the large ones comes first, the other one goes.
    let other = data.join("victim2");
    std::fs::copy(data.join("victim"), &other)?;
    let first = if read_first(&data)? == "victim" { data.join("victim") } else { other.clone() };
    let second = if first == other { data.join("victim") } else { other };
    let output = while_read(&node, &first, || Ok(std::fs::remove_file(&second)?))?;
    let name = format!("./data/{}", second.file_name().unwrap_or_default().to_string_lossy());
    fails_and_names(&node, &output, &name, "removed before we read it")
}

/// The first of the directory's files whose name begins with `victim`.
fn read_first(dir: &Path) -> Result<String> {
    let names = std::fs::read_dir(dir)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.into_iter().find(|name| name.starts_with("victim")).context("no victim")
}

#[test]
fn a_file_that_cannot_be_read_is_named() -> Result<()> {
    if !required("a_file_that_cannot_be_read_is_named") {
        return Ok(());
    }
    let container = Container::new(200).rootfs(mib(32)).mp(0, "/data", 0, "backup=1").on("bt").subvolume();
    let node = Node::new()?.btrfs_storage("bt", mib(128))?.container(container)?;
    let pattern = b"this block will be found on the device and spoilt".repeat(2000);
    let spoilt = node.ct_volume(200, "mp0")?.join("spoilt");
    std::fs::write(&spoilt, &pattern)?;
    node.spoil_btrfs("bt", &spoilt)?;
    let words = ["200", "--storage", "backup", "--compress", "zstd", "--mode"];
    let output = node.vzdump(&[&words[..], &["stop"]].concat())?;
    fails_and_names(&node, &output, "./data/spoilt", "Input/output error")?;

    node.ct_start(200)?;
    for (mode, name) in [("snapshot", "data/spoilt"), ("suspend", "data/spoilt")] {
        let output = node.vzdump(&[&words[..], &[mode]].concat())?;
        ensure!(output.code == 255, "{mode}: exit {}:\n{}", output.code, output.stdout);
        let named = output.stdout.lines().any(|line| line.contains(name) && line.contains("Input/output error"));
        ensure!(named, "{mode}: not named:\n{}", output.stdout);
        node.ct_unharmed(200).with_context(|| format!("{mode}:\n{}", output.stdout))?;
    }
    ensure!(node.archives("backup", 200)?.is_empty(), "an archive is left");
    Ok(())
}

/// Mounts at `/srv/fuse` of the running container a file system of which nobody answers, as one whose server stands still.
/// It answers with errors when what is returned goes.
fn mount_silent(pid: i32) -> Result<std::fs::File> {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&device);
    let mounting = std::thread::spawn(move || -> Result<()> {
        let namespace = std::fs::File::open(format!("/proc/{pid}/ns/mnt"))?;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNS)?;
        std::fs::create_dir("/srv/fuse")?;
        let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0");
        let flags = nix::mount::MsFlags::empty();
        Ok(nix::mount::mount(Some("fuse"), "/srv/fuse", Some("fuse"), flags, Some(options.as_str()))?)
    });
    mounting.join().map_err(|_| anyhow::anyhow!("the thread that mounts panicked"))??;
    Ok(device)
}

/// The mounts of a process below `path` and their options.
fn mounts_of(pid: i32, path: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let words = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = words.map(|words| (PathBuf::from(words[4]), words[5].to_owned()));
    Ok(found.filter(|(at, _)| at.starts_with(path)).collect())
}

fn copied_without_what_it_mounted(container: Container) -> Result<()> {
    let container = container.ballast(mib(16)).rootfs(mib(64)).mp(0, "/volumes/data", mib(32), "backup=1");
    let node = Node::new()?.container(container)?;
    open_to_others(&node)?;
    node.ct_start(200)?;
    let pid = node.ct_pid(200)?;
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    std::os::unix::fs::symlink("../etc", root.join("srv/link"))?;
    let silent = mount_silent(pid)?;
    let before = mounts_of(pid, Path::new("/"))?;
    let mut run = node.spawn_vzdump(&["200", "--storage", "backup", "--mode", "suspend", "--bwlimit", "2048"])?;
    run.wait_for("starting first sync", PATIENCE)?;
    let deadline = Instant::now() + Duration::from_secs(20);
    let place = node.path("/mnt/vzsnap0");
    let rsync = loop {
        let is_rsync = |pid: &i32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "rsync" && mounts_of(*pid, &place).is_ok_and(|mounts| !mounts.is_empty())
        };
        if let Some(pid) = lab::leash::processes(node.root())?.into_iter().find(is_rsync) {
            break pid;
        }
        ensure!(Instant::now() < deadline && run.is_running()?, "no rsync: {}", run.stdout_so_far()?);
        std::thread::sleep(Duration::from_millis(5));
    };
    let seen = mounts_of(rsync, &place)?;
    let inside = PathBuf::from(format!("/proc/{rsync}/root{}", place.display()));
    let plain = std::fs::read(inside.join("etc/passwd"));
    let linked = std::fs::read(inside.join("srv/link/passwd"));
    let during = mounts_of(pid, Path::new("/"))?;
    let output = run.wait(Duration::from_secs(120))?;
    ensure!(output.code == 0, "{}{}", output.stdout, output.stderr);
    ensure!(!seen.iter().any(|(at, _)| at.ends_with("fuse")), "{seen:?}");
    let volumes: Vec<_> = seen.iter().filter(|(_, options)| options.contains("nosymfollow")).collect();
    ensure!(
        volumes.iter().any(|(at, _)| *at == place) && volumes.iter().any(|(at, _)| at.ends_with("data")),
        "{seen:?}"
    );
    ensure!(volumes.iter().all(|(_, options)| options.split(',').any(|option| option == "ro")), "{seen:?}");
    plain.context("a plain file")?;
    ensure!(
        linked.as_ref().is_err_and(|e| e.raw_os_error() == Some(nix::libc::ELOOP)),
        "a link was followed: {linked:?}"
    );
    ensure!(before == during && before == mounts_of(pid, Path::new("/"))?, "the container sees other mounts");
    node.ct_unharmed(200)?;
    drop(silent);
    let archive = node.archives("backup", 200)?.pop().context("no archive")?;
    let found = restored(&node, &archive)?;
    ensure!(found.last[0] > 0, "{found:?}");
    Ok(())
}

#[test]
fn a_copy_is_not_led_out_of_the_container_nor_held_up_by_what_it_mounted() -> Result<()> {
    let name = "a_copy_is_not_led_out_of_the_container_nor_held_up_by_what_it_mounted";
    if !required(name) {
        return Ok(());
    }
    if !Path::new("/dev/fuse").exists() {
        ensure!(std::env::var_os("CI").is_none(), "{name}: /dev/fuse is missing");
        println!("SKIPPED {name}: /dev/fuse is missing");
        return Ok(());
    }
    copied_without_what_it_mounted(Container::new(200))?;
    if lab::require(name, &["lxc-usernsexec"]) {
        copied_without_what_it_mounted(Container::new(200).unprivileged())?;
    }
    Ok(())
}

#[test]
fn a_container_that_somebody_froze_stays_frozen() -> Result<()> {
    if !required("a_container_that_somebody_froze_stays_frozen") {
        return Ok(());
    }
    let node = node(true)?;
    node.ct_start(200)?;
    node.ct_wait(200, 20)?;
    let pid = node.ct_pid(200)?;
    lab::cgroup::freeze(pid)?;
    let at = node.ct_entries(200)?;
    let tmpdir = node.path("/tmp/own");
    std::fs::create_dir(&tmpdir)?;
    let tmpdir = tmpdir.display().to_string();
    for mode in ["suspend", "snapshot"] {
        let (archive, output) = node.backup(200, &["--mode", mode, "--tmpdir", &tmpdir])?;
        output.says(&[&format!("backup mode: {mode}")])?;
        ensure!(mode == "snapshot" || output.stdout.contains("/tmp/own/vzdumptmp"), "{}", output.stdout);
        ensure!(lab::cgroup::is_frozen(pid)? && node.ct_entries(200)? == at, "{mode}: it was thawed");
        ensure!(node.ct_leftovers(200)? == ["container 200 is frozen"], "{mode}: {:?}", node.ct_leftovers(200)?);
        ensure!(std::fs::read_dir(&tmpdir)?.next().is_none(), "{mode}: something is left in the temporary directory");
        std::fs::remove_file(&archive)?;
    }
    let output = node.vzdump(&["200", "--storage", "backup", "--mode", "stop"])?;
    let why =
        "ERROR: Backup of VM 200 failed - CT 200 is frozen and cannot shut down: use mode 'snapshot' or 'suspend'";
    ensure!(output.code == 255 && output.stdout.contains(why), "{}", output.stdout);
    ensure!(lab::cgroup::is_frozen(pid)?, "stop: it was thawed");
    lab::cgroup::thaw(pid)?;
    node.ct_unharmed(200)
}

#[test]
fn a_restore_to_btrfs_makes_subvolumes() -> Result<()> {
    if !required("a_restore_to_btrfs_makes_subvolumes") {
        return Ok(());
    }
    let node = node(true)?;
    node.ct_start(200)?;
    node.ct_wait(200, 20)?;
    let (archive, _) = node.backup(200, &["--mode", "snapshot", "--compress", "zstd"])?;
    let archive = node.inner(&archive).display().to_string();
    node.ok("vzkeep", &["pct-restore", "900", &archive, "--storage", "bt"])?;
    let root = node.ct_volume(900, "rootfs")?;
    ensure!(root.starts_with(node.path("/mnt/bt")) && root.is_dir(), "{}", root.display());
    node.ok("btrfs", &["subvolume", "show", &root.display().to_string()])?;
    let image = node.ct_volume(900, "mp0")?;
    ensure!(image.is_file() && image.starts_with(node.path("/mnt/bt")), "{}", image.display());
    let found = node.ct_tree(900)?.check()?;
    ensure!(found.last[0] > 0, "{found:?}");
    // It is as good as the first one: it starts and can be backed up by snapshots.
    node.ct_start(900)?;
    node.ok("vzdump", &["900", "--storage", "backup", "--mode", "snapshot"])?.says(&["backup mode: snapshot"])?;
    node.ct_unharmed(900)
}
