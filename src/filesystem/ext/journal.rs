//! The journal (jbd2) of a file system that was not unmounted: blocks whose newest content stands only there. Nothing is
//! written back; reads of these blocks are answered from the journal.
//!
//! Only whole transactions count, from the one the journal says is the oldest to the last that has its end.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::blocks;
use super::{Ext, Node, damaged};
use crate::filesystem::FsError;
use crate::filesystem::bytes::{be16, be32};
use crate::filesystem::content::Runs;
use crate::image::{Extent, ExtentKind, Image, ImageError};

/// Blocks of a journal that are read, and blocks that it may speak of: more than any program makes.
const MOST: u32 = 4 << 20;

const MAGIC: u32 = 0xc03b_3998;
const WIDE: u32 = 0x2;
const CHECKSUMS_2: u32 = 0x8;
const CHECKSUMS_3: u32 = 0x10;
const FAST_COMMIT: u32 = 0x20;
/// Features that are understood; the first is about blocks that are not to be replayed, the third about asynchronous commits.
const KNOWN: u32 = 0x1 | WIDE | 0x4 | CHECKSUMS_2 | CHECKSUMS_3 | FAST_COMMIT;

/// A file system seen through its journal.
pub(super) struct Replayed {
    image: Arc<dyn Image>,
    block: u64,
    /// Where the newest content of a block stands, and whether its first bytes were taken away lest they look like a header.
    map: HashMap<u64, (u64, bool)>,
}

/// The file system as it is when the journal is minded, if that makes a difference, and something to be told.
pub(super) fn replay(fs: &Ext) -> Result<(Option<Replayed>, Option<String>), FsError> {
    let inode = fs.inode(Node::from(fs.superblock.journal_inode))?;
    let runs = blocks::runs(fs, &inode)?;
    let mut log = Log::open(fs, runs, inode.size)?;
    let map = log.replay()?;
    let note = (log.fast > 0).then(|| {
        "the file system was in use; what its journal says in the form 'fast commit' of the last seconds is not minded"
            .to_owned()
    });
    if map.is_empty() {
        return Ok((None, note));
    }
    Ok((Some(Replayed { image: fs.image.clone(), block: fs.superblock.block, map }), note))
}

struct Log<'a> {
    fs: &'a Ext,
    runs: Runs,
    block: u64,
    first: u32,
    end: u32,
    start: u32,
    sequence: u32,
    features: u32,
    fast: u32,
}

fn wrong(why: &str) -> FsError {
    damaged(format!("its journal {why}"))
}

impl<'a> Log<'a> {
    fn open(fs: &'a Ext, runs: Runs, size: u64) -> Result<Self, FsError> {
        let block = fs.superblock.block;
        let mut log = Self { fs, runs, block, first: 0, end: 1, start: 0, sequence: 0, features: 0, fast: 0 };
        let head = log.read(0)?;
        if be32(&head, 0) != MAGIC || !matches!(be32(&head, 4), 3 | 4) || u64::from(be32(&head, 12)) != block {
            return Err(wrong("makes no sense"));
        }
        if be32(&head, 4) == 4 {
            log.features = be32(&head, 0x28);
        }
        if log.features & !KNOWN != 0 {
            return Err(wrong(&format!("has features 0x{:x} that are not known", log.features & !KNOWN)));
        }
        if log.features & FAST_COMMIT != 0 {
            log.fast = if be32(&head, 0x54) == 0 { 256 } else { be32(&head, 0x54) };
        }
        (log.first, log.sequence, log.start) = (be32(&head, 20), be32(&head, 24), be32(&head, 28));
        log.end = be32(&head, 16).saturating_sub(log.fast);
        let fits = u64::from(log.end) <= size / block && log.first >= 1 && log.first < log.end;
        if !fits || (log.start != 0 && !(log.first..log.end).contains(&log.start)) {
            return Err(wrong("has impossible sizes"));
        }
        Ok(log)
    }

    /// Where a block of the journal stands on the disk.
    fn place(&self, number: u32) -> Result<u64, FsError> {
        let place = self.runs.place(u64::from(number) * self.block);
        place.map(|(disk, _)| disk).ok_or_else(|| wrong("has a hole"))
    }

    fn read(&self, number: u32) -> Result<Vec<u8>, FsError> {
        self.fs.read(self.place(number)?, self.block as usize)
    }

    fn next(&self, number: u32) -> u32 {
        if number + 1 >= self.end { self.first } else { number + 1 }
    }

