//! Where the blocks of a file lie: a tree of extents (ext4), or twelve numbers and three levels of blocks full of numbers.

use super::crc::crc32c;
use super::inode::Inode;
use super::{Ext, damaged};
use crate::filesystem::FsError;
use crate::filesystem::bytes::{le16, le32};
use crate::filesystem::content::{Run, Runs};

/// Blocks of a tree of extents that are read; each leads to at least 84 pieces.
const MOST_NODES: u32 = 1 << 16;
/// Blocks full of numbers that are read: a file of 4 TiB in blocks of 4 KiB.
const MOST_LISTS: u32 = 1 << 20;
/// Levels of the deepest tree.
const DEEPEST: u16 = 5;

/// The pieces of a file.
pub(super) fn runs(fs: &Ext, inode: &Inode) -> Result<Runs, FsError> {
    let mut walk = Walk { fs, inode, runs: Runs::default(), read: 0 };
    if inode.has_extents() {
        let depth = le16(inode.map(), 6);
        if depth > DEEPEST {
            return Err(walk.damaged(&format!("its tree of extents has {depth} levels")));
        }
        walk.extents(inode.map(), depth)?;
    } else {
        walk.lists()?;
    }
    Ok(walk.runs)
}

struct Walk<'a> {
    fs: &'a Ext,
    inode: &'a Inode,
    runs: Runs,
    read: u32,
}

impl Walk<'_> {
    fn damaged(&self, why: &str) -> FsError {
        damaged(format!("inode {}: {why}", self.inode.number))
    }

    fn push(&mut self, block: u64, count: u64, place: u64) -> Result<(), FsError> {
        let known = &self.fs.superblock;
        if place == 0 || place.checked_add(count).is_none_or(|end| end > known.blocks) {
            return Err(self.damaged(&format!("{count} blocks of it are said to be at block {place}")));
        }
        let size = known.block;
        let run = Run { at: block * size, len: count * size, disk: place * size };
        self.runs.push(run).map_err(|why| self.damaged(why))
    }

    fn count(&mut self, most: u32) -> Result<(), FsError> {
        self.read += 1;
        // No block is in a tree twice: one that leads to itself would take very long.
        let blocks = self.fs.image.size() / self.fs.superblock.block;
        if u64::from(self.read) > blocks.min(most.into()) {
            Err(self.damaged("it is in more pieces than are read"))
        } else {
            Ok(())
        }
    }

    fn extents(&mut self, node: &[u8], depth: u16) -> Result<(), FsError> {
        let (count, most) = (usize::from(le16(node, 2)), usize::from(le16(node, 4)));
        if le16(node, 0) != 0xf30a || le16(node, 6) != depth || count > most || 12 + 12 * most > node.len() {
            return Err(self.damaged("its tree of extents makes no sense"));
        }
        for entry in node[12..12 + 12 * count].chunks_exact(12) {
            let block = u64::from(le32(entry, 0));
            if depth == 0 {
                // Longer ones are allocated, but not written yet: they read as zeros.
                let len = le16(entry, 4);
                let place = u64::from(le16(entry, 6)) << 32 | u64::from(le32(entry, 8));
                if len <= 0x8000 && len > 0 {
                    self.push(block, len.into(), place)?;
                }
                continue;
            }
            let place = u64::from(le16(entry, 8)) << 32 | u64::from(le32(entry, 4));
            self.count(MOST_NODES)?;
            let child = self.fs.block(place)?;
            let tail = 12 + 12 * usize::from(le16(&child, 4));
            if self.fs.checks()
                && tail + 4 <= child.len()
                && crc32c(self.inode.seed, &child[..tail]) != le32(&child, tail)
            {
                return Err(self.damaged(&format!("the checksum of block {place} of its tree of extents is wrong")));
            }
            self.extents(&child, depth - 1)?;
        }
        Ok(())
    }

    fn lists(&mut self) -> Result<(), FsError> {
        let size = self.fs.superblock.block;
        let blocks = self.inode.size.div_ceil(size);
        let map = self.inode.map().to_vec();
        for block in 0..blocks.min(12) {
            let place = le32(&map, 4 * block as usize);
            if place != 0 {
                self.push(block, 1, place.into())?;
            }
        }
        let (mut first, mut covers) = (12, size / 4);
        for level in 1..=3_u32 {
            let place = le32(&map, 4 * (11 + level as usize));
            if place != 0 && first < blocks {
                self.list(place.into(), level, first, covers, blocks)?;
            }
            first += covers;
            covers *= size / 4;
        }
        Ok(())
    }

    /// A block of numbers, which covers `covers` blocks of the file from `first` on.
    fn list(&mut self, place: u64, level: u32, first: u64, covers: u64, end: u64) -> Result<(), FsError> {
        self.count(MOST_LISTS)?;
        let list = self.fs.block(place)?;
        let each = covers / (self.fs.superblock.block / 4);
        for (number, entry) in (0..).zip(list.chunks_exact(4)) {
            let (block, place) = (first + number * each, le32(entry, 0));
            if block >= end {
                break;
            }
            match (place, level) {
                (0, _) => {}
                (_, 1) => self.push(block, 1, place.into())?,
                _ => self.list(place.into(), level - 1, block, each, end)?,
            }
        }
        Ok(())
    }
}
