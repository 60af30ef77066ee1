//! What all file systems have in common: files, directories and links with names of any bytes, read only.

use std::collections::HashSet;
use std::sync::Arc;

use super::bytes::shown;
use super::content::Content;
use super::ext::Ext;
use super::fat::Fat;
use super::ntfs::Ntfs;
use super::{Cached, Found, FsError, probe};
use crate::image::Image;

/// Entries of the largest directory that is read.
pub(super) const MOST_ENTRIES: usize = 2 << 20;
/// Links that are followed on the way to one file, as Linux has it.
const MOST_LINKS: usize = 40;
/// Directories a path may lead through.
const MOST_PARTS: usize = 4096;
/// Bytes of the longest target of a link.
pub(super) const LONGEST_LINK: u64 = 64 << 10;

/// A file, by the number its file system knows it by.
pub type Node = u64;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// Something nobody knows.
    Other,
}

impl FileKind {
    /// As `ls -l` has it.
    pub fn sign(self) -> char {
        match self {
            Self::File => '-',
            Self::Directory => 'd',
            Self::Symlink => 'l',
            Self::Character => 'c',
            Self::Block => 'b',
            Self::Fifo => 'p',
            Self::Socket => 's',
            Self::Other => '?',
        }
    }
}

/// What is known about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: FileKind,
    /// Bytes; 0 for what has no content.
    pub size: u64,
    /// Permissions, with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner; 0 where the file system has none.
    pub uid: u32,
    /// Group; 0 where the file system has none.
    pub gid: u32,
    /// Seconds and nanoseconds since 1970 of the last modification.
    pub modified: (i64, u32),
    /// How many names it has.
    pub links: u64,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Never empty, `.` or `..`, without slashes and NUL.
    pub name: Vec<u8>,
    /// What it names.
    pub node: Node,
}

/// A file system that is read.
pub trait FileSystem: Send + Sync {
    /// `ext4`, `FAT32`, `NTFS`; of those that are not read here `an XFS file system`.
    fn kind(&self) -> &'static str;

    /// Something worth telling about how it is read.
    fn note(&self) -> Option<String> {
        None
    }

    /// The top directory.
    fn root(&self) -> Node;

    /// Whether `README` and `readme` are one name.
    fn ignores_case(&self) -> bool {
        false
    }

    /// What is known about a file.
    ///
    /// # Errors
    /// When the disk cannot be read, or what is there is damaged.
    fn metadata(&self, node: Node) -> Result<Metadata, FsError>;

    /// What a directory holds, in the order of the disk.
    ///
    /// # Errors
    /// When it is none, or as above.
    fn read_dir(&self, node: Node) -> Result<Vec<Entry>, FsError>;

    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// When it is none, or as above.
    fn read_link(&self, node: Node) -> Result<Vec<u8>, FsError>;

    /// The content of a regular file.
    ///
    /// # Errors
    /// When it is none, is encrypted, or as above.
    fn open(&self, node: Node) -> Result<Content, FsError>;
}

/// Opens the file system that begins at the first byte of `image`.
///
/// # Errors
/// When there is none, it is none that is read here, or it is damaged.
pub fn open(image: Arc<dyn Image>) -> Result<Arc<dyn FileSystem>, FsError> {
    let image: Arc<dyn Image> = Arc::new(Cached::new(image));
    match probe(&image)? {
        Found::Ext => Ok(Arc::new(Ext::open(image)?)),
        Found::Fat => Ok(Arc::new(Fat::open(image)?)),
        Found::Ntfs => Ok(Arc::new(Ntfs::open(image)?)),
        Found::Lvm => {
            Err(FsError::Unsupported("holds an LVM physical volume; what is in it is below 'lvm'".to_owned()))
        }
        Found::Unknown => Err(FsError::Unsupported("holds no file system that is known".to_owned())),
        Found::Named(what) => Err(FsError::Unsupported(format!("holds {what}, which is not read here"))),
        Found::Foreign(what) => Err(FsError::Foreign(what)),
    }
}

/// A part of a file system that is a tree of its own: nothing leads out of it.
pub(super) struct Below {
    pub whole: Arc<dyn FileSystem>,
    pub root: Node,
}

