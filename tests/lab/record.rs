//! The record that the witness writes inside the guest and the checker looks for in the restored disks. This file is
//! compiled into both, needs nothing but `core`, and is the only place that knows the layout.
//!
//! Record `n` of disk `disk` lies in slot `n % slots`, at byte `slot * stride`. Every byte of it follows from its header,
//! so a record is either exactly right or damaged.

/// Bytes in a record.
pub const SIZE: usize = 4096;

/// Slots of a disk that is large enough; smaller disks have fewer.
pub const MAX_SLOTS: u64 = 4096;

const MAGIC: u64 = u64::from_le_bytes(*b"vzwitn01");
const HEADER_WORDS: usize = 6;
const WORDS: usize = SIZE / 8;

/// What a record says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The number, counted from 1.
    pub n: u64,
    /// Index of the disk in the order of writing.
    pub disk: u64,
    /// How many disks are written.
    pub disks: u64,
    /// Slots before the numbers wrap around.
    pub slots: u64,
    /// Bytes from one slot to the next on this disk.
    pub stride: u64,
}

/// What a block of [`SIZE`] bytes turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// All zeros: never written.
    Empty,
    /// An intact record.
    Intact(Record),
    /// Neither: torn, mixed or foreign.
    Damaged,
}

impl Record {
    /// Byte at which this record lies.
    pub fn offset(&self) -> u64 {
        self.n % self.slots * self.stride
    }

    /// Writes the record to `buf`, which holds [`SIZE`] bytes.
    pub fn fill(&self, buf: &mut [u8]) {
        let header = [MAGIC, self.n, self.disk, self.disks, self.slots, self.stride];
        let mut noise = self.n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.disk.wrapping_add(1) << 56 | 1;
        let mut sum = 0xcbf2_9ce4_8422_2325_u64;
        for (i, chunk) in buf.chunks_exact_mut(8).enumerate() {
            let word = if let Some(word) = header.get(i) {
                *word
            } else if i == WORDS - 1 {
                sum
            } else {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                noise
            };
            sum = (sum ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
            chunk.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Says what `buf`, which holds [`SIZE`] bytes, is.
    pub fn read(buf: &[u8]) -> Block {
        if buf.iter().all(|b| *b == 0) {
            return Block::Empty;
        }
        let mut header = [0_u64; HEADER_WORDS];
        for (word, chunk) in header.iter_mut().zip(buf.chunks_exact(8)) {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(chunk);
            *word = u64::from_le_bytes(bytes);
        }
        let [magic, n, disk, disks, slots, stride] = header;
        if magic != MAGIC || n == 0 || disk >= disks || slots < 2 || stride < SIZE as u64 {
            return Block::Damaged;
        }
        let record = Record { n, disk, disks, slots, stride };
        let mut right = [0; SIZE];
        record.fill(&mut right);
        if right == *buf { Block::Intact(record) } else { Block::Damaged }
    }
}

/// The number of the record that slot `slot` holds once record `head` is written; `None` before its first one.
pub fn expected(slot: u64, slots: u64, head: u64) -> Option<u64> {
    let n = head.checked_sub((head + slots - slot) % slots)?;
    (n > 0).then_some(n)
}

/// Slots that fit on every one of the disks.
pub fn slots_for(sizes: &[u64]) -> u64 {
    sizes.iter().map(|size| size / SIZE as u64).min().unwrap_or(0).min(MAX_SLOTS)
}

/// The stride that spreads `slots` slots evenly over a disk of `size` bytes.
pub fn stride_for(size: u64, slots: u64) -> u64 {
    size / slots / SIZE as u64 * SIZE as u64
}
