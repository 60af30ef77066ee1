//! The content of a file: where on the disk its bytes lie. Whatever lies nowhere is a hole and reads as zeros.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::FsError;
use crate::image::{Image, ImageError};

/// Pieces of the most scattered file that is read.
const MOST_RUNS: usize = 4 << 20;

/// A piece of a file that lies in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// First byte in the file.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// First byte on the disk.
    pub disk: u64,
}

/// The pieces of a file in their order.
#[derive(Debug, Default, Clone)]
pub(super) struct Runs(Vec<Run>);

impl Runs {
    /// Appends a piece that lies behind all others in the file.
    pub(super) fn push(&mut self, next: Run) -> Result<(), &'static str> {
        if next.at.checked_add(next.len).is_none() || next.disk.checked_add(next.len).is_none() {
            return Err("a piece of it lies outside of every disk");
        }
        let full = self.0.len() == MOST_RUNS;
        match self.0.last_mut() {
            Some(last) if next.at < last.at + last.len => return Err("its pieces overlap or are out of order"),
            Some(last) if last.at + last.len == next.at && last.disk + last.len == next.disk => last.len += next.len,
            _ if full => return Err("it is in more pieces than are read"),
            _ => self.0.push(next),
        }
        Ok(())
    }

    /// The piece that holds byte `offset`, or the next one behind it.
    fn from(&self, offset: u64) -> Option<Run> {
        let first = self.0.partition_point(|run| run.at + run.len <= offset);
        self.0.get(first).copied()
    }

    /// The place on the disk of byte `offset`, and how many bytes lie there together.
    pub(super) fn place(&self, offset: u64) -> Option<(u64, u64)> {
        let run = self.from(offset).filter(|run| run.at <= offset)?;
        Some((run.disk + (offset - run.at), run.len - (offset - run.at)))
    }

    /// Fills `buf` with the bytes from `offset` on.
    pub(super) fn read(&self, image: &dyn Image, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset.saturating_add(done as u64);
            let left = buf.len() - done;
            let (count, from) = match self.from(at) {
                Some(run) if run.at <= at => (run.len - (at - run.at), Some(run.disk + (at - run.at))),
                Some(run) => (run.at - at, None),
                None => (left as u64, None),
            };
            let count = usize::try_from(count).unwrap_or(left).min(left);
            let part = &mut buf[done..done + count];
            match from {
                Some(disk) => image.read_at(part, disk)?,
                None => part.fill(0),
            }
            done += count;
        }
        Ok(())
    }
}

/// Unpacks one unit of a compressed file: `packed` holds what is stored of it, the result has `len` bytes.
pub(super) type UnpackUnit = fn(packed: &[u8], len: usize) -> Result<Vec<u8>, FsError>;

enum Body {
    Bytes(Vec<u8>),
    Runs(Runs),
    /// Units of so many bytes, of which those are packed that are not stored whole.
    Packed {
        runs: Runs,
        /// Bytes behind these were never written and read as zeros, whatever a unit holds.
        valid: u64,
        unit: u64,
        unpack: UnpackUnit,
        last: Mutex<Option<(u64, Arc<Vec<u8>>)>>,
    },
}

/// The content of an open file.
pub struct Content {
    image: Arc<dyn Image>,
    size: u64,
    body: Body,
}

impl Content {
    pub(super) fn bytes(image: Arc<dyn Image>, bytes: Vec<u8>) -> Self {
        Self { image, size: bytes.len() as u64, body: Body::Bytes(bytes) }
    }

    pub(super) fn runs(image: Arc<dyn Image>, size: u64, runs: Runs) -> Self {
        Self { image, size, body: Body::Runs(runs) }
    }

    /// `size` is that of the file, and how much of it was ever written; the units have `unit` bytes.
    pub(super) fn packed(
        image: Arc<dyn Image>,
        (size, valid): (u64, u64),
        runs: Runs,
        unit: u64,
        unpack: UnpackUnit,
    ) -> Self {
        Self { image, size, body: Body::Packed { runs, valid, unit, unpack, last: Mutex::default() } }
    }

