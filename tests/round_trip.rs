//! Stopped guests there and back: disks of awkward sizes and contents, raw and qcow2, in every compression, byte for byte;
//! and the archives as the stock tools see them.

mod lab;

use anyhow::{Context, Result, ensure};
use lab::{Dice, Format, Guest, Node, gib, kib, mib};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A disk and what is written to it.
struct Disk {
    key: &'static str,
    format: Format,
    bytes: u64,
    /// Offset and length of what is written.
    data: &'static [(u64, u64)],
    zeros: bool,
}

const fn disk(key: &'static str, format: Format, bytes: u64, data: &'static [(u64, u64)]) -> Disk {
    Disk { key, format, bytes, data, zeros: false }
}

const ODD: u64 = kib(64) * 5 + 1536;
const HUGE: u64 = gib(64);

const DISKS: &[Disk] = &[
    disk("scsi0", Format::Raw, 512, &[(0, 512)]),
    disk("scsi1", Format::Qcow2, 512, &[(0, 512)]),
    disk("scsi2", Format::Raw, ODD, &[(0, ODD)]),
    disk("scsi3", Format::Qcow2, ODD, &[(0, ODD)]),
    disk("scsi4", Format::Raw, HUGE, &[(gib(37) + kib(20), kib(4))]),
    disk("scsi5", Format::Qcow2, HUGE, &[(HUGE - kib(4), kib(4))]),
    disk("scsi6", Format::Qcow2, mib(3), &[]),
    // Written, but zero.
    Disk { zeros: true, ..disk("scsi7", Format::Raw, mib(3), &[(0, mib(3))]) },
    disk("virtio0", Format::Raw, mib(6), &[(0, mib(6))]),
    disk("virtio1", Format::Qcow2, mib(6), &[(0, mib(6))]),
    // Single blocks and the borders of clusters.
    disk("virtio2", Format::Qcow2, mib(2) + 512, &[(0, 512), (kib(64) - 1, 2), (kib(132), kib(4)), (mib(2), 512)]),
];

const COMPRESSIONS: &[(&[&str], &str)] = &[
    (&["--compress", "0"], ""),
    (&["--compress", "lzo"], "lzop"),
    (&["--compress", "gzip", "--pigz", "2"], "gzip"),
    (&["--compress", "zstd", "--zstd", "1"], "zstd"),
    (&["--compress", "zstd", "--zstd", "2"], "zstd"),
];

fn shell(node: &Node, script: &str) -> Result<()> {
    let output = node.run("sh", &["-e", "-c", script])?;
    ensure!(output.code == 0, "{script}: exit {}: {}{}", output.code, output.stdout, output.stderr);
    Ok(())
}

/// A guest with all the disks; their contents also lie in `/srv/<key>.raw`.
fn node() -> Result<Node> {
    let guest = DISKS.iter().fold(Guest::new(100), |guest, disk| guest.disk(disk.key, disk.format, disk.bytes));
    let node = Node::new()?.guest(guest)?;
    std::fs::create_dir_all(node.path("/srv"))?;
    let mut dice = Dice::seeded(7);
    for disk in DISKS {
        let original = original(&node, disk);
        let file = File::create(&original)?;
        file.set_len(disk.bytes)?;
        for (offset, len) in disk.data {
            let len = usize::try_from(*len)?;
            file.write_all_at(&if disk.zeros { vec![0; len] } else { dice.bytes(len) }, *offset)?;
        }
        let image = node.disk(100, disk.key)?.0.display().to_string();
        let original = original.display();
        // qcow2 images keep the clusters that were preallocated for them, as on a node.
        match disk.format {
            // Zeros that were written stay allocated.
            Format::Raw => {
                shell(&node, &format!("cp --sparse={} {original} {image}", if disk.zeros { "never" } else { "always" }))
            }
            Format::Qcow2 if disk.bytes == HUGE => {
                let (offset, len) = disk.data[0];
                let script = format!(
                    "dd if={original} of=block bs=1 skip={offset} count={len} status=none; \
                     qemu-io -f qcow2 -c 'write -q -s block {offset} {len}' {image}; rm block"
                );
                shell(&node, &script)
            }
            Format::Qcow2 => shell(&node, &format!("qemu-img convert -n -f raw -O qcow2 {original} {image}")),
        }?;
    }
    Ok(node)
}

