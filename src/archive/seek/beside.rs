//! The file beside an archive that keeps what one pass over it found: `<archive>.idx`.
//!
//! Layout, little endian: `vzkeepAP`, version u32 = 1, CRC32 of all that follows u32. Then size and time of the archive (u64,
//! seconds i64, nanoseconds u32) and an MD5 of parts of it; method u8, size of a piece as a power of two u8, bytes of data
//! u64; the pieces' CRC32s behind their count u32; the access points behind their count u32; notes behind their count u8; at
//! last bytes of the caller's behind their length u64. An access point: offsets in file and data (u64 each), kind u8, and
//! what its kind needs, byte strings behind their length u32.
//!
//! It is only good for the archive it was made of. Whatever does not fit is refused, and the archive read anew.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use md5::{Digest, Md5};

use super::points::{Entry, MAX_PIECE, MAX_PIECES, MAX_POINTS, MAX_WEIGHT, MAX_WINDOW, PIECE, Point, Points};
use super::{Method, gzip};
use crate::archive::vma::MAX_MAP;
use crate::host::files;

/// What follows the archive's name.
pub const SUFFIX: &str = ".idx";
const MAGIC: &[u8; 8] = b"vzkeepAP";
const VERSION: u32 = 1;
const HEAD: usize = 16;
/// Bytes of the longest file that is read: access points, the map of a machine's clusters, and some small things.
const LONGEST: u64 = MAX_WEIGHT + MAX_MAP as u64 + (1 << 20);
/// Bytes of the longest dictionary without its content: a Huffman tree, three tables, three offsets.
const MAX_HEAD: usize = 1024;
/// Bytes of the archive's start and end that make its fingerprint, and of samples in between.
const ENDS: u64 = 64 << 10;
const SAMPLE: u64 = 4 << 10;
const SAMPLES: u64 = 32;

/// What tells an archive from others, and from itself at another time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    size: u64,
    seconds: i64,
    nanoseconds: u32,
    /// MD5 of the start, the end, and samples in between.
    sample: [u8; 16],
}

impl Fingerprint {
    /// Of an open archive.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        let size = meta.len();
        let mut sum = Md5::new();
        let mut buffer = vec![0; ENDS as usize];
        let mut add = |at: u64, len: u64| {
            let part = &mut buffer[..len.min(size - at) as usize];
            file.read_exact_at(part, at)?;
            sum.update(part);
            io::Result::Ok(())
        };
        add(0, ENDS)?;
        let last = size.saturating_sub(ENDS);
        for i in 1..=SAMPLES {
            add(last / (SAMPLES + 1) * i, SAMPLE)?;
        }
        add(last, ENDS)?;
        let nanoseconds = u32::try_from(meta.mtime_nsec()).unwrap_or(0);
        Ok(Self { size, seconds: meta.mtime(), nanoseconds, sample: sum.finalize().into() })
    }
}

/// What is kept beside an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beside {
    /// Access points and checksums.
    pub points: Points,
    /// The caller's: a map of clusters.
    pub extra: Vec<u8>,
}

/// There is a file beside the archive, but it is of no use.
#[derive(Debug, thiserror::Error)]
pub enum BesideError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is something else.
    #[error("is no index of an archive")]
    Unknown,
    /// It was made by another version of the program.
    #[error("has version {0}, which is not known")]
    Version(u32),
    /// It is damaged.
    #[error("is damaged: {0}")]
    Damaged(&'static str),
    /// It was made of another archive, or of this one before it was changed.
    #[error("belongs to another archive, or the archive was changed since")]
    Stale,
}

impl Beside {
    /// Where it lies for the archive at `path`.
    pub fn path(archive: &Path) -> PathBuf {
        let mut name = archive.file_name().unwrap_or_default().to_owned();
        name.push(SUFFIX);
        archive.with_file_name(name)
    }

