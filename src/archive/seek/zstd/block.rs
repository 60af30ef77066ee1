//! What a compressed block does to the state of its decoder (RFC 8878, 3.1.1.3): which tables it leaves, the last three
//! offsets, how many bytes it stands for, and which bytes from before an access point it copies. No literal is decoded.
//!
//! Nothing here decides whether data is right; libzstd does. Whatever is not as expected ends the walk of a frame, and with
//! it the access points in it.

use super::fse::{Alphabet, LITERALS, MATCHES, OFFSETS, Table};

/// Magic number of a dictionary, RFC 8878, 5.
const DICTIONARY: u32 = 0xEC30_A437;
/// The description of a Huffman tree of two symbols, for frames that have not described one yet.
const TWO_SYMBOLS: [u8; 2] = [128, 0x10];
/// The last three offsets at the start of a frame.
const FIRST_OFFSETS: [u32; 3] = [1, 4, 8];
/// Bytes of the longest block.
pub(super) const LONGEST: usize = 128 << 10;
/// Bytes behind the content of a block that can be read, but have no meaning.
pub(super) const PADDING: usize = 8;
/// Bytes that one bit of [`Used`] stands for.
pub(super) const GRAIN: u64 = 8;

/// One of the three tables of sequences.
struct Kind {
    of: &'static Alphabet,
    table: Table,
    /// Where the block begins that gave it a table that cannot be described.
    single_since: Option<u64>,
}

impl Kind {
    fn new(of: &'static Alphabet) -> Self {
        Self { of, table: Table::normal(of), single_since: None }
    }

    /// Follows what a block says about the table. `Ok(Some(..))` when it goes on with one that could not be described.
    fn follow(&mut self, mode: u8, data: &mut &[u8], at: u64) -> Option<Option<u64>> {
        match mode {
            0 => self.table.set_normal(self.of),
            1 => {
                let (symbol, rest) = data.split_first()?;
                self.table.set_single(self.of, *symbol)?;
                *data = rest;
                self.single_since.get_or_insert(at);
                return Some(None);
            }
            2 => {
                let used = self.table.set_described(self.of, data)?;
                *data = data.get(used..)?;
            }
            _ => return Some(self.single_since),
        }
        self.single_since = None;
        Some(None)
    }
}

/// Which bytes in front of an access point are copied by what follows it.
pub(super) struct Used {
    /// Offset of the access point in the frame's data.
    pub(super) at: u64,
    /// The first byte there is.
    from: u64,
    /// A bit for [`GRAIN`] bytes.
    pub(super) bits: Vec<u64>,
}

impl Used {
    pub(super) fn new(at: u64, window: u64) -> Self {
        let from = at - window;
        Self { at, from, bits: vec![0; window.div_ceil(GRAIN * 64) as usize] }
    }

    /// Notes `len` bytes from `start` on, which is before the access point. `None` when they are out of reach.
    fn copy(&mut self, start: u64, len: u64) -> Option<()> {
        let first = start.checked_sub(self.from)? / GRAIN;
        let last = ((start + len).min(self.at) - 1 - self.from) / GRAIN;
        for bit in first..=last {
            *self.bits.get_mut((bit / 64) as usize)? |= 1 << (bit % 64);
        }
        Some(())
    }
}

/// The state of a decoder at the border of two blocks of a frame.
pub(super) struct State {
    /// The description of the last Huffman tree.
    tree: Vec<u8>,
    literals: Kind,
    offsets: Kind,
    matches: Kind,
    last: [u32; 3],
    /// Bytes of the frame's data so far.
    pub(super) at: u64,
    /// The access point whose window is being looked at.
    pub(super) used: Option<Used>,
    /// No access point after this place can be used: a later block needed a table that a dictionary cannot hold.
    pub(super) spoilt_from: Option<u64>,
}

