//! Tables of finite state entropy codes, as sequences of zstd blocks use them (RFC 8878, 4.1).
//!
//! Beside what decoding needs, a table keeps the bytes that describe it, because that is how it goes into a dictionary.

/// Entries of the largest table: accuracy log 9.
const MOST: usize = 1 << 9;
/// The smallest accuracy log a description can state.
const LEAST_LOG: u32 = 5;

const POWERS: [u32; 32] = {
    let (mut powers, mut i) = ([1; 32], 1);
    while i < powers.len() {
        powers[i] = powers[i - 1] << 1;
        i += 1;
    }
    powers
};

/// What a kind of symbol stands for: a base value and how many bits are added to it.
#[derive(Debug)]
pub(super) struct Alphabet {
    /// The highest symbol.
    max: usize,
    /// The highest accuracy log.
    max_log: u32,
    base: &'static [u32],
    bits: &'static [u8],
    normal: &'static [i16],
    normal_log: u32,
}

/// Lengths of literals, RFC 8878, 3.1.1.3.2.1.1 and 3.1.1.3.2.2.1.
pub(super) const LITERALS: Alphabet = Alphabet {
    max: 35,
    max_log: 9,
    base: &[
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22, 24, 28, 32, 40, 48, 64, 128, 256, 512,
        1024, 2048, 4096, 8192, 16384, 32768, 65536,
    ],
    bits: &[
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
        16,
    ],
    normal: &[
        4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1,
    ],
    normal_log: 6,
};

/// Lengths of matches, the same places.
pub(super) const MATCHES: Alphabet = Alphabet {
    max: 52,
    max_log: 9,
    base: &[
        3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
        32, 33, 34, 35, 37, 39, 41, 43, 47, 51, 59, 67, 83, 99, 131, 259, 515, 1027, 2051, 4099, 8195, 16387, 32771,
        65539,
    ],
    bits: &[
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2,
        2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
    ],
    normal: &[
        1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
    ],
    normal_log: 6,
};

/// Offsets: a symbol is the number of bits of the value, whose highest bit is implied.
pub(super) const OFFSETS: Alphabet = Alphabet {
    max: 31,
    max_log: 8,
    base: &POWERS,
    bits: &[
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29,
        30, 31,
    ],
    normal: &[1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1],
    normal_log: 5,
};

/// What a state of the decoder means and where it leads.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Entry {
    /// Of the value of the symbol.
    pub(super) base: u32,
    /// Of the next state.
    pub(super) next: u16,
    /// Bits that are added to `next`.
    pub(super) next_bits: u8,
    /// Bits that are added to `base`.
    pub(super) bits: u8,
}

/// A table to decode with.
pub(super) struct Table {
    entries: Box<[Entry; MOST]>,
    /// Bits of the first state.
    pub(super) log: u32,
    /// How it would be described; `None` for the table of a single symbol, which no description can state.
    description: Option<Vec<u8>>,
}

impl Table {
    /// The one that every frame has until it describes another.
    pub(super) fn normal(of: &Alphabet) -> Self {
        let mut table = Self { entries: Box::new([Entry::default(); MOST]), log: 0, description: None };
        table.set_normal(of);
        table
    }

    pub(super) fn set_normal(&mut self, of: &Alphabet) {
        self.fill(of, of.normal, of.normal_log);
        self.description = Some(describe(of.normal, of.normal_log));
    }

    /// The table of one symbol; `None` when there is no such symbol.
    pub(super) fn set_single(&mut self, of: &Alphabet, symbol: u8) -> Option<()> {
        let symbol = usize::from(symbol);
        self.entries[0] = Entry { base: *of.base.get(symbol)?, next: 0, next_bits: 0, bits: *of.bits.get(symbol)? };
        self.log = 0;
        self.description = None;
        Some(())
    }

    /// The table that `bytes` begin with a description of, and the length of that; `None` when it is none.
    pub(super) fn set_described(&mut self, of: &Alphabet, bytes: &[u8]) -> Option<usize> {
        let (counts, log, used) = read_counts(bytes, of.max, of.max_log)?;
        self.fill(of, &counts, log);
        self.description = Some(bytes.get(..used)?.to_vec());
        Some(used)
    }

    pub(super) fn description(&self) -> Option<&[u8]> {
        self.description.as_deref()
    }

    #[inline(always)]
    pub(super) fn entry(&self, state: usize) -> Entry {
        self.entries[state & (MOST - 1)]
    }

