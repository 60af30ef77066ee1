use std::sync::Arc;

use proptest::prelude::*;

use super::{CopyOptions, CopyProgress, TransferError, compare, copy};
use crate::host::Cancel;
use crate::image::{Image, MemImage, MemTarget, Target};

/// A disk with data, zeros that are known and zeros that are not.
fn disk(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut state = seed | 1;
    for (number, block) in bytes.chunks_mut(4096).enumerate() {
        if !(number as u64 ^ seed).is_multiple_of(3) {
            for byte in block {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (state >> 56) as u8;
            }
        }
    }
    bytes
}

fn image(bytes: Vec<u8>) -> Arc<dyn Image> {
    Arc::new(MemImage::sparse("a", bytes))
}

#[test]
fn every_byte_is_copied_and_nothing_before_the_start() {
    for len in [0, 1, 4096, 100_000, (5 << 20) + 513] {
        let bytes = disk(len, 5);
        for zeroed in [true, false] {
            let target = MemTarget::new("b", len as u64, zeroed);
            let mut last = CopyProgress::default();
            let options = CopyOptions::default();
            copy(&image(bytes.clone()), &target, options, &mut |p| last = *p, &Cancel::new()).unwrap();
            assert!(target.content() == bytes, "{len} {zeroed}");
            assert_eq!(last, CopyProgress { total: len as u64, done: len as u64, complete: len as u64 });
        }
    }
    let bytes = disk(3 << 20, 6);
    let target = MemTarget::new("b", (3 << 20) + 7, false);
    let options = CopyOptions { start: (2 << 20) + 100, bwlimit: None };
    copy(&image(bytes.clone()), &target, options, &mut |_| {}, &Cancel::new()).unwrap();
    let content = target.content();
    assert!(content[..(2 << 20) + 100].iter().chain(&content[3 << 20..]).all(|byte| *byte == 0xa5));
    assert!(content[(2 << 20) + 100..3 << 20] == bytes[(2 << 20) + 100..]);
}

#[test]
fn what_is_complete_is_complete() {
    let bytes = disk(16 << 20, 7);
    let target = MemTarget::new("b", 16 << 20, false);
    target.fail_range(9 << 20..(9 << 20) + 1);
    let mut last = CopyProgress::default();
    let failed = copy(&image(bytes.clone()), &target, CopyOptions::default(), &mut |p| last = *p, &Cancel::new());
    assert!(matches!(failed, Err(TransferError::Image(_))));
    let complete = last.complete as usize;
    assert!(complete <= 9 << 20 && target.content()[..complete] == bytes[..complete], "{last:?}");
    // Resumed from there, all of it is there.
    let whole = MemTarget::new("b", 16 << 20, false);
    whole.write_at(&target.content()[..complete], 0).unwrap();
    let options = CopyOptions { start: last.complete, bwlimit: None };
    copy(&image(bytes.clone()), &whole, options, &mut |_| {}, &Cancel::new()).unwrap();
    assert!(whole.content() == bytes);
}

#[test]
fn what_does_not_fit_is_refused_and_a_wish_to_stop_is_heard() {
    let a = image(disk(1 << 20, 8));
    let small = MemTarget::new("b", 4096, true);
    let refused = copy(&a, &small, CopyOptions::default(), &mut |_| {}, &Cancel::new()).unwrap_err();
    assert_eq!(refused.to_string(), "b has 4096 bytes, a needs 1048576");
    let target = MemTarget::new("b", 1 << 20, true);
    let late = CopyOptions { start: (1 << 20) + 1, bwlimit: None };
    assert!(copy(&a, &target, late, &mut |_| {}, &Cancel::new()).is_err());
    let cancel = Cancel::new();
    cancel.set();
    // At this rate it would take hours.
    let slow = CopyOptions { start: 0, bwlimit: Some(100) };
    assert!(matches!(copy(&a, &target, slow, &mut |_| {}, &cancel), Err(TransferError::Cancelled)));
}

#[test]
fn differences_are_named_and_counted() {
    let bytes = disk(3 << 20, 9);
    let mut other = bytes.clone();
    // Over the border of two pieces, one byte, and the last one.
    other[(1 << 20) - 600..(1 << 20) + 600].iter_mut().for_each(|byte| *byte ^= 1);
    other[5] ^= 1;
    other[(3 << 20) - 1] ^= 1;
    let found = compare(&image(bytes.clone()), &image(other), 10, None, &mut |_, _| {}, &Cancel::new()).unwrap();
    let at = 1 << 20;
    assert_eq!(found.ranges, [0..512, at - 1024..at + 1024, (3 << 20) - 512..3 << 20]);
    assert_eq!((found.bytes, found.more, found.same()), (512 + 2048 + 512, false, false));
    let longer = image(disk((3 << 20) + 1, 9));
    let found = compare(&image(bytes.clone()), &longer, 10, None, &mut |_, _| {}, &Cancel::new()).unwrap();
    assert!(found.bytes == 0 && !found.same() && found.sizes == (3 << 20, (3 << 20) + 1));
    assert!(compare(&image(bytes.clone()), &image(bytes), 0, None, &mut |_, _| {}, &Cancel::new()).unwrap().same());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn ranges_are_those_of_a_slow_look(
        seed in any::<u64>(),
        len in 1usize..3 << 20,
        changes in prop::collection::vec((any::<prop::sample::Index>(), 1usize..3000), 0..40),
        most in 0usize..30,
    ) {
        let bytes = disk(len, seed);
        let mut other = bytes.clone();
        for (at, count) in &changes {
            let at = at.index(len);
            let end = len.min(at + count);
            other[at..end].iter_mut().for_each(|byte| *byte ^= 0x55);
        }
        let mut slow: Vec<std::ops::Range<u64>> = Vec::new();
        let mut sum = 0;
        for (number, (a, b)) in bytes.chunks(512).zip(other.chunks(512)).enumerate() {
            if a != b {
                let (start, end) = (number as u64 * 512, number as u64 * 512 + a.len() as u64);
                sum += end - start;
                match slow.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => slow.push(start..end),
                }
            }
        }
        let found = compare(&image(bytes), &image(other), most, None, &mut |_, _| {}, &Cancel::new()).unwrap();
        prop_assert_eq!(found.bytes, sum);
        prop_assert_eq!(found.more, slow.len() > most);
        slow.truncate(most);
        prop_assert_eq!(found.ranges, slow);
    }
}
