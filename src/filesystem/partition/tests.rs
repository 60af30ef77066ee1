use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;
use crate::image::{MemImage, RawImage};

const MIB: u64 = 1 << 20;

/// A disk that `sfdisk` partitions.
fn disk(size: u64, script: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    let mut sfdisk = Command::new("sfdisk").arg("-q").arg(file.path()).stdin(Stdio::piped()).spawn().unwrap();
    sfdisk.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    file
}

fn open(path: &Path) -> Arc<dyn Image> {
    Arc::new(RawImage::open(path, "drive-scsi0").unwrap())
}

fn places(table: &Table) -> Vec<(u32, u64, u64)> {
    table.partitions.iter().map(|p| (p.number, p.start, p.len)).collect()
}

const GPT: &str = "label: gpt\n1: start=2048, size=2048, type=U, name=\"boot ä\"\n3: start=8192, size=4096\n";

#[test]
fn a_gpt_and_its_backup() {
    let file = disk(16 * MIB, GPT);
    let disk = open(file.path());
    let table = partition_table(&disk).unwrap().unwrap();
    assert_eq!((table.scheme, places(&table)), ("gpt", vec![(1, MIB, MIB), (3, 4 * MIB, 2 * MIB)]));
    assert_eq!(table.notes, [""; 0]);
    assert_eq!(table.partitions[0].name, "boot ä");
    assert_eq!(table.partitions[0].kind, "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
    let part = table.partitions[1].open(&disk).unwrap();
    assert_eq!((part.name(), part.size()), ("drive-scsi0/p3", 2 * MIB));
    assert!(part.read_at(&mut [0; 2], 2 * MIB - 1).is_err());
    let good = std::fs::read(file.path()).unwrap();
    for (at, why) in [
        (512 + 16, "the checksum of its header is wrong"),
        (512, "it is not there"),
        (1024 + 3, "the checksum of its entries is wrong"),
    ] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        let damaged: Arc<dyn Image> = Arc::new(MemImage::new("disk", bytes.clone()));
        let backup = partition_table(&damaged).unwrap().unwrap();
        assert_eq!(backup.partitions, table.partitions);
        let said = format!("the primary GPT is damaged ({why}); its backup at the end of the disk is used");
        assert_eq!(backup.notes, [said]);
        // Without a good backup either.
        let end = bytes.len() - 512;
        bytes[end + 40] ^= 1;
        let damaged: Arc<dyn Image> = Arc::new(MemImage::new("disk", bytes));
        let said = "the partition table is damaged: there is neither a good primary GPT nor a good backup of it";
        assert_eq!(partition_table(&damaged).unwrap_err().to_string(), said);
    }
    // The first sector is gone: the rest is as good as it was.
    let mut bytes = good;
    bytes[..512].fill(0);
    let damaged: Arc<dyn Image> = Arc::new(MemImage::new("disk", bytes));
    assert_eq!(partitions(&damaged).unwrap(), table.partitions);
}

