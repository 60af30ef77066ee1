//! Random access into zstd frames made by anyone.
//!
//! A frame can be decompressed from its start only, unless the state of the decoder at some later block is known: the window
//! of bytes that matches may copy, the three last offsets, and the tables that later blocks may use again. libzstd does not
//! give its state away, but a dictionary is such a state in a documented form (RFC 8878, 5). So, while libzstd decompresses
//! the file, [`walk`] follows the tables and offsets through the blocks on another thread. To go on from an access point,
//! libzstd is given the dictionary, a frame header without checksum and size, and the original blocks from there.
//!
//! Of the window only what later blocks do copy is kept, the rest is set to zero and compresses to nothing.

mod block;
mod fse;
mod walk;

use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use zstd::zstd_safe::{self, DCtx, DParameter, InBuffer, OutBuffer};

use super::points::{Collector, Entry, unpack_window};
use super::{Decode, Packed, PackedReader, SeekError, Sink};
use crate::host::Cancel;
use block::{GRAIN, Used};
use walk::{Found, Header, MAX_WINDOW, Next, Stop, Walker};

/// Messages between the walker and the decompressor; a message may have a megabyte.
const AHEAD: usize = 8;
/// Room for decompressed bytes beside the window.
const ROOM: usize = 2 << 20;
/// The largest window, as a power of two; as the program `zstd` has it.
const MAX_WINDOW_LOG: u32 = 27;
/// Bytes that are read at once when data is wanted from an access point.
const READ: usize = 128 << 10;
/// A frame of this many bytes without an access point is worth a note.
const LONG: u64 = 64 << 20;

/// Passes all data of `file` to `sink` and collects access points.
pub(super) fn scan(
    file: &Arc<dyn Packed>,
    collector: &mut Collector,
    sink: Sink<'_>,
    cancel: &Cancel,
) -> Result<(), SeekError> {
    let spacing = Arc::clone(collector.spacing());
    std::thread::scope(|scope| {
        let (give, found) = sync_channel(AHEAD);
        let file = Arc::clone(file);
        let walker = scope.spawn(move || {
            let mut give = |what| give.send(what).is_ok();
            Walker::new(file, &spacing, &mut give).run()
        });
        let mut unpack = Unpack::new(collector, sink)?;
        let mut done = Ok(());
        for what in &found {
            done = if cancel.is_set() { Err(SeekError::Cancelled) } else { unpack.follow(what) };
            if done.is_err() {
                break;
            }
        }
        // The walker ends when it finds that nobody listens.
        drop(found);
        let walked = walker.join().map_err(|_| SeekError::damaged(0, "the walk over the frames failed".into()))?;
        done?;
        match walked {
            Ok(()) | Err(Stop::Unwanted) => Ok(()),
            Err(Stop::Bad(error)) => Err(error),
        }
    })
}

/// An access point of which it is not known yet what it needs.
struct Pending {
    packed: u64,
    raw: u64,
    head: Vec<u8>,
    window: Vec<u8>,
}

struct Unpack<'a> {
    context: DCtx<'static>,
    collector: &'a mut Collector,
    sink: Sink<'a>,
    /// The window, and behind it room for more.
    history: Vec<u8>,
    filled: usize,
    /// Bytes of the window that are kept, 0 when there will be no access points.
    keep: usize,
    header: Option<Header>,
    frame_packed: u64,
    frame_raw: u64,
    pending: Option<Pending>,
    points: usize,
    ended: bool,
}

impl<'a> Unpack<'a> {
    fn new(collector: &'a mut Collector, sink: Sink<'a>) -> Result<Self, SeekError> {
        Ok(Self {
            context: context()?,
            collector,
            sink,
            history: vec![0; ROOM],
            filled: 0,
            keep: 0,
            header: None,
            frame_packed: 0,
            frame_raw: 0,
            pending: None,
            points: 0,
            ended: true,
        })
    }

    fn follow(&mut self, found: Found) -> Result<(), SeekError> {
        match found {
            Found::Frame { packed, header } => {
                let window = header.window_byte.map_or(u64::MAX, |_| header.window);
                self.keep = if window <= MAX_WINDOW { window as usize } else { 0 };
                if self.history.len() < self.keep + ROOM {
                    self.history.resize(self.keep + ROOM, 0);
                }
                self.header = Some(header);
                (self.frame_packed, self.frame_raw) = (packed, self.collector.raw());
                (self.ended, self.points) = (false, 0);
                self.collector.start(packed);
            }
            Found::Data { packed, bytes, ends } => {
                let mut from = 0;
                for end in ends {
                    self.feed(&bytes[from..end], packed + from as u64)?;
                    from = end;
                }
            }
            Found::Point { packed, at, head, window } => {
                let raw = self.frame_raw + at;
                let window = usize::try_from(window).ok().and_then(|len| self.filled.checked_sub(len));
                // Were the two not of one mind, the walker would be wrong.
                if let Some(from) = window.filter(|_| raw == self.collector.raw()) {
                    let window = self.history[from..self.filled].to_vec();
                    self.pending = Some(Pending { packed, raw, head, window });
                }
            }
            Found::Used(used) => self.keep_point(&used),
            Found::NoPoint | Found::Blind => self.pending = None,
            Found::Spoilt { from } => self.collector.forget_after(self.frame_raw + from),
            Found::End => {
                if !self.ended {
                    return Err(SeekError::damaged(
                        self.frame_packed,
                        "the frame does not end with its last block".into(),
                    ));
                }
                let (len, window) = (self.collector.raw() - self.frame_raw, self.header.map_or(0, |h| h.window));
                if len >= LONG && self.points == 0 {
                    self.collector.note(format!(
                        "the zstd frame at byte {} of the archive can only be read from its start: {} MiB with a window of {} MiB",
                        self.frame_packed,
                        len >> 20,
                        window >> 20
                    ));
                }
            }
        }
        Ok(())
    }

