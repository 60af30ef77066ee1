//! The lab's containers are real and leave nothing, and the reader of diaries finds what it looks for.

mod lab;

use anyhow::Result;
use lab::container_node::require_container;
use lab::diary_check::{Fault, check};
use lab::{Container, Node, cgroup, diary, leash, mib};
use std::path::Path;
use std::time::{Duration, Instant};

/// The diaries of a tree that end with these entries.
fn tree(last: &[u64]) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    std::fs::create_dir(dir.path().join("etc"))?;
    let mut list = String::new();
    for (volume, last) in last.iter().enumerate() {
        list.push_str(&format!("/diary{volume}\n"));
        let entries: Vec<u8> = (1..=*last).flat_map(|n| diary::entry(n, volume as u64)).collect();
        std::fs::write(dir.path().join(format!("diary{volume}")), entries)?;
    }
    std::fs::write(dir.path().join("etc/diaries"), list)?;
    Ok(dir)
}

#[test]
fn diaries_of_one_instant_are_told_from_others() -> Result<()> {
    for last in [&[7_u64, 7][..], &[7, 6], &[1, 0], &[3, 3, 2], &[5]] {
        assert_eq!(check(tree(last)?.path())?.last, last);
    }
    for last in [&[7_u64, 5][..], &[6, 7], &[3, 2, 3]] {
        assert!(matches!(check(tree(last)?.path()), Err(Fault::Apart { .. })), "{last:?}");
    }
    assert!(matches!(check(tree(&[0, 0])?.path()), Err(Fault::Nothing)));
    assert!(matches!(check(Path::new("/nonexistent")), Err(Fault::Io { .. })));
    Ok(())
}

#[test]
fn a_wrong_entry_is_found() -> Result<()> {
    let dir = tree(&[9, 9])?;
    let file = dir.path().join("diary1");
    let good = std::fs::read(&file)?;
    let mut flipped = good.clone();
    flipped[4 * diary::SIZE + 99] ^= 1;
    let mut doubled = good.clone();
    doubled.copy_within(0..diary::SIZE, 3 * diary::SIZE);
    let foreign = std::fs::read(dir.path().join("diary0"))?;
    for (bytes, at) in [(&flipped, 4), (&doubled, 3), (&good[..good.len() - 1].to_vec(), 8), (&foreign, 0)] {
        std::fs::write(&file, bytes)?;
        assert!(matches!(check(dir.path()), Err(Fault::Damaged { offset, .. }) if offset == at * diary::SIZE), "{at}");
    }
    Ok(())
}

#[test]
fn a_container_writes_freezes_stops_and_goes_on() -> Result<()> {
    if !require_container("a_container_writes_freezes_stops_and_goes_on") {
        return Ok(());
    }
    let container = Container::new(200).name("ct01").rootfs(mib(32)).mp(0, "/data", mib(16), "backup=1");
    let node = Node::new()?.container(container.mp(1, "/nobackup", mib(16), ""))?;
    assert_eq!(node.ok("pct", &["status", "200"])?.stdout, "status: stopped\n");
    node.ct_start(200)?;
    assert_eq!(node.ok("pct", &["status", "200"])?.stdout, "status: running\n");
    assert!(node.run("pct", &["start", "200"])?.stderr.contains("already running"));
    node.ct_unharmed(200)?;
    let pid = node.ct_pid(200)?;
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/exe"))?, Path::new("/sbin/init"));
    assert_eq!(leash::loops(node.root())?.len(), 3);
    assert!(leash::mounts(node.root())?.is_empty(), "the volumes are mounted where everybody sees them");

    cgroup::freeze(pid)?;
    assert!(cgroup::is_frozen(pid)? && node.ct_leftovers(200)?.contains(&"container 200 is frozen".to_owned()));
    let frozen = node.ct_entries(200)?;
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(node.ct_entries(200)?, frozen);
    cgroup::thaw(pid)?;
    let last = node.ct_wait(200, 20)?;

    let config = std::fs::read_to_string(node.ct_config_path(200))?;
    std::fs::write(node.ct_config_path(200), format!("{config}lock: backup\n"))?;
    assert!(node.run("pct", &["shutdown", "200"])?.stderr.contains("CT is locked (backup)"));
    assert!(node.ct_leftovers(200)?.contains(&"200.conf: lock: backup".to_owned()));
    node.ok("pct", &["unlock", "200"])?;

    node.ct_shutdown(200)?;
    let found = node.ct_tree(200)?.check()?;
    assert!(found.last[0] >= last[0] && found.clean == Some(found.last[0]), "{found:?} after {last:?}");
    assert!(node.ct_leftovers_on_disk(200)?.is_empty(), "{:?}", node.ct_leftovers_on_disk(200)?);

    node.ct_start(200)?;
    node.ct_wait(200, 20)?;
    node.ok("pct", &["stop", "200"])?;
    let later = node.ct_tree(200)?.check()?;
    assert!(later.last[1] > found.last[1] && later.clean.is_none(), "{later:?} after {found:?}");
    Ok(())
}

