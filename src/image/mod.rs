//! The one idea of the engine: everything is an [`Image`], a read-only virtual disk with a size, extents and
//! positioned reads. Its mirror is a [`Target`], a virtual disk that a restore writes to.
//!
//! This module holds the two traits and their vocabulary; the implementations sit beside it, one file each.

mod faulty;
mod mem;
mod nbd;
mod open;
mod overlay;
mod qemu_nbd;
mod raw;
mod raw_target;
mod slice;

pub use faulty::FaultyImage;
pub use mem::{MemImage, MemTarget};
pub use nbd::{NbdImage, NbdTarget};
pub use open::{detect_format, open_image, open_target};
pub use overlay::OverlayImage;
pub use qemu_nbd::QemuNbd;
pub use raw::RawImage;
pub use raw_target::RawTarget;
pub use slice::Slice;

use std::io;
use std::ops::Range;

/// What is known about a range of an image without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// May hold anything: must be read.
    Data,
    /// Reads as zeros: need not be read.
    Zero,
    /// Same as in the backup this one builds on (incremental images only).
    Unchanged,
}

/// A range of an image, in bytes, and what is known about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte, counted from the start of the image.
    pub offset: u64,
    /// Length in bytes, never 0.
    pub len: u64,
    /// What the range holds.
    pub kind: ExtentKind,
}

/// An operation on an image or target failed. Names the disk, the operation and the byte range.
#[derive(Debug, thiserror::Error)]
#[error("{image}: {op} of {len} bytes at offset {offset} failed: {source}")]
pub struct ImageError {
    /// The disk, as the user knows it: a path or `drive-scsi0`.
    pub image: String,
    /// `read`, `write`, `write zeroes`, `block status`, `flush`, `open` ...
    pub op: &'static str,
    /// First byte of the range.
    pub offset: u64,
    /// Length of the range in bytes.
    pub len: u64,
    /// The cause.
    #[source]
    pub source: io::Error,
}

/// A read-only virtual disk.
///
/// Implementations are shared between threads; reads at different offsets may run side by side.
pub trait Image: Send + Sync {
    /// The disk's name in messages: a path or a device name such as `drive-scsi0`.
    fn name(&self) -> &str;

    /// Size in bytes; need not be a multiple of anything.
    fn size(&self) -> u64;

    /// Extents that cover `range` without gaps or overlaps, in order, cut to `range`.
    ///
    /// # Errors
    /// When the range is outside the image or the source cannot tell.
    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError>;

    /// Fills `buf` with the bytes from `offset` on. A short read is an error.
    ///
    /// # Errors
    /// When the range is outside the image or any byte of it cannot be read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ImageError>;

    /// From now on at most `most` requests may be in flight to whatever is behind the image, however large the reads are. An
    /// image that makes one request of each read has nothing to do.
    fn limit_requests(&self, _most: usize) {}

    /// Hint: this range was read and will not be asked for again, so caches and fleecing space may be given back.
    fn release(&self, _range: Range<u64>) {}
}

/// A virtual disk that a restore writes to.
///
/// Shared between threads; writes to different ranges may run side by side.
pub trait Target: Send + Sync {
    /// The disk's name in messages.
    fn name(&self) -> &str;

    /// Size in bytes.
    fn size(&self) -> u64;

    /// Whether the target is known to read as zeros everywhere before the first write, so that zeros need not be written.
    fn starts_zeroed(&self) -> bool;

    /// Writes all of `buf` at `offset`.
    ///
    /// # Errors
    /// When the range is outside the target or the write fails; the content of the range is then undefined.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), ImageError>;

    /// Makes the range read as zeros, without allocating where the target can.
    ///
    /// # Errors
    /// As [`Target::write_at`].
    fn write_zeroes(&self, range: Range<u64>) -> Result<(), ImageError>;

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// When the device reports that data may be lost.
    fn flush(&self) -> Result<(), ImageError>;
}

/// A virtual disk that is read and written at the same time. What was written is read back at once, by everybody.
pub trait Disk: Image + Target {}

impl<T: Image + Target> Disk for T {}

/// The error for a range that is not inside an image of `size` bytes; `Ok` when it is.
pub(crate) fn check_range(image: &str, op: &'static str, size: u64, range: &Range<u64>) -> Result<(), ImageError> {
    if range.start <= range.end && range.end <= size {
        return Ok(());
    }
    let len = range.end.saturating_sub(range.start);
    let source = io::Error::new(io::ErrorKind::InvalidInput, format!("the range is outside the disk of {size} bytes"));
    Err(ImageError { image: image.into(), op, offset: range.start, len, source })
}

/// Zero or data per block of `block` bytes, neighbours merged; `base` is the place of `bytes` in the image.
fn scan(bytes: &[u8], base: u64, block: usize) -> Vec<Extent> {
    let mut extents = Vec::new();
    for (i, chunk) in bytes.chunks(block).enumerate() {
        let kind = if chunk.iter().fold(0, |sum, b| sum | b) == 0 { ExtentKind::Zero } else { ExtentKind::Data };
        push(&mut extents, Extent { offset: base + (i * block) as u64, len: chunk.len() as u64, kind });
    }
    extents
}

/// Appends an extent, merged with the last one when both are of a kind.
pub(crate) fn push(extents: &mut Vec<Extent>, next: Extent) {
    match extents.last_mut() {
        Some(last) if last.kind == next.kind => last.len += next.len,
        _ => extents.push(next),
    }
}

#[cfg(test)]
mod tests;
