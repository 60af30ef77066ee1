//! A disk that lies in a raw file or on a block device, read directly.
//!
//! Holes are found with `SEEK_DATA`/`SEEK_HOLE`; where the file system or device cannot tell, all is data.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{Whence, lseek64};

use super::{Extent, ExtentKind, Image, ImageError, check_range, push};

/// A raw file or block device.
#[derive(Debug)]
pub struct RawImage {
    file: File,
    path: PathBuf,
    name: String,
    size: u64,
}

impl RawImage {
    /// Opens the file or block device at `path` for reading; `name` is its name in messages.
    ///
    /// # Errors
    /// When it cannot be opened or is neither a file nor a block device.
    pub fn open(path: &Path, name: &str) -> Result<Self, ImageError> {
        let attempt = || {
            let mut file = OpenOptions::new().read(true).open(path)?;
            let size = disk_size(&mut file)?;
            Ok((file, size))
        };
        let (file, size) = attempt().map_err(|e| open_error(name, path, e))?;
        // A hint that may fail on odd file systems; reading works all the same.
        let _hint = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
        Ok(Self { file, path: path.to_owned(), name: name.into(), size })
    }

    fn error(&self, op: &'static str, offset: u64, len: u64, source: io::Error) -> ImageError {
        ImageError { image: self.name.clone(), op, offset, len, source: at_path(&self.path, source) }
    }

    /// The next data or hole at or behind `offset`; `None` when there is none before the end.
    fn seek(&self, offset: u64, whence: Whence) -> nix::Result<Option<u64>> {
        match lseek64(&self.file, offset as i64, whence) {
            Ok(found) => Ok(Some(found as u64)),
            Err(Errno::ENXIO) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Image for RawImage {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        check_range(&self.name, "block status", self.size, &range)?;
        let mut extents = Vec::new();
        let mut at = range.start;
        while at < range.end {
            // Anything odd (not supported, nonsense from a network file system) means: read it.
            let data = match self.seek(at, Whence::SeekData) {
                Ok(found) => found.map_or(range.end, |d| d.clamp(at, range.end)),
                Err(_) => at,
            };
            if data > at {
                push(&mut extents, Extent { offset: at, len: data - at, kind: ExtentKind::Zero });
                at = data;
                continue;
            }
            let hole = match self.seek(at, Whence::SeekHole) {
                Ok(Some(hole)) if hole > at => hole.min(range.end),
                _ => range.end,
            };
            push(&mut extents, Extent { offset: at, len: hole - at, kind: ExtentKind::Data });
            at = hole;
        }
        Ok(extents)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let len = buf.len() as u64;
        check_range(&self.name, "read", self.size, &(offset..offset.saturating_add(len)))?;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            match self.file.read_at(&mut buf[done..], at) {
                Ok(0) => {
                    let source = io::Error::new(io::ErrorKind::UnexpectedEof, "the disk became shorter");
                    return Err(self.error("read", at, offset + len - at, source));
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.error("read", at, offset + len - at, e)),
            }
        }
        Ok(())
    }

    fn release(&self, range: Range<u64>) {
        let (Ok(offset), Ok(len)) = (range.start.try_into(), (range.end.saturating_sub(range.start)).try_into()) else {
            return;
        };
        // 0 would mean "to the end". What cannot be dropped stays cached; no harm.
        if len > 0 {
            let _hint = posix_fadvise(&self.file, offset, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
    }
}

/// Size of a file or block device.
pub(super) fn disk_size(file: &mut File) -> io::Result<u64> {
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a file nor a block device"));
    }
    file.seek(SeekFrom::End(0))
}

pub(super) fn open_error(name: &str, path: &Path, source: io::Error) -> ImageError {
    ImageError { image: name.into(), op: "open", offset: 0, len: 0, source: at_path(path, source) }
}

pub(super) fn at_path(path: &Path, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), format!("{}: {source}", path.display()))
}
