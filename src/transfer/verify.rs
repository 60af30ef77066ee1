//! Verify: reads every byte of an archive and says exactly what is damaged.
//!
//! In an archive with an index every frame is judged for itself, by several threads, so that one damaged frame does not hide the
//! next. Any other archive is read up to the first damage, behind which nothing can be told for sure.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::limit::Limiter;
use super::output::Output;
use super::pool;
use super::stop::{Stop, lock};
use super::{TransferError, restore, unpack_tar};
use crate::archive::frame::{Frame, Unpacker};
use crate::archive::tar::{Rules, TarInput, TarSource, Vetting};
use crate::archive::vma::{CLUSTER, Checker, Damage, Extent, Extents, Header, VmaError};
use crate::archive::{ArchiveCause, ArchiveError, Holds, Indexed, Input, Source, holds, is_of_the_data};
use crate::host::{Cancel, Host};

/// Threads that decompress frames side by side, at most.
const MAX_WORKERS: usize = 8;
/// Damaged places that are named; the others are counted.
const MAX_NAMED: usize = 100;

/// What the bytes of an archive were held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// The checksums of our index: no bit of the file can have changed.
    EveryByte,
    /// The checksums of the compression, and the archive's structure.
    Compression,
    /// The archive's structure alone.
    Structure,
}

impl Checked {
    /// A word for programs: `every-byte`, `compression` or `structure`.
    pub fn word(self) -> &'static str {
        match self {
            Self::EveryByte => "every-byte",
            Self::Compression => "compression",
            Self::Structure => "structure",
        }
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EveryByte => "every byte by its checksum",
            Self::Compression => "the compression's checksums and the structure",
            Self::Structure => "the structure only, this format has no checksums of the data",
        })
    }
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// How far the judgement goes.
    pub checked: Checked,
    /// Bytes of VMA or tar data that were read.
    pub data: u64,
    /// What is damaged, in the order of the file; empty for a good archive.
    pub damage: Vec<String>,
    /// How many damaged places there are beyond those.
    pub more: u64,
    /// Why the index was not used, until it counts as damage.
    note: Option<String>,
}

/// How far it is, in bytes of VMA or tar data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Read so far.
    pub done: u64,
    /// All of it, where that is known before the end.
    pub total: Option<u64>,
}

/// Reads the archive at `path` to the end. `bwlimit` bounds the bytes of data per second; `progress` is called every 50 ms by the
/// calling thread.
///
/// # Errors
/// When the archive cannot be opened or the check cannot be made. Damage is no error, it is what was looked for.
pub fn verify(
    host: &Host,
    path: &Path,
    bwlimit: Option<u64>,
    progress: &mut dyn FnMut(&VerifyProgress),
    cancel: &Cancel,
) -> Result<Verified, TransferError> {
    let checked = what_is_checked(path)?;
    // Only ours have an index, and a damaged one is damage.
    let with_index = |mut verified: Verified| {
        verified.damage.extend(verified.note.take());
        verified
    };
    let judged = holds(host, path, cancel).map_err(Into::into).and_then(|holds| match holds {
        Holds::Vm => of_vm(Source::open(host, path, cancel)?, checked, bwlimit, progress, cancel),
        Holds::Container => of_container(host, path, checked, bwlimit, progress, cancel),
    });
    let judged = judged.or_else(|error| Ok(good(checked, 0, None).with(damage_in(error)?)));
    // An end that was wished for says nothing about the archive.
    if cancel.is_set() { Err(TransferError::Cancelled) } else { judged.map(with_index) }
}

fn good(checked: Checked, data: u64, note: Option<String>) -> Verified {
    Verified { checked, data, damage: Vec::new(), more: 0, note }
}

impl Verified {
    fn with(mut self, damage: String) -> Self {
        self.damage.push(damage);
        self
    }
}

/// What is wrong with an archive that could not be read to its end; anything else stays an error.
fn damage_in(error: TransferError) -> Result<String, TransferError> {
    match error {
        TransferError::Archive(ArchiveError { cause, .. }) if is_of_the_data(&cause) => Ok(cause.to_string()),
        error => Err(error),
    }
}

/// What an archive without a good index is held against.
fn what_is_checked(path: &Path) -> Result<Checked, TransferError> {
    let failed = |e| ArchiveError { archive: path.display().to_string(), cause: ArchiveCause::Open(e) };
    let mut start = Vec::new();
    File::open(path).and_then(|file| file.take(5).read_to_end(&mut start)).map_err(failed)?;
    Ok(match start.as_slice() {
        // The frame's descriptor says whether a checksum follows it.
        [0x28, 0xb5, 0x2f, 0xfd, descriptor] if descriptor & 4 == 0 => Checked::Structure,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x1f, 0x8b, ..] | [0x89, b'L', b'Z', b'O', ..] => Checked::Compression,
        [0xfd, b'7', b'z', b'X', ..] | [b'B', b'Z', b'h', ..] => Checked::Compression,
        _ => Checked::Structure,
    })
}