    /// The blocks of all whole transactions.
    fn replay(&mut self) -> Result<HashMap<u64, (u64, bool)>, FsError> {
        let mut map = HashMap::new();
        let mut revoked: HashMap<u64, u32> = HashMap::new();
        // What a transaction says, until its end is found.
        let (mut blocks, mut revokes) = (Vec::new(), Vec::new());
        let mut whole = Vec::new();
        let (mut at, mut sequence) = (self.start, self.sequence);
        let (mut left, mut said) = ((self.end - self.first).min(MOST), 0);
        while self.start != 0 && left > 0 {
            let head = self.read(at)?;
            if be32(&head, 0) != MAGIC || be32(&head, 8) != sequence {
                break;
            }
            left -= 1;
            at = self.next(at);
            if said > MOST as usize {
                return Err(wrong("says more than is read"));
            }
            match be32(&head, 4) {
                1 => {
                    for (block, escaped) in self.tags(&head) {
                        if left == 0 {
                            break;
                        }
                        blocks.push((block, self.place(at)?, escaped));
                        left -= 1;
                        at = self.next(at);
                    }
                }
                2 => {
                    whole.push((sequence, std::mem::take(&mut blocks)));
                    for block in std::mem::take(&mut revokes) {
                        revoked.insert(block, sequence);
                    }
                    sequence = sequence.wrapping_add(1);
                }
                5 => {
                    let more = self.revokes(&head);
                    said += more.len();
                    revokes.extend(more);
                }
                _ => break,
            }
        }
        for (sequence, blocks) in whole {
            for (block, place, escaped) in blocks {
                // Freed by this or a later transaction: it may be another file's by now.
                let is_revoked = revoked.get(&block).is_some_and(|by| by.wrapping_sub(sequence).cast_signed() >= 0);
                if !is_revoked && block < self.fs.superblock.blocks {
                    map.insert(block, (place, escaped));
                }
            }
        }
        Ok(map)
    }

    /// The blocks that follow a descriptor, and whether they are escaped.
    fn tags(&self, head: &[u8]) -> Vec<(u64, bool)> {
        let wide = self.features & WIDE != 0;
        let third = self.features & CHECKSUMS_3 != 0;
        let size = match (third, self.features & CHECKSUMS_2 != 0, wide) {
            (true, ..) => 16,
            (false, sums, wide) => 8 + 2 * usize::from(sums) + 4 * usize::from(wide),
        };
        let end = head.len() - if self.features & (CHECKSUMS_2 | CHECKSUMS_3) != 0 { 4 } else { 0 };
        let mut tags = Vec::new();
        let mut at = 12;
        while at + size <= end {
            let flags = if third { be32(head, at + 4) } else { be16(head, at + 6).into() };
            let high = if wide { u64::from(be32(head, at + 8)) << 32 } else { 0 };
            tags.push((high | u64::from(be32(head, at)), flags & 1 != 0));
            // The first tag has a UUID behind it.
            at += size + if flags & 2 == 0 { 16 } else { 0 };
            if flags & 8 != 0 {
                break;
            }
        }
        tags
    }

    fn revokes(&self, head: &[u8]) -> Vec<u64> {
        let end = (be32(head, 12) as usize).min(head.len());
        let entries = head.get(16..end).unwrap_or_default();
        if self.features & WIDE != 0 {
            entries.chunks_exact(8).map(|entry| u64::from(be32(entry, 0)) << 32 | u64::from(be32(entry, 4))).collect()
        } else {
            entries.chunks_exact(4).map(|entry| be32(entry, 0).into()).collect()
        }
    }
}

impl Image for Replayed {
    fn name(&self) -> &str {
        self.image.name()
    }

    fn size(&self) -> u64 {
        self.image.size()
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        // What was a hole may be data by the journal.
        self.image.extents(range.clone())?;
        let (offset, len) = (range.start, range.end - range.start);
        Ok(if len == 0 { Vec::new() } else { vec![Extent { offset, len, kind: ExtentKind::Data }] })
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let mut done = 0;
        while done < buf.len() {
            // As far as everything comes from one place.
            let at = offset.saturating_add(done as u64);
            let (number, within) = (at / self.block, at % self.block);
            let Some((place, escaped)) = self.map.get(&number) else {
                let mut end = number + 1;
                let last = offset.saturating_add(buf.len() as u64).div_ceil(self.block);
                while end < last && !self.map.contains_key(&end) {
                    end += 1;
                }
                let count = usize::try_from(end * self.block - at).unwrap_or(buf.len()).min(buf.len() - done);
                self.image.read_at(&mut buf[done..done + count], at)?;
                done += count;
                continue;
            };
            let count = ((self.block - within) as usize).min(buf.len() - done);
            let part = &mut buf[done..done + count];
            self.image.read_at(part, place + within)?;
            if *escaped {
                let magic = MAGIC.to_be_bytes();
                part.iter_mut().zip(magic.iter().skip(within as usize)).for_each(|(byte, real)| *byte = *real);
            }
            done += count;
        }
        Ok(())
    }
}
