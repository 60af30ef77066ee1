//! The uncompressed bytes of an archive, at any place: what a map of clusters or a table of members points into.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Uncompressed bytes that can be read at any place, by several threads at once.
pub(crate) trait Bytes: Send + Sync {
    /// How many there are.
    fn len(&self) -> u64;

    /// Fills `buf` with the bytes from `offset` on. A short read is an error.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
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