#[test]
fn sectors_of_4096_bytes() {
    // No program makes such a table in a file: a header and an array of four entries.
    let mut bytes = vec![0; 64 * 4096];
    bytes[450] = 0xee;
    bytes[454..462].copy_from_slice(&[1, 0, 0, 0, 255, 0, 0, 0]);
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut entries = [0; 512];
    entries[..16].fill(7);
    entries[32..48].copy_from_slice(&[6, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    bytes[8192..8704].copy_from_slice(&entries);
    let mut header = [0; 92];
    header[..12].copy_from_slice(b"EFI PART\0\0\x01\0");
    for (at, value) in [(12, 92), (24, 1), (32, 63), (72, 2), (80, 4), (84, 128), (88, crc32fast::hash(&entries))] {
        header[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
    }
    let sum = crc32fast::hash(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    bytes[4096..4188].copy_from_slice(&header);
    let disk: Arc<dyn Image> = Arc::new(MemImage::new("disk", bytes));
    assert_eq!(places(&partition_table(&disk).unwrap().unwrap()), [(1, 6 * 4096, 4 * 4096)]);
}

#[test]
fn primary_and_logical_partitions() {
    let script = "label: dos\n1: start=2048, size=2048, type=83, bootable\n2: start=4096, type=5\n\
                  5: start=6144, size=2048, type=82\n6: start=10240, size=1024, type=83\n";
    let file = disk(16 * MIB, script);
    let table = partition_table(&open(file.path())).unwrap().unwrap();
    assert_eq!((table.scheme, table.notes.len()), ("mbr", 0));
    assert_eq!(places(&table), [(1, MIB, MIB), (5, 3 * MIB, MIB), (6, 5 * MIB, MIB / 2)]);
    let kinds: Vec<_> = table.partitions.iter().map(|p| p.kind.as_str()).collect();
    assert_eq!(kinds, ["0x83", "0x82", "0x83"]);
    // A chain that leads back to its beginning ends all the same.
    let mut bytes = std::fs::read(file.path()).unwrap();
    let second = bytes[2 * MIB as usize..].windows(2).position(|pair| pair == [0x55, 0xaa]).unwrap();
    assert_eq!(second, 510);
    bytes[2 * MIB as usize + 462 + 8..][..4].fill(0);
    let disk: Arc<dyn Image> = Arc::new(MemImage::new("disk", bytes));
    let table = partition_table(&disk).unwrap().unwrap();
    assert_eq!(table.notes, ["the chain of logical partitions has no end"]);
}

#[test]
fn places_that_cannot_be() {
    let file = disk(16 * MIB, "label: dos\n1: start=2048, size=4096\n2: start=8192, size=2048\n");
    let mut bytes = std::fs::read(file.path()).unwrap();
    // Into the second one, and that one behind the end.
    bytes[446 + 12..446 + 16].copy_from_slice(&7000_u32.to_le_bytes());
    bytes[462 + 12..462 + 16].copy_from_slice(&u32::MAX.to_le_bytes());
    let disk: Arc<dyn Image> = Arc::new(MemImage::new("disk", bytes));
    let table = partition_table(&disk).unwrap().unwrap();
    let end = 8192 * 512 + u64::from(u32::MAX) * 512;
    let outside = format!("partition 2 ends at byte {end}, but the disk has {} bytes", 16 * MIB);
    assert_eq!(table.notes, [outside.clone(), "partitions 1 and 2 overlap".to_owned()]);
    assert!(table.partitions[0].open(&disk).is_ok());
    let said = table.partitions[1].open(&disk).err().unwrap().to_string();
    assert_eq!(said, format!("the partition table is damaged: {outside}"));
}

#[test]
fn a_disk_without_a_table() {
    let empty: Arc<dyn Image> = Arc::new(MemImage::new("disk", vec![0; 1 << 20]));
    assert_eq!(partition_table(&empty).unwrap(), None);
    for size in [0, 1, 511, 512, 513, 5000] {
        let odd: Arc<dyn Image> = Arc::new(MemImage::new("disk", vec![0xaa; size]));
        assert_eq!(partition_table(&odd).unwrap(), None, "{size}");
    }
    // The boot sector of FAT ends as a table does.
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4 * MIB).unwrap();
    assert!(Command::new("mkfs.vfat").arg(file.path()).output().unwrap().status.success());
    assert_eq!(partition_table(&open(file.path())).unwrap(), None);
}

#[test]
fn damaged_tables() {
    let logical = "label: dos\n1: size=1024\n2: size=2048\n3: size=2048\n4: type=5\n5: size=2048\n";
    let good = [disk(8 * MIB, GPT), disk(8 * MIB, logical)].map(|file| std::fs::read(file.path()).unwrap());
    let mut runner = proptest::test_runner::TestRunner::default();
    let any_byte = (0..2_usize, 446..2048_usize, proptest::num::u8::ANY);
    let run = runner.run(&any_byte, |(which, at, value)| {
        let mut bytes = good[which].clone();
        bytes[at] = value;
        rehearse(&bytes);
        Ok(())
    });
    run.unwrap();
}
