//! A target that takes only 5 MiB a second, and nothing at all for a while: the guest must not wait for it.

mod lab;

use anyhow::{Context, Result, ensure};
use lab::checker::check;
use lab::record::{Record, SIZE, slots_for, stride_for};
use lab::serial::Report;
use lab::{Format, Guest, Node, mib};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

const RATE: u64 = mib(5);
/// How long the target takes nothing. A write that waited for it would take as long.
const PAUSE: Duration = Duration::from_secs(4);

/// Writes every record that fits to the raw disks of a guest that is off, as if its witness had run for long.
fn prefill(node: &Node, vmid: u32, keys: &[&str]) -> Result<()> {
    let disks: Vec<File> =
        keys.iter().map(|key| Ok(File::options().write(true).open(node.disk(vmid, key)?.0)?)).collect::<Result<_>>()?;
    let sizes: Vec<u64> = disks.iter().map(|disk| Ok(disk.metadata()?.len())).collect::<Result<_>>()?;
    let slots = slots_for(&sizes);
    let mut buf = vec![0; SIZE];
    for (index, (disk, size)) in disks.iter().zip(&sizes).enumerate() {
        for n in 1..=slots {
            let stride = stride_for(*size, slots);
            let record = Record { n, disk: index as u64, disks: disks.len() as u64, slots, stride };
            record.fill(&mut buf);
            disk.write_all_at(&buf, record.offset())?;
        }
    }
    Ok(())
}

fn ms(report: &Report) -> u128 {
    report.since_reset.as_millis()
}

#[test]
fn the_guest_does_not_wait_for_a_slow_target() -> Result<()> {
    if !lab::programs::require_guest("the_guest_does_not_wait_for_a_slow_target") {
        return Ok(());
    }
    // Each record lies in a cluster of its own, so there is much to read and the pipeline cannot swallow it at once.
    let guest = Guest::new(100).disk("scsi0", Format::Raw, mib(1024)).disk("virtio0", Format::Raw, mib(1024));
    let node = Node::new()?.guest(guest)?;
    prefill(&node, 100, &["scsi0", "virtio0"])?;
    let begun = Instant::now();
    node.start(100)?;
    node.wait_for_records(100, 100)?;

    let start = node.witness(100, "reset")?;
    std::thread::sleep(PAUSE);
    let calm = node.witness(100, "status")?;
    node.witness(100, "reset")?;

    let archive = node.path("/mnt/backup/dump/slow.vma");
    let said = node.path("/tmp/said");
    let mut vzdump = node.command("vzdump");
    vzdump.args(["100", "--stdout", "--mode", "snapshot", "--compress", "0"]);
    let mut vzdump = vzdump.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&said)?).spawn()?;
    let mut from = vzdump.stdout.take().context("no pipe")?;
    let mut to = File::create(&archive)?;
    let (mut buf, mut taken, mut during) = (vec![0; 64 << 10], 0_u64, None);
    let copying = Instant::now();
    loop {
        let read = from.read(&mut buf)?;
        if read == 0 {
            break;
        }
        to.write_all(&buf[..read])?;
        taken += read as u64;
        std::thread::sleep(Duration::from_secs_f64(read as f64 / RATE as f64));
        if taken > mib(6) && during.is_none() {
            let before = node.witness(100, "status")?;
            std::thread::sleep(PAUSE);
            let after = node.witness(100, "status")?;
            ensure!(vzdump.try_wait()?.is_none(), "vzdump did not wait for its target");
            during = Some(after.n - before.n);
        }
    }
    let status = vzdump.wait()?;
    ensure!(status.success(), "vzdump: {status}: {}", std::fs::read_to_string(&said)?);
    let took = copying.elapsed();
    let busy = node.witness(100, "status")?;
    node.assert_clean(100);
    let during = during.context("the archive was too small for a pause")?;
    println!("longest stall without a backup {} ms, with a slow target {} ms", ms(&calm), ms(&busy));
    println!("records in {PAUSE:?}: {} without a backup, {during} while the target took nothing", calm.n - start.n);
    ensure!(took > PAUSE + Duration::from_secs(2), "{taken} bytes in {took:?}: the target was not slow");
    // Ten times is an order of magnitude; what is short anyway may be a busy machine.
    let bound = (10 * calm.since_reset).clamp(Duration::from_millis(1500), PAUSE / 4 * 3);
    ensure!(busy.since_reset < bound, "the guest's longest stall: {} ms, at most {bound:?}", ms(&busy));
    ensure!(during > (calm.n - start.n) / 20, "the guest wrote {during} records while the target took nothing");
    ensure!(busy.errors == 0, "the guest saw {} I/O errors", busy.errors);

    node.restore(&archive, 200)?;
    let verdict = check(&[node.raw_disk(200, "scsi0")?, node.raw_disk(200, "virtio0")?])?;
    println!("{verdict}; {:?}", begun.elapsed());
    Ok(())
}

#[test]
fn bwlimit_is_kept_and_the_guest_does_not_feel_it() -> Result<()> {
    if !lab::programs::require_guest("bwlimit_is_kept_and_the_guest_does_not_feel_it") {
        return Ok(());
    }
    let guest = Guest::new(100).disk("scsi0", Format::Raw, mib(16)).disk("virtio0", Format::Raw, mib(16));
    let node = Node::new()?.guest(guest)?;
    prefill(&node, 100, &["scsi0", "virtio0"])?;
    node.start(100)?;
    node.wait_for_records(100, 100)?;
    node.witness(100, "reset")?;
    std::thread::sleep(PAUSE);
    let calm = node.witness(100, "status")?;
    node.witness(100, "reset")?;
    let begun = Instant::now();
    let (archive, said) = node.backup(100, &["--bwlimit", "5120", "--compress", "0"])?;
    let took = begun.elapsed();
    let busy = node.witness(100, "status")?;
    node.assert_clean(100);
    ensure!(said.stdout.contains("bandwidth limit: 5120 KiB/s"), "{}", said.stdout);
    let ideal = Duration::from_secs_f64(mib(32) as f64 / (5120.0 * 1024.0));
    println!("32 MiB at 5 MiB/s: {took:?}, ideal {ideal:?}; longest stall {} ms", ms(&busy));
    ensure!(took >= ideal * 9 / 10, "faster than the limit allows: {took:?}, ideal {ideal:?}");
    ensure!(took < ideal * 3, "far slower than the limit: {took:?}, ideal {ideal:?}");
    let bound = (10 * calm.since_reset).clamp(Duration::from_millis(1500), ideal / 4 * 3);
    ensure!(busy.since_reset < bound, "the guest's longest stall: {} ms, at most {bound:?}", ms(&busy));
    node.restore(&archive, 200)?;
    println!("{}", check(&[node.raw_disk(200, "scsi0")?, node.raw_disk(200, "virtio0")?])?);
    Ok(())
}
