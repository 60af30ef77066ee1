//! The file beside an archive that keeps what one pass over it found: `<archive>.idx`.
//!
//! Layout, little endian: `vzkeepAP`, version u32 = 1, CRC32 of all that follows u32. Then size and time of the archive (u64,
//! seconds i64, nanoseconds u32) and an MD5 of parts of it; method u8, size of a piece as a power of two u8, bytes of data
//! u64; the pieces' CRC32s behind their count u32; the access points behind their count u32; notes behind their count u8; at
//! last bytes of the caller's behind their length u64. An access point: offsets in file and data (u64 each), kind u8, and
//! what its kind needs, byte strings behind their length u32.
//!
//! It is only good for the archive it was made of. Whatever does not fit is refused, and the archive read anew.

mod parse;

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Take, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use md5::{Digest, Md5};

use super::Method;
use super::points::{Entry, MAX_WEIGHT, Points};
use crate::archive::vma::MAX_MAP;
use crate::host::files;
use parse::{Fields, check};

/// What follows the archive's name.
pub const SUFFIX: &str = ".idx";
const MAGIC: &[u8; 8] = b"vzkeepAP";
const VERSION: u32 = 1;
const HEAD: usize = 16;
const BUFFER: usize = 256 << 10;
/// Bytes of the longest file that is read: access points, the map of a machine's clusters, and some small things.
const LONGEST: u64 = MAX_WEIGHT + MAX_EXTRA + (1 << 20);
/// Bytes of the caller's at most: its sign and a map.
const MAX_EXTRA: u64 = MAX_MAP as u64 + 4;
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
pub struct Beside<E = Vec<u8>> {
    /// Access points and checksums.
    pub points: Points,
    /// The caller's: a map of clusters.
    pub extra: E,
}

/// Bytes of the caller's that can be written without being there all at once: a map of clusters may have 96 MiB.
pub trait Extra {
    /// How many there are.
    fn count(&self) -> u64;

    /// Writes them.
    ///
    /// # Errors
    /// As `out`.
    fn write(&self, out: &mut dyn Write) -> io::Result<()>;
}

impl Extra for Vec<u8> {
    fn count(&self) -> u64 {
        self.len() as u64
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(self)
    }
}

impl<E: Extra + ?Sized> Extra for &E {
    fn count(&self) -> u64 {
        (**self).count()
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        (**self).write(out)
    }
}

/// The caller's bytes in an open file, still to be read.
pub type Kept = Take<BufReader<File>>;

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
    pub fn load(path: &Path, file: &File) -> Result<Option<Beside<Kept>>, BesideError> {
        // A pipe is not waited for.
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(Self::path(path));
        let mut kept = match opened {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            kept => kept?,
        };
        let meta = kept.metadata()?;
        if !meta.is_file() || meta.len() > LONGEST {
            return Err(BesideError::Unknown);
        }
        // Twice: nothing in it is looked at before all of it is known to be what was written.
        check(&mut (&kept).take(meta.len()))?;
        kept.seek(SeekFrom::Start(HEAD as u64))?;
        let mut fields = Fields { from: BufReader::with_capacity(BUFFER, kept), left: meta.len() - HEAD as u64 };
        let (points, made_of) = fields.parts()?;
        // The archive is asked last: it may lie on a slow disk.
        if Fingerprint::of(file)? != made_of {
            return Err(BesideError::Stale);
        }
        Ok(Some(Beside { points, extra: fields.from.take(fields.left) }))
    }

    /// Reads what [`Beside::bytes`] made.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn parse(mut bytes: &[u8]) -> Result<(Self, Fingerprint), BesideError> {
        check(&mut &*bytes)?;
        bytes = &bytes[HEAD..];
        let left = bytes.len() as u64;
        let mut fields = Fields { from: &mut bytes, left };
        let (points, made_of) = fields.parts()?;
        Ok((Self { points, extra: bytes.to_vec() }, made_of))
    }
}

impl<E: Extra> Beside<E> {
    /// The content of the file for an archive that had `made_of` before and after it was read.
    pub fn bytes(&self, made_of: &Fingerprint) -> Vec<u8> {
        let mut body = Vec::new();
        // A vector takes everything.
        let sum = self.write(made_of, &mut body).unwrap_or_default();
        [&head(sum)[..], &body].concat()
    }

    /// Writes all that follows the head; returns its checksum.
    fn write(&self, made_of: &Fingerprint, out: &mut dyn Write) -> io::Result<u32> {
        let mut out = BufWriter::new(Summed { out, sum: crc32fast::Hasher::new() });
        let points = &self.points;
        out.write_all(&made_of.size.to_le_bytes())?;
        out.write_all(&made_of.seconds.to_le_bytes())?;
        out.write_all(&made_of.nanoseconds.to_le_bytes())?;
        out.write_all(&made_of.sample)?;
        let method = match points.method {
            Method::Zstd => 0,
            Method::Gzip => 1,
            Method::Lzop => 2,
        };
        out.write_all(&[method, points.piece as u8])?;
        out.write_all(&points.raw.to_le_bytes())?;
        out.write_all(&(points.sums.len() as u32).to_le_bytes())?;
        points.sums.iter().try_for_each(|sum| out.write_all(&sum.to_le_bytes()))?;
        out.write_all(&(points.points.len() as u32).to_le_bytes())?;
        for point in &points.points {
            out.write_all(&point.packed.to_le_bytes())?;
            out.write_all(&point.raw.to_le_bytes())?;
            match &point.entry {
                Entry::Start => out.write_all(&[0])?,
                Entry::Zstd { head, window, window_byte, checksum } => {
                    out.write_all(&[1, *window_byte, u8::from(*checksum)])?;
                    string(&mut out, head)?;
                    string(&mut out, window)?;
                }
                Entry::Gzip { bits, held, window } => {
                    out.write_all(&[2, *bits, *held])?;
                    string(&mut out, window)?;
                }
                Entry::Lzop { header } => {
                    out.write_all(&[3])?;
                    out.write_all(&header.to_le_bytes())?;
                }
            }
        }
        out.write_all(&[points.notes.len() as u8])?;
        points.notes.iter().try_for_each(|note| string(&mut out, note.as_bytes()))?;
        out.write_all(&self.extra.count().to_le_bytes())?;
        self.extra.write(&mut out)?;
        out.flush()?;
        Ok(out.get_ref().sum.clone().finalize())
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
        let target = Beside::path(path);
        files::replace_with(&target, 0o600, |mut new| {
            new.write_all(&head(0))?;
            let sum = self.write(made_of, &mut new)?;
            new.write_all_at(&head(sum), 0)?;
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

/// What the file begins with; the checksum is that of all that follows.
fn head(sum: u32) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head[12..].copy_from_slice(&sum.to_le_bytes());
    head
}

/// Takes the checksum of what passes.
struct Summed<'a> {
    out: &'a mut dyn Write,
    sum: crc32fast::Hasher,
}

impl Write for Summed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.sum.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn string(out: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(&(bytes.len() as u32).to_le_bytes())?;
    out.write_all(bytes)
}