fn original(node: &Node, disk: &Disk) -> PathBuf {
    node.path("/srv").join(format!("{}.raw", disk.key))
}

/// Fails unless every disk of guest `vmid` holds, byte for byte, what guest 100 has.
fn assert_equal(node: &Node, vmid: u32) -> Result<()> {
    for disk in DISKS {
        let (restored, format) = node.disk(vmid, disk.key)?;
        ensure!(format == disk.format.name(), "{}: restored as {format}", disk.key);
        // A volume is made in KiB; a raw file is cut to the byte, qcow2 stays a little longer and reads as zeros there.
        let bytes = if format == "raw" { disk.bytes } else { disk.bytes.next_multiple_of(1024) };
        let size = virtual_size(node, &restored, &format)?;
        ensure!(size == bytes, "{}: {size} bytes instead of {bytes}", disk.key);
        let (original, restored) = (original(node, disk), restored.display().to_string());
        shell(node, &format!("qemu-img compare -f raw -F {format} {} {restored}", original.display()))
            .with_context(|| format!("{} differs", disk.key))?;
    }
    Ok(())
}

fn virtual_size(node: &Node, image: &Path, format: &str) -> Result<u64> {
    let words = ["info", "--output=json", "-f", format, &image.display().to_string()];
    let info: serde_json::Value = serde_json::from_str(&node.ok("qemu-img", &words)?.stdout)?;
    info["virtual-size"].as_u64().context("no size")
}

fn size(path: &Path) -> Result<u64> {
    Ok(path.metadata()?.len())
}

#[test]
fn awkward_disks_come_back_byte_for_byte() -> Result<()> {
    let programs = ["qemu-img", "qemu-io", "qemu-nbd", "zstd", "gzip", "lzop", "dd"];
    if !lab::require("awkward_disks_come_back_byte_for_byte", &programs) {
        return Ok(());
    }
    let node = node()?;
    for (words, tool) in COMPRESSIONS {
        let begun = Instant::now();
        let (archive, _) = node.backup(100, words)?;
        node.assert_clean_on_disk(100);
        let backed_up = begun.elapsed();
        // Twice 64 GiB of nothing: only the heads of their extents, 9 MiB each, are there.
        ensure!(size(&archive)? < mib(36), "{} has {} bytes", archive.display(), size(&archive)?);
        let path = archive.display();
        let (mut vmids, plain) = (vec![200], node.path("/srv/plain.vma"));
        if !tool.is_empty() {
            shell(&node, &format!("{tool} -q -t {path}; {tool} -q -d -c {path} > {}", plain.display()))?;
        }
        node.restore(&archive, 200)?;
        if !tool.is_empty() {
            // What the stock tool unpacks, read again.
            node.restore(&plain, 201)?;
            vmids.push(201);
        }
        for vmid in vmids {
            assert_equal(&node, vmid).with_context(|| format!("{} as {vmid}", words.join(" ")))?;
            node.assert_clean_on_disk(vmid);
            node.remove(vmid)?;
        }
        println!("{}: backup {backed_up:?}, with all checks {:?}", words.join(" "), begun.elapsed());
        std::fs::remove_file(&archive)?;
    }
    Ok(())
}

#[test]
fn through_a_pipe_from_standard_output_to_standard_input() -> Result<()> {
    if !lab::require("through_a_pipe_from_standard_output_to_standard_input", &["qemu-img", "qemu-io", "qemu-nbd"]) {
        return Ok(());
    }
    let node = node()?;
    for (vmid, compression) in [(200, "0"), (201, "zstd")] {
        let begun = Instant::now();
        let from = format!("vzdump 100 --stdout --compress {compression} --quiet 1; echo $? > /dev/stderr");
        let script = format!("{{ {from}; }} 2> said | qmrestore - {vmid} --storage local; grep -qx 0 said; rm said");
        shell(&node, &script)?;
        assert_equal(&node, vmid)?;
        node.assert_clean_on_disk(vmid);
        node.remove(vmid)?;
        println!("--stdout --compress {compression} into qmrestore -: {:?}", begun.elapsed());
    }
    ensure!(node.archives("local", 100)?.is_empty(), "an archive was left beside standard output");
    Ok(())
}
