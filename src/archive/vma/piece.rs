//! A cluster as an extent has it: its blocks that hold anything, one behind the other, and a mask that says which those are.

use std::ops::Range;

use super::{BLOCK, CLUSTER};

/// A cluster in an extent that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Number of the disk.
    pub device: u8,
    /// Number of the cluster on its disk.
    pub number: u32,
    /// Bit i is set when block i is stored, in order; the others are zero.
    pub mask: u16,
}

impl Piece {
    /// Bytes that are stored of it.
    pub fn stored(&self) -> usize {
        stored(self.mask)
    }

    /// Its runs; see [`runs`].
    pub fn runs(&self) -> impl Iterator<Item = Run> + use<> {
        runs(self.mask)
    }
}

/// Neighbouring blocks of a cluster that are all stored, or all zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Bytes of the cluster.
    pub range: Range<usize>,
    /// Where they begin among the stored bytes; `None` when they are zero.
    pub stored: Option<usize>,
}

/// Bytes that are stored of a cluster with this mask.
pub fn stored(mask: u16) -> usize {
    mask.count_ones() as usize * BLOCK
}

/// Goes through a cluster with this mask, from its first byte to its last one.
pub fn runs(mask: u16) -> impl Iterator<Item = Run> {
    let (mut block, mut stored) = (0, 0);
    std::iter::from_fn(move || {
        let left = CLUSTER / BLOCK - block;
        if left == 0 {
            return None;
        }
        let is_stored = mask >> block & 1 == 1;
        let alike = (if is_stored { mask >> block } else { !(mask >> block) }).trailing_ones() as usize;
        let range = block * BLOCK..(block + alike.min(left)) * BLOCK;
        block = range.end / BLOCK;
        let run = Run { stored: is_stored.then_some(stored), range };
        stored += if is_stored { run.range.len() } else { 0 };
        Some(run)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_a_cluster_and_find_what_is_stored() {
        for mask in 0..=u16::MAX {
            let (mut end, mut at, mut last) = (0, 0, None);
            for run in runs(mask) {
                assert_eq!(run.range.start, end);
                assert_ne!(
                    last.replace(run.stored.is_some()),
                    Some(run.stored.is_some()),
                    "{mask:#x}: not put together"
                );
                for block in run.range.start / BLOCK..run.range.end / BLOCK {
                    assert_eq!(mask >> block & 1 == 1, run.stored.is_some(), "{mask:#x}, block {block}");
                }
                if let Some(from) = run.stored {
                    assert_eq!(from, at);
                    at += run.range.len();
                }
                end = run.range.end;
            }
            assert_eq!((end, at), (CLUSTER, stored(mask)));
        }
    }
}
