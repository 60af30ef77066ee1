//! Random access into gzip members made by anyone.
//!
//! Between two deflate blocks, the state of a decoder is the 32 KiB in front and how many bits of the last byte are left
//! over; both are noted while the file is decompressed.

use std::sync::Arc;

use crc32fast::Hasher;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{BlockBoundaryState, DecompressorOxide, decompress};

use super::points::{Collector, Entry, unpack_window};
use super::{Decode, Packed, PackedReader, SeekError, Sink};
use crate::host::Cancel;

/// Bytes that a match can reach back.
pub(super) const WINDOW: usize = 32 << 10;
/// Room for decompressed bytes beside the window.
const ROOM: usize = 256 << 10;
/// Bytes that are read at once, in the pass and from an access point.
const READ: usize = 512 << 10;
const READ_LATER: usize = 64 << 10;
/// Bytes of the longest name or comment in a header.
const LONGEST_NAME: usize = 64 << 10;
/// Flags of a header, RFC 1952, 2.3.1.
const HEADER_SUM: u8 = 2;
const EXTRA: u8 = 4;
const NAME: u8 = 8;
const COMMENT: u8 = 16;

/// One member after the other is decompressed into a buffer that begins with the window.
struct Inflater {
    input: PackedReader,
    state: Box<DecompressorOxide>,
    buffer: Vec<u8>,
    filled: usize,
    /// Offset of the member; of one that was entered through an access point, of that.
    member: u64,
}

/// Where decompressing stopped.
#[derive(PartialEq, Eq)]
enum Stopped {
    /// The buffer is full, or the input is to be read.
    Somewhere,
    /// Between two blocks.
    Boundary,
    /// Behind the last block of a member.
    End,
}

impl Inflater {
    fn new(file: &Arc<dyn Packed>, read: usize) -> Self {
        Self {
            input: PackedReader::new(Arc::clone(file), read),
            state: Box::default(),
            buffer: vec![0; WINDOW + ROOM],
            filled: 0,
            member: 0,
        }
    }

    /// Goes over the header of the next member. False at the end of the file.
    fn header(&mut self) -> Result<bool, SeekError> {
        let start = self.input.offset();
        const WHAT: &str = "the header of a gzip member";
        loop {
            let at = self.input.offset();
            let bytes = self.input.peek(1)?;
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            match bytes.get(zeros) {
                // Zeros behind the last member fill up a block of some device.
                None if bytes.is_empty() => return Ok(false),
                None => self.input.skip(zeros as u64),
                Some(_) if zeros > 0 || at > start => {
                    let at = at + zeros as u64;
                    return Err(SeekError::damaged(
                        at,
                        "something other than gzip data follows the last member".into(),
                    ));
                }
                Some(_) => break,
            }
        }
        let magic = self.input.take::<2>(start, WHAT)?;
        if magic != [0x1f, 0x8b] {
            return Err(SeekError::damaged(start, format!("no gzip member begins here, but {magic:02x?}")));
        }
        let fixed = self.input.take::<8>(start, WHAT)?;
        let [method, flags, ..] = fixed;
        if method != 8 || flags & 0xe0 != 0 {
            let what = format!("a gzip member of an unknown kind: method {method}, flags {flags:#04x}");
            return Err(SeekError::damaged(start, what));
        }
        let mut sum = Hasher::new();
        sum.update(&magic);
        sum.update(&fixed);
        if flags & EXTRA != 0 {
            let len = self.input.take::<2>(start, WHAT)?;
            sum.update(&len);
            let len = usize::from(u16::from_le_bytes(len));
            let extra = self.input.peek(len)?.get(..len).ok_or_else(|| SeekError::cut(start, WHAT))?;
            sum.update(extra);
            self.input.skip(len as u64);
        }
        for flag in [NAME, COMMENT] {
            if flags & flag != 0 {
                let bytes = self.input.peek(LONGEST_NAME)?;
                let cut = bytes.len() < LONGEST_NAME;
                let Some(len) = bytes.iter().take(LONGEST_NAME).position(|byte| *byte == 0) else {
                    return Err(if cut {
                        SeekError::cut(start, WHAT)
                    } else {
                        SeekError::damaged(start, "a gzip header with a name that does not end".into())
                    });
                };
                sum.update(&bytes[..=len]);
                self.input.skip(len as u64 + 1);
            }
        }
        if flags & HEADER_SUM != 0 {
            let want = u16::from_le_bytes(self.input.take::<2>(start, WHAT)?);
            if want != sum.finalize() as u16 {
                return Err(SeekError::damaged(start, "the checksum of a gzip header does not match".into()));
            }
        }
        self.state.init();
        self.member = start;
        self.filled = 0;
        Ok(true)
    }

