//! Reads the table of members behind the frames of an archive: its root, and of its blocks those that are needed.

use std::os::unix::fs::FileExt;

use crate::archive::Indexed;
use crate::archive::frame::{Frame, Placed, unwrap};
use crate::archive::tar::table::{self, Entry, Root};

/// The root of the table, which is its last part; none when there is no good one.
pub(super) fn root(indexed: &Indexed) -> Option<Root> {
    let parts = indexed.index.iter().filter(Frame::is_table).count();
    let root = table::root(&part(indexed, parts.checked_sub(1)?, b'R')?)?;
    (root.first_keys.len() + 1 == parts).then_some(root)
}

/// Part number `wanted` of the table.
fn part(indexed: &Indexed, wanted: usize, kind: u8) -> Option<Vec<u8>> {
    let Placed { frame, offset, .. } = indexed.index.placed().filter(|placed| placed.frame.is_table()).nth(wanted)?;
    let mut packed = vec![0; frame.packed as usize];
    indexed.file.read_exact_at(&mut packed, offset).ok()?;
    table::unsealed(kind, &unwrap(indexed.container, &packed)?)
}

/// The entries of a block of the table; none when it is damaged.
pub(super) fn block(indexed: &Indexed, number: usize) -> Option<Vec<Entry>> {
    part(indexed, number, b'B').and_then(|block| table::entries(&block))
}

/// The entries whose keys begin with `prefix`; none when a block is damaged.
pub(super) fn with_prefix(indexed: &Indexed, root: &Root, prefix: &[u8]) -> Option<Vec<Entry>> {
    // Keys in the root are cut: only one that is smaller within that length is the key of a block that begins before.
    let within = &prefix[..prefix.len().min(table::ROOT_KEY)];
    let from = root.first_keys.partition_point(|key| key.as_slice() < within).saturating_sub(1);
    let mut found = Vec::new();
    for (number, key) in root.first_keys.iter().enumerate().skip(from) {
        let cut = key.len().min(prefix.len());
        if number > from && key[..cut] > prefix[..cut] {
            break;
        }
        found.extend(block(indexed, number)?.into_iter().filter(|entry| entry.key.starts_with(prefix)));
    }
    Some(found)
}
