//! A writable view of a disk that itself stays as it is: what is written goes to a file beside it.
//!
//! The file has no name: it is gone with the process, however that ends. Blocks of 4 KiB are below, written or zero; a block
//! that is written in part is filled from below first. What is remembered of a block takes two bits, and only where
//! something was written.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::{Extent, ExtentKind, Image, ImageError, Target, check_range, push};

const BLOCK: u64 = 4096;
/// Blocks whose state is kept together: 4 MiB of the disk, 256 bytes of memory.
const GROUP: u64 = 1024;

/// A disk that can be read and written, over one that can only be read.
pub struct OverlayImage {
    below: Arc<dyn Image>,
    pub(super) file: File,
    directory: PathBuf,
    map: RwLock<Map>,
    /// Whole blocks are written by many at a time, a part of one alone: it must not bring back what somebody else has
    /// replaced meanwhile.
    order: RwLock<()>,
}

/// Where the content of a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Below,
    Written,
    Zero,
}

/// For each block of a group a bit that it is written and one that it is zero.
type Bits = [[u64; 2]; (GROUP / 64) as usize];

/// The blocks of a group.
#[derive(Debug)]
struct Group {
    /// What all of them are, unless there are bits.
    alike: State,
    bits: Option<Box<Bits>>,
}

/// The state of every block. Groups that nothing was written to are not there, however large the disk says it is.
#[derive(Debug, Default)]
struct Map(HashMap<u64, Group>);

impl Map {
    fn state(&self, block: u64) -> State {
        let Some(Group { alike, bits }) = self.0.get(&(block / GROUP)) else { return State::Below };
        let Some(bits) = bits else { return *alike };
        let [written, zero] = bits[(block % GROUP / 64) as usize];
        match (written >> (block % 64) & 1, zero >> (block % 64) & 1) {
            (0, 0) => State::Below,
            (_, 0) => State::Written,
            _ => State::Zero,
        }
    }

    fn set(&mut self, blocks: Range<u64>, state: State) {
        let mut at = blocks.start;
        while at < blocks.end {
            let end = blocks.end.min((at / GROUP + 1) * GROUP);
            let group = self.0.entry(at / GROUP).or_insert(Group { alike: State::Below, bits: None });
            if end - at == GROUP {
                *group = Group { alike: state, bits: None };
            } else {
                let bits = group.bits.get_or_insert_with(|| filled(group.alike));
                (at..end).for_each(|block| set_bits(&mut bits[(block % GROUP / 64) as usize], block % 64, state));
            }
            at = end;
        }
    }

    /// The parts of `range` with their states, neighbours of a kind merged.
    fn parts(&self, range: &Range<u64>) -> Vec<(Range<u64>, State)> {
        let mut parts: Vec<(Range<u64>, State)> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let block = at / BLOCK;
            let next = match self.0.get(&(block / GROUP)) {
                Some(Group { bits: Some(_), .. }) => block + 1,
                // The whole group at once.
                _ => (block / GROUP + 1) * GROUP,
            };
            let state = self.state(block);
            let end = range.end.min(next * BLOCK);
            match parts.last_mut() {
                Some((last, kind)) if *kind == state => last.end = end,
                _ => parts.push((at..end, state)),
            }
            at = end;
        }
        parts
    }
}

/// The bits of a group whose blocks are alike.
fn filled(state: State) -> Box<Bits> {
    let mut bits = Box::new([[0; 2]; (GROUP / 64) as usize]);
    bits.iter_mut().for_each(|bits| (0..64).for_each(|bit| set_bits(bits, bit, state)));
    bits
}

fn set_bits([written, zero]: &mut [u64; 2], bit: u64, state: State) {
    for (bits, on) in [(written, state == State::Written), (zero, state == State::Zero)] {
        *bits = if on { *bits | 1 << bit } else { *bits & !(1 << bit) };
    }
}

impl OverlayImage {
    /// A writable view of `below`. What is written goes to a file without a name in `directory`, which takes as much space
    /// as was written, rounded up to blocks.
    ///
    /// # Errors
    /// When the file cannot be made, or its file system has none so large.
    pub fn new(below: Arc<dyn Image>, directory: &Path) -> Result<Self, ImageError> {
        let size = below.size();
        let make = || {
            let file = tempfile::tempfile_in(directory)?;
            file.set_len(size)?;
            Ok(file)
        };
        let file = make().map_err(|e| error(below.name(), directory, "open", 0..size, e))?;
        Ok(Self { below, file, directory: directory.to_owned(), map: RwLock::default(), order: RwLock::default() })
    }

    fn error(&self, op: &'static str, range: Range<u64>, source: io::Error) -> ImageError {
        error(self.below.name(), &self.directory, op, range, source)
    }

