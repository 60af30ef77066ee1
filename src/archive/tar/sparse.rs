//! The content of a sparse file as its reader would see it: the pieces of data from the archive, zeros between them.

use std::io::{self, Read};

use super::pax::decimal;
use super::{BLOCK, Layout, Member};

/// Pieces a map in the data may name.
const MOST_PIECES: u64 = 1 << 20;

/// The content of a file, holes filled with zeros.
pub(super) struct Expanded<R> {
    data: R,
    pieces: std::vec::IntoIter<(u64, u64)>,
    piece: Option<(u64, u64)>,
    at: u64,
    size: u64,
}

impl<R: Read> Expanded<R> {
    /// `data` gives the bytes of `member` that the archive holds.
    pub(super) fn new(member: &Member, mut data: R) -> io::Result<Self> {
        let mut pieces = pieces(member, &mut data)?.into_iter();
        let piece = pieces.next();
        Ok(Self { data, pieces, piece, at: 0, size: member.size })
    }
}

impl<R: Read> Read for Expanded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_some_and(|(at, len)| self.at >= at + len) {
            self.piece = self.pieces.next();
        }
        let (until, is_data) = match self.piece {
            Some((at, _)) if self.at < at => (at, false),
            Some((at, len)) => (at + len, true),
            None => (self.size, false),
        };
        let count = usize::try_from(until - self.at).unwrap_or(usize::MAX).min(buf.len());
        if count == 0 {
            return Ok(0);
        }
        let count = if is_data {
            match self.data.read(&mut buf[..count])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => count,
            }
        } else {
            buf[..count].fill(0);
            count
        };
        self.at += count as u64;
        Ok(count)
    }
}

/// The pieces of a file, in order; of one with a map in its data, that is read from there.
pub(super) fn pieces(member: &Member, data: &mut impl Read) -> io::Result<Vec<(u64, u64)>> {
    let pieces = match &member.layout {
        Layout::Whole => vec![(0, member.size)],
        Layout::Pieces(pieces) => pieces.clone(),
        Layout::MapInData => read_map(data)?,
    };
    let mut end = 0;
    for (at, len) in &pieces {
        if *at < end || at.checked_add(*len).is_none_or(|piece_end| piece_end > member.size) {
            return Err(damaged("its pieces overlap or lie behind its end"));
        }
        end = at + len;
    }
    Ok(pieces)
}

/// The map in front of the data (GNU sparse format 1.0): decimal numbers, a line each, in whole blocks.
fn read_map(data: &mut impl Read) -> io::Result<Vec<(u64, u64)>> {
    let mut lines = Lines { data, block: [0; BLOCK], at: BLOCK };
    let count = lines.number()?;
    if count > MOST_PIECES {
        return Err(damaged("its map has too many pieces"));
    }
    let mut pieces = Vec::new();
    for _ in 0..count {
        pieces.push((lines.number()?, lines.number()?));
    }
    Ok(pieces)
}

/// Expands any bytes as the data of a sparse file with a map, as far as a megabyte. For fuzzing.
pub(super) fn expand(bytes: &[u8]) {
    let member = Member {
        path: Vec::new(),
        kind: super::Kind::File,
        link: Vec::new(),
        size: 1 << 40,
        stored: bytes.len() as u64,
        offset: 0,
        data: 0,
        layout: Layout::MapInData,
        attributes: None,
    };
    if let Ok(expanded) = Expanded::new(&member, bytes) {
        io::copy(&mut expanded.take(1 << 20), &mut io::sink()).unwrap_or_default();
    }
}

struct Lines<'a, R> {
    data: &'a mut R,
    block: [u8; BLOCK],
    at: usize,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> io::Result<u64> {
        let mut digits = Vec::new();
        loop {
            if self.at == BLOCK {
                self.data.read_exact(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            if byte == b'\n' {
                return decimal(&digits).ok_or_else(|| damaged("its map has something that is no number"));
            }
            digits.push(byte);
            if digits.len() > 20 {
                return Err(damaged("its map has something that is no number"));
            }
        }
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the sparse file is damaged: {what}"))
}
