//! Guests of every kind: firmware variables and a TPM, disks left out, gaps in the numbers, a CD-ROM drive, sections in the
//! config, no disks, templates, paused ones, a guest agent; several in one run.

mod lab;

use anyhow::{Result, ensure};
use lab::checker::check;
use lab::{Dice, Format, Guest, Node, kib, mib};
use serde_json::json;
use std::process::Command;
use std::time::{Duration, Instant};

const RULES: &str = "[OPTIONS]\n\nenable: 1\n\n[RULES]\n\nIN SSH(ACCEPT) -log nolog\n";
const SECTIONS: &str = "\n[PENDING]\nmemory: 256\n\n[before]\ncores: 1\nmemory: 64\nsnaptime: 1795341145\n";

fn said(text: &str, line: &str) -> Result<()> {
    ensure!(text.contains(line), "'{line}' is missing in:\n{text}");
    Ok(())
}

/// Fills the image of a disk with bytes that do not compress; returns them.
fn fill(node: &Node, vmid: u32, key: &str, bytes: u64) -> Result<Vec<u8>> {
    let data = Dice::seeded(bytes).bytes(usize::try_from(bytes)?);
    std::fs::write(node.disk(vmid, key)?.0, &data)?;
    Ok(data)
}

fn append(node: &Node, vmid: u32, text: &str) -> Result<()> {
    let config = std::fs::read_to_string(node.config_path(vmid))?;
    Ok(std::fs::write(node.config_path(vmid), config + text)?)
}

#[test]
fn everything_a_guest_can_have() -> Result<()> {
    if !lab::programs::require_guest("everything_a_guest_can_have") {
        return Ok(());
    }
    let begun = Instant::now();
    let guest = Guest::new(100)
        .name("all")
        .line("bios", "ovmf")
        .line("ide2", "none,media=cdrom")
        .line("description", "50%25 of it%3A everything")
        .disk("efidisk0", Format::Raw, kib(528))
        .with("efitype=4m,pre-enrolled-keys=1")
        .disk("tpmstate0", Format::Raw, mib(4))
        .with("version=v2.0")
        .disk("scsi3", Format::Qcow2, mib(8))
        .disk("scsi7", Format::Raw, mib(8))
        .with("backup=0")
        .disk("virtio5", Format::Raw, mib(12))
        .with("iothread=1");
    let node = Node::new()?.guest(guest)?;
    let efi = fill(&node, 100, "efidisk0", kib(528))?;
    let tpm = fill(&node, 100, "tpmstate0", mib(4))?;
    append(&node, 100, SECTIONS)?;
    std::fs::write(node.path("/etc/pve/firewall/100.fw"), RULES)?;
    let config = std::fs::read_to_string(node.config_path(100))?;
    node.start(100)?;
    node.wait_for_records(100, 50)?;

    for mode in ["snapshot", "suspend"] {
        let before = node.witness(100, "status")?;
        let (archive, out) = node.backup(100, &["--mode", mode, "--compress", "zstd"])?;
        let after = node.witness(100, "status")?;
        node.assert_clean(100);
        ensure!(std::fs::read_to_string(node.config_path(100))? == config, "the config changed");
        said(&out.stdout, "exclude disk 'scsi7' 'local:100/vm-100-disk-3.raw' (backup=no)")?;
        for key in ["efidisk0", "tpmstate0", "scsi3", "virtio5"] {
            said(&out.stdout, &format!("include disk '{key}' 'local:100/"))?;
        }
        node.restore(&archive, 200)?;
        for (key, data) in [("efidisk0", &efi), ("tpmstate0", &tpm)] {
            ensure!(std::fs::read(node.disk(200, key)?.0)? == *data, "{mode}: {key} differs");
        }
        let verdict = check(&[node.raw_disk(200, "scsi3")?, node.raw_disk(200, "virtio5")?])?;
        ensure!(verdict.heads[0] >= before.n && verdict.heads[1] <= after.n, "{verdict}: {before:?} {after:?}");
        let restored = std::fs::read_to_string(node.config_path(200))?;
        for line in ["ide2: none,media=cdrom\n", "name: all\n", "description: 50%25 of it%3A everything\n", "#scsi7: "]
        {
            said(&restored, line)?;
        }
        said(&restored, "efitype=4m,pre-enrolled-keys=1")?;
        for gone in ["[PENDING]", "[before]", "#qmdump", "lock:"] {
            ensure!(!restored.contains(gone), "{gone} in\n{restored}");
        }
        ensure!(std::fs::read_to_string(node.path("/etc/pve/firewall/200.fw"))? == RULES, "firewall rules differ");
        node.remove(200)?;
        std::fs::remove_file(archive)?;
        println!("{mode}: {verdict}; {:?}", begun.elapsed());
    }

    // The same one stopped: every disk that is in the archive to the byte.
    node.shutdown(100)?;
    let (archive, _) = node.backup(100, &["--compress", "gzip"])?;
    node.assert_clean_on_disk(100);
    node.restore(&archive, 200)?;
    for key in ["efidisk0", "tpmstate0", "scsi3", "virtio5"] {
        let (was, is) = (std::fs::read(node.raw_disk(100, key)?)?, std::fs::read(node.raw_disk(200, key)?)?);
        ensure!(was == is, "stopped: {key} differs");
    }
    println!("stopped: {:?}", begun.elapsed());
    Ok(())
}

