use std::sync::Arc;

use super::*;
use crate::image::MemImage;

const BLOCK: usize = 1024;

/// A small ext2, whose inodes are in block 5.
fn small() -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/disk/ext");
    std::fs::read(path).unwrap()
}

fn open(bytes: Vec<u8>) -> Ext {
    Ext::open(Arc::new(MemImage::new("disk", bytes))).unwrap()
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn inodes_behind_the_last_byte_there_can_be_are_refused() {
    let mut bytes = small();
    // As many blocks as there can be, and the inodes in the last but one of them.
    let incompat = le32(&bytes, BLOCK + 0x60);
    put(&mut bytes, BLOCK + 0x60, incompat | incompat::WIDE);
    bytes[BLOCK + 0xfe] = 64;
    put(&mut bytes, BLOCK + 0x4, u32::MAX);
    put(&mut bytes, BLOCK + 0x150, (1 << 22) - 1);
    put(&mut bytes, 2 * BLOCK + 0x8, u32::MAX - 1);
    put(&mut bytes, 2 * BLOCK + 0x28, (1 << 22) - 1);
    let fs = open(bytes);
    for inode in 1..=16 {
        assert!(matches!(fs.metadata(inode), Err(FsError::Image(_))), "{inode}");
    }
}

#[test]
fn a_tree_that_names_a_block_over_and_over_is_refused() {
    let mut bytes = small();
    // The last inode, a file of 4 GiB: its map leads to block 16 on the third level, which leads to 17 on the second, and that
    // to 18, which is empty. 65536 times.
    let inode = 5 * BLOCK + 15 * 256;
    bytes[inode..inode + 256].fill(0);
    bytes[inode..inode + 2].copy_from_slice(&0x8180_u16.to_le_bytes());
    put(&mut bytes, inode + 4, u32::MAX);
    put(&mut bytes, inode + 0x28 + 4 * 14, 16);
    bytes.extend([17_u32, 18].map(|next| next.to_le_bytes().repeat(BLOCK / 4)).concat());
    bytes.extend([0; BLOCK]);
    let why = open(bytes).open(16).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(why.contains("it is in more pieces than are read"), "{why}");
}

#[test]
fn the_seed_for_fuzzing_has_a_journal_that_is_minded() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/disk/ext_journal");
    let fs = open(std::fs::read(path).unwrap());
    assert_eq!((fs.kind, fs.read_dir(ROOT).is_ok()), ("ext3", true));
    // It says that block 5 begins as its own headers do.
    assert_eq!(fs.block(5).unwrap()[..4], 0xc03b_3998_u32.to_be_bytes());
}
