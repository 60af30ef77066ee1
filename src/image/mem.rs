//! Disks in memory: a source with known content, and a target that shows what was written. For tests and small blobs.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Extent, ExtentKind, Image, ImageError, Target, check_range, push, scan};

/// A read-only disk in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemImage {
    name: String,
    bytes: Vec<u8>,
    extents: Vec<Extent>,
}

impl MemImage {
    /// A disk with this content, all of it declared as data, zeros included.
    pub fn new(name: &str, bytes: Vec<u8>) -> Self {
        let extents = vec![Extent { offset: 0, len: bytes.len() as u64, kind: ExtentKind::Data }];
        Self { name: name.into(), bytes, extents }
    }

    /// The same, but blocks of 4 KiB that are zero are declared as such.
    pub fn sparse(name: &str, bytes: Vec<u8>) -> Self {
        let extents = scan(&bytes, 0, 4096);
        Self { name: name.into(), bytes, extents }
    }

    /// The same, with extents as given; they must cover the disk in order.
    pub fn with_extents(name: &str, bytes: Vec<u8>, extents: Vec<Extent>) -> Self {
        Self { name: name.into(), bytes, extents }
    }
}

impl Image for MemImage {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        check_range(&self.name, "block status", self.size(), &range)?;
        Ok(cut(&self.extents, &range))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
        check_range(&self.name, "read", self.size(), &(offset..offset.saturating_add(buf.len() as u64)))?;
        buf.copy_from_slice(&self.bytes[offset as usize..offset as usize + buf.len()]);
        Ok(())
    }
}

/// The parts of `extents` that lie in `range`.
pub(super) fn cut(extents: &[Extent], range: &Range<u64>) -> Vec<Extent> {
    let first = extents.partition_point(|e| e.offset + e.len <= range.start);
    let mut parts = Vec::new();
    for extent in extents[first..].iter().take_while(|e| e.offset < range.end) {
        let offset = extent.offset.max(range.start);
        let end = (extent.offset + extent.len).min(range.end);
        if end > offset {
            push(&mut parts, Extent { offset, len: end - offset, kind: extent.kind });
        }
    }
    parts
}

/// A disk in memory that is written to.
#[derive(Debug)]
pub struct MemTarget {
    name: String,
    bytes: Mutex<Vec<u8>>,
    starts_zeroed: bool,
    fail: Mutex<Option<Range<u64>>>,
}

impl MemTarget {
    /// A disk of `size` bytes. It holds zeros when `starts_zeroed`, else a pattern of 0xa5, so that a forgotten zero shows.
    pub fn new(name: &str, size: u64, starts_zeroed: bool) -> Self {
        let fill = if starts_zeroed { 0 } else { 0xa5 };
        Self { name: name.into(), bytes: Mutex::new(vec![fill; size as usize]), starts_zeroed, fail: Mutex::default() }
    }

    /// From now on writes that touch `range` fail as on a full device.
    pub fn fail_range(&self, range: Range<u64>) {
        *self.fail.lock().unwrap_or_else(PoisonError::into_inner) = Some(range);
    }

    /// A copy of the content.
    pub fn content(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, op: &'static str, range: &Range<u64>) -> Result<(), ImageError> {
        check_range(&self.name, op, self.size(), range)?;
        let fail = self.fail.lock().unwrap_or_else(PoisonError::into_inner);
        if fail.as_ref().is_some_and(|f| f.start < range.end && range.start < f.end) {
            let source = io::Error::from_raw_os_error(libc::ENOSPC);
            let (offset, len) = (range.start, range.end - range.start);
            return Err(ImageError { image: self.name.clone(), op, offset, len, source });
        }
        Ok(())
    }
}

impl Target for MemTarget {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.lock().len() as u64
    }

    fn starts_zeroed(&self) -> bool {
        self.starts_zeroed
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), ImageError> {
        self.check("write", &(offset..offset.saturating_add(buf.len() as u64)))?;
        self.lock()[offset as usize..offset as usize + buf.len()].copy_from_slice(buf);
        Ok(())
    }

    fn write_zeroes(&self, range: Range<u64>) -> Result<(), ImageError> {
        self.check("write zeroes", &range)?;
        self.lock()[range.start as usize..range.end as usize].fill(0);
        Ok(())
    }

    fn flush(&self) -> Result<(), ImageError> {
        Ok(())
    }
}