    /// Decompresses a part of a frame, which begins at `packed` of the file.
    fn feed(&mut self, part: &[u8], packed: u64) -> Result<(), SeekError> {
        let mut input = InBuffer::around(part);
        loop {
            if self.filled == self.history.len() {
                self.history.copy_within(self.filled - self.keep.., 0);
                self.filled = self.keep;
            }
            if self.ended {
                return Err(SeekError::damaged(packed, "the frame ends before its last block".into()));
            }
            let mut output = OutBuffer::around(&mut self.history[self.filled..]);
            let left = self.context.decompress_stream(&mut output, &mut input);
            let got = output.pos();
            let left = left.map_err(|code| SeekError::damaged(packed, zstd_safe::get_error_name(code).to_owned()))?;
            let data = &self.history[self.filled..self.filled + got];
            self.collector.feed(data)?;
            (self.sink)(data).map_err(SeekError::Sink)?;
            self.filled += got;
            if left == 0 {
                self.ended = true;
            }
            if input.pos == part.len() && (self.ended || self.filled < self.history.len()) {
                return Ok(());
            }
        }
    }

    fn keep_point(&mut self, used: &Used) {
        let Some((mut pending, header)) = self.pending.take().zip(self.header) else { return };
        let Some(window_byte) = header.window_byte else { return };
        for (i, grain) in pending.window.chunks_mut(GRAIN as usize).enumerate() {
            if used.bits.get(i / 64).is_none_or(|word| word >> (i % 64) & 1 == 0) {
                grain.fill(0);
            }
        }
        let Pending { packed, raw, head, window } = pending;
        let checksum = header.checksum;
        let made = |window| Entry::Zstd { head, window, window_byte, checksum };
        if self.collector.point(packed, raw, &window, made) {
            self.points += 1;
        }
    }
}

fn context() -> Result<DCtx<'static>, SeekError> {
    let mut context = DCtx::try_create().ok_or(SeekError::Memory("a zstd decompressor"))?;
    let set = context.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG));
    set.map_err(|_| SeekError::Memory("a zstd decompressor"))?;
    Ok(context)
}

/// Decompresses from an access point on, to the end of the file.
pub(super) struct Decoder {
    input: PackedReader,
    context: DCtx<'static>,
    /// Within a frame, else between two.
    inside: bool,
    /// The frame was entered through an access point: four bytes of checksum follow it, which nobody can check, or none.
    entered: Option<usize>,
    window: u64,
}

impl Decoder {
    pub(super) fn open(file: Arc<dyn Packed>, packed: u64, entry: &Entry) -> Result<Self, SeekError> {
        let mut decoder =
            Self { input: PackedReader::new(file, READ), context: context()?, inside: false, entered: None, window: 0 };
        decoder.input.skip(packed);
        if let Entry::Zstd { head, window, window_byte, checksum } = entry {
            let mut dictionary = head.clone();
            let bad = |what: &str| SeekError::damaged(packed, format!("the access point cannot be used: {what}"));
            unpack_window(window, &mut dictionary).map_err(|e| bad(&e.to_string()))?;
            let refused = |code| bad(zstd_safe::get_error_name(code));
            decoder.context.load_dictionary(&dictionary).map_err(refused)?;
            let header = [0x28, 0xb5, 0x2f, 0xfd, 0, *window_byte];
            let mut nothing = [];
            let (mut input, mut output) = (InBuffer::around(&header), OutBuffer::around(&mut nothing[..]));
            decoder.context.decompress_stream(&mut output, &mut input).map_err(refused)?;
            decoder.inside = true;
            decoder.entered = Some(if *checksum { 4 } else { 0 });
            decoder.window = 2 * window_of(&header);
        }
        Ok(decoder)
    }
}

fn window_of(header: &[u8]) -> u64 {
    Header::parse(header).map_or(0, |header| header.window)
}

impl Decode for Decoder {
    fn decode(&mut self, out: &mut [u8]) -> Result<usize, SeekError> {
        loop {
            let packed = self.input.offset();
            if !self.inside {
                let left = self.input.left()?;
                match walk::next(self.input.peek(8)?, packed, left)? {
                    Next::Nothing => return Ok(0),
                    Next::Skippable(len) => self.input.skip(len),
                    Next::Frame => {
                        self.window = window_of(self.input.peek(Header::MOST)?);
                        self.inside = true;
                    }
                }
                continue;
            }
            let mut input = InBuffer::around(self.input.peek(1)?);
            let at_end = input.src.is_empty();
            let mut output = OutBuffer::around(out);
            let left = self.context.decompress_stream(&mut output, &mut input);
            let (taken, got) = (input.pos, output.pos());
            let left = left.map_err(|code| SeekError::damaged(packed, zstd_safe::get_error_name(code).to_owned()))?;
            self.input.skip(taken as u64);
            if left == 0 {
                self.inside = false;
                if let Some(checksum) = self.entered.take() {
                    self.input.skip(checksum as u64);
                    self.context = context()?;
                }
            }
            if got > 0 {
                return Ok(got);
            }
            if at_end && self.inside {
                return Err(SeekError::cut(packed, "a frame"));
            }
        }
    }

    fn weight(&self) -> u64 {
        (1 << 20) + self.window
    }
}
