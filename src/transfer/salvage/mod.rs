//! Salvage: saves what can be saved of a damaged archive and tells exactly what cannot.
//!
//! An archive with an index is gone through frame by frame; what is in a damaged frame is known from the index. Any other one
//! is read as far as it goes, and on from the next place where something valid begins: an extent's header of this archive, a
//! zstd frame, a gzip member. What was not found reads as zeros. One thread: this is about data, not time.

mod losses;
mod parse;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

pub use losses::{Loss, Losses};

use self::losses::Book;
use self::parse::{Parser, Saver};
use self::stream::{Packing, Tail};
use super::TransferError;
use super::throttled::{Throttle, Throttled};
use crate::archive::frame::{Index, Placed, Unpacker};
use crate::archive::vma::{Checker, Header, VmaError};
use crate::archive::{ArchiveCause, ArchiveError, Indexed, Method};
use crate::host::{Cancel, Host};
use crate::image::Target;

/// Bytes read at once.
const READ: usize = 1 << 20;

/// An archive that may be damaged anywhere but in its list of disks.
pub struct Wreck {
    name: String,
    file: File,
    len: u64,
    host: Host,
    cancel: Cancel,
    method: Method,
    header: Header,
    /// Bytes of the header in the VMA stream.
    header_len: u64,
    indexed: Option<Indexed>,
    /// What is wrong with it so far.
    notes: Vec<String>,
    /// The header's checksum is wrong: its UUID may be, too.
    doubtful: bool,
}

impl Wreck {
    /// Opens the archive at `path`, a regular file, and reads its header, whose checksum may be wrong.
    ///
    /// # Errors
    /// When it cannot be read, or the header says nothing usable.
    pub fn open(host: &Host, path: &Path, cancel: &Cancel) -> Result<Self, ArchiveError> {
        let name = path.display().to_string();
        let failed = |cause| ArchiveError { archive: name.clone(), cause };
        let opened = || -> io::Result<_> {
            let file = File::open(path)?;
            let len = file.metadata()?.len();
            let mut start = [0; 16];
            let got = file.read_at(&mut start, 0)?;
            Ok((file, len, start[..got].to_vec()))
        };
        let (file, len, start) = opened().map_err(|e| failed(ArchiveCause::Open(e)))?;
        let method = crate::archive::recognise(&start).map_err(failed)?;
        let mut notes = Vec::new();
        let (header, header_len, sound) = Self::read_header(host, &file, len, method, cancel).map_err(failed)?;
        let doubtful = !sound;
        if doubtful {
            notes
                .push("the header's checksum does not match: names, sizes and configuration files may be wrong".into());
        }
        let indexed = method.container().and_then(|container| {
            match Index::find(container, len, &mut |buf, at| file.read_exact_at(buf, at)) {
                Ok(Some(index)) if index.uuid == header.uuid => {
                    file.try_clone().ok().map(|file| Indexed { file, container, index })
                }
                Ok(Some(_)) => {
                    notes.push(crate::archive::FOREIGN_INDEX.to_owned());
                    None
                }
                Ok(None) => None,
                Err(e) => {
                    notes.push(format!("{e}; reading without it"));
                    None
                }
            }
        });
        let (host, cancel) = (host.clone(), cancel.clone());
        Ok(Self { name, file, len, host, cancel, method, header, header_len, indexed, notes, doubtful })
    }

    fn read_header(
        host: &Host,
        file: &File,
        len: u64,
        method: Method,
        cancel: &Cancel,
    ) -> Result<(Header, u64, bool), ArchiveCause> {
        let mut input: Box<dyn Read> = match Packing::of(method) {
            Some(packing) => {
                let tail = Tail::new(file.try_clone().map_err(ArchiveCause::Open)?, 0, len);
                packing.decoder(tail).map_err(ArchiveCause::Open)?
            }
            None => stream::child(host, file, method, cancel).map_err(ArchiveCause::Open)?,
        };
        Ok(Header::read_damaged(&mut input)?)
    }

