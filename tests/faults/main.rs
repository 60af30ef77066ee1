//! What goes wrong in real life, on real guests, through the real programs: each fault ends with the guest running and
//! neither paused, frozen nor locked, with nothing left in QEMU or on disk, with a clear error, and the next backup is good.

#[path = "../lab/mod.rs"]
mod lab;

mod killed;
mod parts;
mod restored;
mod space;
mod stopped;

use anyhow::Result;
use lab::run::{Output, Running};
use lab::{Format, Guest, Node, kib, mib};
use std::time::{Duration, Instant};

const VMID: u32 = 100;
/// The disks on which the witness writes.
const KEYS: [&str; 2] = ["scsi0", "virtio0"];
/// How long any run may take after it was disturbed.
const SOON: Duration = Duration::from_secs(60);
/// A rate at which the backup of a guest takes some five seconds: its disks have 65 MiB, and zeros count.
const SLOW: [&str; 2] = ["--bwlimit", "12000"];

/// A running guest with two disks for the witness and one that it leaves alone, full of what does not compress.
fn node(test: &str, change: impl FnOnce(&Node) -> Result<()>, guest: Guest) -> Result<Option<Node>> {
    if !lab::programs::require_guest(test) {
        return Ok(None);
    }
    let guest = guest.name("web01").disk("scsi0", Format::Qcow2, mib(40)).disk("virtio0", Format::Raw, mib(24)).disk(
        "scsi1",
        Format::Raw,
        kib(960),
    );
    let node = Node::new()?.guest(guest)?;
    std::fs::write(node.disk(VMID, "scsi1")?.0, ballast(kib(960)))?;
    change(&node)?;
    let begun = Instant::now();
    node.start(VMID)?;
    node.wait_for_records(VMID, 100)?;
    println!("{test}: guest {VMID} runs and writes after {:.1} s", begun.elapsed().as_secs_f64());
    Ok(Some(node))
}

/// Starts a slow backup and waits until it copies.
fn copying(node: &Node, words: &[&str]) -> Result<Running> {
    let all = [&["100", "--storage", "backup"], &SLOW[..], words].concat();
    let mut run = node.spawn_vzdump(&all)?;
    run.wait_for("started backup task", SOON)?;
    std::thread::sleep(Duration::from_millis(700));
    Ok(run)
}

/// The sentence with which a failed run ends.
fn sentence(output: &Output) -> &str {
    let failed = output.stdout.lines().find(|line| line.contains("failed - "));
    failed.unwrap_or(output.stderr.trim())
}

/// Bytes that do not compress.
fn ballast(bytes: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15;
    (0..bytes).map(|_| (random(&mut state) >> 32) as u8).collect()
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
