//! The lab proves itself: the checker finds every fault put before it, a guest boots, writes, pauses, stops and starts
//! again, and nothing is left afterwards.

mod lab;

use anyhow::Result;
use lab::checker::{Fault, check};
use lab::record::{Record, SIZE};
use lab::{Format, Guest, Node, leash, mib};
use serde_json::json;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const SLOTS: u64 = 64;
const STRIDE: [u64; 3] = [4096, 8192, 12288];

/// Simulated disks on which writes can be cut off anywhere.
struct Disks {
    dir: tempfile::TempDir,
    count: u64,
}

impl Disks {
    fn new(count: u64) -> Result<Self> {
        let disks = Self { dir: tempfile::tempdir()?, count };
        for (path, stride) in disks.paths().iter().zip(STRIDE) {
            std::fs::File::create(path)?.set_len(stride * SLOTS + 4096)?;
        }
        Ok(disks)
    }

    fn paths(&self) -> Vec<PathBuf> {
        (0..self.count).map(|disk| self.dir.path().join(format!("disk{disk}"))).collect()
    }

    fn record(&self, n: u64, disk: u64) -> (Record, Vec<u8>) {
        let record = Record { n, disk, disks: self.count, slots: SLOTS, stride: STRIDE[disk as usize] };
        let mut buf = vec![0; SIZE];
        record.fill(&mut buf);
        (record, buf)
    }

    fn put(&self, disk: u64, offset: u64, bytes: &[u8]) -> Result<()> {
        let file = std::fs::OpenOptions::new().write(true).open(&self.paths()[disk as usize])?;
        Ok(file.write_all_at(bytes, offset)?)
    }

    fn write(&self, n: u64, disk: u64) -> Result<()> {
        let (record, bytes) = self.record(n, disk);
        self.put(disk, record.offset(), &bytes)
    }

    /// All records before `n`, and `n` on the first `cut` disks.
    fn run(count: u64, n: u64, cut: u64) -> Result<Self> {
        let disks = Self::new(count)?;
        for at in n.saturating_sub(SLOTS).max(1)..=n {
            for disk in 0..if at == n { cut } else { count } {
                disks.write(at, disk)?;
            }
        }
        Ok(disks)
    }
}

#[test]
fn every_cut_is_an_instant() -> Result<()> {
    for count in 1..=3 {
        for n in [1, 2, 63, 64, 65, 200] {
            for cut in 1..=count {
                let verdict = check(&Disks::run(count, n, cut)?.paths())?;
                assert_eq!((verdict.heads[0], verdict.heads[count as usize - 1]), (n, n - u64::from(cut < count)));
                assert_eq!(verdict.records, n.min(SLOTS) * cut + (n - 1).min(SLOTS) * (count - cut));
            }
        }
    }
    Ok(())
}

#[test]
fn a_single_wrong_slot_is_found() -> Result<()> {
    for n in [130, 100] {
        let disks = Disks::run(2, n, 2)?;
        disks.write(n - SLOTS - 3, 1)?;
        assert!(
            matches!(check(&disks.paths()), Err(Fault::Stale { found, wanted, .. }) if (found, wanted) == (n - SLOTS - 3, n - 3))
        );

        let disks = Disks::run(2, n, 2)?;
        disks.write(n + 5, 0)?;
        assert!(matches!(check(&disks.paths()), Err(Fault::TooNew { found, .. }) if found == n + 5));

        let disks = Disks::run(2, n, 2)?;
        let (record, _) = disks.record(n - 7, 1);
        disks.put(1, record.offset(), &[0; SIZE])?;
        assert!(matches!(check(&disks.paths()), Err(Fault::Stale { found: 0, .. })));
    }
    Ok(())
}

#[test]
fn torn_and_foreign_blocks_are_found() -> Result<()> {
    let disks = Disks::run(2, 90, 1)?;
    let (record, bytes) = disks.record(90 + 10, 0);
    disks.put(0, record.offset(), &bytes[..512])?;
    assert!(matches!(check(&disks.paths()), Err(Fault::Damaged { offset, .. }) if offset == record.offset()));

    let disks = Disks::run(2, 90, 1)?;
    disks.put(1, 3 * 8192 + 777, &[1])?;
    assert!(matches!(check(&disks.paths()), Err(Fault::Damaged { .. })));

    let disks = Disks::run(2, 90, 1)?;
    disks.put(1, 3 * 8192 + 4096, &[1])?;
    assert!(matches!(check(&disks.paths()), Err(Fault::Foreign { offset, .. }) if offset == 3 * 8192 + 4096));

    let disks = Disks::run(2, 90, 1)?;
    let (_, bytes) = disks.record(70, 1);
    disks.put(1, 8192, &bytes)?;
    assert!(matches!(check(&disks.paths()), Err(Fault::Misplaced { .. })));
    Ok(())
}