fn of_vm(
    source: Source,
    checked: Checked,
    bwlimit: Option<u64>,
    progress: &mut dyn FnMut(&VerifyProgress),
    cancel: &Cancel,
) -> Result<Verified, TransferError> {
    let note = source.note().map(str::to_owned);
    if let Input::Indexed(indexed) = &source.input {
        let judge = Frames { name: &source.name, indexed, header: Some(&source.header), bwlimit };
        return judge.all(progress, cancel);
    }
    let mut done = 0;
    let read = restore(
        source,
        &BTreeMap::new(),
        bwlimit,
        &mut |p| {
            done = p.done;
            progress(&VerifyProgress { done, total: Some(p.total) });
        },
        cancel,
    );
    match read {
        Ok(summary) => Ok(good(checked, summary.read, note)),
        Err(error) => Ok(good(checked, done, note).with(damage_in(error)?)),
    }
}

fn of_container(
    host: &Host,
    path: &Path,
    checked: Checked,
    bwlimit: Option<u64>,
    progress: &mut dyn FnMut(&VerifyProgress),
    cancel: &Cancel,
) -> Result<Verified, TransferError> {
    let source = TarSource::open(host, path, cancel)?;
    let note = source.note().map(str::to_owned);
    let total = match &source.input {
        TarInput::Indexed(indexed) => Some(indexed.index.iter().map(|frame| u64::from(frame.raw)).sum()),
        TarInput::Stream(_) | TarInput::Plain(_) => None,
    };
    let mut vetting = Vetting::new(Rules { devices: true });
    let (mut done, nowhere) = (0, Output::Writer(Box::new(io::sink()), "nowhere".into()));
    let read = unpack_tar(
        source,
        nowhere,
        &mut vetting,
        bwlimit,
        &mut |p| {
            done = p.raw;
            progress(&VerifyProgress { done, total });
        },
        cancel,
    );
    if total.is_none() {
        return match read {
            Ok(summary) => Ok(good(checked, summary.progress.raw, note)),
            Err(error) => Ok(good(checked, done, note).with(damage_in(error)?)),
        };
    }
    // The members are good, or one is not. Which other frames are damaged, and the table, only a look at each can tell.
    let tables_only = read.is_ok();
    let of_members = read.map(drop).map_err(damage_in);
    if let Err(Err(error)) = of_members {
        return Err(error);
    }
    let source = TarSource::open(host, path, cancel)?;
    let TarInput::Indexed(indexed) = &source.input else { return Ok(good(checked, done, note)) };
    let judge = Frames { name: source.name(), indexed, header: None, bwlimit };
    let mut verified = match tables_only {
        true => judge.tables(cancel)?,
        false => judge.all(&mut |_| {}, cancel)?,
    };
    verified.data = done.max(total.unwrap_or_default());
    if let (Err(Ok(damage)), true) = (of_members, verified.damage.is_empty()) {
        verified.damage.push(damage);
    }
    Ok(verified)
}

/// An archive in frames that are judged one by one.
struct Frames<'a> {
    /// The archive's path.
    name: &'a str,
    indexed: &'a Indexed,
    /// Of a VMA; none of tar data.
    header: Option<&'a Header>,
    bwlimit: Option<u64>,
}

/// The next frame to judge: number, offset in the file, offset of its data in the stream.
#[derive(Default, Clone, Copy)]
struct Place {
    number: usize,
    offset: u64,
    raw: u64,
}

struct Found {
    /// By offset in the file.
    damage: BTreeMap<u64, String>,
    more: u64,
    checker: Option<Checker>,
}

