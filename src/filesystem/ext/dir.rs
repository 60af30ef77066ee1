//! The names in a directory. Those with a tree of hashes are read as if they had none: it hides in entries without a file.

use super::crc::crc32c;
use super::inode::Inode;
use super::{Ext, damaged, tail_sum};
use crate::filesystem::FsError;
use crate::filesystem::bytes::{le16, le32, u8_at};
use crate::filesystem::files::{Entry, MOST_ENTRIES, is_name};

/// Bytes of the largest directory.
const LARGEST: u64 = 2 << 30;

/// What the directory holds, without `.` and `..`.
pub(super) fn entries(fs: &Ext, inode: &Inode) -> Result<Vec<Entry>, FsError> {
    let mut found = Vec::new();
    if inode.is_inline() {
        // Four bytes for `..`, then entries up to the end of the first 60 bytes, and others in the rest.
        let data = inode.inline_data()?;
        let (first, rest) = data.split_at(data.len().min(60));
        parse(inode, first.get(4..).unwrap_or_default(), &mut found)?;
        parse(inode, rest, &mut found)?;
        return Ok(found);
    }
    if inode.size > LARGEST {
        return Err(damaged(format!("directory {} says it has {} bytes", inode.number, inode.size)));
    }
    let content = fs.content(inode)?;
    let mut block = vec![0; fs.superblock.block as usize];
    let mut at = 0;
    while let Some(data) = content.data_from(at) {
        at = data.start - data.start % fs.superblock.block;
        let count = content.read_at(&mut block, at)?;
        let block = &block[..count];
        if fs.checks()
            && let Some(sum) = tail_sum(block)
            && crc32c(inode.seed, &block[..block.len() - 12]) != sum
        {
            return Err(damaged(format!("the checksum at byte {at} of directory {} is wrong", inode.number)));
        }
        parse(inode, block, &mut found)?;
        at += fs.superblock.block;
    }
    Ok(found)
}

fn parse(inode: &Inode, block: &[u8], found: &mut Vec<Entry>) -> Result<(), FsError> {
    let wrong = |why: &str| damaged(format!("directory {} {why}", inode.number));
    let mut at = 0;
    while at + 8 <= block.len() {
        let (node, len) = (le32(block, at), usize::from(le16(block, at + 4)));
        // Blocks of 64 KiB: the length of the whole is written so, and longer ones are not possible.
        let len = if block.len() >= 1 << 16 && (len == 0 || len == 0xffff) { block.len() - at } else { len };
        // Without the feature there is another byte of the length, which is always 0.
        let name_len = usize::from(u8_at(block, at + 6));
        if len < 8 || len % 4 != 0 || 8 + name_len > len || at + len > block.len() {
            return Err(wrong("has entries that make no sense"));
        }
        let name = &block[at + 8..at + 8 + name_len];
        at += len;
        if node == 0 || matches!(name, b"." | b"..") {
            continue;
        }
        if !is_name(name) {
            return Err(wrong("has a name that cannot be one"));
        }
        if found.len() == MOST_ENTRIES {
            return Err(wrong("has more names than are read"));
        }
        found.push(Entry { name: name.to_vec(), node: node.into() });
    }
    Ok(())
}