    /// What is kept beside the archive at `path`, which is open as `file`; `None` when there is nothing.
    ///
    /// # Errors
    /// When there is something that cannot be used.
    pub fn load(path: &Path, file: &File) -> Result<Option<Self>, BesideError> {
        let path = Self::path(path);
        let meta = match std::fs::metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            meta => meta?,
        };
        if !meta.is_file() || meta.len() > LONGEST {
            return Err(BesideError::Unknown);
        }
        let mut bytes = std::fs::read(path)?;
        let (points, made_of, extra) = parts(&bytes)?;
        // A large map is there only once.
        bytes.drain(..bytes.len() - extra.len());
        bytes.shrink_to_fit();
        let beside = Self { points, extra: bytes };
        // The archive is asked last: it may lie on a slow disk.
        if Fingerprint::of(file)? != made_of {
            return Err(BesideError::Stale);
        }
        Ok(Some(beside))
    }

    /// Reads what [`Beside::bytes`] made.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn parse(bytes: &[u8]) -> Result<(Self, Fingerprint), BesideError> {
        let (points, made_of, extra) = parts(bytes)?;
        Ok((Self { points, extra: extra.to_vec() }, made_of))
    }

    /// The content of the file for an archive that had `made_of` before and after it was read.
    pub fn bytes(&self, made_of: &Fingerprint) -> Vec<u8> {
        let points = &self.points;
        let mut out = Vec::with_capacity(points.weight() as usize + self.extra.len() + 4096);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&made_of.size.to_le_bytes());
        out.extend_from_slice(&made_of.seconds.to_le_bytes());
        out.extend_from_slice(&made_of.nanoseconds.to_le_bytes());
        out.extend_from_slice(&made_of.sample);
        out.push(match points.method {
            Method::Zstd => 0,
            Method::Gzip => 1,
            Method::Lzop => 2,
        });
        out.push(points.piece as u8);
        out.extend_from_slice(&points.raw.to_le_bytes());
        out.extend_from_slice(&(points.sums.len() as u32).to_le_bytes());
        points.sums.iter().for_each(|sum| out.extend_from_slice(&sum.to_le_bytes()));
        out.extend_from_slice(&(points.points.len() as u32).to_le_bytes());
        for point in &points.points {
            out.extend_from_slice(&point.packed.to_le_bytes());
            out.extend_from_slice(&point.raw.to_le_bytes());
            match &point.entry {
                Entry::Start => out.push(0),
                Entry::Zstd { head, window, window_byte, checksum } => {
                    out.extend_from_slice(&[1, *window_byte, u8::from(*checksum)]);
                    string(&mut out, head);
                    string(&mut out, window);
                }
                Entry::Gzip { bits, held, window } => {
                    out.extend_from_slice(&[2, *bits, *held]);
                    string(&mut out, window);
                }
                Entry::Lzop { header } => {
                    out.push(3);
                    out.extend_from_slice(&header.to_le_bytes());
                }
            }
        }
        out.push(points.notes.len() as u8);
        points.notes.iter().for_each(|note| string(&mut out, note.as_bytes()));
        out.extend_from_slice(&(self.extra.len() as u64).to_le_bytes());
        out.extend_from_slice(&self.extra);
        let sum = crc32fast::hash(&out[HEAD..]);
        out[12..HEAD].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Writes the file beside the archive at `path`, which is open as `file` and had `made_of` before it was read. What it
    /// holds of the archive's data is for those who may read the archive. Nothing is written when the archive was changed
    /// meanwhile; says whether it was written.
    ///
    /// # Errors
    /// When it cannot be written; what was there before is untouched then.
    pub fn save(&self, path: &Path, file: &File, made_of: &Fingerprint) -> io::Result<bool> {
        if Fingerprint::of(file)? != *made_of {
            return Ok(false);
        }
        let target = Self::path(path);
        files::replace_with(&target, 0o600, |mut new| {
            new.write_all(&self.bytes(made_of))?;
            let meta = file.metadata()?;
            // Who cannot give it to the archive's owner keeps it for himself.
            if fchown(new, Some(meta.uid()), Some(meta.gid())).is_ok() {
                new.set_permissions(std::fs::Permissions::from_mode(meta.mode() & 0o666))?;
            }
            Ok(())
        })?;
        Ok(true)
    }
}

/// What is in a file; the caller's bytes are its end.
fn parts(bytes: &[u8]) -> Parsed<(Points, Fingerprint, &[u8])> {
    let head = bytes.first_chunk::<HEAD>().filter(|head| head.starts_with(MAGIC)).ok_or(BesideError::Unknown)?;
    let version = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
    if version != VERSION {
        return Err(BesideError::Version(version));
    }
    if crc32fast::hash(&bytes[HEAD..]) != u32::from_le_bytes([head[12], head[13], head[14], head[15]]) {
        return Err(BesideError::Damaged("its checksum does not match"));
    }
    Fields { rest: &bytes[HEAD..] }.parts()
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// What is left to be read.
struct Fields<'a> {
    rest: &'a [u8],
}

type Parsed<T> = Result<T, BesideError>;

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Parsed<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(BesideError::Damaged("it is too short"))?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        self.bytes(N)?.try_into().map_err(|_| BesideError::Damaged("it is too short"))
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
        if len > most {
            return Err(BesideError::Damaged("impossible length"));
        }
        Ok(self.bytes(len)?.to_vec())
    }

    /// How many things of `size` bytes at least there are.
    fn count(&mut self, size: usize) -> Parsed<usize> {
        let count = self.u32()? as usize;
        if count > self.rest.len() / size {
            return Err(BesideError::Damaged("impossible count"));
        }
        Ok(count)
    }

    fn parts(mut self) -> Parsed<(Points, Fingerprint, &'a [u8])> {
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
        let sums = self.bytes(4 * count)?.chunks_exact(4);
        let sums = sums.map(|sum| u32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]])).collect();
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
            notes.push(String::from_utf8_lossy(&self.string(4096)?).into_owned());
        }
        let extra = self.u64()?;
        if extra != self.rest.len() as u64 {
            return Err(BesideError::Damaged("wrong length"));
        }
        let points = Points { method, raw, piece, sums, points, notes };
        Ok((points, made_of, self.rest))
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
