//! Opening an archive for reading: recognises it by its first bytes, never by its name, reads the header, and finds
//! out whether its frames can be read side by side.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::frame::{Container, Index, Unpacker};
use super::input::{Lzop, Packed, PolledRead};
use super::vma::{Header, Reader, VmaError};
use crate::host::{Cancel, Host};

/// Compressed bytes that are read at once.
const READ: usize = 1 << 20;
const LZOP_MAGIC: &[u8] = b"\x89LZO\0\r\n\x1a\n";

/// An archive cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("archive '{archive}': {cause}")]
pub struct ArchiveError {
    /// The archive's path, or `stdin`.
    pub archive: String,
    /// What is wrong.
    #[source]
    pub cause: ArchiveCause,
}

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveCause {
    /// It cannot be opened or examined.
    #[error("{0}")]
    Open(#[source] io::Error),
    /// Not an archive.
    #[error("neither VMA nor zstd, gzip or lzop data: it starts with {0:02x?}")]
    Unknown(Vec<u8>),
    /// The VMA data in it is damaged or cannot be had.
    #[error("{0}")]
    Vma(#[from] VmaError),
    /// A frame is damaged.
    #[error("frame {frame} at byte {offset} of the file is damaged or cannot be read: {source}")]
    Frame {
        /// Number of the frame.
        frame: usize,
        /// Offset in the file.
        offset: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// An open archive, its header read.
pub struct Source {
    pub(crate) name: String,
    pub(crate) header: Header,
    pub(crate) input: Input,
    /// Set when the rest is not wanted any more: ends waits of the input.
    pub(crate) stop: Cancel,
    note: Option<String>,
}

pub(crate) enum Input {
    /// One stream, after its header.
    Stream(Reader<Box<dyn Read + Send>>),
    /// Frames that can be read side by side.
    Indexed(Indexed),
}

pub(crate) struct Indexed {
    pub(crate) file: File,
    pub(crate) container: Container,
    pub(crate) index: Index,
}

impl Source {
    /// Opens the archive at `path`. Waits end when `cancel` is set.
    ///
    /// # Errors
    /// When it cannot be read or is no archive.
    pub fn open(host: &Host, path: &Path, cancel: &Cancel) -> Result<Self, ArchiveError> {
        let name = path.display().to_string();
        let opened = || {
            let file = File::open(path).map_err(ArchiveCause::Open)?;
            Self::from_file(host, name.clone(), file, cancel)
        };
        opened().map_err(|cause| ArchiveError { archive: name.clone(), cause })
    }

    /// Reads an archive from a pipe or another file descriptor. Waits end when `cancel` is set.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn from_fd(host: &Host, name: &str, fd: OwnedFd, cancel: &Cancel) -> Result<Self, ArchiveError> {
        let stop = Cancel::new();
        let input = PolledRead::new(File::from(fd), vec![cancel.clone(), stop.clone()]);
        Self::from_stream(host, name.to_owned(), Box::new(input), cancel, stop)
            .map_err(|cause| ArchiveError { archive: name.to_owned(), cause })
    }

    /// Reads an archive from any stream. A read that blocks cannot be given up; for pipes use [`Source::from_fd`].
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn from_reader(
        host: &Host,
        name: &str,
        input: Box<dyn Read + Send>,
        cancel: &Cancel,
    ) -> Result<Self, ArchiveError> {
        Self::from_stream(host, name.to_owned(), input, cancel, Cancel::new())
            .map_err(|cause| ArchiveError { archive: name.to_owned(), cause })
    }

    fn from_file(host: &Host, name: String, file: File, cancel: &Cancel) -> Result<Self, ArchiveCause> {
        let meta = file.metadata().map_err(ArchiveCause::Open)?;
        let stop = Cancel::new();
        if !meta.is_file() {
            let input = PolledRead::new(file, vec![cancel.clone(), stop.clone()]);
            return Self::from_stream(host, name, Box::new(input), cancel, stop);
        }
        let mut start = [0; 16];
        let got = file.read_at(&mut start, 0).map_err(ArchiveCause::Open)?;
        let container = match recognise(&start[..got])? {
            Kind::Zstd => Container::Zstd,
            Kind::Gzip => Container::Gzip,
            Kind::Lzop => {
                let child = Lzop::start(host, Packed::File(file), cancel, &stop).map_err(ArchiveCause::Open)?;
                return Self::of_vma(name, Box::new(child), stop, None);
            }
            Kind::Plain => return Self::of_vma(name, Box::new(BufReader::with_capacity(READ, file)), stop, None),
        };
        let mut note = None;
        match Index::find(container, meta.len(), &mut |buf, offset| file.read_exact_at(buf, offset)) {
            Ok(Some(index)) => {
                let header = first_frame(&file, container, &index)?;
                if header.uuid == index.uuid {
                    let input = Input::Indexed(Indexed { file, container, index });
                    return Ok(Self { name, header, input, stop, note });
                }
                note = Some("the index at the end of the archive belongs to another one; reading without it".into());
            }
            Ok(None) => {}
            Err(e) => note = Some(format!("{e}; reading without it")),
        }
        let kind = if container == Container::Zstd { Kind::Zstd } else { Kind::Gzip };
        Self::of_vma(name, unpacked(kind, Box::new(file))?, stop, note)
    }

    fn from_stream(
        host: &Host,
        name: String,
        mut input: Box<dyn Read + Send>,
        cancel: &Cancel,
        stop: Cancel,
    ) -> Result<Self, ArchiveCause> {
        let mut start = Vec::with_capacity(16);
        (&mut input).take(16).read_to_end(&mut start).map_err(ArchiveCause::Open)?;
        let kind = recognise(&start)?;
        let whole = Box::new(Cursor::new(start).chain(input));
        let vma = match kind {
            Kind::Lzop => {
                Box::new(Lzop::start(host, Packed::Stream(whole), cancel, &stop).map_err(ArchiveCause::Open)?)
            }
            kind => unpacked(kind, whole)?,
        };
        Self::of_vma(name, vma, stop, None)
    }

    fn of_vma(
        name: String,
        vma: Box<dyn Read + Send>,
        stop: Cancel,
        note: Option<String>,
    ) -> Result<Self, ArchiveCause> {
        let reader = Reader::new(vma)?;
        Ok(Self { name, header: reader.header().clone(), input: Input::Stream(reader), stop, note })
    }

    /// Where the archive comes from: its path, or `stdin`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// UUID, time, configuration files and disks.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The index of the archive's frames, when it has one that can be used.
    pub fn index(&self) -> Option<&Index> {
        match &self.input {
            Input::Indexed(indexed) => Some(&indexed.index),
            Input::Stream(_) => None,
        }
    }

    /// Something worth a line in the log: the archive has an index, but it cannot be used.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }
}

enum Kind {
    Plain,
    Zstd,
    Gzip,
    Lzop,
}

fn recognise(start: &[u8]) -> Result<Kind, ArchiveCause> {
    match start {
        [b'V', b'M', b'A', 0, ..] => Ok(Kind::Plain),
        // A frame, or a skippable frame in front of one.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Kind::Zstd),
        [0x1f, 0x8b, ..] => Ok(Kind::Gzip),
        _ if start.starts_with(LZOP_MAGIC) => Ok(Kind::Lzop),
        _ => Err(ArchiveCause::Unknown(start.to_vec())),
    }
}

fn unpacked(kind: Kind, input: Box<dyn Read + Send>) -> Result<Box<dyn Read + Send>, ArchiveCause> {
    let input = BufReader::with_capacity(READ, input);
    Ok(match kind {
        Kind::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input).map_err(ArchiveCause::Open)?),
        Kind::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Kind::Plain | Kind::Lzop => Box::new(input),
    })
}

/// The header, which is the first frame and nothing else.
fn first_frame(file: &File, container: Container, index: &Index) -> Result<Header, ArchiveCause> {
    let header = || -> io::Result<_> {
        let frame = index.frame(0).ok_or(io::ErrorKind::InvalidData)?;
        let mut packed = vec![0; frame.packed as usize];
        file.read_exact_at(&mut packed, 0)?;
        let mut raw = Vec::new();
        Unpacker::new(container)?.unpack(&packed, frame.raw as usize, &mut raw)?;
        Ok(raw)
    };
    let raw = header().map_err(|source| ArchiveCause::Frame { frame: 0, offset: 0, source })?;
    let (header, len) = Header::read(&mut raw.as_slice())?;
    if len != raw.len() as u64 {
        let source = io::Error::new(io::ErrorKind::InvalidData, "it holds more than the VMA header");
        return Err(ArchiveCause::Frame { frame: 0, offset: 0, source });
    }
    Ok(header)
}