#[test]
fn disks_of_different_instants_are_found() -> Result<()> {
    for (first, second) in [(90, 88), (90, 91), (200, 100)] {
        let (a, b) = (Disks::run(2, first, 2)?, Disks::run(2, second, 2)?);
        let mixed = [a.paths()[0].clone(), b.paths()[1].clone()];
        assert!(matches!(check(&mixed), Err(Fault::Apart { .. })), "{first} and {second}");
    }
    let a = Disks::run(2, 90, 2)?;
    assert!(matches!(check(&[&a.paths()[0], &a.paths()[0]]), Err(Fault::Misplaced { .. })));
    assert!(matches!(check(&Disks::new(2)?.paths()), Err(Fault::Nothing)));
    Ok(())
}

#[test]
fn a_guest_writes_pauses_stops_and_goes_on() -> Result<()> {
    if !lab::programs::require_guest("a_guest_writes_pauses_stops_and_goes_on") {
        return Ok(());
    }
    let node = Node::new()?.guest(Guest::new(100).name("web01").disk("scsi0", Format::Qcow2, mib(64)).disk(
        "virtio0",
        Format::Raw,
        mib(48),
    ))?;
    let begun = Instant::now();
    node.start(100)?;
    println!("booted in {:?}", begun.elapsed());
    assert_eq!(node.ok("qm", &["status", "100"])?.stdout, "status: running\n");
    let report = node.wait_for_records(100, 50)?;
    println!("{report:?} after {:?}", begun.elapsed());
    node.assert_clean(100);

    let watch = node.watch(100)?;
    std::thread::sleep(Duration::from_millis(500));
    node.ok("qm", &["suspend", "100"])?;
    assert_eq!(node.qmp(100, "query-status", &json!({}))?["status"], "paused");
    std::thread::sleep(Duration::from_millis(800));
    node.ok("qm", &["resume", "100"])?;
    std::thread::sleep(Duration::from_millis(500));
    let standstill = watch.finish()?;
    assert!(standstill >= Duration::from_millis(700) && standstill < Duration::from_secs(5), "{standstill:?}");

    let last = node.wait_for_records(100, 50)?;
    node.shutdown(100)?;
    assert_eq!(node.ok("qm", &["status", "100"])?.stdout, "status: stopped\n");
    let disks = || -> Result<_> { Ok([node.raw_disk(100, "scsi0")?, node.raw_disk(100, "virtio0")?]) };
    let verdict = check(&disks()?)?;
    assert!(verdict.heads[0] >= last.n, "{verdict} after {last:?}");

    let again = node.start(100)?;
    assert!(again.n == 0 || again.n >= verdict.heads[1], "{again:?} after {verdict}");
    node.wait_for_records(100, 20)?;
    assert_eq!(node.witness(100, "stop")?.errors, 0);
    node.ok("qm", &["stop", "100"])?;
    let later = check(&disks()?)?;
    assert!(later.heads[0] > verdict.heads[0], "{later} after {verdict}");
    node.assert_clean_on_disk(100);

    let root = node.root().to_owned();
    drop(node);
    assert!(!root.exists() && leash::processes(&root)?.is_empty());
    Ok(())
}

