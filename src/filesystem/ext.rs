//! ext2, ext3 and ext4: the superblock, inodes and what they say of files. Where the blocks of a file lie is [`blocks`]'s
//! business, names are [`dir`]'s; a file system that was not unmounted is read through its [`journal`].
//!
//! Written from the kernel's documentation of the format (Documentation/filesystems/ext4). The crate `ext4-view` was
//! weighed: it gives up on files dated before 1970 or after 2038, on inline data and on multiple mount protection, knows
//! no holes and no links, and cannot be shared between threads.

mod blocks;
mod crc;
mod dir;
mod inode;
mod journal;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::bytes::{le16, le32, u8_at};
use super::content::Content;
use super::files::{Entry, FileKind, FileSystem, LONGEST_LINK, Metadata, Node};
use super::{Cached, FsError};
use crate::image::Image;
use inode::Inode;

/// The inode of the top directory.
const ROOT: Node = 2;

/// Features without which the rest cannot be understood.
mod incompat {
    pub const COMPRESSION: u32 = 0x1;
    pub const FILE_TYPE: u32 = 0x2;
    pub const RECOVER: u32 = 0x4;
    pub const JOURNAL_DEVICE: u32 = 0x8;
    pub const META_GROUPS: u32 = 0x10;
    pub const EXTENTS: u32 = 0x40;
    pub const WIDE: u32 = 0x80;
    pub const MOUNT_PROTECTION: u32 = 0x100;
    pub const FLEXIBLE_GROUPS: u32 = 0x200;
    pub const XATTR_INODES: u32 = 0x400;
    pub const CHECKSUM_SEED: u32 = 0x2000;
    pub const LARGE_DIRECTORIES: u32 = 0x4000;
    pub const INLINE_DATA: u32 = 0x8000;
    pub const ENCRYPTION: u32 = 0x1_0000;
    pub const CASE_FOLDING: u32 = 0x2_0000;
    /// All that make no difference here, or are minded.
    pub const KNOWN: u32 = FILE_TYPE
        | RECOVER
        | META_GROUPS
        | EXTENTS
        | WIDE
        | MOUNT_PROTECTION
        | FLEXIBLE_GROUPS
        | XATTR_INODES
        | CHECKSUM_SEED
        | LARGE_DIRECTORIES
        | INLINE_DATA
        | ENCRYPTION
        | CASE_FOLDING;
}

const COMPAT_JOURNAL: u32 = 0x4;
const COMPAT_SPARSE_SUPER_2: u32 = 0x200;
const RO_SPARSE_SUPER: u32 = 0x1;
const RO_CHECKSUMS: u32 = 0x400;

fn damaged(why: impl Into<String>) -> FsError {
    FsError::damaged("ext file system", why)
}

/// What the superblock says.
#[derive(Debug, Clone)]
struct Super {
    block: u64,
    blocks: u64,
    first_block: u64,
    inodes: u32,
    blocks_per_group: u64,
    inodes_per_group: u32,
    inode_size: u64,
    descriptor_size: u64,
    first_meta_group: u64,
    compat: u32,
    incompat: u32,
    read_only: u32,
    journal_inode: u32,
    backup_groups: [u32; 2],
    /// What checksums start with.
    seed: u32,
}