impl FileSystem for Below {
    fn kind(&self) -> &'static str {
        self.whole.kind()
    }

    fn note(&self) -> Option<String> {
        self.whole.note()
    }

    fn root(&self) -> Node {
        self.root
    }

    fn ignores_case(&self) -> bool {
        self.whole.ignores_case()
    }

    fn metadata(&self, node: Node) -> Result<Metadata, FsError> {
        self.whole.metadata(node)
    }

    fn read_dir(&self, node: Node) -> Result<Vec<Entry>, FsError> {
        self.whole.read_dir(node)
    }

    fn read_link(&self, node: Node) -> Result<Vec<u8>, FsError> {
        self.whole.read_link(node)
    }

    fn open(&self, node: Node) -> Result<Content, FsError> {
        self.whole.open(node)
    }
}

/// A name that can be one in a directory.
pub(super) fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// The name in a directory, by its exact spelling, or by the only one that differs in case where that is the same.
///
/// # Errors
/// As [`FileSystem::read_dir`].
pub fn lookup(fs: &dyn FileSystem, directory: Node, name: &[u8]) -> Result<Option<Node>, FsError> {
    let entries = fs.read_dir(directory)?;
    if let Some(entry) = entries.iter().find(|entry| entry.name == name) {
        return Ok(Some(entry.node));
    }
    if !fs.ignores_case() {
        return Ok(None);
    }
    let lower = |name: &[u8]| String::from_utf8_lossy(name).to_lowercase();
    let wanted = lower(name);
    Ok(entries.iter().find(|entry| lower(&entry.name) == wanted).map(|entry| entry.node))
}

/// The file at `path`, a way from the top directory. Links on the way are followed, absolute ones from the top of the same
/// file system, and nothing leads out of it; a link at the end is followed when `follow` is set.
///
/// # Errors
/// When there is nothing of that name, links lead in a circle, or as [`FileSystem::read_dir`].
pub fn resolve(fs: &dyn FileSystem, path: &[u8], follow: bool) -> Result<Node, FsError> {
    let printable = || shown(path);
    let unfit = |what| FsError::Unfit { path: printable(), what };
    // What is still to be gone, the next part last, and the way back.
    let mut ahead: Vec<Vec<u8>> = Vec::new();
    let push = |ahead: &mut Vec<Vec<u8>>, path: &[u8]| {
        ahead.extend(path.split(|byte| *byte == b'/').rev().filter(|part| !part.is_empty()).map(<[u8]>::to_vec));
        ahead.len() <= MOST_PARTS
    };
    if !push(&mut ahead, path) {
        return Err(unfit("too long a path"));
    }
    let mut way = vec![fs.root()];
    let mut links = 0;
    while let Some(part) = ahead.pop() {
        let here = way.last().copied().unwrap_or_else(|| fs.root());
        match part.as_slice() {
            b"." => continue,
            b".." => {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            _ => {}
        }
        if fs.metadata(here)?.kind != FileKind::Directory {
            return Err(unfit("below something that is no directory"));
        }
        let node = lookup(fs, here, &part)?.ok_or_else(|| FsError::Missing(printable()))?;
        let is_link = fs.metadata(node)?.kind == FileKind::Symlink;
        if !is_link || (ahead.is_empty() && !follow) {
            way.push(node);
            continue;
        }
        links += 1;
        let target = fs.read_link(node)?;
        if links > MOST_LINKS || !push(&mut ahead, &target) {
            return Err(unfit("behind symbolic links that lead in a circle"));
        }
        if target.first() == Some(&b'/') {
            way.truncate(1);
        }
    }
    Ok(way.last().copied().unwrap_or_else(|| fs.root()))
}

/// Reads whatever there is below the top directory of a file system, as far as `most` files. For fuzzing.
#[doc(hidden)]
pub fn read_everything(fs: &dyn FileSystem, most: usize) -> usize {
    let (mut queue, mut seen, mut read) = (vec![fs.root()], HashSet::new(), 0);
    let mut buf = vec![0; 64 << 10];
    while let Some(node) = queue.pop() {
        if !seen.insert(node) || seen.len() > most {
            continue;
        }
        let Ok(metadata) = fs.metadata(node) else { continue };
        if metadata.kind == FileKind::Directory {
            queue.extend(fs.read_dir(node).unwrap_or_default().into_iter().map(|entry| entry.node));
        }
        fs.read_link(node).unwrap_or_default();
        let Ok(content) = fs.open(node) else { continue };
        let mut at = 0;
        while let Some(data) = content.data_from(at)
            && read < most << 20
        {
            assert!(data.start >= at && data.end > data.start && data.end <= content.size());
            let len = buf.len().min((data.end - data.start) as usize);
            let Ok(count) = content.read_at(&mut buf[..len], data.start) else { break };
            assert_eq!(count, len);
            read += count;
            at = data.start + count as u64;
        }
    }
    seen.len()
}
