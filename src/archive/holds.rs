//! What kind of guest an archive holds, by its first bytes and never by its name.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::input::Packed;
use super::packed::Method;
use super::source::VMA_MAGIC;
use super::{ArchiveCause, ArchiveError};
use crate::host::{Cancel, Host};

/// What is in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// VMA data: a virtual machine.
    Vm,
    /// Tar data, or something that is no archive at all: who opens it says so.
    Container,
}

/// What the archive at `path` holds. Reads its start only.
///
/// # Errors
/// When it cannot be read or decompressed.
pub fn holds(host: &Host, path: &Path, cancel: &Cancel) -> Result<Holds, ArchiveError> {
    let start = || {
        let (mut file, stop) = (File::open(path)?, Cancel::new());
        let mut start = Vec::new();
        (&mut file).take(16).read_to_end(&mut start)?;
        let Some(method) = Method::recognise(&start) else { return Ok(start) };
        let packed = Packed::File(File::open(path)?);
        let mut unpacked = Vec::new();
        method.unpack(host, packed, cancel, &stop)?.take(16).read_to_end(&mut unpacked)?;
        Ok(unpacked)
    };
    let failed = |e| ArchiveError { archive: path.display().to_string(), cause: ArchiveCause::Open(e) };
    let start = start().map_err(failed)?;
    Ok(if start.starts_with(VMA_MAGIC) { Holds::Vm } else { Holds::Container })
}