    fn parts(&self, range: &Range<u64>) -> Vec<(Range<u64>, State)> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).parts(range)
    }

    fn set(&self, range: &Range<u64>, state: State) {
        let blocks = range.start / BLOCK..range.end.div_ceil(BLOCK);
        self.map.write().unwrap_or_else(PoisonError::into_inner).set(blocks, state);
    }

    /// The whole blocks in `range`; the last block of the disk may be short. Empty, at the end of `range`, without any.
    fn inner(&self, range: &Range<u64>) -> Range<u64> {
        let start = range.start.next_multiple_of(BLOCK);
        let end = if range.end == self.below.size() { range.end } else { range.end / BLOCK * BLOCK };
        if start < end { start..end } else { range.end..range.end }
    }

    /// The parts of blocks before and behind the whole ones, each inside one block.
    fn edges(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
        let inner = self.inner(range);
        // Without a whole block between them, head and tail may lie in two blocks.
        let cut = range.start.next_multiple_of(BLOCK).max(range.start).min(range.end);
        let edges = match inner.is_empty() {
            true => [range.start..cut, cut..range.end],
            false => [range.start..inner.start, inner.end..range.end],
        };
        edges.into_iter().filter(|edge| !edge.is_empty())
    }

    /// Writes whole blocks.
    fn write_blocks(&self, buf: &[u8], range: &Range<u64>) -> Result<(), ImageError> {
        let _with_others = self.order.read().unwrap_or_else(PoisonError::into_inner);
        self.file.write_all_at(buf, range.start).map_err(|e| self.error("write", range.clone(), e))?;
        self.set(range, State::Written);
        Ok(())
    }

    /// Writes a part of one block.
    fn write_edge(&self, part: &[u8], range: &Range<u64>) -> Result<(), ImageError> {
        let start = range.start / BLOCK * BLOCK;
        let block = start..(start + BLOCK).min(self.below.size());
        let mut content = [0; BLOCK as usize];
        let content = &mut content[..(block.end - start) as usize];
        let state = || self.map.read().unwrap_or_else(PoisonError::into_inner).state(start / BLOCK);
        // What is below does not change and may take its time, so it is read before the others are stopped. A block that
        // leaves it meanwhile never comes back to it.
        if state() == State::Below {
            self.below.read_at(content, start)?;
        }
        let _alone = self.order.write().unwrap_or_else(PoisonError::into_inner);
        match state() {
            State::Below => {}
            State::Zero => content.fill(0),
            State::Written => {
                return self.file.write_all_at(part, range.start).map_err(|e| self.error("write", range.clone(), e));
            }
        }
        content[(range.start - start) as usize..][..part.len()].copy_from_slice(part);
        self.file.write_all_at(content, start).map_err(|e| self.error("write", block.clone(), e))?;
        self.set(&block, State::Written);
        Ok(())
    }

    /// Makes whole blocks zero, and gives back what they took.
    fn zero_blocks(&self, range: &Range<u64>) {
        let _with_others = self.order.read().unwrap_or_else(PoisonError::into_inner);
        let taken: Vec<_> = self.parts(range).into_iter().filter(|(_, state)| *state == State::Written).collect();
        self.set(range, State::Zero);
        for (part, _) in taken {
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let (offset, len) = (part.start as i64, (part.end - part.start) as i64);
            // Where that cannot be done the space stays taken until the block is written again, or the end.
            while fallocate(&self.file, punch, offset, len) == Err(Errno::EINTR) {}
        }
    }
}

impl Image for OverlayImage {
    fn name(&self) -> &str {
        self.below.name()
    }

    fn size(&self) -> u64 {
        self.below.size()
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        check_range(self.below.name(), "block status", self.below.size(), &range)?;
        let mut extents = Vec::new();
        for (part, state) in self.parts(&range) {
            let kind = match state {
                State::Below => {
                    self.below.extents(part)?.into_iter().for_each(|extent| push(&mut extents, extent));
                    continue;
                }
                State::Written => ExtentKind::Data,
                State::Zero => ExtentKind::Zero,
            };
            push(&mut extents, Extent { offset: part.start, len: part.end - part.start, kind });
        }
        Ok(extents)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let range = offset..offset.saturating_add(buf.len() as u64);
        check_range(self.below.name(), "read", self.below.size(), &range)?;
        for (part, state) in self.parts(&range) {
            let place = &mut buf[(part.start - offset) as usize..(part.end - offset) as usize];
            match state {
                State::Below => self.below.read_at(place, part.start)?,
                State::Zero => place.fill(0),
                State::Written => {
                    self.file.read_exact_at(place, part.start).map_err(|e| self.error("read", part.clone(), e))?;
                }
            }
        }
        Ok(())
    }

    fn limit_requests(&self, most: usize) {
        self.below.limit_requests(most);
    }
}

impl Target for OverlayImage {
    fn name(&self) -> &str {
        self.below.name()
    }

    fn size(&self) -> u64 {
        self.below.size()
    }

    fn starts_zeroed(&self) -> bool {
        false
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), ImageError> {
        let range = offset..offset.saturating_add(buf.len() as u64);
        check_range(self.below.name(), "write", self.below.size(), &range)?;
        let bytes = |part: &Range<u64>| &buf[(part.start - offset) as usize..(part.end - offset) as usize];
        for edge in self.edges(&range) {
            self.write_edge(bytes(&edge), &edge)?;
        }
        let inner = self.inner(&range);
        if inner.is_empty() { Ok(()) } else { self.write_blocks(bytes(&inner), &inner) }
    }

    fn write_zeroes(&self, range: Range<u64>) -> Result<(), ImageError> {
        check_range(self.below.name(), "write zeroes", self.below.size(), &range)?;
        for edge in self.edges(&range) {
            self.write_edge(&[0; BLOCK as usize][..(edge.end - edge.start) as usize], &edge)?;
        }
        let inner = self.inner(&range);
        if !inner.is_empty() {
            self.zero_blocks(&inner);
        }
        Ok(())
    }

    /// Has nothing to do: the file is meant to be gone with the process, so nothing in it can outlive a power failure.
    fn flush(&self) -> Result<(), ImageError> {
        Ok(())
    }
}

fn error(name: &str, directory: &Path, op: &'static str, range: Range<u64>, source: io::Error) -> ImageError {
    let source = io::Error::new(source.kind(), format!("the overlay in {}: {source}", directory.display()));
    ImageError { image: name.into(), op, offset: range.start, len: range.end - range.start, source }
}