    /// Decompresses some more, up to `most` bytes if that is less than there is room for, and returns where in the buffer it
    /// lies.
    fn some(&mut self, most: usize, boundaries: bool) -> Result<(std::ops::Range<usize>, Stopped), SeekError> {
        if self.filled == self.buffer.len() {
            self.buffer.copy_within(self.filled - WINDOW.., 0);
            self.filled = WINDOW;
        }
        let packed = self.input.offset();
        let input = self.input.peek(1)?;
        let mut flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        if !input.is_empty() {
            flags |= TINFL_FLAG_HAS_MORE_INPUT;
        }
        if boundaries {
            flags |= TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY;
        }
        let from = self.filled;
        let end = self.buffer.len().min(from.saturating_add(most));
        let (status, taken, made) = decompress(&mut self.state, input, &mut self.buffer[..end], from, flags);
        let cut = input.is_empty();
        self.input.skip(taken as u64);
        self.filled += made;
        let stopped = match status {
            TINFLStatus::Done => Stopped::End,
            TINFLStatus::BlockBoundary => Stopped::Boundary,
            TINFLStatus::HasMoreOutput => Stopped::Somewhere,
            TINFLStatus::NeedsMoreInput if !cut => Stopped::Somewhere,
            // What was made before the damage comes first; the next call finds it again.
            _ if made > 0 => Stopped::Somewhere,
            TINFLStatus::NeedsMoreInput | TINFLStatus::FailedCannotMakeProgress if cut => {
                return Err(SeekError::cut(self.member, "a gzip member"));
            }
            _ => return Err(SeekError::damaged(packed, "the deflate data makes no sense".into())),
        };
        Ok((from..self.filled, stopped))
    }
}

/// Passes all data of `file` to `sink` and collects access points.
pub(super) fn scan(
    file: &Arc<dyn Packed>,
    collector: &mut Collector,
    sink: Sink<'_>,
    cancel: &Cancel,
) -> Result<(), SeekError> {
    let mut inflater = Inflater::new(file, READ);
    loop {
        let start = inflater.input.offset();
        if !inflater.header()? {
            return Ok(());
        }
        collector.start(start);
        let (mut sum, mut len) = (Hasher::new(), 0_u32);
        loop {
            if cancel.is_set() {
                return Err(SeekError::Cancelled);
            }
            let (range, stopped) = inflater.some(usize::MAX, collector.is_due())?;
            let data = &inflater.buffer[range];
            sum.update(data);
            len = len.wrapping_add(data.len() as u32);
            collector.feed(data)?;
            sink(data).map_err(SeekError::Sink)?;
            if stopped == Stopped::Boundary
                && collector.is_due()
                && let Some(state) = inflater.state.block_boundary_state()
            {
                let window = &inflater.buffer[inflater.filled.saturating_sub(WINDOW)..inflater.filled];
                let made = |window| Entry::Gzip { bits: state.num_bits, held: state.bit_buf, window };
                collector.point(inflater.input.offset(), collector.raw(), window, made);
            }
            if stopped == Stopped::End {
                break;
            }
        }
        let trailer = inflater.input.offset();
        let want = inflater.input.take::<8>(inflater.member, "a gzip member")?;
        if want[..4] != sum.finalize().to_le_bytes() {
            return Err(SeekError::damaged(trailer, "the checksum of a gzip member does not match".into()));
        }
        if want[4..] != len.to_le_bytes() {
            return Err(SeekError::damaged(trailer, "a gzip member has another length than it says".into()));
        }
    }
}

/// Decompresses from an access point on, to the end of the file.
pub(super) struct Decoder {
    inflater: Inflater,
    inside: bool,
}

impl Decoder {
    pub(super) fn open(file: &Arc<dyn Packed>, packed: u64, entry: &Entry) -> Result<Self, SeekError> {
        let mut inflater = Inflater::new(file, READ_LATER);
        inflater.input.skip(packed);
        inflater.member = packed;
        let inside = if let Entry::Gzip { bits, held, window } = entry {
            let mut bytes = Vec::new();
            let unpacked = unpack_window(window, &mut bytes);
            unpacked.map_err(|e| SeekError::damaged(packed, format!("the access point cannot be used: {e}")))?;
            let bytes = &bytes[bytes.len().saturating_sub(WINDOW)..];
            inflater.buffer[..bytes.len()].copy_from_slice(bytes);
            inflater.filled = bytes.len();
            let state = BlockBoundaryState { num_bits: *bits, bit_buf: *held, ..BlockBoundaryState::default() };
            *inflater.state = DecompressorOxide::from_block_boundary_state(&state);
            true
        } else {
            false
        };
        Ok(Self { inflater, inside })
    }
}

impl Decode for Decoder {
    fn decode(&mut self, out: &mut [u8]) -> Result<usize, SeekError> {
        loop {
            if !self.inside {
                if !self.inflater.header()? {
                    return Ok(0);
                }
                self.inside = true;
            }
            let (range, stopped) = self.inflater.some(out.len(), false)?;
            if stopped == Stopped::End {
                // Checksum and length: what comes out is checked piece by piece.
                self.inflater.input.skip(8);
                self.inside = false;
            }
            if !range.is_empty() {
                let data = &self.inflater.buffer[range];
                out[..data.len()].copy_from_slice(data);
                return Ok(data.len());
            }
        }
    }

    fn weight(&self) -> u64 {
        512 << 10
    }
}
