//! What a mount shows: files by number, their attributes, names and contents. Pure: nothing in here knows FUSE.

use std::sync::Arc;
use std::time::SystemTime;

use crate::image::{Extent, ExtentKind, Image, ImageError};

/// The number of a file.
pub type Inode = u64;

/// Extended attributes, name and value.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The number of the top directory.
pub const TOP: Inode = 1;

/// Bytes of a disk whose extents are asked for at once.
const WINDOW: u64 = 16 << 30;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A character device.
    Character,
    /// A block device.
    Block,
}

/// What `stat` tells of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Its number.
    pub inode: Inode,
    /// What it is.
    pub kind: Kind,
    /// Permissions, with the bits for set-id and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Bytes of it that are data, not holes.
    pub data: u64,
    /// Last change.
    pub mtime: SystemTime,
    /// Names it has.
    pub links: u32,
    /// Number of the device it stands for, as `makedev` has it in 32 bits.
    pub rdev: u32,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The file.
    pub inode: Inode,
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: Vec<u8>,
}

/// Why a question about a file has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// There is no such file.
    #[error("no such file")]
    Missing,
    /// It is of another kind.
    #[error("not possible with a file of this kind")]
    Unfit,
    /// The archive cannot be read. This is for a log.
    #[error("{0}")]
    Broken(String),
}

/// The files of an archive. Shared between threads; its content never changes.
pub trait View: Send + Sync {
    /// Whether questions about this file, its content aside, are answered at once, without reading the archive.
    fn is_known(&self, inode: Inode) -> bool;

    /// What `stat` tells.
    ///
    /// # Errors
    /// When there is no such file, or the archive cannot be read.
    fn attributes(&self, inode: Inode) -> Result<Attributes, ViewError>;

    /// The file called `name` in a directory.
    ///
    /// # Errors
    /// When there is none, or the archive cannot be read.
    fn lookup(&self, directory: Inode, name: &[u8]) -> Result<Inode, ViewError>;

    /// At most `most` of the names in a directory, without `.` and `..`, from number `from` on.
    ///
    /// # Errors
    /// When it is no directory, or the archive cannot be read.
    fn entries(&self, directory: Inode, from: u64, most: usize) -> Result<Vec<Entry>, ViewError>;

    /// The directory that a directory is in; the top one is in itself.
    fn parent(&self, directory: Inode) -> Inode;

    /// The content of a regular file.
    ///
    /// # Errors
    /// When it is none, or the archive cannot be read.
    fn content(&self, inode: Inode) -> Result<Arc<dyn Image>, ViewError>;

    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// When it is none, or the archive cannot be read.
    fn link(&self, inode: Inode) -> Result<Vec<u8>, ViewError>;

    /// Extended attributes, name and value.
    ///
    /// # Errors
    /// When there is no such file, or the archive cannot be read.
    fn xattrs(&self, inode: Inode) -> Result<Xattrs, ViewError>;
}

/// Bytes of an image that are not known to be zero.
///
/// # Errors
/// When the image cannot tell.
pub(super) fn data_bytes(image: &dyn Image) -> Result<u64, ImageError> {
    let (mut at, mut data) = (0, 0);
    while at < image.size() {
        let end = image.size().min(at.saturating_add(WINDOW));
        data += image.extents(at..end)?.iter().filter(|extent| is_data(extent)).map(|extent| extent.len).sum::<u64>();
        at = end;
    }
    Ok(data)
}

/// The first byte at or behind `offset` that is data (`wanted`), or not. The end of the image counts as a hole.
///
/// # Errors
/// When the image cannot tell.
pub(super) fn next_of(image: &dyn Image, offset: u64, wanted: bool) -> Result<Option<u64>, ImageError> {
    let mut at = offset;
    // Small windows first: what is near is found without asking for all.
    let mut window = 256 << 20;
    while at < image.size() {
        let end = image.size().min(at.saturating_add(window));
        let extents = image.extents(at..end)?;
        if let Some(found) = extents.iter().find(|extent| is_data(extent) == wanted) {
            return Ok(Some(found.offset));
        }
        at = end;
        window = (window * 4).min(WINDOW);
    }
    Ok((!wanted && offset < image.size()).then_some(image.size()))
}

fn is_data(extent: &Extent) -> bool {
    extent.kind != ExtentKind::Zero
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{FaultyImage, MemImage};

    fn image(holes: &[(u64, u64)], size: u64) -> MemImage {
        let (mut extents, mut at) = (Vec::new(), 0);
        for (start, len) in holes {
            if *start > at {
                extents.push(Extent { offset: at, len: start - at, kind: ExtentKind::Data });
            }
            extents.push(Extent { offset: *start, len: *len, kind: ExtentKind::Zero });
            at = start + len;
        }
        if size > at {
            extents.push(Extent { offset: at, len: size - at, kind: ExtentKind::Data });
        }
        MemImage::with_extents("disk", vec![0; size as usize], extents)
    }

    #[test]
    fn holes_and_data() {
        let disk = image(&[(0, 10), (20, 5), (40, 60)], 100);
        let find = |offset, wanted| next_of(&disk, offset, wanted).unwrap();
        assert_eq!([find(0, true), find(12, true), find(20, true)], [Some(10), Some(12), Some(25)]);
        assert_eq!([find(40, true), find(99, true), find(100, true), find(u64::MAX, true)], [None; 4]);
        assert_eq!([find(0, false), find(10, false), find(25, false)], [Some(0), Some(20), Some(40)]);
        assert_eq!([find(99, false), find(100, false)], [Some(99), None]);
        assert_eq!(data_bytes(&disk).unwrap(), 25);
        // Behind the last data the end is a hole; an empty file has neither.
        assert_eq!(next_of(&image(&[], 30), 7, false).unwrap(), Some(30));
        let empty = MemImage::new("empty", Vec::new());
        assert_eq!((data_bytes(&empty).unwrap(), next_of(&empty, 0, false).unwrap()), (0, None));
    }

    #[test]
    fn a_disk_that_cannot_tell() {
        let disk = FaultyImage::new(Arc::new(image(&[], 9))).fail_extents();
        assert!(data_bytes(&disk).is_err() && next_of(&disk, 0, true).is_err());
    }
}