    /// What the header says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads the whole archive and writes into the targets, by number of the disk, what can be had of them; the rest of them
    /// reads as zeros. `bwlimit` bounds the bytes of data a second, `progress` gets the bytes of the file done and in total.
    ///
    /// # Errors
    /// When a target cannot be written, or somebody asked to stop. Never because of the archive.
    pub fn save(
        mut self,
        targets: &BTreeMap<u8, Arc<dyn Target>>,
        bwlimit: Option<u64>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Losses, TransferError> {
        let (indexed, notes) = (self.indexed.take(), std::mem::take(&mut self.notes));
        let throttle = Arc::new(Throttle::new(bwlimit.unwrap_or(0)));
        let throttled = |target: &Arc<dyn Target>| -> Arc<dyn Target> {
            Arc::new(Throttled::new(Arc::clone(target), Arc::clone(&throttle), self.cancel.clone()))
        };
        let targets: BTreeMap<u8, Arc<dyn Target>> = targets.iter().map(|(id, t)| (*id, throttled(t))).collect();
        let mut book = Book::new(self.doubtful);
        notes.into_iter().for_each(|note| book.damage(note, None));
        let checker = Checker::new(&self.header);
        let saver = Saver::new(&self.header, &targets, checker, book, self.cancel.clone(), &self.name);
        let uuid = (!self.doubtful).then_some(self.header.uuid);
        let plain = indexed.is_none() && Packing::of(self.method).is_none();
        let mut parser = Parser::new(saver, uuid, plain);
        let saved = match indexed {
            Some(indexed) => self.frames(&indexed, &mut parser, progress),
            None => self.stream(&mut parser, progress),
        };
        saved.map_err(|e| if self.cancel.is_set() { TransferError::Cancelled } else { e })?;
        let losses = parser.into_saver().finish()?;
        for target in targets.values() {
            target.flush()?;
        }
        progress(self.len, self.len);
        Ok(losses)
    }

    fn frames(
        &self,
        indexed: &Indexed,
        parser: &mut Parser,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), TransferError> {
        let failed = |source| ArchiveError {
            archive: self.name.clone(),
            cause: ArchiveCause::Frame { frame: 0, offset: 0, source },
        };
        let mut unpacker = Unpacker::new(indexed.container).map_err(failed)?;
        let (mut packed, mut raw) = (Vec::new(), Vec::new());
        for Placed { frame, number, offset, .. } in indexed.index.placed() {
            parser.saver().go_on()?;
            if number > 0 && !frame.is_table() {
                match indexed.unpack(frame, offset, &mut unpacker, &mut packed, &mut raw) {
                    Ok(()) => parser.whole(&raw, offset)?,
                    Err(e) => {
                        let why = format!("frame {number} is damaged: {e}");
                        let clusters = u64::from(frame.first)..u64::from(frame.first) + u64::from(frame.clusters);
                        parser.saver().lost(frame.device, clusters, why, offset);
                    }
                }
            }
            progress(offset + u64::from(frame.packed), self.len);
        }
        Ok(())
    }

    fn stream(&self, parser: &mut Parser, progress: &mut dyn FnMut(u64, u64)) -> Result<(), TransferError> {
        parser.skip(self.header_len);
        let failed = |source| ArchiveError { archive: self.name.clone(), cause: ArchiveCause::Open(source) };
        match (Packing::of(self.method), self.method) {
            (None, Method::Plain) => self.plain(parser, progress),
            (None, _) => {
                let mut input = stream::child(&self.host, &self.file, self.method, &self.cancel).map_err(failed)?;
                let mut buf = vec![0; READ];
                loop {
                    match input.read(&mut buf) {
                        Ok(0) => return parser.end(),
                        Ok(count) => parser.feed(&buf[..count], 0)?,
                        Err(e) => {
                            parser.saver().damage(format!("the compressed data cannot be read on: {e}"), None);
                            return parser.end();
                        }
                    }
                }
            }
            (Some(packing), _) => {
                let file = self.file.try_clone().map_err(failed)?;
                stream::each_frame(packing, &file, self.len, parser, progress)
            }
        }
    }

    fn plain(&self, parser: &mut Parser, progress: &mut dyn FnMut(u64, u64)) -> Result<(), TransferError> {
        let (mut buf, mut at) = (vec![0; READ], 0);
        while at < self.len {
            let want = usize::try_from(self.len - at).unwrap_or(READ).min(READ);
            let part = &mut buf[..want];
            if let Err(e) = self.file.read_exact_at(part, at) {
                // What cannot be read is as long as it is: only its blocks are lost.
                for (number, block) in part.chunks_mut(4096).enumerate() {
                    let place = at + number as u64 * 4096;
                    if self.file.read_exact_at(block, place).is_err() {
                        block.fill(0);
                        parser.hole(place..place + block.len() as u64, &e.to_string());
                    }
                }
            }
            parser.feed(part, at)?;
            at += want as u64;
            progress(at, self.len);
        }
        parser.end()
    }
}

/// An error of the archive's bytes, for which there is no other place.
fn vma_error(archive: &str, error: VmaError) -> TransferError {
    ArchiveError { archive: archive.to_owned(), cause: error.into() }.into()
}
