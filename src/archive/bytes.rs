//! The uncompressed bytes of an archive, at any place: what a map of clusters or a table of members points into.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Deref;
use std::os::unix::fs::FileExt;

/// Uncompressed bytes that can be read at any place, by several threads at once.
pub(crate) trait Bytes: Send + Sync {
    /// How many there are.
    fn len(&self) -> u64;

    /// Fills `buf` with the bytes from `offset` on. A short read is an error.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

/// Reads them in order from an offset on.
pub(crate) struct Reading<B> {
    pub(crate) bytes: B,
    pub(crate) offset: u64,
}

impl<B: Deref<Target: Bytes>> Read for Reading<B> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.bytes.len().saturating_sub(self.offset)).unwrap_or(usize::MAX);
        let count = buf.len().min(left);
        self.bytes.read_at(&mut buf[..count], self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// A file that is not compressed.
#[derive(Debug)]
pub(crate) struct PlainBytes {
    file: File,
    len: u64,
}

impl PlainBytes {
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { file, len })
    }
}

impl Bytes for PlainBytes {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}
