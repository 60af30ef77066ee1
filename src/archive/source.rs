//! Opening an archive for reading: recognises it by its first bytes, never by its name, reads the header, and finds
//! out whether its frames can be read side by side.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::frame::{Container, Frame, Index, Unpacker};
use super::input::{Packed, PolledRead};
use super::packed::Method;
use super::seek::SeekError;
use super::tar::TarError;
use super::vma::{Header, Reader, VmaError};
use crate::host::{Cancel, Host};

/// The first bytes of VMA.
pub(super) const VMA_MAGIC: &[u8] = b"VMA\0";

/// What is noted about an archive with an index that is not its own.
pub(crate) const FOREIGN_INDEX: &str = "the index at the end of the archive belongs to another one; reading without it";

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

impl ArchiveError {
    /// Whether it is only that the archive cannot be read at any place without more work.
    pub fn is_unsupported(&self) -> bool {
        matches!(&self.cause, ArchiveCause::Open(e) if e.kind() == io::ErrorKind::Unsupported)
    }
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
    /// Not an archive of a container.
    #[error("neither tar nor zstd, gzip, lzop, xz or bzip2 data: it starts with {0:02x?}")]
    NoTar(Vec<u8>),
    /// The tar data in it is damaged, or must not be unpacked.
    #[error("{0}")]
    Tar(#[from] TarError),
    /// The tar data cannot be had.
    #[error("reading the tar data from byte {offset} on failed: {source}")]
    TarRead {
        /// Up to where it could be read.
        offset: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The index of frames does not have every cluster once.
    #[error("the index of frames has cluster {cluster} of disk number {device} not once")]
    Coverage {
        /// Number of the disk.
        device: usize,
        /// The first cluster that is missing or there twice.
        cluster: u64,
    },
    /// An extent is not what it was when the archive was opened.
    #[error("the extent at byte {offset} of the VMA stream has changed since the archive was opened")]
    Changed {
        /// Where, counted in uncompressed bytes.
        offset: u64,
    },
    /// The compressed data is damaged or cannot be had.
    #[error("{0}")]
    Packed(#[from] SeekError),
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

/// The frames of an archive and its header, if it has an index that can be used; also why one that is there cannot be.
type Search = (Option<(Header, Indexed)>, Option<String>);

impl Indexed {
    /// The frames of a file of `len` bytes and the VMA header in the first of them, if it has an index that can be used; also
    /// why one that is there cannot be.
    pub(super) fn find(file: &File, method: Method, len: u64) -> Result<Search, ArchiveCause> {
        let Some(container) = method.container() else { return Ok((None, None)) };
        match Index::find(container, len, &mut |buf, offset| file.read_exact_at(buf, offset)) {
            Ok(Some(index)) => {
                let indexed = Self { file: file.try_clone().map_err(ArchiveCause::Open)?, container, index };
                let header = indexed.header()?;
                Ok(match header.uuid == indexed.index.uuid {
                    true => (Some((header, indexed)), None),
                    false => (None, Some(FOREIGN_INDEX.into())),
                })
            }
            Ok(None) => Ok((None, None)),
            Err(e) => Ok((None, Some(format!("{e}; reading without it")))),
        }
    }

    /// Reads `frame`, which lies at `offset` of the file, into `packed` and decompresses it into `raw`.
    ///
    /// # Errors
    /// When it cannot be read, its checksum does not match, or it does not hold what the index says.
    pub(crate) fn unpack(
        &self,
        frame: Frame,
        offset: u64,
        unpacker: &mut Unpacker,
        packed: &mut Vec<u8>,
        raw: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.read(frame, offset, packed)?;
        unpacker.unpack(packed, frame.raw as usize, raw)
    }

    /// Reads `frame`, which lies at `offset` of the file, into `packed`.
    ///
    /// # Errors
    /// When it cannot be read, or its checksum does not match.
    pub(crate) fn read(&self, frame: Frame, offset: u64, packed: &mut Vec<u8>) -> io::Result<()> {
        packed.resize(frame.packed as usize, 0);
        self.file.read_exact_at(packed, offset)?;
        frame.check(packed)
    }

    /// Whether the index lies in the file to the letter, with all that surrounds it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn index_is_intact(&self) -> io::Result<bool> {
        let wanted = self.index.encode(self.container);
        let frames: u64 = self.index.iter().map(|frame| u64::from(frame.packed)).sum();
        let mut found = vec![0; wanted.len()];
        self.file.read_exact_at(&mut found, frames)?;
        Ok(found == wanted)
    }

    /// The VMA header, which is the first frame and nothing else.
    fn header(&self) -> Result<Header, ArchiveCause> {
        let failed = |source| ArchiveCause::Frame { frame: 0, offset: 0, source };
        let frame = self.index.frame(0).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
        let mut unpacker = Unpacker::new(self.container).map_err(failed)?;
        let (mut packed, mut raw) = (Vec::new(), Vec::new());
        self.unpack(frame, 0, &mut unpacker, &mut packed, &mut raw).map_err(failed)?;
        let (header, len) = Header::read(&mut raw.as_slice())?;
        if len != raw.len() as u64 {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "it holds more than the VMA header")));
        }
        Ok(header)
    }
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
        let method = recognise(&start[..got])?;
        let (indexed, note) = Indexed::find(&file, method, meta.len())?;
        if let Some((header, indexed)) = indexed {
            return Ok(Self { name, header, input: Input::Indexed(indexed), stop, note });
        }
        let vma = method.unpack(host, Packed::File(file), cancel, &stop).map_err(ArchiveCause::Open)?;
        Self::of_vma(name, vma, stop, note)
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
        let method = recognise(&start)?;
        let whole = Packed::Stream(Box::new(Cursor::new(start).chain(input)));
        let vma = method.unpack(host, whole, cancel, &stop).map_err(ArchiveCause::Open)?;
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

    /// The extents one after the other; `None` for an archive with an index.
    pub fn into_reader(self) -> Option<Reader<Box<dyn Read + Send>>> {
        match self.input {
            Input::Stream(reader) => Some(reader),
            Input::Indexed(_) => None,
        }
    }

    /// Something worth a line in the log: the archive has an index, but it cannot be used.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }
}

pub(crate) fn recognise(start: &[u8]) -> Result<Method, ArchiveCause> {
    match Method::recognise(start) {
        Some(method @ (Method::Zstd | Method::Gzip | Method::Lzop)) => Ok(method),
        None if start.starts_with(VMA_MAGIC) => Ok(Method::Plain),
        _ => Err(ArchiveCause::Unknown(start.to_vec())),
    }
}
