//! Random access into compressed files made by anyone: stock zstd, gzip or pigz, lzop.
//!
//! [`scan`] reads such a file once, passes its data on and notes access points, from which it can be decompressed later;
//! [`Seekable`] reads at any place by decompressing from the nearest one. Both can be kept in a file beside the archive
//! ([`beside`]), so that the pass is made once. Every piece of data is checked against the checksum that the pass took,
//! before anybody gets it: an access point that is wrong costs time, and data only where the one before it is wrong, too.

mod beside;
mod gzip;
mod lzop;
mod points;
mod reader;
#[cfg(test)]
mod tests;
mod zstd;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::packed::Method as Any;
use crate::host::{Cancel, Host};

pub use beside::{Beside, BesideError, Extra, Fingerprint, Kept, SUFFIX};
use points::Collector;
pub use points::Points;
pub(crate) use reader::Seekable;

/// How a file that can be read at random is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Frames of zstd.
    Zstd,
    /// Members of gzip.
    Gzip,
    /// Blocks of lzop.
    Lzop,
}

impl Method {
    /// By the first bytes of the file; `None` when it is something else.
    pub fn recognise(start: &[u8]) -> Option<Self> {
        match Any::recognise(start)? {
            Any::Zstd => Some(Self::Zstd),
            Any::Gzip => Some(Self::Gzip),
            Any::Lzop => Some(Self::Lzop),
            Any::Plain | Any::Xz | Any::Bzip2 => None,
        }
    }
}

