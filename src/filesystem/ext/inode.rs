//! An inode: what is known about a file, and its content when that is so small that it stands in the inode itself.

use super::crc::crc32c;
use super::{Ext, damaged, incompat};
use crate::filesystem::FsError;
use crate::filesystem::bytes::{le16, le32, u8_at};
use crate::filesystem::files::{FileKind, Metadata};

/// Where the map of blocks stands, and its bytes.
const MAP: std::ops::Range<usize> = 0x28..0x28 + 60;
/// Bytes of an inode without what was added later.
const OLD: usize = 128;

const ENCRYPTED: u32 = 0x800;
const EXTENTS: u32 = 0x8_0000;
const XATTR_INODE: u32 = 0x20_0000;
const INLINE: u32 = 0x1000_0000;

/// A file.
pub(super) struct Inode {
    pub number: u32,
    pub size: u64,
    flags: u32,
    /// What checksums of its blocks start with.
    pub seed: u32,
    raw: Vec<u8>,
}

impl Inode {
    /// `raw` has at least 128 bytes.
    pub fn parse(fs: &Ext, number: u32, raw: Vec<u8>) -> Result<Self, FsError> {
        let seed = crc32c(fs.superblock.seed, &number.to_le_bytes());
        let seed = crc32c(seed, &raw[0x64..0x68]);
        let inode = Self { number, size: 0, flags: le32(&raw, 0x20), seed, raw };
        if fs.checks() {
            inode.check()?;
        }
        if le16(&inode.raw, 0) == 0 {
            return Err(damaged(format!("inode {number} is not in use")));
        }
        let large = inode.kind() == FileKind::File || fs.superblock.incompat & incompat::LARGE_DIRECTORIES != 0;
        let high = if large { u64::from(le32(&inode.raw, 0x6c)) << 32 } else { 0 };
        let size = high | u64::from(le32(&inode.raw, 0x4));
        if size >= 1 << 60 {
            return Err(damaged(format!("inode {number} says it has {size} bytes")));
        }
        Ok(Self { size, ..inode })
    }

    fn check(&self) -> Result<(), FsError> {
        let mut raw = self.raw.clone();
        let low = le16(&raw, 0x7c);
        raw[0x7c..0x7e].fill(0);
        let has_high = raw.len() > OLD && le16(&raw, 0x80) >= 4;
        let mut wanted = u32::from(low);
        if has_high {
            wanted |= u32::from(le16(&raw, 0x82)) << 16;
            raw[0x82..0x84].fill(0);
        }
        let found = crc32c(self.seed, &raw);
        let found = if has_high { found } else { found & 0xffff };
        if found == wanted {
            return Ok(());
        }
        Err(damaged(format!("the checksum of inode {} is wrong", self.number)))
    }

    pub fn kind(&self) -> FileKind {
        match le16(&self.raw, 0) & 0xf000 {
            0x8000 => FileKind::File,
            0x4000 => FileKind::Directory,
            0xa000 => FileKind::Symlink,
            0x2000 => FileKind::Character,
            0x6000 => FileKind::Block,
            0x1000 => FileKind::Fifo,
            0xc000 => FileKind::Socket,
            _ => FileKind::Other,
        }
    }

    pub fn metadata(&self) -> Metadata {
        let id = |low, high| u32::from(le16(&self.raw, low)) | u32::from(le16(&self.raw, high)) << 16;
        let kind = self.kind();
        let has_content = matches!(kind, FileKind::File | FileKind::Symlink | FileKind::Directory);
        // Two bits more of the seconds, counted on from what 32 bits with a sign say, and nanoseconds.
        let extra = if self.extra() >= 12 { le32(&self.raw, 0x88) } else { 0 };
        let seconds = i64::from(le32(&self.raw, 0x10).cast_signed()) + (i64::from(extra & 3) << 32);
        Metadata {
            kind,
            size: if has_content { self.size } else { 0 },
            mode: u32::from(le16(&self.raw, 0)) & 0o7777,
            uid: id(0x2, 0x78),
            gid: id(0x18, 0x7a),
            modified: (seconds, (extra >> 2).min(999_999_999)),
            links: le16(&self.raw, 0x1a).into(),
        }
    }

    /// Bytes behind the old part that have a fixed meaning.
    fn extra(&self) -> usize {
        if self.raw.len() > OLD { le16(&self.raw, 0x80).into() } else { 0 }
    }

    /// The 60 bytes that say where the content is.
    pub fn map(&self) -> &[u8] {
        &self.raw[MAP]
    }

    pub fn has_extents(&self) -> bool {
        self.flags & EXTENTS != 0
    }

    pub fn is_inline(&self) -> bool {
        self.flags & INLINE != 0
    }

    /// Whether the target of a link stands where the map of blocks would.
    pub fn is_fast_link(&self) -> bool {
        self.size < 60 && self.flags & (EXTENTS | INLINE | XATTR_INODE) == 0
    }

    pub fn not_encrypted(&self) -> Result<(), FsError> {
        if self.flags & ENCRYPTED == 0 {
            return Ok(());
        }
        Err(FsError::Unsupported("is encrypted by the file system of the guest (fscrypt)".to_owned()))
    }

    /// The content that stands in the inode: 60 bytes, and the rest among its extended attributes.
    pub fn inline_data(&self) -> Result<Vec<u8>, FsError> {
        let mut data = self.map().to_vec();
        if self.size > 60 {
            data.extend_from_slice(self.inline_rest().ok_or_else(|| {
                damaged(format!("the second half of the content of inode {} is not there", self.number))
            })?);
        }
        if (data.len() as u64) < self.size {
            return Err(damaged(format!("inode {} has {} bytes, not {}", self.number, data.len(), self.size)));
        }
        data.truncate(self.size as usize);
        Ok(data)
    }

    /// The attribute `system.data`.
    fn inline_rest(&self) -> Option<&[u8]> {
        let start = OLD + self.extra();
        if le32(&self.raw, start) != 0xea02_0000 {
            return None;
        }
        let entries = self.raw.get(start + 4..)?;
        let mut at = 0;
        while le32(entries, at) != 0 {
            let name_len = usize::from(u8_at(entries, at));
            let name = entries.get(at + 16..at + 16 + name_len)?;
            if u8_at(entries, at + 1) == 7 && name == b"data" && le32(entries, at + 4) == 0 {
                let value = usize::from(le16(entries, at + 2));
                return entries.get(value..value.checked_add(le32(entries, at + 8) as usize)?);
            }
            at += (16 + name_len).next_multiple_of(4);
        }
        None
    }
}
