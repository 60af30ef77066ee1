//! An image that fails on purpose: read errors in a range, short reads, slow reads. Public, so that integration tests of
//! the rooms above can place faults without QEMU.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Extent, Image, ImageError};

/// Wraps an image and misbehaves as asked.
pub struct FaultyImage {
    inner: Arc<dyn Image>,
    unreadable: Option<Range<u64>>,
    ends_at: Option<u64>,
    no_extents: bool,
    delay: Duration,
    bytes_read: AtomicU64,
}

impl FaultyImage {
    /// Behaves like `inner` until told otherwise.
    pub fn new(inner: Arc<dyn Image>) -> Self {
        Self {
            inner,
            unreadable: None,
            ends_at: None,
            no_extents: false,
            delay: Duration::ZERO,
            bytes_read: AtomicU64::new(0),
        }
    }

    /// Reads that touch `range` fail with EIO at its first byte inside the read.
    #[must_use]
    pub fn fail_range(mut self, range: Range<u64>) -> Self {
        self.unreadable = Some(range);
        self
    }

    /// The disk lies about its size: reads beyond `end` come back short.
    #[must_use]
    pub fn end_at(mut self, end: u64) -> Self {
        self.ends_at = Some(end);
        self
    }

    /// Asking for extents fails.
    #[must_use]
    pub fn fail_extents(mut self) -> Self {
        self.no_extents = true;
        self
    }

    /// Every read takes this much longer.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Bytes read so far, failed reads not counted.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    fn error(&self, op: &'static str, range: Range<u64>, source: io::Error) -> ImageError {
        let (offset, len) = (range.start, range.end - range.start);
        ImageError { image: self.name().into(), op, offset, len, source }
    }
}

impl Image for FaultyImage {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        match self.no_extents {
            true => Err(self.error("block status", range, io::Error::from_raw_os_error(libc::EIO))),
            false => self.inner.extents(range),
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
        std::thread::sleep(self.delay);
        let end = offset + buf.len() as u64;
        if let Some(bad) = self.unreadable.as_ref().filter(|bad| bad.start < end && offset < bad.end) {
            let at = bad.start.max(offset);
            self.inner.read_at(&mut buf[..(at - offset) as usize], offset)?;
            return Err(self.error("read", at..end, io::Error::from_raw_os_error(libc::EIO)));
        }
        if let Some(at) = self.ends_at.filter(|at| *at < end).map(|at| at.max(offset)) {
            self.inner.read_at(&mut buf[..(at - offset) as usize], offset)?;
            let source = io::Error::new(io::ErrorKind::UnexpectedEof, "the disk became shorter");
            return Err(self.error("read", at..end, source));
        }
        self.inner.read_at(buf, offset)?;
        self.bytes_read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn release(&self, range: Range<u64>) {
        self.inner.release(range);
    }
}