#[test]
fn a_paused_guest_stays_paused() -> Result<()> {
    if !lab::programs::require_guest("a_paused_guest_stays_paused") {
        return Ok(());
    }
    let begun = Instant::now();
    let guest = Guest::new(100).disk("scsi0", Format::Qcow2, mib(8)).disk("virtio0", Format::Raw, mib(8));
    let node = Node::new()?.guest(guest)?;
    node.start(100)?;
    let before = node.wait_for_records(100, 50)?;
    node.ok("qm", &["suspend", "100"])?;
    let (archive, _) = node.backup(100, &["--mode", "snapshot", "--compress", "zstd"])?;
    let status = node.qmp(100, "query-status", &json!({}))?;
    ensure!(status["status"] == "paused", "the paused guest is {status}");
    let left: Vec<String> = node.leftovers(100)?.into_iter().filter(|left| !left.ends_with(" is paused")).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    node.restore(&archive, 200)?;
    let verdict = check(&[node.raw_disk(200, "scsi0")?, node.raw_disk(200, "virtio0")?])?;
    ensure!(verdict.heads[0] >= before.n, "{verdict}");
    node.ok("qm", &["resume", "100"])?;
    node.wait_for_records(100, 20)?;
    println!("{:?}", begun.elapsed());
    Ok(())
}

#[test]
fn guests_without_disks() -> Result<()> {
    if !lab::programs::require_guest("guests_without_disks") {
        return Ok(());
    }
    let begun = Instant::now();
    let node = Node::new()?
        .guest(Guest::new(100).name("empty").line("ide2", "none,media=cdrom"))?
        .guest(Guest::new(101).disk("scsi1", Format::Raw, mib(4)).with("backup=0"))?;
    std::fs::write(node.path("/etc/pve/firewall/100.fw"), RULES)?;
    for (vmid, running) in [(100, false), (101, false), (100, true), (101, true)] {
        if running {
            node.switch_on(vmid)?;
            node.witness(vmid, "status")?;
        }
        for mode in if running { &["snapshot", "suspend", "stop"][..] } else { &["snapshot"] } {
            let (archive, out) = node.backup(vmid, &["--mode", mode, "--compress", "zstd"])?;
            said(&out.stdout, "backup contains no disks")?;
            if running {
                node.assert_clean(vmid)
            } else {
                node.assert_clean_on_disk(vmid)
            }
            node.restore(&archive, 200)?;
            let restored = std::fs::read_to_string(node.config_path(200))?;
            ensure!(restored.contains("name: empty\n") == (vmid == 100), "{restored}");
            ensure!(restored.contains("#scsi1: ") == (vmid == 101), "{restored}");
            node.remove(200)?;
            std::fs::remove_file(archive)?;
        }
        println!("{vmid}, running {running}: {:?}", begun.elapsed());
    }
    Ok(())
}

#[test]
fn a_template_is_backed_up_as_it_lies() -> Result<()> {
    if !lab::require("a_template_is_backed_up_as_it_lies", &["qemu-img", "qemu-nbd"]) {
        return Ok(());
    }
    let node = Node::new()?.guest(Guest::new(100).disk("scsi0", Format::Raw, mib(2)))?;
    let data = fill(&node, 100, "scsi0", mib(2))?;
    let images = node.path("/var/lib/vz/images/100");
    std::fs::rename(images.join("vm-100-disk-0.raw"), images.join("base-100-disk-0.raw"))?;
    let config = std::fs::read_to_string(node.config_path(100))?.replace("vm-100-disk-0", "base-100-disk-0");
    std::fs::write(node.config_path(100), config + "template: 1\n")?;
    let (archive, out) = node.backup(100, &["--mode", "snapshot", "--compress", "zstd"])?;
    said(&out.stdout, "include disk 'scsi0' 'local:100/base-100-disk-0.raw' 2M")?;
    node.assert_clean_on_disk(100);
    node.restore(&archive, 200)?;
    ensure!(std::fs::read(node.disk(200, "scsi0")?.0)? == data, "the template's disk differs");
    node.assert_clean_on_disk(200);
    Ok(())
}

