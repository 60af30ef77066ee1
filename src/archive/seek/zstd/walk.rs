//! Goes over the frames of a file ahead of the decompressor: cuts them into pieces that end with a block, and says where
//! access points are and what each of them needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::block::{LONGEST, PADDING, State, Used};
use crate::archive::seek::{Packed, PackedReader, SeekError};

/// Magic number of a frame.
const FRAME: u32 = 0xFD2F_B528;
/// Bytes that are read at once.
const READ: usize = 1 << 20;
/// Compressed bytes that are passed on at once.
const PIECE: usize = 1 << 20;
/// Bytes of the largest window that an access point keeps.
pub(super) const MAX_WINDOW: u64 = 8 << 20;

/// What the walker found, in the order of the file.
pub(super) enum Found {
    /// A frame begins at this offset of the file.
    Frame { packed: u64, header: Header },
    /// Bytes of the frame, and where in them its parts end.
    Data { packed: u64, bytes: Vec<u8>, ends: Vec<usize> },
    /// The next block can be decompressed without those before it.
    Point { packed: u64, at: u64, head: Vec<u8>, window: u64 },
    /// What the last access point needs of its window.
    Used(Used),
    /// The last access point is none.
    NoPoint,
    /// Access points of this frame after this offset of its data are none.
    Spoilt { from: u64 },
    /// Access points of this frame cannot be told.
    Blind,
    /// The frame is over.
    End,
}

/// A frame's header, RFC 8878, 3.1.1.1.
#[derive(Clone, Copy)]
pub(super) struct Header {
    /// Bytes of the header, the magic number included.
    pub(super) len: usize,
    /// Bytes that a match can reach back.
    pub(super) window: u64,
    /// The byte that says so; none when the frame is one segment.
    pub(super) window_byte: Option<u8>,
    /// There are four bytes of checksum behind the last block.
    pub(super) checksum: bool,
}

impl Header {
    /// Most bytes of a header.
    pub(super) const MOST: usize = 18;

    /// `None` when `bytes` are too few.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let descriptor = *bytes.get(4)?;
        let single = descriptor & 0x20 != 0;
        let mut at = 5;
        let mut window = 0;
        let mut window_byte = None;
        if !single {
            let byte = *bytes.get(at)?;
            at += 1;
            let base = 1_u64 << (10 + (byte >> 3));
            window = base + base / 8 * u64::from(byte & 7);
            window_byte = Some(byte);
        }
        at += [0, 1, 2, 4][usize::from(descriptor & 3)];
        let size = match descriptor >> 6 {
            0 => usize::from(single),
            1 => 2,
            2 => 4,
            _ => 8,
        };
        let field = bytes.get(at..at + size)?;
        if single {
            let mut wide = [0; 8];
            wide[..size].copy_from_slice(field);
            window = u64::from_le_bytes(wide).saturating_add(if size == 2 { 256 } else { 0 });
        }
        Some(Self { len: at + size, window, window_byte, checksum: descriptor & 4 != 0 })
    }
}

/// What begins at a place of a file.
pub(super) enum Next {
    /// Nothing, the file is over.
    Nothing,
    Frame,
    /// A part that is to be skipped, with its length.
    Skippable(u64),
}

/// What begins with `magic`, the next bytes of the file, and its length if it is to be skipped; `left` bytes are left.
pub(super) fn next(bytes: &[u8], packed: u64, left: u64) -> Result<Next, SeekError> {
    let Some(head) = bytes.first_chunk::<4>() else {
        return if left == 0 { Ok(Next::Nothing) } else { Err(SeekError::cut(packed, "the magic number of a frame")) };
    };
    match u32::from_le_bytes(*head) {
        FRAME => Ok(Next::Frame),
        0x184D_2A50..=0x184D_2A5F => {
            let len = bytes.get(4..8).and_then(|len| len.first_chunk::<4>());
            let len = len.ok_or_else(|| SeekError::cut(packed, "a skippable frame"))?;
            let len = 8 + u64::from(u32::from_le_bytes(*len));
            if len > left {
                return Err(SeekError::cut(packed, "a skippable frame"));
            }
            Ok(Next::Skippable(len))
        }
        _ => Err(SeekError::damaged(packed, format!("no zstd frame begins here, but {head:02x?}"))),
    }
}

/// Goes over a whole file and hands what it finds to `give`, which returns false when nobody wants more.
pub(super) struct Walker<'a> {
    input: PackedReader,
    /// Bytes between two access points, at least.
    spacing: &'a AtomicU64,
    give: &'a mut dyn FnMut(Found) -> bool,
    piece: Piece,
}

/// Nobody wants more, or the file is not what it should be.
pub(super) enum Stop {
    Unwanted,
    Bad(SeekError),
}

impl From<SeekError> for Stop {
    fn from(error: SeekError) -> Self {
        Self::Bad(error)
    }
}

