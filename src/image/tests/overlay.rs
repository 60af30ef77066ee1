//! The overlay against a plain vector.

use std::sync::{Arc, OnceLock};

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Op {
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    Read(u64, u64),
}

/// Sizes around one and two groups of blocks, with and without a short last block.
const SIZES: [u64; 3] = [10_000, 4 << 20, (4 << 20) + 4095];

/// A disk of each size, made once.
fn disks() -> &'static [(Vec<u8>, Arc<MemImage>)] {
    static DISKS: OnceLock<Vec<(Vec<u8>, Arc<MemImage>)>> = OnceLock::new();
    let make = |size: u64| (below(size), Arc::new(MemImage::sparse("disk", below(size))));
    DISKS.get_or_init(|| SIZES.map(make).into())
}

fn op() -> impl Strategy<Value = Op> {
    // Many small ones that meet, some that span groups; placed by fractions of the size.
    let place = prop_oneof![(0u64..40).prop_map(|n| n * 1024), 0u64..1 << 14, any::<u32>().prop_map(u64::from)];
    let len = prop_oneof![1u64..9000, Just(4096), Just(8192), (1u64..300).prop_map(|n| n * 4096), Just(5 << 20)];
    (place, len, 0..4u8, any::<u8>()).prop_map(|(at, len, kind, seed)| match kind {
        0 | 1 => Op::Write(at, vec![seed; len as usize]),
        2 => Op::Zero(at, len),
        _ => Op::Read(at, len),
    })
}

fn overlay(below: Vec<u8>) -> OverlayImage {
    OverlayImage::new(Arc::new(MemImage::sparse("disk", below)), &std::env::temp_dir()).unwrap()
}

/// What is below: noise with zeros in it.
fn below(size: u64) -> Vec<u8> {
    let mut bytes = noise(size, size as usize);
    bytes.chunks_mut(50_000).step_by(2).for_each(|part| part.fill(0));
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn reads_what_was_written_and_else_what_is_below(which in 0..SIZES.len(), ops in prop::collection::vec(op(), 1..25)) {
        let (size, (bytes, below)) = (SIZES[which], &disks()[which]);
        let (mut expected, disk) = (bytes.clone(), OverlayImage::new(Arc::clone(below) as _, &std::env::temp_dir()).unwrap());
        let fit = |at: u64, len: u64| { let at = at % size; at as usize..(at + len).min(size) as usize };
        for op in ops {
            match op {
                Op::Write(at, bytes) => {
                    let range = fit(at, bytes.len() as u64);
                    disk.write_at(&bytes[..range.len()], range.start as u64).unwrap();
                    expected[range.clone()].copy_from_slice(&bytes[..range.len()]);
                }
                Op::Zero(at, len) => {
                    let range = fit(at, len);
                    disk.write_zeroes(range.start as u64..range.end as u64).unwrap();
                    expected[range].fill(0);
                }
                Op::Read(at, len) => {
                    let range = fit(at, len);
                    let mut buf = vec![0xee; range.len()];
                    disk.read_at(&mut buf, range.start as u64).unwrap();
                    prop_assert!(buf == expected[range.clone()], "{:?}", range);
                    let extents = disk.extents(range.start as u64..range.end as u64).unwrap();
                    prop_assert_eq!(extents.iter().map(|e| e.len).sum::<u64>(), range.len() as u64);
                }
            }
        }
        prop_assert!(read_all(&disk) == expected);
        check_extents(&disk, &expected);
    }
}

#[test]
fn threads_that_write_parts_of_the_same_blocks() {
    let disk = overlay(below(1 << 20));
    let mut expected = below(1 << 20);
    // Every thread has every eighth sector, so each block is written in part by all of them.
    for at in (0..1 << 20).step_by(512) {
        expected[at..at + 512].fill((at / 512 % 8) as u8 + 1);
    }
    std::thread::scope(|scope| {
        for t in 0..8u64 {
            let disk = &disk;
            scope.spawn(move || {
                for at in (t * 512..1 << 20).step_by(8 * 512) {
                    disk.write_at(&[t as u8 + 1; 512], at).unwrap();
                }
            });
        }
    });
    assert!(read_all(&disk) == expected);
}

#[test]
fn errors_name_disk_place_and_side() {
    let bytes = below(100_000);
    let bad = FaultyImage::new(Arc::new(MemImage::new("disk", bytes))).fail_range(8192..8704);
    let disk = OverlayImage::new(Arc::new(bad), &std::env::temp_dir()).unwrap();
    // A part of a block that cannot be filled is not written at all; a whole block needs nothing from below.
    let error = disk.write_at(&[1; 100], 9000).unwrap_err();
    assert_eq!((error.image.as_str(), error.op, error.offset), ("disk", "read", 8192));
    disk.write_at(&[1; 4096], 8192).unwrap();
    disk.write_at(&[2; 100], 9000).unwrap();
    let mut buf = [0; 200];
    disk.read_at(&mut buf, 8950).unwrap();
    assert_eq!((buf[49], buf[50], buf[149], buf[150]), (1, 2, 2, 1));
    for range in [100_000..100_001, u64::MAX..u64::MAX] {
        assert!(disk.write_zeroes(range.clone()).is_err());
        assert!(disk.write_at(&[0], range.start).is_err());
        assert!(disk.read_at(&mut [0], range.start).is_err());
    }
    let nowhere = OverlayImage::new(Arc::new(MemImage::new("disk", vec![0; 10])), Path::new("/nonexistent"));
    let said = nowhere.err().unwrap().to_string();
    assert!(
        said.starts_with("disk: open of 10 bytes at offset 0 failed: the overlay in /nonexistent: No such file"),
        "{said}"
    );
}

#[test]
fn only_what_was_written_takes_space() {
    let disk = overlay(vec![0; 64 << 20]);
    let taken = || std::os::unix::fs::MetadataExt::blocks(&disk.file.metadata().unwrap()) * 512;
    assert_eq!(taken(), 0);
    disk.write_at(&noise(5, 1 << 20), 20 << 20).unwrap();
    assert!((1 << 20..2 << 20).contains(&taken()), "{}", taken());
    disk.write_zeroes(0..64 << 20).unwrap();
    assert!(taken() < 1 << 20, "{}", taken());
    assert_eq!(disk.extents(0..64 << 20).unwrap().len(), 1);
}

/// What covers 4 MiB at once is remembered as one, until a part of it changes.
#[test]
fn whole_groups_and_parts_of_them() {
    let mut expected = below(10 << 20);
    let disk = overlay(expected.clone());
    disk.write_at(&[5; 9 << 20], 4096).unwrap();
    expected[4096..4096 + (9 << 20)].fill(5);
    disk.write_zeroes(5 << 20..(5 << 20) + 8192).unwrap();
    expected[5 << 20..(5 << 20) + 8192].fill(0);
    assert!(read_all(&disk) == expected);
    disk.write_zeroes(0..8 << 20).unwrap();
    expected[..8 << 20].fill(0);
    disk.write_at(&[6; 100], 4000).unwrap();
    expected[4000..4100].fill(6);
    assert!(read_all(&disk) == expected);
    check_extents(&disk, &expected);
}