#[test]
fn one_guest_fails_and_the_others_are_backed_up() -> Result<()> {
    if !lab::programs::require_guest("one_guest_fails_and_the_others_are_backed_up") {
        return Ok(());
    }
    let begun = Instant::now();
    let node = Node::new()?
        .guest(Guest::new(100).disk("scsi0", Format::Raw, mib(4)))?
        .guest(Guest::new(101).disk("scsi0", Format::Raw, mib(4)).disk("scsi1", Format::Qcow2, mib(4)))?
        .guest(Guest::new(102).disk("virtio0", Format::Qcow2, mib(4)))?;
    let data = fill(&node, 100, "scsi0", mib(4))?;
    std::fs::remove_file(node.disk(101, "scsi1")?.0)?;
    node.start(102)?;
    let before = node.wait_for_records(102, 20)?;
    let out = node.vzdump(&["102", "101", "100", "--storage", "backup", "--compress", "zstd"])?;
    ensure!(out.code != 0, "a failed guest, and yet exit 0");
    said(&(out.stdout.clone() + &out.stderr), "Backup of VM 101 failed - ")?;
    said(&(out.stdout.clone() + &out.stderr), "job errors")?;
    node.assert_clean(102);
    node.assert_clean_on_disk(101);
    ensure!(node.archives("backup", 101)?.is_empty(), "an archive of the guest that failed");
    node.restore(&node.archives("backup", 100)?[0], 200)?;
    ensure!(std::fs::read(node.disk(200, "scsi0")?.0)? == data, "100 differs");
    node.restore(&node.archives("backup", 102)?[0], 202)?;
    let verdict = check(&[node.raw_disk(202, "virtio0")?])?;
    ensure!(verdict.heads[0] >= before.n, "{verdict}");
    println!("{:?}", begun.elapsed());
    Ok(())
}

#[test]
fn the_agent_freezes_and_thaws_the_file_system() -> Result<()> {
    let name = "the_agent_freezes_and_thaws_the_file_system";
    if !lab::programs::require_guest(name) || !lab::require(name, &["qemu-ga", "mke2fs", "e2fsck", "debugfs"]) {
        return Ok(());
    }
    let begun = Instant::now();
    let guest = Guest::new(100).with_agent().disk("scsi0", Format::Raw, mib(48)).disk("virtio0", Format::Raw, mib(8));
    let node = Node::new()?.guest(guest)?;
    node.start(100)?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while node.witness(100, "status")?.files < 10 {
        ensure!(Instant::now() < deadline, "the guest writes no files");
        std::thread::sleep(Duration::from_millis(100));
    }
    let (archive, out) = node.backup(100, &["--mode", "snapshot", "--compress", "zstd"])?;
    for line in ["issuing guest-agent 'fs-freeze' command", "issuing guest-agent 'fs-thaw' command"] {
        said(&out.stdout, line)?;
    }
    ensure!(node.agent(100, "guest-fsfreeze-status", &json!({}))? == "thawed", "the guest is still frozen");
    let files = node.witness(100, "status")?.files;
    std::thread::sleep(Duration::from_millis(500));
    let later = node.witness(100, "status")?;
    ensure!(later.files > files && later.errors == 0, "the guest writes no files any more: {later:?}");
    node.assert_clean(100);
    node.restore(&archive, 200)?;
    let disk = node.raw_disk(200, "scsi0")?;
    let checked =
        Command::new(lab::programs::find("e2fsck").unwrap_or_default()).args(["-f", "-n"]).arg(&disk).output()?;
    let text = String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
    ensure!(checked.status.success(), "e2fsck: {}: {text}", checked.status);
    let debugfs = lab::programs::find("debugfs").unwrap_or_default();
    let shown = Command::new(debugfs).args(["-R", "features"]).arg(&disk).output()?;
    let features = String::from_utf8_lossy(&shown.stdout).into_owned();
    ensure!(
        features.contains("has_journal") && !features.contains("needs_recovery"),
        "frozen disks need no recovery: {features}"
    );
    println!("the restored file system is clean; {:?}", begun.elapsed());
    Ok(())
}

#[test]
fn fleecing_on_a_storage_leaves_nothing_there() -> Result<()> {
    if !lab::programs::require_guest("fleecing_on_a_storage_leaves_nothing_there") {
        return Ok(());
    }
    let begun = Instant::now();
    let guest = Guest::new(100).disk("scsi0", Format::Qcow2, mib(16)).disk("virtio0", Format::Raw, mib(16));
    let node = Node::new()?.guest(guest.with("iothread=1"))?;
    node.start(100)?;
    let before = node.wait_for_records(100, 100)?;
    // Slow enough for the guest to overwrite what was not read yet.
    let words = ["--fleecing", "enabled=1,storage=local", "--bwlimit", "10240", "--compress", "zstd"];
    let (archive, out) = node.backup(100, &words)?;
    for (device, number) in [("drive-scsi0", 0), ("drive-virtio0", 1)] {
        let volid = format!("local:100/vm-100-fleece-{number}.qcow2");
        said(&out.stdout, &format!("{device}: attaching fleecing image {volid} to QEMU"))?;
        said(&out.stdout, &format!("removing (old) fleecing image '{volid}'"))?;
        ensure!(
            !node.path(&format!("/var/lib/vz/images/100/vm-100-fleece-{number}.qcow2")).exists(),
            "{volid} is left"
        );
    }
    node.assert_clean(100);
    let after = node.witness(100, "status")?;
    node.restore(&archive, 200)?;
    let verdict = check(&[node.raw_disk(200, "scsi0")?, node.raw_disk(200, "virtio0")?])?;
    ensure!(verdict.heads[0] >= before.n && verdict.heads[1] <= after.n && after.errors == 0, "{verdict} {after:?}");
    println!("{verdict}; {:?}", begun.elapsed());
    Ok(())
}
