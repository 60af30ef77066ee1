//! Round trips through the real `qemu-nbd`: written by us, read back by `qemu-img`, and the other way round.

use std::path::PathBuf;

use super::*;

const TOOLS: &[&str] = &["qemu-nbd", "qemu-img", "setpriv"];

struct Disk {
    _dir: tempfile::TempDir,
    path: PathBuf,
    plain: PathBuf,
}

fn disk() -> Disk {
    let dir = tempfile::tempdir().unwrap();
    Disk { path: dir.path().join("disk.img"), plain: dir.path().join("plain.raw"), _dir: dir }
}

/// Written through a target, converted by `qemu-img`, read through an image: all three the same.
fn round_trip(format: &str, bytes: &[u8]) {
    let host = Host::from_env();
    let disk = disk();
    run("qemu-img", &["create", "-q", "-f", format, text(&disk.path), &bytes.len().to_string()]);
    {
        let target = open_target(&host, &disk.path, format, "disk", true).unwrap();
        assert_eq!(target.size(), bytes.len() as u64);
        let mut at = 0;
        for part in bytes.chunks(3 << 18) {
            if part.iter().all(|b| *b == 0) {
                target.write_zeroes(at..at + part.len() as u64).unwrap();
            } else {
                target.write_at(part, at).unwrap();
            }
            at += part.len() as u64;
        }
        target.flush().unwrap();
    }
    run("qemu-img", &["convert", "-f", format, "-O", "raw", text(&disk.path), text(&disk.plain)]);
    assert!(std::fs::read(&disk.plain).unwrap() == bytes, "qemu-img reads something else");
    let image = open_image(&host, &disk.path, format, "disk").unwrap();
    assert!(read_all(&*image) == bytes, "we read something else");
    check_extents(&*image, bytes);
}

#[test]
fn awkward_sizes() {
    if !have("awkward_sizes", TOOLS) {
        return;
    }
    for format in ["qcow2", "raw"] {
        for sectors in [1, 129, 513, 4097] {
            round_trip(format, &noise(sectors, sectors as usize * 512));
        }
    }
    round_trip("qcow2", &vec![0; 5 << 20]);
    let mut mixed = noise(9, 6 << 20);
    mixed[1 << 20..4 << 20].fill(0);
    round_trip("qcow2", &mixed);
    round_trip("vmdk", &mixed);
}

#[test]
fn a_raw_file_that_is_no_multiple_of_a_sector_over_nbd() {
    if !have("a_raw_file_that_is_no_multiple_of_a_sector_over_nbd", TOOLS) {
        return;
    }
    let disk = disk();
    let bytes = noise(5, 513 * 512 + 100);
    std::fs::write(&disk.path, &bytes).unwrap();
    let server = QemuNbd::serve(&Host::from_env(), &disk.path, "raw", true).unwrap();
    let image = NbdImage::connect(server.socket(), "", "disk").unwrap();
    // QEMU counts in sectors: what it serves beyond the end of the file is zero.
    let read = read_all(&image);
    assert_eq!(read[..bytes.len()], bytes);
    assert!(read[bytes.len()..].iter().all(|b| *b == 0) && read.len() < bytes.len() + 512);
    let mut tail = [0; 7];
    image.read_at(&mut tail, bytes.len() as u64 - 7).unwrap();
    assert_eq!(tail, bytes[bytes.len() - 7..]);
}

#[test]
fn four_kib_in_64_gib() {
    if !have("four_kib_in_64_gib", TOOLS) {
        return;
    }
    let host = Host::from_env();
    let disk = disk();
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(&disk.path), "64G"]);
    let (bytes, at) = (noise(4, 4096), (37 << 30) + 8192u64);
    {
        let target = open_target(&host, &disk.path, "qcow2", "disk", true).unwrap();
        target.write_at(&bytes, at).unwrap();
        target.flush().unwrap();
    }
    let image = open_image(&host, &disk.path, "qcow2", "disk").unwrap();
    let data: Vec<Extent> =
        image.extents(0..64 << 30).unwrap().into_iter().filter(|e| e.kind == ExtentKind::Data).collect();
    assert!(data.len() == 1 && data[0].len <= 1 << 16 && (data[0].offset..data[0].offset + data[0].len).contains(&at));
    let mut back = vec![0; 4096];
    image.read_at(&mut back, at).unwrap();
    assert_eq!(back, bytes);
}

#[test]
fn what_qemu_says_is_passed_on() {
    if !have("what_qemu_says_is_passed_on", TOOLS) {
        return;
    }
    let host = Host::from_env();
    let disk = disk();
    std::fs::write(&disk.path, [0x55; 4096]).unwrap();
    let error = open_image(&host, &disk.path, "qcow2", "drive-scsi0").map(drop).unwrap_err().to_string();
    assert!(error.contains("not in qcow2 format") && error.contains("drive-scsi0"), "{error}");
    let error = open_image(&host, &disk.path, "nbd:unix:/x", "d").map(drop).unwrap_err().to_string();
    assert!(error.contains("use one of raw, qcow2"), "{error}");
    let colon = disk.path.with_file_name("nbd:unix:x");
    let error = open_image(&host, &colon, "qcow2", "d").map(drop).unwrap_err().to_string();
    assert!(error.contains("No such file"), "{error}");
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(&disk.path), "1M"]);
    let _writer = open_target(&host, &disk.path, "qcow2", "d", true).unwrap();
    let error = open_image(&host, &disk.path, "qcow2", "d").map(drop).unwrap_err().to_string();
    assert!(error.contains("lock"), "a disk in use must be refused: {error}");
}
