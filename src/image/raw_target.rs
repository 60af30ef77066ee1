//! A restore into a raw file or onto a block device.
//!
//! Writes go through the page cache, and writing back starts early, so that the final flush is short and the cache does
//! not fill with dirty pages.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::raw::{at_path, disk_size, open_error};
use super::{ImageError, Target, check_range};
use crate::host::sys;

/// Writing back starts when this much was written since it last started.
const WRITEBACK: u64 = 8 << 20;

static ZEROS: [u8; 1 << 18] = [0; 1 << 18];

/// A raw file or block device that is written to.
#[derive(Debug)]
pub struct RawTarget {
    file: File,
    path: PathBuf,
    name: String,
    size: u64,
    block_device: bool,
    starts_zeroed: bool,
    unsynced: Mutex<Unsynced>,
}

/// What was written since writing back last started: the span, and how many bytes of it.
#[derive(Debug)]
struct Unsynced {
    span: Range<u64>,
    bytes: u64,
}

impl Unsynced {
    const NOTHING: Self = Self { span: 0..0, bytes: 0 };

    /// Adds a write; gives the span to write back when enough came together.
    fn add(&mut self, range: &Range<u64>) -> Option<Range<u64>> {
        self.span = match self.bytes {
            0 => range.clone(),
            _ => self.span.start.min(range.start)..self.span.end.max(range.end),
        };
        self.bytes += range.end - range.start;
        (self.bytes >= WRITEBACK).then(|| std::mem::replace(self, Self::NOTHING).span)
    }
}

impl RawTarget {
    /// Opens the file or block device at `path`, which must exist and have its final size, for writing.
    /// `starts_zeroed`: it is known to read as zeros. A block device that is mounted or otherwise in use is refused.
    ///
    /// # Errors
    /// When it cannot be opened or is neither a file nor a block device.
    pub fn open(path: &Path, name: &str, starts_zeroed: bool) -> Result<Self, ImageError> {
        let attempt = || {
            let block_device = std::fs::metadata(path)?.file_type().is_block_device();
            let mut options = OpenOptions::new();
            options.read(true).write(true);
            if block_device {
                options.custom_flags(libc::O_EXCL);
            }
            let mut file = options.open(path)?;
            let size = disk_size(&mut file)?;
            Ok((file, size, block_device))
        };
        let (file, size, block_device) = attempt().map_err(|e| open_error(name, path, e))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            name: name.into(),
            size,
            block_device,
            starts_zeroed,
            unsynced: Mutex::new(Unsynced::NOTHING),
        })
    }

    fn error(&self, op: &'static str, offset: u64, len: u64, source: io::Error) -> ImageError {
        ImageError { image: self.name.clone(), op, offset, len, source: at_path(&self.path, source) }
    }

    fn write(&self, op: &'static str, buf: &[u8], offset: u64) -> Result<(), ImageError> {
        let end = offset + buf.len() as u64;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            match self.file.write_at(&buf[done..], at) {
                Ok(0) => return Err(self.error(op, at, end - at, io::ErrorKind::WriteZero.into())),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.error(op, at, end - at, e)),
            }
        }
        let due = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner).add(&(offset..end));
        if let Some(span) = due {
            // Only a hint: what it would have told, the flush tells.
            sys::start_write_back(&self.file, span.start, span.end - span.start).unwrap_or_default();
        }
        Ok(())
    }

    /// Lets the file system or device make the range zero; `false` when it cannot.
    fn punch(&self, range: &Range<u64>) -> Result<bool, Errno> {
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        for mode in [punch, zero] {
            loop {
                match fallocate(&self.file, mode, range.start as i64, (range.end - range.start) as i64) {
                    Ok(()) => return Ok(true),
                    Err(Errno::EINTR) => {}
                    Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV) => break,
                    // A device takes whole sectors only.
                    Err(Errno::EINVAL) if self.block_device => break,
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(false)
    }
}

impl Target for RawTarget {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn starts_zeroed(&self) -> bool {
        self.starts_zeroed
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), ImageError> {
        check_range(&self.name, "write", self.size, &(offset..offset.saturating_add(buf.len() as u64)))?;
        self.write("write", buf, offset)
    }

    fn write_zeroes(&self, range: Range<u64>) -> Result<(), ImageError> {
        const OP: &str = "write zeroes";
        check_range(&self.name, OP, self.size, &range)?;
        let len = range.end - range.start;
        if len == 0 || self.punch(&range).map_err(|e| self.error(OP, range.start, len, e.into()))? {
            return Ok(());
        }
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(ZEROS.len() as u64);
            self.write(OP, &ZEROS[..len as usize], at)?;
            at += len;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), ImageError> {
        self.file.sync_data().map_err(|e| self.error("flush", 0, self.size, e))
    }
}
