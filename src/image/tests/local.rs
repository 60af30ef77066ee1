//! Memory, raw files, faults.

use std::sync::Arc;

use super::*;

#[test]
fn memory_knows_its_zeros() {
    let mut bytes = noise(1, 20_000);
    bytes[4096..8192].fill(0);
    let image = MemImage::sparse("mem", bytes.clone());
    assert_eq!(check_extents(&image, &bytes), 20_000 - 4096);
    let part = image.extents(5000..9000).unwrap();
    assert_eq!(part[0], Extent { offset: 5000, len: 3192, kind: ExtentKind::Zero });
    assert_eq!(part[1], Extent { offset: 8192, len: 808, kind: ExtentKind::Data });
    assert!(image.extents(0..20_001).is_err());
    assert_eq!(MemImage::new("mem", bytes.clone()).extents(0..20_000).unwrap().len(), 1);
    assert_eq!(read_all(&image), bytes);

    let target = MemTarget::new("mem", 100, false);
    target.write_zeroes(10..20).unwrap();
    target.write_at(b"abc", 97).unwrap();
    assert_eq!((target.content()[9], target.content()[10], target.content()[99]), (0xa5, 0, b'c'));
    target.fail_range(50..51);
    let error = target.write_at(&[0; 10], 41).unwrap_err().to_string();
    assert_eq!(error, "mem: write of 10 bytes at offset 41 failed: No space left on device (os error 28)");
    target.write_at(&[0; 10], 40).unwrap();
}

#[test]
fn faults_where_they_were_asked_for() {
    let bytes = noise(2, 10_000);
    let image = Arc::new(MemImage::new("disk", bytes.clone()));
    let bad = FaultyImage::new(image.clone()).fail_range(5000..5512);
    let mut buf = [0; 1000];
    bad.read_at(&mut buf, 4000).unwrap();
    bad.read_at(&mut buf, 5512).unwrap();
    assert_eq!(bad.bytes_read(), 2000);
    let error = bad.read_at(&mut buf, 4900).unwrap_err();
    assert_eq!((error.op, error.offset, error.len), ("read", 5000, 900));
    assert_eq!(buf[..100], bytes[4900..5000]);
    let short = FaultyImage::new(image.clone()).end_at(9000);
    assert_eq!(short.read_at(&mut buf, 8500).unwrap_err().offset, 9000);
    assert_eq!(short.read_at(&mut buf, 9000).unwrap_err().offset, 9000);
    assert!(FaultyImage::new(image).fail_extents().extents(0..1).is_err());
}

#[test]
fn a_raw_file_of_any_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    for size in [0usize, 1, 512, 513 * 512 + 100, 3 << 20] {
        let mut bytes = noise(size as u64, size);
        if size > 1 << 20 {
            bytes[1 << 20..2 << 20].fill(0);
        }
        std::fs::write(&path, vec![0xff; size]).unwrap();
        let target = RawTarget::open(&path, "disk", false).unwrap();
        assert_eq!(target.size(), size as u64);
        let mut at = 0;
        for part in bytes.chunks(100_001) {
            if part.iter().all(|b| *b == 0) {
                target.write_zeroes(at..at + part.len() as u64).unwrap();
            } else {
                target.write_at(part, at).unwrap();
            }
            at += part.len() as u64;
        }
        target.flush().unwrap();
        assert!(target.write_at(&[0], size as u64).is_err(), "a target must not grow");
        let image = RawImage::open(&path, "disk").unwrap();
        assert_eq!(read_all(&image), bytes);
        check_extents(&image, &bytes);
        image.release(0..size as u64);
        assert_eq!(read_all(&image), bytes);
    }
}

#[test]
fn holes_of_a_raw_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(64 << 30).unwrap();
    let target = RawTarget::open(&path, "disk", true).unwrap();
    target.write_at(&noise(3, 4096), 33 << 30).unwrap();
    target.write_zeroes(0..32 << 30).unwrap();
    let image = RawImage::open(&path, "disk").unwrap();
    let extents = image.extents(0..64 << 30).unwrap();
    let data: u64 = extents.iter().filter(|e| e.kind == ExtentKind::Data).map(|e| e.len).sum();
    // A file system that cannot tell calls everything data; those that can are exact to a few pages.
    assert!(data == 64 << 30 || data <= 1 << 20, "{data}");
    let inside = image.extents((33 << 30)..(33 << 30) + 100).unwrap();
    assert_eq!(inside, [Extent { offset: 33 << 30, len: 100, kind: ExtentKind::Data }]);
}

#[test]
fn errors_name_the_path_and_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let error = RawImage::open(&path, "drive-scsi0").unwrap_err().to_string();
    assert!(error.starts_with("drive-scsi0: open") && error.contains(text(&path)), "{error}");
    assert!(RawImage::open(dir.path(), "d").unwrap_err().to_string().contains("neither a file nor"));
    std::fs::write(&path, [1; 10_000]).unwrap();
    let image = RawImage::open(&path, "drive-scsi0").unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(6000).unwrap();
    let error = image.read_at(&mut [0; 5000], 4000).unwrap_err();
    assert_eq!((error.offset, error.len), (6000, 3000));
    assert!(error.to_string().contains("the disk became shorter"), "{error}");
}

/// A loop device that goes whatever the test does.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        drop(std::process::Command::new("losetup").args(["-d", &self.0]).status());
    }
}

#[test]
fn a_block_device() {
    if !have("a_block_device", &["losetup"]) {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let size = 4 << 20;
    std::fs::write(file.path(), vec![0xff; size]).unwrap();
    let attached = std::process::Command::new("losetup").args(["-f", "--show", text(file.path())]).output().unwrap();
    if !attached.status.success() {
        return println!("SKIPPED a_block_device: no loop device to be had (not root, or inside a container)");
    }
    let device = Loop(String::from_utf8(attached.stdout).unwrap().trim().to_owned());
    let path = Path::new(&device.0);
    let mut bytes = vec![0xff; size];
    {
        let target = RawTarget::open(path, "disk", false).unwrap();
        assert_eq!(target.size(), size as u64);
        assert!(RawTarget::open(path, "disk", false).is_err(), "a device in use is refused");
        for (from, to) in [(0, 4096), (1 << 20, 3 << 20), (4000, 9001), ((4 << 20) - 3, 4 << 20)] {
            bytes[from..to].fill(0);
            target.write_zeroes(from as u64..to as u64).unwrap();
        }
        let part = noise(6, 70_001);
        bytes[100_003..170_004].copy_from_slice(&part);
        target.write_at(&part, 100_003).unwrap();
        target.flush().unwrap();
        assert!(target.write_at(&[0], size as u64).is_err());
    }
    let image = RawImage::open(path, "disk").unwrap();
    assert!(read_all(&image) == bytes);
    check_extents(&image, &bytes);
    assert!(std::fs::read(file.path()).unwrap() == bytes);
}
