//! Storages that need a kernel of one's own: backups of containers on LVM-thin and LVM, in a guest that QEMU emulates with
//! Debian's kernel and packages. `make test-system` runs this alone. Outside of the guest there is one test, which boots it and
//! runs the others inside; they are ignored everywhere else.

mod lab;

use anyhow::{Context, Result, ensure};
use lab::{Container, Dice, Node, mib, system_guest};
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

/// The container to which archives are restored.
const RESTORED: u32 = 900;
/// How long anything may take on a machine without KVM that is busy otherwise.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn storages_in_a_guest_with_a_kernel_of_its_own() -> Result<()> {
    let name = "storages_in_a_guest_with_a_kernel_of_its_own";
    let Ok(filter) = std::env::var("VZKEEP_SYSTEM") else {
        println!("SKIPPED {name}: VZKEEP_SYSTEM is not set; `make test-system` runs it");
        return Ok(());
    };
    // Set to a word, it runs the tests with it in their names.
    let filter = Some(filter.as_str()).filter(|filter| *filter != "1");
    if !lab::programs::require_guest(name) || !lab::require(name, &["setpriv", "mke2fs"]) {
        return Ok(());
    }
    let begun = Instant::now();
    let words: Vec<&str> = ["--ignored", "--nocapture", "--test-threads=1"].into_iter().chain(filter).collect();
    let console = system_guest::run(&words)?;
    println!("{console}");
    // A guest in which nothing was run would be content, too.
    let all = include_str!("system.rs");
    let names = all.split("\n#[ignore").skip(1).filter_map(|text| text.split("fn ").nth(1)?.split('(').next());
    let tests = names.filter(|name| filter.is_none_or(|filter| name.contains(filter))).count();
    println!("{tests} tests in the guest, {} seconds", begun.elapsed().as_secs());
    let all = format!("test result: ok. {tests} passed");
    ensure!(console.contains(&all), "no '{all}'; the guest's console:\n{console}");
    Ok(())
}

/// A node with LVM storages in the guest; `None`, with a word, elsewhere.
fn node(test: &str) -> Result<Option<Node>> {
    if !system_guest::inside() {
        println!("SKIPPED {test}: only in the guest of `make test-system`");
        return Ok(None);
    }
    Ok(Some(Node::new()?.lvm_storages()?))
}

/// Container 200 with two volumes that are backed up.
fn container() -> Container {
    let container = Container::new(200).name("ct01").ballast(mib(2)).rootfs(mib(64)).on("thin");
    container.mp(0, "/data", mib(48), "backup=1").on("thin")
}

/// Restores an archive to these storages and reads the diaries.
fn restored(node: &Node, archive: &Path, storage: &str) -> Result<lab::diary_check::Instant> {
    let archive = node.inner(archive).display().to_string();
    node.ok("vzkeep", &["pct-restore", &RESTORED.to_string(), &archive, "--storage", storage])?;
    let found = node.ct_tree(RESTORED)?.check();
    node.ct_remove(RESTORED)?;
    Ok(found?)
}

#[test]
#[ignore = "runs in the guest"]
fn a_thin_snapshot_shows_all_volumes_at_one_instant() -> Result<()> {
    let Some(node) = node("a_thin_snapshot_shows_all_volumes_at_one_instant")? else { return Ok(()) };
    let node = node.container(container())?;
    node.ct_start(200)?;
    for storage in ["thin", "thick"] {
        let left_over = storage == "thick";
        if left_over {
            // As a killed run of the original's leaves it: one of the two, switched on.
            node.lv(&["lvcreate", "-n", "snap_vm-200-disk-0_vzdump", "-kn", "-s", "pve/vm-200-disk-0"])?;
        }
        let before = node.ct_wait(200, 20)?;
        let pid = node.ct_pid(200)?;
        let (archive, output) = node.backup(200, &["--mode", "snapshot", "--compress", "zstd"])?;
        println!("{}", output.stdout);
        output.says(&[
            "backup mode: snapshot",
            "suspend vm to make snapshot",
            "create storage snapshot 'vzdump'",
            "resume vm",
            "guest is online again after",
            "creating vzdump archive",
            "cleanup temporary 'vzdump' snapshot",
            "Finished Backup",
        ])?;
        ensure!(output.stdout.contains("found old vzdump snapshot") == left_over, "{storage}: {}", output.stdout);
        ensure!(!output.stdout.contains("WARN") && output.stderr.is_empty(), "{}{}", output.stdout, output.stderr);
        ensure!(node.ct_pid(200)? == pid, "the container was started again");
        node.ct_unharmed(200)?;
        let after = node.ct_wait(200, 1)?;
        let found = restored(&node, &archive, storage)?;
        println!("restored to {storage}: {found:?}, written {before:?} to {after:?}");
        ensure!(found.last.iter().zip(&before).all(|(n, least)| n >= least), "{found:?} is older than {before:?}");
        ensure!(found.last[0] < after[0], "{found:?} is what was there in the end: nothing was written meanwhile");
        std::fs::remove_file(&archive)?;
    }
    Ok(())
}