    /// Bytes of the file, holes included.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buf` with the bytes from `offset` on; returns how many there were before the end of the file.
    ///
    /// # Errors
    /// When the disk cannot be read or what is there cannot be unpacked.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, FsError> {
        let left = self.size.saturating_sub(offset);
        let count = usize::try_from(left).unwrap_or(buf.len()).min(buf.len());
        let buf = &mut buf[..count];
        match &self.body {
            Body::Bytes(bytes) => buf.copy_from_slice(&bytes[offset.min(self.size) as usize..][..count]),
            Body::Runs(runs) => runs.read(&*self.image, buf, offset)?,
            Body::Packed { valid, .. } => {
                let written = usize::try_from(valid.saturating_sub(offset)).unwrap_or(count).min(count);
                let (buf, never) = buf.split_at_mut(written);
                let mut done = 0;
                while done < written {
                    done += self.read_unit(&mut buf[done..], offset + done as u64)?;
                }
                never.fill(0);
            }
        }
        Ok(count)
    }

    /// The next bytes that may be something else than zeros, at or behind `offset`; none when only holes follow.
    pub fn data_from(&self, offset: u64) -> Option<Range<u64>> {
        if offset >= self.size {
            return None;
        }
        match &self.body {
            Body::Bytes(_) => Some(offset..self.size),
            Body::Runs(runs) => {
                let run = runs.from(offset)?;
                let range = run.at.max(offset)..(run.at + run.len).min(self.size);
                (!range.is_empty()).then_some(range)
            }
            Body::Packed { runs, valid, unit, .. } => {
                // What is stored of a unit ends before the unit does.
                let run = runs.from(offset - offset % unit)?;
                let start = (run.at - run.at % unit).max(offset);
                let end = (run.at + run.len).next_multiple_of(*unit).min(self.size).min(*valid);
                (start < end).then_some(start..end)
            }
        }
    }

    /// Copies bytes of the unit that holds `offset`.
    fn read_unit(&self, buf: &mut [u8], offset: u64) -> Result<usize, FsError> {
        let Body::Packed { runs, unit, unpack, last, .. } = &self.body else { return Ok(0) };
        let start = offset - offset % unit;
        let known = last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let bytes = match known {
            Some((at, bytes)) if at == start => bytes,
            _ => {
                let mut stored = Vec::new();
                while (stored.len() as u64) < *unit {
                    let at = start + stored.len() as u64;
                    let Some((disk, len)) = runs.place(at) else { break };
                    let from = stored.len();
                    stored.resize(from + len.min(unit - from as u64) as usize, 0);
                    self.image.read_at(&mut stored[from..], disk)?;
                }
                let bytes = match stored.len() as u64 {
                    0 => vec![0; *unit as usize],
                    len if len == *unit => stored,
                    _ => unpack(&stored, *unit as usize)?,
                };
                let bytes = Arc::new(bytes);
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Some((start, bytes.clone()));
                bytes
            }
        };
        let from = (offset - start) as usize;
        let count = bytes.len().saturating_sub(from).min(buf.len());
        if count == 0 {
            return Err(FsError::damaged("file system", "a unit of a compressed file is too short"));
        }
        buf[..count].copy_from_slice(&bytes[from..from + count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MemImage;

    #[test]
    fn what_was_never_written_of_a_packed_file_reads_as_zeros() {
        let unpack: UnpackUnit = |packed, len| Ok(vec![packed[0]; len]);
        let mut runs = Runs::default();
        // A unit that is packed, one that is stored whole, and another packed one.
        for run in [Run { at: 0, len: 4, disk: 0 }, Run { at: 16, len: 16, disk: 4 }, Run { at: 32, len: 4, disk: 20 }]
        {
            runs.push(run).unwrap();
        }
        let image = Arc::new(MemImage::new("disk", vec![7; 24]));
        for (valid, size) in [(0, 40), (5, 40), (16, 40), (21, 40), (32, 40), (35, 40), (40, 40), (90, 40)] {
            let content = Content::packed(image.clone(), (size, valid), runs.clone(), 16, unpack);
            let written = valid.min(size) as usize;
            let wanted = [vec![7; written], vec![0; size as usize - written]].concat();
            for from in 0..size as usize {
                let mut buf = vec![1; 64];
                let count = content.read_at(&mut buf, from as u64).unwrap();
                assert_eq!(buf[..count], wanted[from..], "{valid} {from}");
                let data = content.data_from(from as u64);
                assert!(
                    data.is_some() == (from < written) && data.is_none_or(|data| data.end <= valid),
                    "{valid} {from}"
                );
            }
        }
    }
}