impl Super {
    fn read(image: &dyn Image) -> Result<Self, FsError> {
        let mut raw = [0; 1024];
        image.read_at(&mut raw, 1024)?;
        let incompat = le32(&raw, 0x60);
        let unknown = incompat & !incompat::KNOWN;
        if unknown & incompat::JOURNAL_DEVICE != 0 {
            return Err(FsError::Unsupported("holds the journal of another ext file system, no files".to_owned()));
        }
        if unknown != 0 {
            let compressed = if unknown & incompat::COMPRESSION != 0 { " (compression)" } else { "" };
            let what =
                format!("holds an ext file system with features 0x{unknown:x}{compressed}, which is not read here");
            return Err(FsError::Unsupported(what));
        }
        let wide = incompat & incompat::WIDE != 0;
        let shift = le32(&raw, 0x18);
        if shift > 6 {
            return Err(damaged(format!("its superblock says that blocks have 2^{shift} KiB")));
        }
        let high = if wide { u64::from(le32(&raw, 0x150)) << 32 } else { 0 };
        let read_only = le32(&raw, 0x64);
        let seed = match incompat & incompat::CHECKSUM_SEED {
            0 => crc::crc32c(!0, &raw[0x68..0x78]),
            _ => le32(&raw, 0x270),
        };
        let known = Self {
            block: 1024 << shift,
            blocks: high | u64::from(le32(&raw, 0x4)),
            first_block: le32(&raw, 0x14).into(),
            inodes: le32(&raw, 0x0),
            blocks_per_group: le32(&raw, 0x20).into(),
            inodes_per_group: le32(&raw, 0x28),
            inode_size: if le32(&raw, 0x4c) == 0 { 128 } else { le16(&raw, 0x58).into() },
            descriptor_size: if wide { le16(&raw, 0xfe).into() } else { 32 },
            first_meta_group: le32(&raw, 0x104).into(),
            compat: le32(&raw, 0x5c),
            incompat,
            read_only,
            journal_inode: le32(&raw, 0xe0),
            backup_groups: [le32(&raw, 0x24c), le32(&raw, 0x250)],
            seed,
        };
        if read_only & RO_CHECKSUMS != 0 && crc::crc32c(!0, &raw[..0x3fc]) != le32(&raw, 0x3fc) {
            return Err(damaged("the checksum of its superblock is wrong"));
        }
        let sizes = [known.inode_size, known.descriptor_size];
        let sane = sizes.iter().all(|size| (32..=known.block).contains(size) && size.is_power_of_two())
            && known.inode_size >= 128
            && known.inodes_per_group > 0
            && known.blocks_per_group > 0
            && known.blocks.checked_mul(known.block).is_some();
        if !sane {
            return Err(damaged("its superblock has impossible sizes"));
        }
        Ok(known)
    }

    /// Whether there is a copy of the superblock at the start of the group.
    fn has_copy(&self, group: u64) -> bool {
        if self.compat & COMPAT_SPARSE_SUPER_2 != 0 {
            return group == 0 || self.backup_groups.iter().any(|copy| u64::from(*copy) == group);
        }
        if self.read_only & RO_SPARSE_SUPER == 0 || group <= 1 {
            return true;
        }
        let is_power = |of: u64| {
            let mut power = of;
            while power < group {
                power *= of;
            }
            power == group
        };
        [3, 5, 7].into_iter().any(is_power)
    }

    /// Where the descriptor of a group stands.
    fn descriptor(&self, group: u64) -> u64 {
        let in_block = self.block / self.descriptor_size;
        let (number, rest) = (group / in_block, group % in_block * self.descriptor_size);
        let block = if self.incompat & incompat::META_GROUPS != 0 && number >= self.first_meta_group {
            let group = number * in_block;
            // Blocks of 1 KiB: the first is the boot sector, even if the count does not begin behind it.
            let boot = u64::from(self.block == 1024 && number == 0 && self.first_block == 0);
            let start = self.first_block + group.saturating_mul(self.blocks_per_group);
            start.saturating_add(u64::from(self.has_copy(group)) + boot)
        } else {
            let own = 1024 / self.block;
            own + 1 + number
        };
        block.saturating_mul(self.block).saturating_add(rest)
    }
}

/// An open file system.
pub(super) struct Ext {
    image: Arc<dyn Image>,
    superblock: Super,
    kind: &'static str,
    note: Option<String>,
}