#[derive(Default)]
struct Piece {
    packed: u64,
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl<'a> Walker<'a> {
    pub(super) fn new(file: Arc<dyn Packed>, spacing: &'a AtomicU64, give: &'a mut dyn FnMut(Found) -> bool) -> Self {
        Self { input: PackedReader::new(file, READ), spacing, give, piece: Piece::default() }
    }

    /// To the end of the file.
    pub(super) fn run(mut self) -> Result<(), Stop> {
        loop {
            let (packed, left) = (self.input.offset(), self.input.left()?);
            match next(self.input.peek(8)?, packed, left)? {
                Next::Nothing => return Ok(()),
                Next::Skippable(len) => self.input.skip(len),
                Next::Frame => {
                    let done = self.frame(packed);
                    // What was read before the damage belongs to the data, too.
                    self.flush()?;
                    done?;
                    self.give(Found::End)?;
                }
            }
        }
    }

    fn give(&mut self, found: Found) -> Result<(), Stop> {
        if (self.give)(found) { Ok(()) } else { Err(Stop::Unwanted) }
    }

    fn flush(&mut self) -> Result<(), Stop> {
        let Piece { packed, bytes, ends } = std::mem::take(&mut self.piece);
        self.piece.packed = packed + bytes.len() as u64;
        if bytes.is_empty() { Ok(()) } else { self.give(Found::Data { packed, bytes, ends }) }
    }

    /// Takes the next part of the frame, of `len` bytes, and returns where it lies in the piece.
    fn part(&mut self, len: usize, what: &'static str) -> Result<usize, Stop> {
        let packed = self.input.offset();
        let bytes = self.input.peek(len)?;
        let start = self.piece.bytes.len();
        let (got, whole) = (bytes.len().min(len), bytes.len() >= len);
        self.piece.bytes.extend_from_slice(&bytes[..got]);
        self.piece.ends.push(start + got);
        self.input.skip(got as u64);
        if whole { Ok(start) } else { Err(SeekError::cut(packed, what).into()) }
    }

    fn frame(&mut self, packed: u64) -> Result<(), Stop> {
        let header = Header::parse(self.input.peek(Header::MOST)?)
            .ok_or_else(|| SeekError::cut(packed, "the header of a frame"))?;
        self.give(Found::Frame { packed, header })?;
        self.piece.packed = packed;
        self.part(header.len, "the header of a frame")?;
        let mut state = (header.window_byte.is_some() && header.window <= MAX_WINDOW).then(State::new);
        let mut told_spoilt = None;
        let mut last_point = 0;
        let mut scratch = Vec::with_capacity(LONGEST + PADDING);
        loop {
            let begin = self.input.offset();
            if let Some(state) = &mut state
                && let Some(point) = self.point(state, &header, begin, &mut last_point)
            {
                self.flush()?;
                self.give(point)?;
            }
            let head = self.input.peek(3)?;
            let Some(head) = head.first_chunk::<3>() else {
                self.part(3, "the header of a block")?;
                return Ok(());
            };
            let word = u32::from_le_bytes([head[0], head[1], head[2], 0]);
            let (last, kind, size) = (word & 1 != 0, word >> 1 & 3, (word >> 3) as usize);
            if kind == 3 || size > LONGEST {
                // As the decompressor would say, were it to see it.
                let what = if kind == 3 { "a block of an unknown kind" } else { "a block that is too long" };
                return Err(SeekError::damaged(begin, what.to_owned()).into());
            }
            let stored = if kind == 1 { 1 } else { size };
            let start = self.part(3 + stored, "a block")?;
            if let Some(walk) = &mut state {
                let done = if kind == 2 {
                    scratch.clear();
                    scratch.extend_from_slice(&self.piece.bytes[start + 3..]);
                    scratch.extend_from_slice(&[0; PADDING]);
                    walk.compressed(&scratch)
                } else {
                    walk.plain(size as u64);
                    Some(())
                };
                if done.is_none() {
                    state = None;
                    self.give(Found::Blind)?;
                } else {
                    if walk.used.as_ref().is_some_and(|used| last || walk.at - used.at >= header.window)
                        && let Some(used) = walk.used.take()
                    {
                        self.give(Found::Used(used))?;
                    }
                    if walk.spoilt_from != told_spoilt
                        && let Some(from) = walk.spoilt_from
                    {
                        told_spoilt = walk.spoilt_from;
                        if walk.used.take_if(|used| used.at > from).is_some() {
                            self.give(Found::NoPoint)?;
                        }
                        self.give(Found::Spoilt { from })?;
                    }
                }
            }
            if last {
                break;
            }
            if self.piece.bytes.len() >= PIECE {
                self.flush()?;
            }
        }
        if header.checksum {
            self.part(4, "the checksum of a frame")?;
        }
        Ok(())
    }

    /// An access point in front of the next block, if one is due and can be had there.
    fn point(&self, state: &mut State, header: &Header, packed: u64, last: &mut u64) -> Option<Found> {
        let spacing = self.spacing.load(Ordering::Relaxed).max(header.window);
        if state.used.is_some() || state.at - *last < spacing {
            return None;
        }
        let window = header.window.min(state.at);
        let head = state.dictionary(window)?;
        *last = state.at;
        state.used = Some(Used::new(state.at, window));
        Some(Found::Point { packed, at: state.at, head, window })
    }
}