/// Kills a run of this mode `after` it has said `line`, and says so. Its guardian alone brings all in order.
fn kill(node: &Node, mode: &str, line: &str, after: Duration) -> Result<String> {
    let mut run = node.spawn_vzdump(&["200", "--storage", "backup", "--mode", mode, "--bwlimit", "3000"])?;
    run.wait_for(line, PATIENCE)?;
    std::thread::sleep(after);
    // It may be through already.
    run.signal(Signal::SIGKILL).unwrap_or_default();
    run.wait(PATIENCE)?;
    Ok(format!("{mode}, killed {after:?} after '{line}'"))
}

/// Waits until nothing is left.
fn in_order(what: &str, left: impl Fn() -> Result<Vec<String>>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !left()?.is_empty() {
        ensure!(Instant::now() < deadline, "{what}, left\n{}", left()?.join("\n"));
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

#[test]
#[ignore = "runs in the guest"]
fn a_killed_run_leaves_no_thin_snapshot() -> Result<()> {
    let Some(node) = node("a_killed_run_leaves_no_thin_snapshot")? else { return Ok(()) };
    let node = node.container(container())?;
    node.ct_start(200)?;
    let mut dice = Dice::new("thin");
    let rounds = if std::env::var_os("VZKEEP_SOAK").is_some() { 10 } else { 1 };
    for _ in 0..rounds {
        for (line, within) in [("create storage snapshot", 3000), ("creating vzdump archive", 2000)] {
            let what = kill(&node, "snapshot", line, Duration::from_millis(dice.below(within)))?;
            println!("{what}");
            in_order(&what, || node.ct_leftovers(200))?;
            node.ct_unharmed(200).context(what)?;
        }
    }
    // The next run comes at once.
    kill(&node, "snapshot", "create storage snapshot", Duration::from_millis(dice.below(3000)))?;
    let (archive, output) = node.backup(200, &["--mode", "snapshot"])?;
    println!("{}", output.stdout);
    node.ct_unharmed(200)?;
    restored(&node, &archive, "thin").map(drop)
}

#[test]
#[ignore = "runs in the guest"]
fn volumes_that_are_off_are_off_again() -> Result<()> {
    let Some(node) = node("volumes_that_are_off_are_off_again")? else { return Ok(()) };
    let container = Container::new(200).ballast(mib(6)).rootfs(mib(64)).on("thin");
    let node = node.container(container.mp(0, "/data", mib(32), "backup=1").on("thick"))?;
    let names = ["vm-200-disk-0", "vm-200-disk-1"];
    let [on, off] = [vec!["vm-200-disk-0".to_owned()], vec![]];
    node.ct_start(200)?;
    node.ct_wait(200, 20)?;
    node.ct_shutdown(200)?;
    // One of the two, then none.
    for found in [&on, &off] {
        for name in names {
            node.lv_switch(name, found.iter().any(|on| on == name))?;
        }
        let (archive, output) = node.backup(200, &["--mode", "snapshot"])?;
        output.says(&["status = stopped", "backup mode: stop", "creating vzdump archive", "Finished Backup"])?;
        ensure!(!output.stdout.contains("WARN") && output.stderr.is_empty(), "{}{}", output.stdout, output.stderr);
        ensure!(node.lv_active()? == *found, "left on: {:?}", node.lv_active()?);
        let left = node.ct_leftovers_on_disk(200)?;
        ensure!(left.is_empty(), "left behind: {left:?}");
        ensure!(restored(&node, &archive, "thick")?.clean.is_some(), "no clean shutdown");
    }
    let what = kill(&node, "stop", "creating vzdump archive", Duration::from_millis(700))?;
    in_order(&what, || {
        let mut left = node.ct_leftovers_on_disk(200)?;
        left.extend(node.lv_active()?);
        Ok(left)
    })
}

#[test]
#[ignore = "runs in the guest"]
fn an_image_that_is_not_mapped_is_mapped_for_the_archive() -> Result<()> {
    let Some(node) = node("an_image_that_is_not_mapped_is_mapped_for_the_archive")? else { return Ok(()) };
    let node = node.rbd_storage()?.container(Container::new(200).rootfs(mib(32)))?;
    let image = node.path("/var/ceph/vm-200-disk-0.raw");
    std::fs::rename(node.ct_volume(200, "rootfs")?, &image)?;
    let config = node.ct_config_path(200);
    let text = std::fs::read_to_string(&config)?;
    std::fs::write(&config, text.replace("local:200/vm-200-disk-0.raw", "ceph:vm-200-disk-0"))?;
    let (archive, _) = node.backup(200, &["--mode", "stop"])?;
    let listing = node.ok("tar", &["-tf", &archive.display().to_string()])?.stdout;
    ensure!(listing.contains("./etc/passwd"), "{listing}");
    let mapped = || -> Result<Vec<String>> {
        Ok(lab::leash::loops(node.root())?.into_iter().map(|(device, _)| device).collect())
    };
    let words = std::fs::read_to_string(node.path("/var/ceph/words"))?;
    ensure!(mapped()?.is_empty(), "still mapped:\n{words}");
    let cluster = format!("-c {} -n client.admin", node.path("/etc/pve/ceph.conf").display());
    let wanted = format!("{cluster} -p box device map vm-200-disk-0");
    ensure!(words.contains(&wanted) && words.contains(" device unmap /dev/loop"), "{words}");
    let what = kill(&node, "stop", "creating vzdump archive", Duration::from_millis(700))?;
    in_order(&what, mapped)
}

/// Whether a program of the node has a file of this name open.
fn is_open(node: &Node, name: &str) -> Result<bool> {
    let of = |pid| std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut files = lab::leash::processes(node.root())?.into_iter().flat_map(of);
    Ok(files.any(|fd| std::fs::read_link(fd.path()).is_ok_and(|file| file.ends_with(name))))
}

#[test]
#[ignore = "runs in the guest"]
fn a_file_on_a_disk_whose_server_is_gone_is_named() -> Result<()> {
    let Some(node) = node("a_file_on_a_disk_whose_server_is_gone_is_named")? else { return Ok(()) };
    let content = tempfile::tempdir()?;
    std::fs::write(content.path().join("victim"), Dice::seeded(7).bytes(8 << 20))?;
    let (node, server) = node.nbd_storage()?;
    let container = Container::new(200).rootfs(mib(32)).on("thin").mp(0, "/data", mib(32), "backup=1").on("far");
    let node = node.container(container.holding(content.path()))?;
    node.backup(200, &["--mode", "stop"]).map(|(archive, _)| std::fs::remove_file(archive))??;
    std::fs::write("/proc/sys/vm/drop_caches", "3")?;
    let mut run = node.spawn_vzdump(&["200", "--storage", "backup", "--mode", "stop", "--bwlimit", "2000"])?;
    run.wait_for("creating vzdump archive", PATIENCE)?;
    let deadline = Instant::now() + PATIENCE;
    while !is_open(&node, "victim")? {
        ensure!(Instant::now() < deadline && run.is_running()?, "the file is never read: {}", run.stdout_so_far()?);
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(server);
    let output = run.wait(PATIENCE)?;
    node.forget_nbd()?;
    println!("{}", output.stdout);
    // An I/O error, or a file that seems shorter: the disk has no length any more.
    output.failed_with(&["ERROR: Backup of VM 200 failed"])?;
    let named = output.stdout.lines().any(|line| line.contains("ERROR") && line.contains("victim"));
    ensure!(named, "the file is not named:\n{}", output.stdout);
    ensure!(node.archives("backup", 200)?.is_empty(), "an archive is left");
    let mounts = lab::leash::mounts(node.root())?;
    ensure!(!mounts.iter().any(|mount| mount.contains("vzsnap")), "still mounted: {mounts:?}");
    Ok(())
}
