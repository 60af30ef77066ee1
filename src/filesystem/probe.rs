//! What is at the beginning of a disk or partition, by its signature.

use std::sync::Arc;

use super::FsError;
use super::bytes::{is_at, le16, le32, u8_at};
use crate::image::{Image, ImageError};

/// What a disk or partition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// ext2, ext3 or ext4.
    Ext,
    /// FAT12, FAT16 or FAT32.
    Fat,
    /// NTFS.
    Ntfs,
    /// An LVM physical volume.
    Lvm,
    /// A file system that is known by its signature only, with its article: `an XFS file system`.
    Foreign(&'static str),
    /// Something that is known by its signature and is no file system: `swap space`.
    Named(&'static str),
    /// Nothing that is known, which may be nothing at all.
    Unknown,
}

/// The one of them that holds several trees.
pub(super) const BTRFS: &str = "a btrfs file system";

/// Offset, bytes, what they mean.
type Signature = (u64, &'static [u8], &'static str);

/// File systems that are not read here.
const FOREIGN: [Signature; 14] = [
    (0, b"XFSB", "an XFS file system"),
    (0x1_0040, b"_BHRfS_M", BTRFS),
    (3, b"EXFAT   ", "an exFAT file system"),
    (3, b"ReFS\0", "a ReFS file system"),
    (1024, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    (1024, b"H+\0\x04", "an HFS+ file system"),
    (1024, b"HX\0\x05", "an HFS+ file system"),
    (0x1_0034, b"ReIsEr", "a ReiserFS file system"),
    (0x8000, b"JFS1", "a JFS file system"),
    (0x1_055c, b"\x19\x01\x54\x19", "a UFS file system"),
    (0x1018, b"\xc6\x85\x73\xf6", "a bcachefs file system"),
    (0x8001, b"CD001", "an ISO 9660 file system"),
    (0, b"hsqs", "a SquashFS file system"),
    (1024, b"\xe2\xe1\xf5\xe0", "an EROFS file system"),
];

/// What is no file system.
const NAMED: [Signature; 8] = [
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (3, b"-FVE-FS-", "an encrypted volume (BitLocker)"),
    (32, b"NXSB", "an APFS container"),
    (4086, b"SWAPSPACE2", "swap space"),
    (4086, b"SWAP-SPACE", "swap space"),
    (8182, b"SWAPSPACE2", "swap space"),
    (0, b"\xfc\x4e\x2b\xa9", "a member of a RAID (md)"),
    (4096, b"\xfc\x4e\x2b\xa9", "a member of a RAID (md)"),
];

/// Looks what `image` holds.
///
/// # Errors
/// When it cannot be read.
pub fn probe(image: &Arc<dyn Image>) -> Result<Found, FsError> {
    let head = read(image, 0, 0x1_1000)?;
    let known = |(offset, signature, _): &&Signature| is_at(&head, *offset as usize, signature);
    if let Some((_, _, what)) = NAMED.iter().find(known) {
        return Ok(Found::Named(what));
    }
    if let Some((_, _, what)) = FOREIGN.iter().find(known) {
        return Ok(Found::Foreign(what));
    }
    if is_at(&head, 3, b"NTFS    ") {
        return Ok(Found::Ntfs);
    }
    if (0..4).any(|sector| is_at(&head, sector * 512, b"LABELONE") && is_at(&head, sector * 512 + 24, b"LVM2 001")) {
        return Ok(Found::Lvm);
    }
    // At the end, the older kinds of RAID: a mirror's file system can be seen at its beginning as well.
    let size = image.size();
    let old = (size & !0xffff).saturating_sub(0x1_0000);
    let newer = (size & !0xfff).saturating_sub(0x2000) & !0xfff;
    for place in [old, newer].into_iter().filter(|place| *place > 0) {
        if is_at(&read(image, place, 8)?, 0, b"\xfc\x4e\x2b\xa9") {
            return Ok(Found::Named("a member of a RAID (md)"));
        }
    }
    if le16(&head, 0x438) == 0xef53 && le32(&head, 0x418) <= 6 {
        return Ok(Found::Ext);
    }
    if is_fat(&head) {
        return Ok(Found::Fat);
    }
    // The label of a pool has no signature of its own, but a ring of blocks that have one.
    let ring = read(image, 128 << 10, 128 << 10)?;
    let is_ring = ring
        .chunks_exact(1024)
        .any(|block| is_at(block, 0, b"\x0c\xb1\xba\0\0\0\0\0") || is_at(block, 0, b"\0\0\0\0\0\xba\xb1\x0c"));
    Ok(if is_ring { Found::Named("a member of a ZFS pool") } else { Found::Unknown })
}

/// Whether the first sector of a disk, which ends as a partition table does, is that of a file system instead.
pub(super) fn is_boot_sector(sector: &[u8]) -> bool {
    let names: [&[u8]; 4] = [b"NTFS    ", b"EXFAT   ", b"-FVE-FS-", b"ReFS\0"];
    names.iter().any(|name| is_at(sector, 3, name)) || is_fat(sector)
}

/// FAT has no signature: what stands in the boot sector has to make sense.
fn is_fat(sector: &[u8]) -> bool {
    let jump = matches!(u8_at(sector, 0), 0xeb | 0xe9);
    let (size, cluster, reserved) = (le16(sector, 11), u8_at(sector, 13), le16(sector, 14));
    let (tables, media) = (u8_at(sector, 16), u8_at(sector, 21));
    let has_table = le16(sector, 22) != 0 || le32(sector, 36) != 0;
    let has_size = le16(sector, 19) != 0 || le32(sector, 32) != 0;
    jump && matches!(size, 512 | 1024 | 2048 | 4096)
        && cluster.is_power_of_two()
        && reserved > 0
        && (1..=2).contains(&tables)
        && (media == 0xf0 || media >= 0xf8)
        && has_table
        && has_size
}

/// Bytes of the image; less at its end.
fn read(image: &Arc<dyn Image>, offset: u64, len: usize) -> Result<Vec<u8>, ImageError> {
    let left = image.size().saturating_sub(offset);
    let mut bytes = vec![0; usize::try_from(left).unwrap_or(len).min(len)];
    if !bytes.is_empty() {
        image.read_at(&mut bytes, offset)?;
    }
    Ok(bytes)
}
