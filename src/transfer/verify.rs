//! Verify: reads every byte of an archive and says exactly what is damaged.
//!
//! In an archive with an index every frame is judged for itself, by several threads, so that one damaged frame does not hide the
//! next. Any other archive is read up to the first damage, behind which nothing can be told for sure.

mod frames;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use self::frames::Frames;
use super::output::Output;
use super::{TransferError, restore, unpack_tar};
use crate::archive::tar::{Rules, TarInput, TarSource, Vetting};
use crate::archive::{ArchiveCause, ArchiveError, Holds, Input, Source, holds, is_of_the_data};
use crate::host::{Cancel, Host};

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

#[cfg(test)]
mod tests;