#[test]
fn containers_on_directories_and_btrfs_and_without_privileges() -> Result<()> {
    let name = "containers_on_directories_and_btrfs_and_without_privileges";
    if !require_container(name) || !lab::require(name, &["mkfs.btrfs", "btrfs"]) {
        return Ok(());
    }
    let node = Node::new()?.btrfs_storage("bt", mib(256))?;
    let container = Container::new(200).rootfs(0).on("bt").subvolume();
    let container = container.mp(0, "/data", mib(16), "backup=1").on("bt").mp(1, "/logs", 0, "backup=1").subvolume();
    let node = node.container(container.bind(2, "/srv/shared", "/shared", ""))?;
    let node = node.container(Container::new(201).unprivileged().ballast(mib(1)).rootfs(mib(32)).mp(
        0,
        "/data",
        mib(16),
        "backup=1",
    ))?;
    std::fs::write(node.path("/srv/shared/hello"), "hello")?;
    for vmid in [200, 201] {
        node.ct_start(vmid)?;
        node.ct_unharmed(vmid)?;
    }
    let inside = format!("/proc/{}/root", node.ct_pid(200)?);
    assert_eq!(std::fs::read_to_string(format!("{inside}/shared/hello"))?, "hello");
    assert_eq!(node.ct_entries(200)?.len(), 3);
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(format!("/proc/{}", node.ct_pid(201)?))?);
    assert_eq!(owner, 100_000);
    for vmid in [200, 201] {
        node.ct_shutdown(vmid)?;
        assert!(node.ct_tree(vmid)?.check()?.clean.is_some());
    }
    let volid = "bt:200/subvol-200-disk-0.subvol";
    assert_eq!(node.ct_config(200)?.get("rootfs"), Some(format!("{volid},size=0T").as_str()));
    node.ok("pvesm", &["free", volid])?;
    let made = node.ok("pvesm", &["alloc", "bt", "200", "", "4096", "--format", "raw"])?;
    assert_eq!(made.stdout, "successfully created 'bt:200/vm-200-disk-0.raw'\n");
    let path = node.ok("pvesm", &["path", "bt:200/vm-200-disk-0.raw"])?.stdout;
    assert_eq!(Path::new(path.trim()), node.path("/mnt/bt/images/200/vm-200-disk-0/disk.raw"));
    Ok(())
}

#[test]
fn nothing_of_a_frozen_container_outlives_its_node() -> Result<()> {
    let name = "nothing_of_a_frozen_container_outlives_its_node";
    if !require_container(name) || !lab::require(name, &["mkfs.btrfs", "btrfs"]) {
        return Ok(());
    }
    let container = Container::new(200).rootfs(mib(32)).mp(0, "/data", 0, "backup=1").on("bt").subvolume();
    let node = Node::new()?.btrfs_storage("bt", mib(256))?.container(container)?;
    node.ct_start(200)?;
    let pid = node.ct_pid(200)?;
    let groups = cgroup::dirs(pid);
    assert!(!groups.is_empty() && leash::processes(node.root())?.contains(&pid));
    cgroup::freeze(pid)?;
    let root = node.root().to_owned();
    drop(node);
    assert!(!root.exists() && leash::processes(&root)?.is_empty());
    assert!(leash::mounts(&root)?.is_empty());
    // A container of another test that began meanwhile may have a copy of the mount until it ends.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !leash::loops(&root)?.is_empty() {
        assert!(Instant::now() < deadline, "{:?}", leash::loops(&root)?);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(groups.iter().all(|(_, dir)| !dir.exists()), "{groups:?}");
    Ok(())
}

#[test]
fn a_spoilt_block_cannot_be_read() -> Result<()> {
    if !lab::require("a_spoilt_block_cannot_be_read", &["mkfs.btrfs", "btrfs"]) {
        return Ok(());
    }
    let node = Node::new()?.btrfs_storage("bt", mib(128))?;
    let (good, bad) = (node.path("/mnt/bt/good"), node.path("/mnt/bt/bad"));
    std::fs::write(&good, b"something else".repeat(1000))?;
    std::fs::write(&bad, b"this will be found.".repeat(1000))?;
    node.spoil_btrfs("bt", &bad)?;
    assert_eq!(std::fs::read(&good)?.len(), 14_000);
    assert_eq!(std::fs::read(&bad).map_err(|error| error.raw_os_error()), Err(Some(nix::libc::EIO)));
    Ok(())
}
