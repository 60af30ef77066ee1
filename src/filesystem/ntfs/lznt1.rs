//! LZNT1, in which NTFS compresses: chunks of up to 4 KiB, each a sequence of bytes and of references back into the chunk.

use super::{FsError, damaged};
use crate::filesystem::bytes::le16;

const CHUNK: usize = 4096;

/// Unpacks a unit of `len` bytes; what the chunks do not say is zero.
pub(super) fn unpack(packed: &[u8], len: usize) -> Result<Vec<u8>, FsError> {
    let wrong = || damaged("compressed content makes no sense");
    let mut out = Vec::with_capacity(len);
    let mut at = 0;
    while at + 2 <= packed.len() && out.len() < len {
        let head = le16(packed, at);
        if head == 0 {
            break;
        }
        let size = usize::from(head & 0xfff) + 1;
        let chunk = packed.get(at + 2..at + 2 + size).ok_or_else(wrong)?;
        at += 2 + size;
        let start = out.len();
        if head & 0x8000 == 0 {
            out.extend_from_slice(chunk);
        } else {
            unpack_chunk(chunk, &mut out, start).ok_or_else(wrong)?;
        }
        // Every chunk stands for 4 KiB, however little it says.
        if out.len() > start + CHUNK {
            return Err(wrong());
        }
        out.resize(start + CHUNK, 0);
    }
    out.resize(len, 0);
    Ok(out)
}

fn unpack_chunk(chunk: &[u8], out: &mut Vec<u8>, start: usize) -> Option<()> {
    let mut at = 0;
    while at < chunk.len() {
        let flags = chunk[at];
        at += 1;
        for bit in 0..8 {
            let Some(byte) = chunk.get(at) else { return Some(()) };
            if flags >> bit & 1 == 0 {
                out.push(*byte);
                at += 1;
                continue;
            }
            chunk.get(at + 1)?;
            let (word, done) = (usize::from(le16(chunk, at)), out.len() - start);
            at += 2;
            // The farther into the chunk, the more bits say how far back.
            let far = (done.checked_sub(1)? >> 4).checked_ilog2().map_or(0, |power| power + 1);
            let len_bits = 12_u32.checked_sub(far)?;
            let (back, len) = ((word >> len_bits) + 1, (word & ((1 << len_bits) - 1)) + 3);
            let from = done.checked_sub(back)? + start;
            if done + len > CHUNK {
                return None;
            }
            for n in 0..len {
                out.push(out[from + n]);
            }
        }
    }
    Some(())
}
