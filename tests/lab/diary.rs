//! The entry that the diarist writes inside a container and the reader looks for in the restored tree. This file is compiled
//! into both and is the only place that knows the layout.
//!
//! A diary is a file of entries numbered from 1. Every byte of an entry follows from its number and its volume, so an entry
//! is either exactly right or damaged.

/// Bytes in an entry, its newline included.
pub const SIZE: usize = 128;

/// In this file of the container stand the diaries, one path a line, in the order in which they are written.
pub const LIST: &str = "/etc/diaries";

/// The mark of a clean shutdown: made when the container is told to stop, taken away when it starts.
pub const CLEAN: &str = "/clean-shutdown";

/// Entry `n` of the diary on volume `volume`.
pub fn entry(n: u64, volume: u64) -> [u8; SIZE] {
    let mut out = [b'\n'; SIZE];
    let mut noise = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ volume.wrapping_add(1) << 56 | 1;
    for byte in &mut out[..SIZE - 1] {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        *byte = b'a' + (noise >> 32) as u8 % 26;
    }
    let head = format!("{n:020} {volume} ");
    out[..head.len()].copy_from_slice(head.as_bytes());
    out
}

/// The number of the entry that `bytes` are, if they are one of volume `volume`.
pub fn number(bytes: &[u8], volume: u64) -> Option<u64> {
    let n = std::str::from_utf8(bytes.get(..20)?).ok()?.parse().ok()?;
    (bytes == entry(n, volume)).then_some(n)
}
