//! Reads the file beside an archive: field by field, nothing larger than can be, nothing that is not there.

use std::io::{self, BufReader, Read};

use super::super::points::{Entry, MAX_PIECE, MAX_PIECES, MAX_POINTS, MAX_WINDOW, PIECE, Point, Points};
use super::super::{Method, gzip};
use super::{BUFFER, BesideError, Fingerprint, HEAD, MAGIC, MAX_EXTRA, Summed, VERSION, head};

/// Bytes of the longest dictionary without its content: a Huffman tree, three tables, three offsets.
const MAX_HEAD: usize = 1024;

/// Whether a file is one of ours, and what was written.
pub(super) fn check(file: &mut dyn Read) -> Parsed<()> {
    let mut found = Vec::with_capacity(HEAD);
    file.take(HEAD as u64).read_to_end(&mut found)?;
    let found = found.first_chunk::<HEAD>().filter(|head| head.starts_with(MAGIC)).ok_or(BesideError::Unknown)?;
    let version = u32::from_le_bytes([found[8], found[9], found[10], found[11]]);
    if version != VERSION {
        return Err(BesideError::Version(version));
    }
    let mut all = Summed { out: &mut io::sink(), sum: crc32fast::Hasher::new() };
    io::copy(&mut BufReader::with_capacity(BUFFER, file), &mut all)?;
    if head(all.sum.finalize()) != *found {
        return Err(BesideError::Damaged("its checksum does not match"));
    }
    Ok(())
}

/// What is left to be read.
pub(super) struct Fields<R> {
    pub from: R,
    pub left: u64,
}

type Parsed<T> = Result<T, BesideError>;

impl<R: Read> Fields<R> {
    /// Fills `buf`, whose room was found to be no more than is left.
    fn fill(&mut self, buf: &mut [u8]) -> Parsed<()> {
        self.left = self.left.checked_sub(buf.len() as u64).ok_or(BesideError::Damaged("it is too short"))?;
        Ok(self.from.read_exact(buf)?)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut array = [0; N];
        self.fill(&mut array)?;
        Ok(array)
    }

    fn u8(&mut self) -> Parsed<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Parsed<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Parsed<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A byte string of at most `most` bytes.
    fn string(&mut self, most: usize) -> Parsed<Vec<u8>> {
        let len = self.u32()? as usize;
        if len > most || len as u64 > self.left {
            return Err(BesideError::Damaged("impossible length"));
        }
        let mut bytes = vec![0; len];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// How many things of `size` bytes at least there are.
    fn count(&mut self, size: u64) -> Parsed<usize> {
        let count = self.u32()? as usize;
        if count as u64 > self.left / size {
            return Err(BesideError::Damaged("impossible count"));
        }
        Ok(count)
    }

    /// Everything but the caller's bytes, which are left.
    pub fn parts(&mut self) -> Parsed<(Points, Fingerprint)> {
        let made_of = Fingerprint {
            size: self.u64()?,
            seconds: i64::from_le_bytes(self.array()?),
            nanoseconds: self.u32()?,
            sample: self.array()?,
        };
        let method = match self.u8()? {
            0 => Method::Zstd,
            1 => Method::Gzip,
            2 => Method::Lzop,
            _ => return Err(BesideError::Damaged("unknown method")),
        };
        let piece = u32::from(self.u8()?);
        if !(PIECE..=MAX_PIECE).contains(&piece) {
            return Err(BesideError::Damaged("impossible size of a piece"));
        }
        let raw = self.u64()?;
        let count = self.count(4)?;
        if count > MAX_PIECES || count as u64 != raw.div_ceil(1 << piece) {
            return Err(BesideError::Damaged("wrong count of pieces"));
        }
        let sums = (0..count).map(|_| self.u32()).collect::<Parsed<_>>()?;
        let count = self.count(17)?;
        if count > MAX_POINTS {
            return Err(BesideError::Damaged("impossible count"));
        }
        let mut points: Vec<Point> = Vec::with_capacity(count);
        for _ in 0..count {
            let point = self.point(method)?;
            let fits = match points.last() {
                None => point.raw == 0 && (matches!(point.entry, Entry::Start | Entry::Lzop { .. })),
                Some(last) => point.raw > last.raw && point.packed > last.packed,
            };
            if !fits || point.raw > raw || point.packed > made_of.size {
                return Err(BesideError::Damaged("access points out of place"));
            }
            points.push(point);
        }
        if points.is_empty() && raw > 0 {
            return Err(BesideError::Damaged("no access points"));
        }
        let mut notes = Vec::new();
        for _ in 0..self.u8()? {
            let note = String::from_utf8(self.string(4096)?).ok().filter(|note| !note.chars().any(char::is_control));
            notes.push(note.ok_or(BesideError::Damaged("a note that cannot be printed"))?);
        }
        let extra = self.u64()?;
        if extra != self.left || extra > MAX_EXTRA {
            return Err(BesideError::Damaged("wrong length"));
        }
        Ok((Points { method, raw, piece, sums, points, notes }, made_of))
    }

    fn point(&mut self, method: Method) -> Parsed<Point> {
        let (packed, raw) = (self.u64()?, self.u64()?);
        // What zstd makes of bytes that cannot be compressed.
        let longest = |window: usize| window + window / 128 + 64;
        let entry = match (self.u8()?, method) {
            (0, Method::Zstd | Method::Gzip) => Entry::Start,
            (1, Method::Zstd) => {
                let [window_byte, checksum] = self.array()?;
                let (head, window) = (self.string(MAX_HEAD)?, self.string(longest(MAX_WINDOW))?);
                if checksum > 1 {
                    return Err(BesideError::Damaged("an access point of an unknown kind"));
                }
                Entry::Zstd { head, window, window_byte, checksum: checksum == 1 }
            }
            (2, Method::Gzip) => {
                let [bits, held] = self.array()?;
                let window = self.string(longest(gzip::WINDOW))?;
                if bits > 7 || u32::from(held) >> bits != 0 {
                    return Err(BesideError::Damaged("an access point of an unknown kind"));
                }
                Entry::Gzip { bits, held, window }
            }
            (3, Method::Lzop) => Entry::Lzop { header: self.u64()? },
            _ => return Err(BesideError::Damaged("an access point of an unknown kind")),
        };
        Ok(Point { packed, raw, entry })
    }
}
