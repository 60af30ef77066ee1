//! Guests that run while they are restored: on real QEMU, with the witness writing meanwhile, through to the end, and to the
//! other ends a restore can come to.

mod lab;

use anyhow::{Context, Result, ensure};
use lab::run::Running;
use lab::{Dice, Format, Guest, Node, checker, kib, leash, mib};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long any run may take after it was disturbed.
const SOON: Duration = Duration::from_secs(60);
/// A rate at which nothing comes to its end within the time of a test.
const SLOW: [&str; 2] = ["--bwlimit", "10"];

/// A restore of the archive as guest 300 that will not come to its end by itself, and whose guest runs.
fn begun(node: &Node, archive: &str, words: &[&str]) -> Result<Running> {
    let words = [&[archive, "300", "--storage", "local", "--live-restore", "1"], &SLOW[..], words].concat();
    let mut run = node.spawn("qmrestore", &words)?;
    run.wait_for("VM 300 runs after", SOON)?;
    Ok(run)
}

/// Lets a restore go as fast as it can, and waits for its end.
fn finish(node: &Node, mut run: Running) -> Result<lab::Output> {
    let deadline = Instant::now() + SOON;
    while run.is_running()? {
        ensure!(Instant::now() < deadline, "the restore does not end:\n{}", run.stdout_so_far()?);
        // Whoever is through is none any more.
        let jobs = node.qmp(300, "query-block-jobs", &json!({})).unwrap_or_default();
        for job in jobs.as_array().into_iter().flatten() {
            node.qmp(300, "block-job-set-speed", &json!({"device": job["device"], "speed": 0})).ok();
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    run.wait(SOON)
}

/// Writes bytes that do not compress to a disk of guest 100.
fn fill(node: &Node, key: &str, bytes: u64, seed: u64) -> Result<Vec<u8>> {
    let noise = Dice::seeded(seed).bytes(usize::try_from(bytes)?);
    let (image, format) = node.disk(100, key)?;
    let raw = node.path("/tmp/noise");
    std::fs::write(&raw, &noise)?;
    node.ok("qemu-img", &["convert", "-n", "-f", "raw", "-O", &format, &shown(&raw), &shown(&image)])?;
    std::fs::remove_file(raw)?;
    Ok(noise)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Fails unless nothing of guest 300 is there.
fn assert_nothing(node: &Node) -> Result<()> {
    node.assert_clean_on_disk(300);
    assert!(!node.config_path(300).exists());
    assert_eq!(images(node)?, Vec::<PathBuf>::new());
    for path in ["/var/lib/vzkeep/300.json", "/var/lib/vzkeep/live-300", "/etc/pve/firewall/300.fw"] {
        assert!(!node.path(path).exists(), "{path}");
    }
    let left: Vec<i32> =
        leash::processes(node.root())?.into_iter().filter(|pid| Some(*pid) == node.qemu_pid(300)).collect();
    assert!(left.is_empty(), "the guest's QEMU {left:?} is still there");
    Ok(())
}

fn images(node: &Node) -> Result<Vec<PathBuf>> {
    let dirs = ["/var/lib/vz", "/mnt/full"].map(|storage| node.path(storage).join("images/300"));
    let entries = dirs.iter().flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten());
    let mut names = entries.map(|entry| Ok(PathBuf::from(entry?.file_name()))).collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

#[test]
fn the_guest_writes_while_it_is_restored_and_loses_nothing() -> Result<()> {
    let test = "the_guest_writes_while_it_is_restored_and_loses_nothing";
    if !lab::programs::require_guest(test) {
        return Ok(());
    }
    // The witness's kernel has no driver for IDE: that disk shall come as it was.
    let guest = Guest::new(100)
        .line("bios", "ovmf")
        .disk("scsi0", Format::Raw, mib(7))
        .with("iothread=1")
        .disk("virtio0", Format::Qcow2, mib(4))
        .with("iothread=1")
        .disk("ide0", Format::Raw, mib(6))
        .disk("efidisk0", Format::Raw, kib(528))
        .disk("tpmstate0", Format::Raw, mib(4));
    let node = Node::new()?.guest(guest)?;
    let kept = [("ide0", fill(&node, "ide0", mib(6), 1)?), ("tpmstate0", fill(&node, "tpmstate0", mib(4), 2)?)];
    std::fs::write(node.path("/etc/pve/firewall/100.fw"), "[OPTIONS]\nenable: 1\n")?;
    node.start(100)?;
    let before = node.wait_for_records(100, 100)?;
    node.shutdown(100)?;
    let (archive, _) = node.backup(100, &["--compress", "zstd"])?;
    let efi = std::fs::read(node.disk(100, "efidisk0")?.0)?;

    let time = Instant::now();
    let mut run = begun(&node, &shown(&node.inner(&archive)), &[])?;
    println!("{test}: the guest runs after {:.1} s", time.elapsed().as_secs_f64());
    // Its count begins when it has found the last record on its disks; then it goes on.
    node.wait_for_records(300, 1)?;
    let during = node.wait_for_records(300, 100)?;
    ensure!(during.n > before.n + 50, "it went on from record {} to {}", before.n, during.n);
    // All that happened before the data was there: the limit sees to that.
    let jobs = node.qmp(300, "query-jobs", &json!({}))?;
    let ide0 = jobs.as_array().into_iter().flatten().find(|job| job["id"] == "vzkeep-live-ide0").context("no job")?;
    ensure!(ide0["status"] == "running" && run.is_running()?, "{jobs}");
    ensure!(ide0["current-progress"].as_u64() < ide0["total-progress"].as_u64(), "{jobs}");
    ensure!(node.config(300)?.get("lock") == Some("create"), "the guest is not locked");
    // Nobody else gets at it meanwhile.
    let other = node.run("qmrestore", &[&shown(&node.inner(&archive)), "300", "--storage", "local", "--force"])?;
    ensure!(other.code == 255 && other.stderr.contains("is being worked on by qmrestore"), "{}", other.stderr);

    let output = finish(&node, run)?;
    ensure!(output.code == 0, "exit {}: {}\n{}", output.code, output.stderr, output.stdout);
    output.says(&[
        "live-restore: if anything goes wrong",
        "restoring 'drive-efidisk0' to 'local:300/vm-300-disk-",
        "starting VM for live-restore",
        "VM 300 runs after",
        "progress 100%",
        "restore-drive jobs finished successfully",
    ])?;
    node.assert_clean(300);
    let after = node.wait_for_records(300, 20)?;
    ensure!(after.errors == 0, "the guest saw I/O errors: {after:?}");
    node.shutdown(300)?;
    node.assert_clean_on_disk(300);
    ensure!(!node.path("/var/lib/vzkeep/300.json").exists() && node.path("/etc/pve/firewall/300.fw").exists());
    let verdict = checker::check(&[node.raw_disk(300, "scsi0")?, node.raw_disk(300, "virtio0")?])?;
    println!("{test}: {} records before, {} during, {verdict}; stall {:?}", before.n, during.n, after.stall);
    ensure!(verdict.heads.iter().all(|head| *head >= after.n), "record {} is lost: {verdict}", after.n);
    for (key, wanted) in kept.iter().chain([&("efidisk0", efi)]) {
        ensure!(std::fs::read(node.disk(300, key)?.0)? == *wanted, "{key} differs");
    }
    // Holes of the archive are holes of the volumes: the witness fills 4 MiB of each disk, and leaves the rest.
    let scsi0 = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(node.disk(300, "scsi0")?.0)?) * 512;
    ensure!(scsi0 < mib(5), "scsi0 takes {scsi0} bytes");
    Ok(())
}

/// A node, an archive and the disks in it.
type Small = (Node, PathBuf, [Vec<u8>; 2]);

/// A node with a guest 100 that has two disks full of noise, and its archive, packed or (`0`) not. No system is in it: it runs, and that is all.
fn small(test: &str, compress: &str) -> Result<Option<Small>> {
    if !lab::programs::require_guest(test) {
        return Ok(None);
    }
    let guest = Guest::new(100).line("args", "-no-reboot").disk("scsi0", Format::Qcow2, mib(4)).disk(
        "ide0",
        Format::Raw,
        mib(6),
    );
    let node = Node::new()?.guest(guest)?.small_storage("full", mib(2))?;
    let disks = [fill(&node, "scsi0", mib(4), 3)?, fill(&node, "ide0", mib(6), 4)?];
    let (archive, _) = node.backup(100, &["--compress", compress])?;
    Ok(Some((node, archive, disks)))
}

fn assert_restored(node: &Node, disks: &[Vec<u8>; 2]) -> Result<()> {
    for (key, wanted) in ["scsi0", "ide0"].iter().zip(disks) {
        ensure!(std::fs::read(node.raw_disk(300, key)?)? == *wanted, "{key} differs");
    }
    Ok(())
}

#[test]
fn killed_or_stopped_on_the_way_nothing_of_the_guest_stays() -> Result<()> {
    let test = "killed_or_stopped_on_the_way_nothing_of_the_guest_stays";
    let Some((node, archive, disks)) = small(test, "zstd")? else { return Ok(()) };
    let archive = shown(&node.inner(&archive));

    let run = begun(&node, &archive, &[])?;
    run.signal(Signal::SIGKILL)?;
    ensure!(run.wait(SOON)?.code == 128 + 9);
    println!("{test}: KILL: the guardian took {:.3} s", node.wait_for_guardian()?.as_secs_f64());
    assert_nothing(&node)?;

    // While the bridge starts the guest: what it does is waited for, and undone.
    let words = [&[archive.as_str(), "300", "--storage", "local", "--live-restore", "1"], &SLOW[..]].concat();
    let mut run = node.spawn("qmrestore", &words)?;
    run.wait_for("starting VM for live-restore", SOON)?;
    run.signal(Signal::SIGKILL)?;
    ensure!(run.wait(SOON)?.code == 128 + 9);
    node.wait_for_guardian()?;
    assert_nothing(&node)?;

    let run = begun(&node, &archive, &[])?;
    run.signal(Signal::SIGTERM)?;
    let output = run.wait(SOON)?;
    assert_eq!((output.code, output.stderr.as_str()), (255, "interrupted by signal\n"), "{}", output.stdout);
    assert_nothing(&node)?;

    let run = begun(&node, &archive, &[])?;
    kill(Pid::from_raw(node.qemu_pid(300).context("no QEMU")?), Signal::SIGKILL)?;
    let output = run.wait(SOON)?;
    assert_eq!(output.code, 255);
    assert_eq!(output.stderr, "unable to restore VM 300 - live-restore failed: the guest's QEMU has ended\n");
    assert_nothing(&node)?;

    // Nobody is left but the guest.
    let run = begun(&node, &archive, &[])?;
    for pid in node.guardians()? {
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    }
    run.signal(Signal::SIGKILL)?;
    run.wait(SOON)?;
    ensure!(node.config(300)?.get("lock") == Some("create") && images(&node)?.len() == 2);
    node.qmp(300, "query-status", &json!({}))?;
    let unlocked = node.ok("vzkeep", &["unlock", "300"])?;
    println!("{test}: {}", unlocked.stdout.trim());
    assert_nothing(&node)?;

    // A guest that switches itself off gets its data nevertheless; the node's daemon is told to wait for that.
    let daemon = UnixListener::bind(node.path("/run/qmeventd.sock"))?;
    let run = begun(&node, &archive, &[])?;
    let mut told = [0; 64];
    let len = daemon.accept()?.0.read(&mut told)?;
    ensure!(told.starts_with(br#"{"vzdump":{"vmid":"300"}}"#), "{}", String::from_utf8_lossy(&told[..len]));
    node.qmp(300, "system_reset", &json!({}))?;
    let output = finish(&node, run)?;
    ensure!(output.code == 0, "{}{}", output.stdout, output.stderr);
    ensure!(output.stdout.matches("WARN: ").count() == 1, "{}", output.stdout);
    output.says(&["restore-drive jobs finished successfully", "VM 300 has switched itself off meanwhile"])?;
    node.assert_clean_on_disk(300);
    assert_eq!(node.ok("qm", &["status", "300"])?.stdout, "status: stopped\n");
    assert_restored(&node, &disks)
}

#[test]
fn an_old_guest_is_there_again_unless_the_new_one_is_complete() -> Result<()> {
    let test = "an_old_guest_is_there_again_unless_the_new_one_is_complete";
    let Some((node, archive, disks)) = small(test, "0")? else { return Ok(()) };
    let archive = shown(&node.inner(&archive));
    Guest::new(300).name("old").line("args", "-no-reboot").disk("scsi0", Format::Raw, mib(1)).add_to(&node)?;
    let (config, volumes) = (std::fs::read(node.config_path(300))?, images(&node)?);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let run = begun(&node, &archive, &["--force", "1"])?;
        ensure!(node.config(300)?.get("name") != Some("old"));
        if signal == Signal::SIGKILL {
            // The lock says no more than to others that they should wait.
            node.ok("qm", &["unlock", "300"])?;
        }
        run.signal(signal)?;
        run.wait(SOON)?;
        node.wait_for_guardian()?;
        node.assert_clean_on_disk(300);
        assert!(std::fs::read(node.config_path(300))? == config && images(&node)? == volumes, "{signal}");
    }
    let output = finish(&node, begun(&node, &archive, &["--force", "1"])?)?;
    ensure!(output.code == 0, "{}{}", output.stdout, output.stderr);
    node.assert_clean(300);
    ensure!(!images(&node)?.contains(&volumes[0]), "{:?}", images(&node)?);
    // One that runs is not replaced.
    let again = node.run("vzkeep", &["live-restore", &archive, "300", "--force"])?;
    assert_eq!((again.code, again.stderr.as_str()), (255, "unable to restore VM 300 - vm is running\n"));
    node.ok("qm", &["stop", "300"])?;
    assert_restored(&node, &disks)
}

#[test]
fn the_archive_may_be_anyones() -> Result<()> {
    let test = "the_archive_may_be_anyones";
    if !lab::require(test, &["zstd", "gzip", "lzop"]) {
        return Ok(());
    }
    let Some((node, archive, disks)) = small(test, "0")? else { return Ok(()) };
    // One stream without any index of ours.
    for (program, suffix) in [("zstd", "zst"), ("gzip", "gz"), ("lzop", "lzo")] {
        let packed = archive.with_file_name(format!("foreign.vma.{suffix}"));
        let output = std::process::Command::new(program).args(["-q", "-c"]).arg(&archive).output()?;
        ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        std::fs::write(&packed, output.stdout)?;
        let mut run = begun(&node, &shown(&node.inner(&packed)), &["--force", "1"])?;
        // It is there before its data is.
        ensure!(run.is_running()? && node.qemu_pid(300).is_some(), "{program}: no guest");
        let output = finish(&node, run)?;
        ensure!(output.code == 0, "{program}: exit {}: {}", output.code, output.stderr);
        node.ok("qm", &["stop", "300"])?;
        assert_restored(&node, &disks).with_context(|| program)?;
    }
    Ok(())
}

#[test]
fn what_cannot_be_restored_so_is_refused_or_leaves_nothing() -> Result<()> {
    let test = "what_cannot_be_restored_so_is_refused_or_leaves_nothing";
    let Some((node, archive, _)) = small(test, "zstd")? else { return Ok(()) };
    let stdin = node.run("vzkeep", &["live-restore", "-", "300"])?;
    ensure!(stdin.code == 255 && stdin.stderr.starts_with("standard input can be read only once"), "{}", stdin.stderr);

    // One byte of the noise in the archive.
    let whole = std::fs::read(&archive)?;
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x10;
    let damaged = archive.with_file_name("damaged.vma.zst");
    std::fs::write(&damaged, flipped)?;
    let output = node.run("vzkeep", &["live-restore", &shown(&node.inner(&damaged)), "300", "--storage", "local"])?;
    println!("{test}: damaged: {}", output.stderr.trim());
    ensure!(
        output.code == 255 && output.stderr.contains("live-restore failed: "),
        "{}{}",
        output.stdout,
        output.stderr
    );
    ensure!(output.stderr.contains("damaged.vma.zst") || output.stderr.contains("drive-"), "{}", output.stderr);
    assert_nothing(&node)?;

    let words = ["live-restore", &shown(&node.inner(&archive)), "300", "--storage", "full"];
    let output = node.run("vzkeep", &words)?;
    println!("{test}: full: {}", output.stderr.trim());
    ensure!(output.code == 255 && output.stderr.contains("No space left on device"), "{}", output.stderr);
    assert_nothing(&node)?;

    let mut config = std::fs::read_to_string(node.config_path(100))?;
    config.push_str("template: 1\n");
    std::fs::write(node.config_path(100), config)?;
    let (template, _) = node.backup(100, &["--compress", "zstd"])?;
    let output = node.run("vzkeep", &["live-restore", &shown(&node.inner(&template)), "300", "--storage", "local"])?;
    assert_eq!(
        (output.code, output.stderr.as_str()),
        (255, "unable to restore VM 300 - cannot do live-restore for template\n")
    );
    assert_nothing(&node)
}