/// A compressed file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SeekError {
    /// The file cannot be read.
    #[error("reading the compressed data from byte {offset} on failed: {source}")]
    Read {
        /// Offset in the compressed file.
        offset: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("the compressed data at byte {offset} is damaged: {what}")]
    Damaged {
        /// Offset in the compressed file.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The file ends in the middle of something.
    #[error("the file ends within {what}, which begins at byte {offset}")]
    Cut {
        /// Offset in the compressed file.
        offset: u64,
        /// What is not complete.
        what: &'static str,
    },
    /// The stock program that decompresses it failed.
    #[error("{0}")]
    Program(#[source] io::Error),
    /// Whoever takes the data does not want it.
    #[error("{0}")]
    Sink(#[source] io::Error),
    /// The data is not what it was when the file was read first.
    #[error("the data from byte {offset} on is not what it was when the archive was read first; was the file changed?")]
    Changed {
        /// Offset in the data.
        offset: u64,
    },
    /// More data than there can be.
    #[error("more than {} TiB of data in a compressed file", most >> 40)]
    TooLarge {
        /// Bytes that can be had.
        most: u64,
    },
    /// There is not enough memory.
    #[error("not enough memory for {0}")]
    Memory(&'static str),
    /// Somebody asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl SeekError {
    fn damaged(offset: u64, what: String) -> Self {
        Self::Damaged { offset, what }
    }

    fn cut(offset: u64, what: &'static str) -> Self {
        Self::Cut { offset, what }
    }

    /// The same once more, when the data is to blame; `None` for what another try may mend.
    fn of_the_data(&self) -> Option<Self> {
        match self {
            Self::Changed { offset } => Some(Self::Changed { offset: *offset }),
            Self::Damaged { offset, what } => Some(Self::Damaged { offset: *offset, what: what.clone() }),
            Self::Cut { offset, what } => Some(Self::Cut { offset: *offset, what }),
            _ => None,
        }
    }
}

impl From<SeekError> for io::Error {
    fn from(error: SeekError) -> Self {
        match error {
            SeekError::Sink(error) => error,
            error => Self::new(io::ErrorKind::InvalidData, error),
        }
    }
}

/// Takes the data of a file, in order.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<()>;

/// A compressed file, or something like one.
pub trait Packed: Send + Sync {
    /// Bytes in it.
    ///
    /// # Errors
    /// When that cannot be found out.
    fn size(&self) -> io::Result<u64>;

    /// As [`FileExt::read_at`].
    ///
    /// # Errors
    /// When reading fails.
    fn read_some(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// The file, for a program that reads it from its start.
    fn file(&self) -> Option<io::Result<File>> {
        None
    }
}

impl Packed for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_some(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(buf, offset)
    }

    fn file(&self) -> Option<io::Result<File>> {
        // Opened anew: a clone would share the place it reads from.
        Some(File::open(format!("/proc/self/fd/{}", self.as_raw_fd())))
    }
}

impl Packed for Vec<u8> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_some(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).ok().and_then(|from| self.get(from..)).unwrap_or_default();
        let got = from.len().min(buf.len());
        buf[..got].copy_from_slice(&from[..got]);
        Ok(got)
    }
}

/// Reads `file` from its start to its end: all its data goes to `sink`, its checksums are verified on the way. What was
/// collected up to an error is good for the data before it, and is returned with it.
pub fn scan(
    host: &Host,
    file: &Arc<dyn Packed>,
    method: Method,
    sink: Sink<'_>,
    cancel: &Cancel,
) -> (Points, Result<(), SeekError>) {
    let size = file.size().map_err(|source| SeekError::Read { offset: 0, source });
    let collector = Collector::new(method, size.as_ref().copied().unwrap_or(0));
    match size {
        Ok(_) => collect(collector, host, file, sink, cancel),
        Err(e) => (collector.finish(), Err(e)),
    }
}

fn collect(
    mut collector: Collector,
    host: &Host,
    file: &Arc<dyn Packed>,
    sink: Sink<'_>,
    cancel: &Cancel,
) -> (Points, Result<(), SeekError>) {
    let done = match collector.method() {
        Method::Zstd => zstd::scan(file, &mut collector, sink, cancel),
        Method::Gzip => gzip::scan(file, &mut collector, sink, cancel),
        Method::Lzop => lzop::scan(host, file, &mut collector, sink, cancel),
    };
    (collector.finish(), done)
}

/// Decompresses from a place on.
trait Decode: Send {
    /// Fills some of `out`, which is not empty; 0 bytes at the end of the data.
    fn decode(&mut self, out: &mut [u8]) -> Result<usize, SeekError>;

    /// Bytes of memory it takes, about.
    fn weight(&self) -> u64;
}

/// Reads a compressed file from front to back, and shows what comes next.
struct PackedReader {
    file: Arc<dyn Packed>,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are consumed and that are filled.
    from: usize,
    to: usize,
    /// Offset in the file of what is behind the filled bytes.
    next: u64,
    at_once: usize,
}

impl PackedReader {
    /// From the start, `at_once` bytes with a call.
    fn new(file: Arc<dyn Packed>, at_once: usize) -> Self {
        Self { file, buffer: Vec::new(), from: 0, to: 0, next: 0, at_once }
    }

    /// Offset in the file of what comes next.
    fn offset(&self) -> u64 {
        self.next - (self.to - self.from) as u64
    }

    /// Bytes from here to the end of the file.
    fn left(&self) -> Result<u64, SeekError> {
        let offset = self.offset();
        Ok(self.file.size().map_err(|source| SeekError::Read { offset, source })?.saturating_sub(offset))
    }

    /// What comes next: at least `len` bytes, or as many as there are.
    fn peek(&mut self, len: usize) -> Result<&[u8], SeekError> {
        if self.to - self.from < len {
            self.buffer.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
            self.buffer.resize(self.at_once + len, 0);
            while self.to < len {
                match self.file.read_some(&mut self.buffer[self.to..], self.next) {
                    Ok(0) => break,
                    Ok(got) => {
                        self.to += got;
                        self.next += got as u64;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(source) => return Err(SeekError::Read { offset: self.next, source }),
                }
            }
        }
        Ok(&self.buffer[self.from..self.to])
    }

    /// Goes on by `len` bytes.
    fn skip(&mut self, len: u64) {
        match usize::try_from(len) {
            Ok(len) if len <= self.to - self.from => self.from += len,
            _ => {
                self.next = self.offset().saturating_add(len);
                (self.from, self.to) = (0, 0);
            }
        }
    }

    /// The next `len` bytes, which are consumed. `what` is what they belong to, which begins at `start`.
    fn take<const N: usize>(&mut self, start: u64, what: &'static str) -> Result<[u8; N], SeekError> {
        let bytes = self.peek(N)?.first_chunk::<N>().copied();
        self.skip(N as u64);
        bytes.ok_or(SeekError::Cut { offset: start, what })
    }
}
