//! Opening the archive of a container for reading: recognised by its first bytes, never by its name.

use std::fs::File;
use std::io::{Cursor, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::header::Header;
use super::{BLOCK, Kind, Layout, Walker, normal};
use crate::archive::frame::{Index, Placed, TAR_ID, Unpacker};
use crate::archive::input::{Packed, PolledRead};
use crate::archive::packed::Method;
use crate::archive::source::FOREIGN_INDEX;
use crate::archive::{ArchiveCause, ArchiveError, Indexed};
use crate::host::{Cancel, Host};

/// An open archive of a container.
pub struct TarSource {
    pub(crate) name: String,
    pub(crate) input: TarInput,
    /// Set when the rest is not wanted any more: ends waits of the input.
    pub(crate) stop: Cancel,
    note: Option<String>,
}

pub(crate) enum TarInput {
    /// One stream of tar data.
    Stream(Box<dyn Read + Send>),
    /// Frames that can be read side by side.
    Indexed(Indexed),
    /// Tar data that is not compressed.
    Plain(File),
}

impl TarSource {
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
    /// As [`TarSource::open`].
    pub fn from_fd(host: &Host, name: &str, fd: OwnedFd, cancel: &Cancel) -> Result<Self, ArchiveError> {
        let stop = Cancel::new();
        let input = PolledRead::new(File::from(fd), vec![cancel.clone(), stop.clone()]);
        Self::from_stream(host, name.to_owned(), Box::new(input), cancel, stop)
            .map_err(|cause| ArchiveError { archive: name.to_owned(), cause })
    }

    /// Reads an archive from any stream. A read that blocks cannot be given up; for pipes use [`TarSource::from_fd`].
    ///
    /// # Errors
    /// As [`TarSource::open`].
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
        let mut start = [0; BLOCK];
        let mut got = 0;
        while got < BLOCK {
            match file.read_at(&mut start[got..], got as u64).map_err(ArchiveCause::Open)? {
                0 => break,
                count => got += count,
            }
        }
        let method = recognise(&start[..got])?;
        if method == Method::Plain {
            return Ok(Self { name, input: TarInput::Plain(file), stop, note: None });
        }
        let mut note = None;
        if let Some(container) = method.container() {
            match Index::find(container, meta.len(), &mut |buf, offset| file.read_exact_at(buf, offset)) {
                Ok(Some(index)) if index.uuid == TAR_ID => {
                    let input = TarInput::Indexed(Indexed { file, container, index });
                    return Ok(Self { name, input, stop, note });
                }
                Ok(Some(_)) => note = Some(FOREIGN_INDEX.into()),
                Ok(None) => {}
                Err(e) => note = Some(format!("{e}; reading without it")),
            }
        }
        let tar = method.unpack(host, Packed::File(file), cancel, &stop).map_err(ArchiveCause::Open)?;
        Ok(Self { name, input: TarInput::Stream(tar), stop, note })
    }

    fn from_stream(
        host: &Host,
        name: String,
        mut input: Box<dyn Read + Send>,
        cancel: &Cancel,
        stop: Cancel,
    ) -> Result<Self, ArchiveCause> {
        let mut start = Vec::with_capacity(BLOCK);
        (&mut input).take(BLOCK as u64).read_to_end(&mut start).map_err(ArchiveCause::Open)?;
        let method = recognise(&start)?;
        let whole = Packed::Stream(Box::new(Cursor::new(start).chain(input)));
        let tar = method.unpack(host, whole, cancel, &stop).map_err(ArchiveCause::Open)?;
        Ok(Self { name, input: TarInput::Stream(tar), stop, note: None })
    }

    /// Where the archive comes from: its path, or `stdin`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Something worth a line in the log: the archive has an index, but it cannot be used.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// The contents of those of the files `wanted` that lie within the first `within` bytes of the tar data, in the order of
    /// `wanted`. The archive can still be read from its start. An archive of vzdump begins with its configuration files.
    ///
    /// # Errors
    /// When the start of the archive is damaged.
    pub fn peek<const N: usize>(
        &mut self,
        wanted: [&[u8]; N],
        within: usize,
    ) -> Result<[Option<Vec<u8>>; N], ArchiveError> {
        let start = self.start(within).map_err(|cause| ArchiveError { archive: self.name.clone(), cause })?;
        let mut found: [Option<Vec<u8>>; N] = std::array::from_fn(|_| None);
        let mut walker = Walker::new();
        let walked = walker.feed(&start, &mut |member| {
            if member.kind == Kind::File && member.layout == Layout::Whole {
                let name = normal(&member.path);
                for (wanted, found) in wanted.iter().zip(&mut found) {
                    if normal(wanted) == name {
                        let from = usize::try_from(member.data).ok();
                        let to = usize::try_from(member.data + member.stored).ok();
                        let content = from.zip(to).and_then(|(from, to)| start.get(from..to));
                        *found = content.map(<[u8]>::to_vec);
                    }
                }
            }
            Ok(())
        });
        walked.map_err(|e| ArchiveError { archive: self.name.clone(), cause: e.into() })?;
        Ok(found)
    }

    /// The first bytes of tar data, about `within` of them, which stay to be read.
    fn start(&mut self, within: usize) -> Result<Vec<u8>, ArchiveCause> {
        let mut start = Vec::new();
        match &mut self.input {
            TarInput::Stream(stream) => {
                let taken = stream.take(within as u64).read_to_end(&mut start);
                let source = taken.map_err(|source| ArchiveCause::TarRead { offset: start.len() as u64, source });
                let rest = std::mem::replace(stream, Box::new(std::io::empty()));
                *stream = Box::new(Cursor::new(start.clone()).chain(rest));
                source?;
            }
            TarInput::Plain(file) => {
                start.resize(within, 0);
                let mut got = 0;
                while got < within {
                    let read = file.read_at(&mut start[got..], got as u64);
                    match read.map_err(|source| ArchiveCause::TarRead { offset: got as u64, source })? {
                        0 => break,
                        count => got += count,
                    }
                }
                start.truncate(got);
            }
            TarInput::Indexed(indexed) => {
                for Placed { frame, number, offset, .. } in indexed.index.placed() {
                    if frame.is_table() || start.len() >= within {
                        break;
                    }
                    let failed = |source| ArchiveCause::Frame { frame: number, offset, source };
                    let mut unpacker = Unpacker::new(indexed.container).map_err(failed)?;
                    let (mut packed, mut raw) = (Vec::new(), Vec::new());
                    indexed.unpack(frame, offset, &mut unpacker, &mut packed, &mut raw).map_err(failed)?;
                    start.append(&mut raw);
                }
            }
        }
        Ok(start)
    }
}

fn recognise(start: &[u8]) -> Result<Method, ArchiveCause> {
    if let Some(method) = Method::recognise(start) {
        return Ok(method);
    }
    // An archive without members is zeros.
    match start.try_into() {
        Ok(block) if Header::parse(block).is_ok() || start.iter().all(|byte| *byte == 0) => Ok(Method::Plain),
        _ => Err(ArchiveCause::NoTar(start[..start.len().min(16)].to_vec())),
    }
}
