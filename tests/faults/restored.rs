//! Restores that are killed, told to stop, or run out of space: of the new guest nothing is left.

use super::{SOON, VMID};
use crate::lab::run::Running;
use crate::lab::{Format, Guest, Node, kib, mib};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::Duration;

const NEW: &str = "901";

fn assert_nothing(node: &Node) -> Result<()> {
    node.assert_clean_on_disk(901);
    assert!(!node.config_path(901).exists());
    for storage in ["/var/lib/vz", "/mnt/full"] {
        let left: Vec<_> =
            std::fs::read_dir(node.path(storage).join("images").join(NEW)).into_iter().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
    Ok(())
}

fn restoring(node: &Node, archive: &str) -> Result<Running> {
    let mut run = node.spawn("qmrestore", &[archive, NEW, "--storage", "local", "--bwlimit", "100"])?;
    run.wait_for("map 'drive-scsi1'", SOON)?;
    std::thread::sleep(Duration::from_millis(500));
    Ok(run)
}

#[test]
fn a_restore_killed_terminated_or_out_of_space() -> Result<()> {
    if !crate::lab::require("a_restore_killed_terminated_or_out_of_space", &["qemu-img", "qemu-nbd"]) {
        return Ok(());
    }
    let guest = Guest::new(VMID).disk("scsi0", Format::Qcow2, mib(8)).disk("scsi1", Format::Raw, kib(960));
    let node = Node::new()?.guest(guest)?.small_storage("full", kib(640))?;
    let noise: Vec<u8> = (0..kib(960)).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 37) as u8).collect();
    let image = node.disk(VMID, "scsi1")?.0;
    std::fs::write(&image, &noise)?;
    node.ok("vzdump", &["100", "--storage", "backup", "--compress", "zstd"])?;
    let archive = node.archives("backup", VMID)?.pop().context("no archive")?;
    let archive = node.inner(&archive).display().to_string();

    let run = restoring(&node, &archive)?;
    run.signal(Signal::SIGKILL)?;
    assert_eq!(run.wait(SOON)?.code, 128 + 9);
    println!("KILL: the guardian took {:.3} s", node.wait_for_guardian()?.as_secs_f64());
    assert_nothing(&node)?;

    let run = restoring(&node, &archive)?;
    run.signal(Signal::SIGTERM)?;
    let output = run.wait(SOON)?;
    assert_eq!((output.code, output.stderr.as_str()), (255, "interrupted by signal\n"));
    assert_nothing(&node)?;

    // Both at once: the next restore clears up.
    let run = restoring(&node, &archive)?;
    for pid in node.guardians()? {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL)?;
    }
    run.signal(Signal::SIGKILL)?;
    run.wait(SOON)?;
    assert!(node.config_path(901).exists());

    let output = node.qmrestore(&[&archive, NEW, "--storage", "full"])?;
    println!("target full: {}", output.stderr.trim());
    assert_eq!(output.code, 255);
    assert!(output.stderr.contains("No space left on device"), "{}", output.stderr);
    assert!(output.stderr.contains("scsi"), "{}", output.stderr);
    assert_nothing(&node)?;

    node.ok("qmrestore", &[&archive, NEW, "--storage", "local"])?;
    let restored: &Path = &node.disk(901, "scsi1")?.0;
    assert!(std::fs::read(restored)? == noise);
    Ok(())
}