impl State {
    /// At the start of a frame.
    pub(super) fn new() -> Self {
        Self {
            tree: TWO_SYMBOLS.to_vec(),
            literals: Kind::new(&LITERALS),
            offsets: Kind::new(&OFFSETS),
            matches: Kind::new(&MATCHES),
            last: FIRST_OFFSETS,
            at: 0,
            used: None,
            spoilt_from: None,
        }
    }

    /// A dictionary that holds this state but for its content, of which there will be `window` bytes. `None` when the
    /// offsets reach farther, which a dictionary may not say. A table of a single symbol is left out: encoders do not go on
    /// with one, and if one does, [`State::spoilt_from`] says so.
    pub(super) fn dictionary(&self, window: u64) -> Option<Vec<u8>> {
        if self.last.iter().any(|&offset| offset == 0 || u64::from(offset) > window) {
            return None;
        }
        let mut head = Vec::with_capacity(256);
        head.extend_from_slice(&DICTIONARY.to_le_bytes());
        head.extend_from_slice(&1_u32.to_le_bytes());
        head.extend_from_slice(&self.tree);
        for kind in [&self.offsets, &self.matches, &self.literals] {
            match kind.table.description() {
                Some(description) => head.extend_from_slice(description),
                None if self.spoilt_from.is_none() => {
                    head.extend_from_slice(Table::normal(kind.of).description()?);
                }
                None => return None,
            }
        }
        self.last.iter().for_each(|offset| head.extend_from_slice(&offset.to_le_bytes()));
        Some(head)
    }

    /// Goes over a block that is stored or one byte repeated.
    pub(super) fn plain(&mut self, len: u64) {
        self.at += len;
    }

    /// Goes over a compressed block; `data` ends with [`PADDING`] bytes that do not belong to it. `None` when it is not as
    /// it should be.
    pub(super) fn compressed(&mut self, data: &[u8]) -> Option<()> {
        let content = data.get(..data.len().checked_sub(PADDING)?)?;
        let (literals, skip) = self.literal_section(content)?;
        let (&first, mut rest) = content.get(skip..)?.split_first()?;
        let mut take = || {
            let (&byte, left) = rest.split_first()?;
            rest = left;
            Some(usize::from(byte))
        };
        let count = match usize::from(first) {
            0 => {
                self.at += literals as u64;
                return rest.is_empty().then_some(());
            }
            few @ ..=0x7f => few,
            0xff => take()? + (take()? << 8) + 0x7f00,
            many => ((many - 0x80) << 8) + take()?,
        };
        let modes = take()? as u8;
        let at = self.at;
        for (kind, shift) in [(&mut self.literals, 6), (&mut self.offsets, 4), (&mut self.matches, 2)] {
            if let Some(since) = kind.follow(modes >> shift & 3, &mut rest, at)? {
                self.spoilt_from = Some(self.spoilt_from.map_or(since, |from| from.min(since)));
            }
        }
        let start = content.len() - rest.len();
        self.sequences(&data[start..], count, literals as u64)
    }

    /// Bytes of literals, and of the section that holds them.
    fn literal_section(&mut self, data: &[u8]) -> Option<(usize, usize)> {
        let first = *data.first()?;
        let mut head = [0; 8];
        let known = data.len().min(5);
        head[..known].copy_from_slice(&data[..known]);
        let bits = u64::from_le_bytes(head);
        let (kind, format) = (first & 3, first >> 2 & 3);
        let (len, skip) = if kind < 2 {
            let (len, head) = match format {
                1 => ((bits & 0xffff) >> 4, 2),
                3 => ((bits & 0xff_ffff) >> 4, 3),
                _ => (u64::from(first >> 3), 1),
            };
            (len as usize, head + if kind == 0 { len as usize } else { 1 })
        } else {
            let (width, head) = match format {
                2 => (14, 4),
                3 => (18, 5),
                _ => (10, 3),
            };
            let mask = (1 << width) - 1;
            let (len, packed) = ((bits >> 4 & mask) as usize, (bits >> (4 + width) & mask) as usize);
            if kind == 2 {
                let tree = data.get(head..head + packed)?;
                let size = match usize::from(*tree.first()?) {
                    coded @ ..=127 => 1 + coded,
                    direct => 1 + (direct - 127).div_ceil(2),
                };
                self.tree.clear();
                self.tree.extend_from_slice(tree.get(..size)?);
            }
            (len, head + packed)
        };
        (len <= LONGEST && skip <= data.len()).then_some((len, skip))
    }