impl Frames<'_> {
    /// Judges all frames.
    fn all(&self, progress: &mut dyn FnMut(&VerifyProgress), cancel: &Cancel) -> Result<Verified, TransferError> {
        self.judge(&|_| true, progress, cancel)
    }

    /// Judges the table of members, which whoever reads the members has not seen.
    fn tables(&self, cancel: &Cancel) -> Result<Verified, TransferError> {
        self.judge(&Frame::is_table, &mut |_| {}, cancel)
    }

    fn judge(
        &self,
        wanted: &(dyn Fn(&Frame) -> bool + Sync),
        progress: &mut dyn FnMut(&VerifyProgress),
        cancel: &Cancel,
    ) -> Result<Verified, TransferError> {
        let total = self.indexed.index.iter().map(|frame| u64::from(frame.raw)).sum();
        let (stop, limiter, done) = (Stop::new(cancel), Limiter::new(self.bwlimit), AtomicU64::new(0));
        let found = Found { damage: BTreeMap::new(), more: 0, checker: self.header.map(Checker::new) };
        let (place, found) = (Mutex::new(Place::default()), Mutex::new(found));
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
        let mut tick = || progress(&VerifyProgress { done: done.load(Ordering::Relaxed), total: Some(total) });
        let work = || self.work(wanted, &stop, &limiter, &place, &found, &done);
        pool::run("verify", workers, &stop, cancel, &work, &mut tick);
        stop.into_result()?;
        let end = lock(&place);
        let Found { damage, more, checker } = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut verified = Verified { more, ..good(Checked::EveryByte, total, None) };
        verified.damage = damage.into_values().collect();
        // What a damaged frame should hold is missing, of course.
        if let Some(checker) = checker.filter(|_| verified.damage.is_empty())
            && let Err(e) = checker.finish(end.raw)
        {
            verified.damage.push(e.to_string());
        }
        let intact = self.indexed.index_is_intact();
        match intact.map_err(|source| ArchiveCause::Frame { frame: end.number, offset: end.offset, source }) {
            Ok(true) => {}
            Ok(false) => verified.damage.push(format!("the index at byte {} of the file is damaged", end.offset)),
            Err(cause) if is_of_the_data(&cause) => verified.damage.push(cause.to_string()),
            Err(cause) => return Err(ArchiveError { archive: self.name.to_owned(), cause }.into()),
        }
        progress(&VerifyProgress { done: total, total: Some(total) });
        Ok(verified)
    }

    fn work(
        &self,
        wanted: &(dyn Fn(&Frame) -> bool + Sync),
        stop: &Stop,
        limiter: &Limiter,
        place: &Mutex<Place>,
        found: &Mutex<Found>,
        done: &AtomicU64,
    ) -> Result<(), TransferError> {
        let mut unpacker = Unpacker::new(self.indexed.container).map_err(TransferError::Thread)?;
        let (mut packed, mut raw) = (Vec::new(), Vec::new());
        while !stop.is_set() {
            let (frame, at) = {
                let mut place = lock(place);
                let Some(frame) = self.indexed.index.frame(place.number) else { return Ok(()) };
                let at = *place;
                place.number += 1;
                place.offset += u64::from(frame.packed);
                place.raw += u64::from(frame.raw);
                (frame, at)
            };
            if !wanted(&frame) {
                continue;
            }
            if !limiter.take(frame.raw.into(), stop) {
                return Ok(());
            }
            let read = match frame.is_table() {
                true => self.indexed.read(frame, at.offset, &mut packed),
                false => self.indexed.unpack(frame, at.offset, &mut unpacker, &mut packed, &mut raw),
            };
            let (number, offset) = (at.number, at.offset);
            let judged = read.map_err(|source| ArchiveCause::Frame { frame: number, offset, source });
            let judged = judged.and_then(|()| match self.header {
                Some(header) if at.number > 0 => self.extents(header, frame, at.raw, &raw, found),
                _ => Ok(()),
            });
            if let Err(cause) = judged {
                if !is_of_the_data(&cause) {
                    return Err(ArchiveError { archive: self.name.to_owned(), cause }.into());
                }
                let mut found = lock(found);
                if found.damage.len() < MAX_NAMED {
                    found.damage.insert(at.offset, format!("{}{cause}", self.range_of(frame)));
                } else {
                    found.more += 1;
                }
            }
            done.fetch_add(frame.raw.into(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// The clusters of a frame have to be those that the index has there.
    fn extents(
        &self,
        header: &Header,
        frame: Frame,
        start: u64,
        raw: &[u8],
        found: &Mutex<Found>,
    ) -> Result<(), ArchiveCause> {
        for extent in Extents::new(raw, &header.uuid, start) {
            let Extent { head, offset, .. } = extent?;
            let within = frame.first..frame.first.saturating_add(frame.clusters);
            if let Some(other) = head.pieces.iter().find(|p| p.device != frame.device || !within.contains(&p.number)) {
                let damage = Damage::Index { device: other.device, cluster: other.number };
                return Err(VmaError::Damaged { offset, damage }.into());
            }
            if let Some(checker) = &mut lock(found).checker {
                checker.extent(&head, offset)?;
            }
        }
        Ok(())
    }

    /// Which part of which disk is in a frame, as the beginning of a sentence.
    fn range_of(&self, frame: Frame) -> String {
        let device = self.header.and_then(|header| header.device(frame.device)).filter(|_| frame.clusters > 0);
        device.map_or_else(String::new, |device| {
            let start = u64::from(frame.first) * CLUSTER as u64;
            let end = (start + u64::from(frame.clusters) * CLUSTER as u64).min(device.size);
            format!("{}, bytes {start} to {end}: ", device.name)
        })
    }
}

#[cfg(test)]
mod tests;
