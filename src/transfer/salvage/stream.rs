//! Compressed archives without an index: frame by frame, and behind a damage on from the next place where one begins.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt;

use super::READ;
use super::parse::Parser;
use crate::archive::frame::MAX_FRAME;
use crate::archive::{Method, Packed};
use crate::host::{Cancel, Host};
use crate::transfer::TransferError;

/// A gzip stream may run over the end of a damaged member before that is noticed: the next one is looked for from so many bytes
/// before that place on.
const BACK: u64 = 8 << 20;
/// Bytes read first from a place; then twice as many each time. Most places where a frame may begin turn out to be none.
const FIRST_READ: usize = 8 << 10;

/// What is decompressed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Zstd,
    Gzip,
}

impl Packing {
    pub(super) fn of(method: Method) -> Option<Self> {
        match method {
            Method::Zstd => Some(Self::Zstd),
            Method::Gzip => Some(Self::Gzip),
            _ => None,
        }
    }

    /// The content of all frames from the beginning of `tail` on.
    pub(super) fn decoder(self, tail: Tail) -> io::Result<Box<dyn Read>> {
        Ok(match self {
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(tail)?),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(tail)),
        })
    }

    /// Whether a frame may begin with these bytes.
    fn begins(self, bytes: &[u8]) -> bool {
        match (self, bytes) {
            (Self::Zstd, [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]) => true,
            // The upper bits of the flags are reserved.
            (Self::Gzip, [0x1f, 0x8b, 8, flags, ..]) => flags & 0xe0 == 0,
            _ => false,
        }
    }
}

/// The rest of a file, from a place on that is known.
#[derive(Debug)]
pub(super) struct Tail {
    file: File,
    /// Where the next byte that nobody has taken is.
    at: u64,
    end: u64,
    buf: Vec<u8>,
    taken: usize,
    /// Bytes to read next.
    step: usize,
}

impl Tail {
    pub(super) fn new(file: File, at: u64, end: u64) -> Self {
        Self { file, at, end, buf: Vec::new(), taken: 0, step: FIRST_READ }
    }
}

impl BufRead for Tail {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.taken == self.buf.len() {
            let want = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(READ).min(self.step);
            self.step = (2 * self.step).min(READ);
            self.buf.resize(want, 0);
            self.taken = self.buf.len();
            self.file.read_exact_at(&mut self.buf, self.at)?;
            self.taken = 0;
        }
        Ok(&self.buf[self.taken..])
    }

    fn consume(&mut self, amount: usize) {
        self.taken += amount;
        self.at += amount as u64;
    }
}

impl Read for Tail {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.fill_buf()?;
        let count = got.len().min(buf.len());
        buf[..count].copy_from_slice(&got[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// Decompresses the file frame by frame into `parser`.
pub(super) fn each_frame(
    packing: Packing,
    file: &File,
    len: u64,
    parser: &mut Parser,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), TransferError> {
    let opened = |at| file.try_clone().map(|file| Tail::new(file, at, len)).map_err(TransferError::Thread);
    let (mut at, mut buf) = (0, vec![0; 128 << 10]);
    let mut tail = opened(at)?;
    while at < len {
        parser.saver().go_on()?;
        // After a sound frame on with what is read already: there may be millions of small ones.
        if tail.at != at {
            tail = opened(at)?;
        }
        let ended = one_frame(packing, &mut tail, &mut buf, at, parser)?;
        let reached = tail.at;
        progress(reached, len);
        let Err(e) = ended else {
            at = reached.max(at + 1);
            continue;
        };
        let what = if e.kind() == io::ErrorKind::UnexpectedEof { "ends too early".to_owned() } else { e.to_string() };
        parser.broken_stream(format!("the compressed data is damaged: {what}"), at)?;
        at = next_frame(packing, file, (at + 1).max(reached.saturating_sub(BACK)), len);
    }
    parser.end()
}

/// One frame; what went wrong with it comes as the inner result. Its checksum is at its end: of a frame that is not sound
/// nothing is taken, unless it is so large that it cannot be kept, or the only one.
fn one_frame(
    packing: Packing,
    tail: &mut Tail,
    buf: &mut [u8],
    at: u64,
    parser: &mut Parser,
) -> Result<io::Result<()>, TransferError> {
    let mut decoder: Box<dyn Read + '_> = match packing {
        Packing::Zstd => match zstd::stream::read::Decoder::with_buffer(tail) {
            Ok(decoder) => Box::new(decoder.single_frame()),
            Err(e) => return Ok(Err(e)),
        },
        Packing::Gzip => Box::new(flate2::bufread::GzDecoder::new(tail)),
    };
    let (mut kept, mut large) = (Vec::new(), at == 0);
    loop {
        match decoder.read(buf) {
            Ok(0) => {
                parser.feed(&kept, at)?;
                return Ok(Ok(()));
            }
            Ok(count) => kept.extend_from_slice(&buf[..count]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => {
                if large {
                    parser.feed(&kept, at)?;
                    parser.saver().unverified(at);
                }
                return Ok(Err(e));
            }
        }
        if kept.len() > MAX_FRAME {
            large = true;
            parser.feed(&kept, at)?;
            kept.clear();
        }
    }
}

/// Where the next frame may begin; the end of the file when there is none.
fn next_frame(packing: Packing, file: &File, from: u64, len: u64) -> u64 {
    let (mut at, mut buf) = (from, vec![0; READ + 3]);
    while at < len {
        let want = usize::try_from(len - at).unwrap_or(buf.len()).min(buf.len());
        if file.read_exact_at(&mut buf[..want], at).is_err() {
            // Not to be read: behind it, then.
            at += READ as u64;
            continue;
        }
        if let Some(found) = buf[..want].windows(4).position(|bytes| packing.begins(bytes)) {
            return at + found as u64;
        }
        at += READ as u64;
    }
    len
}

/// What a program or nobody decompresses.
pub(super) fn child(host: &Host, file: &File, method: Method, cancel: &Cancel) -> io::Result<Box<dyn Read + Send>> {
    use std::io::Seek;
    let mut file = file.try_clone()?;
    file.rewind()?;
    method.unpack(host, Packed::File(file), cancel, &Cancel::new())
}