    /// Goes over `count` sequences; `data` ends with [`PADDING`].
    fn sequences(&mut self, data: &[u8], count: usize, literals: u64) -> Option<()> {
        let end = data.len() - PADDING;
        let final_byte = *data[..end].last().filter(|&&byte| byte != 0)?;
        // The bits are read from the end; the highest one that is set only says where that is.
        let mut bits = Bits { data, left: end * 8 - 8 + final_byte.ilog2() as usize };
        let (ll, of, ml) = (&self.literals.table, &self.offsets.table, &self.matches.table);
        let mut ll_state = bits.take(ll.log)? as usize;
        let mut of_state = bits.take(of.log)? as usize;
        let mut ml_state = bits.take(ml.log)? as usize;
        let [mut last0, mut last1, mut last2] = self.last;
        let (mut at, mut left) = (self.at, literals);
        let border = self.used.as_ref().map_or(0, |used| used.at);
        for remaining in (0..count).rev() {
            let (l, o, m) = (ll.entry(ll_state), of.entry(of_state), ml.entry(ml_state));
            let value = u64::from(o.base) + bits.take(u32::from(o.bits))?;
            let extra = bits.take(u32::from(m.bits) + u32::from(l.bits))?;
            let match_len = u64::from(m.base) + (extra >> l.bits);
            let literal_len = u64::from(l.base) + (extra & ((1 << l.bits) - 1));
            let offset = if value > 3 {
                let offset = u32::try_from(value - 3).ok()?;
                (last2, last1, last0) = (last1, last0, offset);
                offset
            } else {
                // Without literals in front, the newest offset would only make the last match longer: the meaning shifts.
                match value + u64::from(literal_len == 0) {
                    1 => {}
                    2 => (last1, last0) = (last0, last1),
                    3 => (last2, last1, last0) = (last1, last0, last2),
                    _ => {
                        let offset = last0.checked_sub(1).filter(|offset| *offset > 0)?;
                        (last2, last1, last0) = (last1, last0, offset);
                    }
                }
                last0
            };
            left = left.checked_sub(literal_len)?;
            at += literal_len;
            let source = at.checked_sub(u64::from(offset))?;
            if source < border
                && let Some(used) = &mut self.used
            {
                used.copy(source, match_len)?;
            }
            at += match_len;
            if remaining > 0 {
                let (lb, mb, ob) = (u32::from(l.next_bits), u32::from(m.next_bits), u32::from(o.next_bits));
                let next = bits.take(lb + mb + ob)?;
                ll_state = usize::from(l.next) + (next >> (mb + ob)) as usize;
                ml_state = usize::from(m.next) + (next >> ob & ((1 << mb) - 1)) as usize;
                of_state = usize::from(o.next) + (next & ((1 << ob) - 1)) as usize;
            }
        }
        at += left;
        if bits.left != 0 || at - self.at > LONGEST as u64 {
            return None;
        }
        self.last = [last0, last1, last2];
        self.at = at;
        Some(())
    }
}

/// Bits that are read from the end.
struct Bits<'a> {
    /// Ends with [`PADDING`].
    data: &'a [u8],
    left: usize,
}

impl Bits<'_> {
    /// The next `count` bits, at most 56; `None` when there are not that many.
    #[inline(always)]
    fn take(&mut self, count: u32) -> Option<u64> {
        self.left = self.left.checked_sub(count as usize)?;
        let from = self.left / 8;
        let word = self.data.get(from..from + 8)?;
        let word = u64::from_le_bytes(word.try_into().ok()?);
        Some(word >> (self.left % 8) & ((1 << count) - 1))
    }
}