impl Ext {
    pub(super) fn open(image: Arc<dyn Image>) -> Result<Self, FsError> {
        let superblock = Super::read(&*image)?;
        let kind = match superblock.incompat & (incompat::EXTENTS | incompat::WIDE | incompat::FLEXIBLE_GROUPS) {
            0 if superblock.compat & COMPAT_JOURNAL == 0 => "ext2",
            0 => "ext3",
            _ => "ext4",
        };
        let mut fs = Self { image, superblock, kind, note: None };
        if fs.superblock.incompat & incompat::RECOVER != 0 && fs.superblock.compat & COMPAT_JOURNAL != 0 {
            let (replayed, note) = journal::replay(&fs)?;
            if let Some(replayed) = replayed {
                fs.image = Arc::new(Cached::new(Arc::new(replayed)));
                fs.superblock = Super::read(&*fs.image)?;
            }
            fs.note = note;
        }
        if fs.superblock.blocks.saturating_mul(fs.superblock.block) > fs.image.size() {
            let (blocks, block, size) = (fs.superblock.blocks, fs.superblock.block, fs.image.size());
            let note = format!("the file system has {blocks} blocks of {block} bytes, but its disk only {size} bytes");
            fs.note.get_or_insert(note);
        }
        Ok(fs)
    }

    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, FsError> {
        let mut bytes = vec![0; len];
        self.image.read_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// A whole block by its number.
    fn block(&self, number: u64) -> Result<Vec<u8>, FsError> {
        if number == 0 || number >= self.superblock.blocks {
            return Err(damaged(format!("block {number} is none of its {} blocks", self.superblock.blocks)));
        }
        self.read(number * self.superblock.block, self.superblock.block as usize)
    }

    fn checks(&self) -> bool {
        self.superblock.read_only & RO_CHECKSUMS != 0
    }

    fn inode(&self, node: Node) -> Result<Inode, FsError> {
        let known = &self.superblock;
        let number = u32::try_from(node).ok().filter(|n| *n != 0 && *n <= known.inodes);
        let number = number.ok_or_else(|| damaged(format!("inode {node} is none of its {} inodes", known.inodes)))?;
        let (group, index) = ((number - 1) / known.inodes_per_group, (number - 1) % known.inodes_per_group);
        let descriptor = self.read(known.descriptor(group.into()), known.descriptor_size as usize)?;
        let high = if known.descriptor_size >= 64 { u64::from(le32(&descriptor, 0x28)) << 32 } else { 0 };
        let table = high | u64::from(le32(&descriptor, 0x8));
        if table == 0 || table >= known.blocks {
            return Err(damaged(format!("the inodes of group {group} are said to be in block {table}")));
        }
        let place = (table * known.block).saturating_add(u64::from(index) * known.inode_size);
        let raw = self.read(place, known.inode_size as usize)?;
        Inode::parse(self, number, raw)
    }

    /// The content of anything that has one.
    fn content(&self, inode: &Inode) -> Result<Content, FsError> {
        if inode.is_inline() {
            return Ok(Content::bytes(self.image.clone(), inode.inline_data()?));
        }
        Ok(Content::runs(self.image.clone(), inode.size, blocks::runs(self, inode)?))
    }
}

impl FileSystem for Ext {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn note(&self) -> Option<String> {
        self.note.clone()
    }

    fn root(&self) -> Node {
        ROOT
    }

    fn metadata(&self, node: Node) -> Result<Metadata, FsError> {
        Ok(self.inode(node)?.metadata())
    }

    fn read_dir(&self, node: Node) -> Result<Vec<Entry>, FsError> {
        let inode = self.inode(node)?;
        if inode.kind() != FileKind::Directory {
            return Err(damaged(format!("inode {node} is no directory")));
        }
        inode.not_encrypted()?;
        dir::entries(self, &inode)
    }

    fn read_link(&self, node: Node) -> Result<Vec<u8>, FsError> {
        let inode = self.inode(node)?;
        if inode.kind() != FileKind::Symlink {
            return Err(damaged(format!("inode {node} is no symbolic link")));
        }
        inode.not_encrypted()?;
        if inode.is_fast_link() {
            return Ok(inode.map()[..inode.size as usize].to_vec());
        }
        if inode.size > LONGEST_LINK {
            return Err(damaged(format!("the target of symbolic link {node} has {} bytes", inode.size)));
        }
        let content = self.content(&inode)?;
        let mut target = vec![0; inode.size as usize];
        let count = content.read_at(&mut target, 0)?;
        target.truncate(count);
        Ok(target)
    }

    fn open(&self, node: Node) -> Result<Content, FsError> {
        let inode = self.inode(node)?;
        if inode.kind() != FileKind::File {
            return Err(damaged(format!("inode {node} is no regular file")));
        }
        inode.not_encrypted()?;
        self.content(&inode)
    }
}

/// The last four bytes of a block of names when it has a checksum.
fn tail_sum(block: &[u8]) -> Option<u32> {
    let at = block.len().checked_sub(12)?;
    let is_tail = le32(block, at) == 0 && le16(block, at + 4) == 12 && u8_at(block, at + 6) == 0;
    (is_tail && u8_at(block, at + 7) == 0xde).then(|| le32(block, at + 8))
}