#[test]
fn the_guest_agent_freezes_an_ext4_file_system() -> Result<()> {
    let name = "the_guest_agent_freezes_an_ext4_file_system";
    if !lab::programs::require_guest(name) || !lab::require(name, &["qemu-ga", "mke2fs"]) {
        return Ok(());
    }
    let node = Node::new()?.guest(Guest::new(100).with_agent().disk("scsi0", Format::Raw, mib(64)))?;
    node.start(100)?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while node.witness(100, "status")?.files < 5 {
        assert!(Instant::now() < deadline, "no files are written");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(node.agent(100, "guest-fsfreeze-status", &json!({}))?, "thawed");
    assert_eq!(node.agent(100, "guest-fsfreeze-freeze", &json!({}))?, 1);
    let frozen = node.witness(100, "status")?.files;
    std::thread::sleep(Duration::from_millis(500));
    assert!(node.witness(100, "status")?.files <= frozen + 1);
    assert_eq!(node.agent(100, "guest-fsfreeze-thaw", &json!({}))?, 1);
    std::thread::sleep(Duration::from_millis(500));
    assert!(node.witness(100, "status")?.files > frozen);
    node.shutdown(100)
}

#[test]
fn stand_ins_lock_and_make_volumes() -> Result<()> {
    if !lab::require("stand_ins_lock_and_make_volumes", &["qemu-img"]) {
        return Ok(());
    }
    let node = Node::new()?.guest(Guest::new(100).name("web01").disk("scsi0", Format::Raw, mib(1)))?;
    assert_eq!(node.bridge("lock", &json!({"vmid": 100, "lock": "backup"}))?, json!({}));
    assert_eq!(node.config(100)?.get("lock"), Some("backup"));
    assert_eq!(
        node.bridge("lock", &json!({"vmid": 100, "lock": "migrate"}))?,
        json!({"error": "VM is locked (backup)"})
    );
    assert_eq!(node.run("qm", &["start", "100"])?.code, 255);
    assert!(node.bridge("unlock", &json!({"vmid": 100, "lock": "migrate"}))?["error"].is_string());
    let before = node.config(100)?;
    node.bridge("record-fleecing", &json!({"vmid": 100, "volids": ["local:100/vm-100-fleece-0.raw"]}))?;
    assert!(
        std::fs::read_to_string(node.config_path(100))?
            .ends_with("\n[special:fleecing]\nfleecing-images: local:100/vm-100-fleece-0.raw\n")
    );
    node.bridge("record-fleecing", &json!({"vmid": 100, "volids": []}))?;
    assert_eq!(format!("{:?}", node.config(100)?), format!("{before:?}"));
    assert_eq!(node.bridge("unlock", &json!({"vmid": 100, "lock": "backup"}))?, json!({}));
    node.assert_clean_on_disk(100);

    let made = node.ok("pvesm", &["alloc", "local", "100", "", "2048", "--format", "qcow2"])?;
    assert_eq!(made.stdout, "successfully created 'local:100/vm-100-disk-1.qcow2'\n");
    let path = node.ok("pvesm", &["path", "local:100/vm-100-disk-1.qcow2"])?.stdout;
    assert_eq!(path.trim(), node.path("/var/lib/vz/images/100/vm-100-disk-1.qcow2").display().to_string());
    let answer = node.bridge("volume-path", &json!({"volid": "local:100/vm-100-disk-1.qcow2"}))?;
    assert_eq!(answer, json!({"path": path.trim(), "format": "qcow2"}));
    node.ok("pvesm", &["free", "local:100/vm-100-disk-1.qcow2"])?;
    assert!(
        node.bridge("volume-activate", &json!({"volids": ["local:100/vm-100-disk-1.qcow2"]}))?["error"].is_string()
    );
    Ok(())
}

/// The other half of `nothing_outlives_a_killed_process`: makes a node, says where it is, and waits to be killed.
#[test]
#[ignore = "run by nothing_outlives_a_killed_process"]
fn holds_a_node_until_killed() -> Result<()> {
    let node = Node::new()?.guest(Guest::new(100).disk("scsi0", Format::Raw, mib(1)))?;
    node.switch_on(100)?;
    std::fs::write(std::env::var("LAB_SELFTEST_SAY")?, node.root().display().to_string())?;
    std::thread::sleep(Duration::from_secs(60));
    Ok(())
}

#[test]
fn nothing_outlives_a_killed_process() -> Result<()> {
    if !lab::programs::require_guest("nothing_outlives_a_killed_process") {
        return Ok(());
    }
    let said = tempfile::NamedTempFile::new()?;
    let mut victim = std::process::Command::new(std::env::current_exe()?)
        .args(["--ignored", "--exact", "holds_a_node_until_killed"])
        .env("LAB_SELFTEST_SAY", said.path())
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let deadline = Instant::now() + Duration::from_secs(30);
    let root = loop {
        let root = std::fs::read_to_string(said.path())?;
        if !root.is_empty() || Instant::now() > deadline {
            break PathBuf::from(root);
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let running = leash::processes(&root)?;
    victim.kill()?;
    victim.wait()?;
    assert!(!running.is_empty() && root.is_absolute());
    while root.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(!root.exists() && leash::processes(&root)?.is_empty());
    Ok(())
}
