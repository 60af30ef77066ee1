//! Tar data at any place, and in it the content of one file as an [`Image`]: read at any place, its holes known.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Kind, Member, sparse};
use crate::archive::bytes::Reading;
use crate::archive::cache::PieceCache;
use crate::archive::frame::{Frame, Placed, Unpacker};
use crate::archive::{Bytes, Indexed};
use crate::image::{Extent, ExtentKind, Image, ImageError, check_range, push};

/// Bytes of decompressed frames that are kept.
const CACHE: usize = 64 << 20;

/// The tar data of an archive in frames.
pub(crate) struct TarBytes {
    indexed: Indexed,
    /// Frames of data, and where each begins: in the tar data, and in the file.
    frames: Vec<(u64, u64, Frame)>,
    len: u64,
    cache: PieceCache<Vec<u8>>,
    unpackers: Mutex<Vec<(Unpacker, Vec<u8>)>>,
}

impl TarBytes {
    pub(crate) fn new(indexed: Indexed) -> Self {
        let (mut frames, mut len) = (Vec::new(), 0);
        for Placed { frame, offset, .. } in indexed.index.placed().filter(|placed| !placed.frame.is_table()) {
            frames.push((len, offset, frame));
            len += u64::from(frame.raw);
        }
        Self { indexed, frames, len, cache: PieceCache::new(CACHE), unpackers: Mutex::default() }
    }

    fn load(&self, number: usize) -> io::Result<Vec<u8>> {
        let (_, offset, frame) = self.frames[number];
        let idle = || self.unpackers.lock().unwrap_or_else(PoisonError::into_inner);
        let unpacker = idle().pop();
        let (mut unpacker, mut packed) = match unpacker {
            Some(idle) => idle,
            None => (Unpacker::new(self.indexed.container)?, Vec::new()),
        };
        let mut raw = Vec::new();
        let unpacked = self.indexed.unpack(frame, offset, &mut unpacker, &mut packed, &mut raw);
        idle().push((unpacker, packed));
        let context = |e: io::Error| {
            io::Error::new(e.kind(), format!("frame {number} at byte {offset} of the file cannot be read: {e}"))
        };
        unpacked.map(|()| raw).map_err(context)
    }
}

impl Bytes for TarBytes {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        let mut number = self.frames.partition_point(|(start, ..)| *start <= offset).saturating_sub(1);
        while done < buf.len() {
            let Some((start, ..)) = self.frames.get(number) else { return Err(io::ErrorKind::UnexpectedEof.into()) };
            let raw = self.cache.get(number as u64, || self.load(number))?;
            let from = usize::try_from(offset + done as u64 - start).unwrap_or(usize::MAX).min(raw.len());
            let count = (raw.len() - from).min(buf.len() - done);
            buf[done..done + count].copy_from_slice(&raw[from..from + count]);
            done += count;
            number += 1;
        }
        Ok(())
    }
}

/// A piece of a file: where it is in the file, how long, and where in the tar data.
#[derive(Debug, Clone, Copy)]
struct Piece {
    at: u64,
    len: u64,
    data: u64,
}

/// The content of a regular file.
pub(crate) struct Content {
    bytes: Arc<dyn Bytes>,
    name: String,
    size: u64,
    pieces: Vec<Piece>,
}

impl Content {
    /// Of `member`, whose headers were read with all attributes; `name` is its name in messages.
    ///
    /// # Errors
    /// When it is no file, or the map of a sparse file is damaged or cannot be read.
    pub(crate) fn new(bytes: Arc<dyn Bytes>, member: &Member, name: &str) -> io::Result<Self> {
        if !matches!(member.kind, Kind::File | Kind::Other(_)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        let mut stream = Reading { bytes: bytes.as_ref(), offset: member.data };
        let found = sparse::pieces(member, &mut stream)?;
        let mut data = stream.offset;
        let end = member.data + member.stored;
        let mut pieces = Vec::with_capacity(found.len());
        for (at, len) in found.into_iter().filter(|(_, len)| *len > 0) {
            pieces.push(Piece { at, len, data });
            data = data.saturating_add(len);
        }
        if data > end || end > bytes.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the file has more data than the archive has for it",
            ));
        }
        Ok(Self { bytes, name: name.to_owned(), size: member.size, pieces })
    }

    /// Calls `each` for what `range` consists of: a range of the file, and where its data lies, if it is none.
    fn walk(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(Range<u64>, Option<u64>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut at = range.start;
        let first = self.pieces.partition_point(|piece| piece.at + piece.len <= range.start);
        for piece in self.pieces[first..].iter().take_while(|piece| piece.at < range.end) {
            if piece.at > at {
                each(at..piece.at, None)?;
                at = piece.at;
            }
            let end = (piece.at + piece.len).min(range.end);
            each(at..end, Some(piece.data + (at - piece.at)))?;
            at = end;
        }
        if at < range.end { each(at..range.end, None) } else { Ok(()) }
    }

    fn failed(&self, op: &'static str, range: &Range<u64>, source: io::Error) -> ImageError {
        ImageError { image: self.name.clone(), op, offset: range.start, len: range.end - range.start, source }
    }
}

impl Image for Content {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        check_range(&self.name, "block status", self.size, &range)?;
        let mut extents = Vec::new();
        let walked = self.walk(range.clone(), &mut |part, data| {
            let kind = if data.is_some() { ExtentKind::Data } else { ExtentKind::Zero };
            push(&mut extents, Extent { offset: part.start, len: part.end - part.start, kind });
            Ok(())
        });
        walked.map(|()| extents).map_err(|e| self.failed("block status", &range, e))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let range = offset..offset.saturating_add(buf.len() as u64);
        check_range(&self.name, "read", self.size, &range)?;
        let read = self.walk(range.clone(), &mut |part, data| {
            let part = &mut buf[(part.start - offset) as usize..(part.end - offset) as usize];
            match data {
                Some(at) => self.bytes.read_at(part, at),
                None => {
                    part.fill(0);
                    Ok(())
                }
            }
        });
        read.map_err(|e| self.failed("read", &range, e))
    }
}