    /// `counts` add up to `1 << log`, -1 counting as 1: [`read_counts`] saw to that.
    fn fill(&mut self, of: &Alphabet, counts: &[i16], log: u32) {
        let size = 1_usize << log;
        let mut symbols = [0_u8; MOST];
        let mut next = [0_u32; 64];
        let mut high = size;
        for (symbol, &count) in counts.iter().enumerate() {
            if count == -1 {
                high -= 1;
                symbols[high] = symbol as u8;
                next[symbol] = 1;
            } else {
                next[symbol] = count as u32;
            }
        }
        let (step, mask, mut at) = ((size >> 1) + (size >> 3) + 3, size - 1, 0);
        for (symbol, &count) in counts.iter().enumerate() {
            for _ in 0..count.max(0) {
                symbols[at] = symbol as u8;
                at = (at + step) & mask;
                while at >= high && high > 0 {
                    at = (at + step) & mask;
                }
            }
        }
        for (entry, &symbol) in self.entries.iter_mut().zip(&symbols[..size]) {
            let symbol = usize::from(symbol);
            let state = next[symbol];
            next[symbol] += 1;
            let bits = log - state.ilog2();
            *entry = Entry {
                base: of.base[symbol],
                next: ((state << bits) - size as u32) as u16,
                next_bits: bits as u8,
                bits: of.bits[symbol],
            };
        }
        self.log = log;
    }
}

/// Reads the description of a table: how often each symbol occurs, the accuracy log, the bytes it takes.
fn read_counts(bytes: &[u8], max: usize, max_log: u32) -> Option<(Vec<i16>, u32, usize)> {
    let mut at = 0_usize;
    // Bits behind the end are zero; whether too many were taken is seen at the end.
    let peek = |at: usize, count: u32| {
        let byte = |i: usize| u32::from(bytes.get(at / 8 + i).copied().unwrap_or(0));
        ((byte(0) | byte(1) << 8 | byte(2) << 16) >> (at % 8)) & ((1 << count) - 1)
    };
    let log = peek(at, 4) + LEAST_LOG;
    at += 4;
    if log > max_log {
        return None;
    }
    let (mut counts, mut left) = (Vec::with_capacity(max + 1), 1_i32 << log);
    while left > 0 {
        if counts.len() > max || at > bytes.len() * 8 {
            return None;
        }
        let bits = (left as u32 + 1).ilog2() + 1;
        let (low, short) = ((1_u32 << (bits - 1)) - 1, (1_u32 << bits) - 1 - (left as u32 + 1));
        let mut value = peek(at, bits);
        if value & low < short {
            at += bits as usize - 1;
            value &= low;
        } else {
            at += bits as usize;
            if value > low {
                value -= short;
            }
        }
        let count = value as i16 - 1;
        left -= i32::from(count.abs());
        counts.push(count);
        // How many zeros follow, two bits at a time.
        let mut more = count == 0;
        while more {
            let repeat = peek(at, 2);
            at += 2;
            counts.extend(std::iter::repeat_n(0, repeat as usize));
            if counts.len() > max + 1 {
                return None;
            }
            more = repeat == 3;
        }
    }
    let used = at.div_ceil(8);
    (left == 0 && used <= bytes.len()).then_some((counts, log, used))
}

/// The description of a table in which every symbol occurs: those of [`Alphabet::normal`].
fn describe(counts: &[i16], log: u32) -> Vec<u8> {
    let (mut bytes, mut held, mut count_held) = (Vec::new(), u64::from(log - LEAST_LOG), 4);
    let mut left = 1_u32 << log;
    for &count in counts {
        let bits = (left + 1).ilog2() + 1;
        let (low, short) = ((1_u32 << (bits - 1)) - 1, (1_u32 << bits) - 1 - (left + 1));
        let mut value = (count + 1) as u32;
        let width = if value < short { bits - 1 } else { bits };
        if width == bits && value > low {
            value += short;
        }
        held |= u64::from(value) << count_held;
        count_held += width;
        left -= u32::from(count.unsigned_abs());
        while count_held >= 8 {
            bytes.push(held as u8);
            held >>= 8;
            count_held -= 8;
        }
    }
    if count_held > 0 {
        bytes.push(held as u8);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normal_tables_are_described_as_they_are_read() {
        for of in [&LITERALS, &MATCHES, &OFFSETS] {
            let bytes = describe(of.normal, of.normal_log);
            let (counts, log, used) = read_counts(&bytes, of.max, of.max_log).unwrap();
            assert_eq!((counts.as_slice(), log, used), (of.normal, of.normal_log, bytes.len()));
            assert_eq!(of.base.len(), of.max + 1);
            assert_eq!(of.bits.len(), of.max + 1);
        }
    }

    #[test]
    fn descriptions_that_are_none() {
        let mut table = Table::normal(&LITERALS);
        for bytes in [&[][..], &[0x0f], &[0xff; 40], &[0; 3], &describe(LITERALS.normal, 6)[..5]] {
            assert!(table.set_described(&OFFSETS, bytes).is_none() || bytes.len() > 3, "{bytes:?}");
        }
        assert!(table.set_described(&OFFSETS, &describe(LITERALS.normal, 6)).is_none());
        assert!(table.set_single(&OFFSETS, 32).is_none());
    }
}
