//! An archive as a tree: what a directory holds, and the content of one file. With a table of members only the blocks of
//! it and the frames that are needed are read; without one, the archive is gone through.
//!
//! The table is a guide, nothing more: what it says of a file is compared with the header there, and where they differ, or
//! a block of the table is damaged, the archive is gone through.

mod data;
mod guide;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::data::{At, Frames};
use super::TarBytes;
use super::sparse::Expanded;
use super::table::{self, Entry, Root};
use super::{BLOCK, Kind, Member, TarError, TarInput, TarSource, Walker, normal, printable};
use crate::archive::bytes::{PlainBytes, Reading};
use crate::archive::foreign::{FirstPass, Foreign};
use crate::archive::seek::{self, Seekable};
use crate::archive::{ArchiveCause, ArchiveError, Bytes, Indexed};
use crate::host::{Cancel, Host};

/// Bytes read at once when an archive is gone through.
const PIECE: usize = 1 << 20;

const DAMAGED: &str = "the table of the archive's members is damaged; going through all of it";

/// Takes the normal name, kind, size and offset of a member.
type EachEntry<'a> = dyn FnMut(&[u8], u8, u64, u64) + 'a;

/// A file in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name in the directory.
    pub name: Vec<u8>,
    /// What it is, as `ls -l` has it; `h` for a hard link.
    pub kind: char,
    /// Bytes of the file.
    pub size: u64,
}

/// No file of this name, or none that has content.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// It is not in the archive.
    #[error("archive '{archive}' has no '{name}'")]
    Missing {
        /// The archive's path.
        archive: String,
        /// What was asked for.
        name: String,
    },
    /// It is something else.
    #[error("'{name}' in archive '{archive}' is {what}")]
    Unfit {
        /// The archive's path.
        archive: String,
        /// What was asked for.
        name: String,
        /// What it is.
        what: &'static str,
    },
}

/// An archive that can be looked at; see the module.
pub struct TarArchive {
    host: Host,
    path: PathBuf,
    cancel: Cancel,
    name: String,
    store: Store,
    note: RefCell<Option<String>>,
}

enum Store {
    /// With a table, if that can be used.
    Frames(Indexed, Option<Root>),
    Plain(File),
    /// Compressed by somebody else, and read once before.
    Foreign(Arc<Seekable>),
    /// Opened again for each pass.
    Stream,
}

impl TarArchive {
    /// Opens the archive at `path`. Waits end when `cancel` is set.
    ///
    /// # Errors
    /// When it cannot be read or is no archive.
    pub fn open(host: &Host, path: &Path, cancel: &Cancel) -> Result<Self, ArchiveError> {
        Self::open_with(host, path, FirstPass::Never, cancel)
    }

    /// As [`TarArchive::open`]; who reads at many places says with `first` what to do when that takes reading all of it.
    ///
    /// # Errors
    /// As [`TarArchive::open`]. That nothing can be kept is worth a note only.
    pub fn open_with(host: &Host, path: &Path, first: FirstPass, cancel: &Cancel) -> Result<Self, ArchiveError> {
        let source = TarSource::open(host, path, cancel)?;
        let mut note = source.note().map(str::to_owned);
        let store = match source.input {
            TarInput::Indexed(indexed) => {
                let root = guide::root(&indexed);
                if root.is_none() {
                    note = Some(
                        "the archive has no table of its members, or a damaged one; going through all of it".into(),
                    );
                }
                Store::Frames(indexed, root)
            }
            TarInput::Plain(file) => Store::Plain(file),
            TarInput::Stream(_) => {
                let opened = foreign(host, path, first, &mut note, cancel);
                opened.map_err(|cause| ArchiveError { archive: source.name.clone(), cause })?
            }
        };
        let (host, path, cancel) = (host.clone(), path.to_owned(), cancel.clone());
        Ok(Self { host, path, cancel, name: source.name, store, note: RefCell::new(note) })
    }

    /// Something worth telling: why this takes long.
    pub fn note(&self) -> Option<String> {
        self.note.borrow().clone()
    }

    /// How many members the table has; none without one.
    pub fn members(&self) -> Option<u64> {
        match &self.store {
            Store::Frames(_, root) => root.as_ref().map(|root| root.members),
            Store::Plain(_) | Store::Foreign(_) | Store::Stream => None,
        }
    }

    /// Gives every member's normal name, kind (as `ls -l` has it, `h` for a hard link), size and offset, as the table has
    /// them; `false` when there is none that can be used, and what was given is not all.
    pub(crate) fn each_in_table(&self, each: &mut EachEntry<'_>) -> bool {
        let Store::Frames(indexed, Some(root)) = &self.store else { return false };
        for number in 0..root.first_keys.len() {
            let Some(entries) = guide::block(indexed, number) else {
                self.distrust(DAMAGED);
                return false;
            };
            for entry in &entries {
                each(&table::name(&entry.key), entry.kind, entry.size, entry.offset);
            }
        }
        true
    }

    /// Goes through the archive, and gives every member with all its attributes.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub(crate) fn each_member(&self, each: &mut dyn FnMut(Member)) -> Result<(), ArchiveError> {
        self.scan_with(Walker::at_member(0), each)
    }

    /// Whether it can be read at any place, and not only from its start on.
    pub(crate) fn is_random(&self) -> bool {
        !matches!(self.store, Store::Stream)
    }

    /// The tar data, at any place; none when it can only be read from the start.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub(crate) fn bytes(self) -> Result<Option<Arc<dyn Bytes>>, ArchiveError> {
        let failed = |source| ArchiveError { archive: self.name, cause: ArchiveCause::Open(source) };
        Ok(match self.store {
            Store::Frames(indexed, _) => Some(Arc::new(TarBytes::new(indexed))),
            Store::Plain(file) => Some(Arc::new(PlainBytes::new(file).map_err(failed)?)),
            Store::Foreign(bytes) => Some(bytes),
            Store::Stream => None,
        })
    }

    /// What the directory holds, sorted by name; `""` or `.` is the top one. A member that occurs twice is listed as it is
    /// unpacked: the last one counts.
    ///
    /// # Errors
    /// When there is no such directory, or the archive cannot be read.
    pub fn list(&self, directory: &[u8]) -> Result<Vec<Listed>, MemberError> {
        let directory = normal(directory);
        let prefix = table::prefix(&directory);
        let mut found: BTreeMap<Vec<u8>, (u64, Listed)> = BTreeMap::new();
        let mut add = |name: &[u8], offset: u64, kind: u8, size: u64| {
            let known = found.get(name).is_none_or(|(known, _)| *known <= offset);
            if known && !name.is_empty() {
                let listed = Listed { name: name.to_vec(), kind: kind.into(), size };
                found.insert(name.to_vec(), (offset, listed));
            }
        };
        if let Some(entries) = self.table_entries(&prefix) {
            for entry in &entries {
                if let Some(name) = entry.key.strip_prefix(prefix.as_slice()) {
                    add(name, entry.offset, entry.kind, entry.size);
                }
            }
        } else {
            self.scan(&mut |member| {
                let key = table::key(&normal(&member.path));
                if let Some(name) = key.strip_prefix(prefix.as_slice()) {
                    add(name, member.offset, table::sign(member.kind), member.size);
                }
            })?;
        }
        if found.is_empty() && !directory.is_empty() {
            let (member, _) = self.find(&directory)?;
            if member.kind != Kind::Directory {
                return Err(self.unfit(&directory, "no directory"));
            }
        }
        Ok(found.into_values().map(|(_, listed)| listed).collect())
    }

    /// The member of that name, and its data as it is in the archive, without what fills the last block.
    ///
    /// # Errors
    /// When there is no such member, or the archive cannot be read.
    pub fn read_raw(&self, member: &[u8]) -> Result<(Member, impl Read + use<>), MemberError> {
        self.find(&normal(member))
    }

    /// The content of a regular file, holes filled with zeros, and its size. A hard link is followed.
    ///
    /// # Errors
    /// When there is no such file, or the archive cannot be read.
    pub fn read(&self, member: &[u8]) -> Result<(impl Read + use<>, u64), MemberError> {
        let asked = normal(member);
        let (mut member, mut data) = self.find(&asked)?;
        // A hard link leads to a member before it. What comes behind it is another file of that name, or a circle.
        while member.kind == Kind::HardLink {
            let link = member.offset;
            (member, data) = self.find(&normal(&member.link))?;
            if member.offset >= link {
                return Err(self.unfit(&asked, "a hard link whose file is not before it"));
            }
        }
        match member.kind {
            Kind::File => {}
            Kind::Directory => return Err(self.unfit(&asked, "a directory")),
            Kind::Symlink => return Err(self.unfit(&asked, "a symbolic link")),
            _ => return Err(self.unfit(&asked, "no regular file")),
        }
        let offset = member.data;
        let expanded =
            Expanded::new(&member, data).map_err(|e| self.failed(ArchiveCause::TarRead { offset, source: e }))?;
        Ok((expanded, member.size))
    }

    pub(super) fn failed(&self, cause: impl Into<ArchiveCause>) -> ArchiveError {
        ArchiveError { archive: self.name.clone(), cause: cause.into() }
    }

    pub(super) fn missing(&self, name: &[u8]) -> MemberError {
        MemberError::Missing { archive: self.name.clone(), name: printable(name) }
    }

    fn unfit(&self, name: &[u8], what: &'static str) -> MemberError {
        MemberError::Unfit { archive: self.name.clone(), name: printable(name), what }
    }

    /// The member of this normal name, and its data.
    fn find(&self, name: &[u8]) -> Result<(Member, io::Take<Box<dyn Read + Send>>), MemberError> {
        let key = table::key(name);
        if let Some(entries) = self.table_entries(&key) {
            let last = entries.iter().filter(|entry| entry.key == key).max_by_key(|entry| entry.offset);
            if let Some(entry) = last {
                match self.at(entry.offset) {
                    Ok((member, data)) if normal(&member.path) == name => return Ok((member, data)),
                    _ => self.distrust("the table of the archive's members is wrong; going through all of it"),
                }
            } else {
                return Err(self.missing(name));
            }
        }
        let mut last = None;
        self.scan(&mut |member| {
            if normal(&member.path) == name {
                last = Some(member.offset);
            }
        })?;
        Ok(self.at(last.ok_or_else(|| self.missing(name))?)?)
    }

    fn distrust(&self, why: &str) {
        *self.note.borrow_mut() = Some(why.to_owned());
    }

    /// The entries whose keys begin with `prefix`; none when the table cannot tell.
    fn table_entries(&self, prefix: &[u8]) -> Option<Vec<Entry>> {
        let Store::Frames(indexed, Some(root)) = &self.store else { return None };
        let found = guide::with_prefix(indexed, root, prefix);
        if found.is_none() {
            self.distrust(DAMAGED);
        }
        found
    }

    /// The member whose headers start at `offset`, and its data.
    fn at(&self, offset: u64) -> Result<(Member, io::Take<Box<dyn Read + Send>>), ArchiveError> {
        let mut data = self.data(offset)?;
        let mut walker = Walker::at_member(offset);
        let mut found = None;
        let mut block = [0; BLOCK];
        while found.is_none() {
            let source = data.read_exact(&mut block);
            source.map_err(|source| self.failed(ArchiveCause::TarRead { offset: walker.offset(), source }))?;
            let walked = walker.feed(&block, &mut |member| {
                found = Some(member);
                Ok(())
            });
            walked.map_err(|e| self.failed(e))?;
            if walker.ended() {
                return Err(self.failed(TarError::Damaged { offset, what: "no member is there".to_owned() }));
            }
        }
        let member = found.ok_or_else(|| self.failed(TarError::Truncated { offset }))?;
        let stored = member.stored;
        Ok((member, data.take(stored)))
    }

    /// The tar data from `offset` on.
    pub(super) fn data(&self, offset: u64) -> Result<Box<dyn Read + Send>, ArchiveError> {
        let failed = |source| self.failed(ArchiveCause::TarRead { offset, source });
        match &self.store {
            Store::Frames(indexed, _) => {
                let file = indexed.file.try_clone().map_err(failed)?;
                Ok(Box::new(Frames::from(indexed, file, offset).map_err(failed)?))
            }
            Store::Plain(file) => Ok(Box::new(At { file: file.try_clone().map_err(failed)?, offset })),
            Store::Foreign(bytes) => Ok(Box::new(Reading { bytes: Arc::clone(bytes), offset })),
            Store::Stream => {
                let mut stream = self.again()?;
                let skipped = io::copy(&mut (&mut stream).take(offset), &mut io::sink()).map_err(failed)?;
                if skipped < offset {
                    return Err(self.failed(TarError::Truncated { offset: skipped }));
                }
                Ok(stream)
            }
        }
    }

    fn again(&self) -> Result<Box<dyn Read + Send>, ArchiveError> {
        match TarSource::open(&self.host, &self.path, &self.cancel)?.input {
            TarInput::Stream(stream) => Ok(stream),
            _ => Err(self.failed(ArchiveCause::Open(io::Error::other("the archive was replaced meanwhile")))),
        }
    }

    /// Goes through all members.
    fn scan(&self, each: &mut dyn FnMut(Member)) -> Result<(), ArchiveError> {
        self.scan_with(Walker::new(), each)
    }

    fn scan_with(&self, mut walker: Walker, each: &mut dyn FnMut(Member)) -> Result<(), ArchiveError> {
        let mut data = self.data(0)?;
        let mut buf = vec![0; PIECE];
        loop {
            // Headers are few and far between: where that is possible, data is passed over.
            let anywhere = matches!(self.store, Store::Plain(_) | Store::Foreign(_));
            if anywhere && walker.skippable() > 0 {
                walker.skip(walker.skippable());
                data = self.data(walker.offset())?;
            }
            let most = if anywhere { 16 * BLOCK } else { PIECE };
            let count = match data.read(&mut buf[..most]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                count => {
                    count.map_err(|source| self.failed(ArchiveCause::TarRead { offset: walker.offset(), source }))?
                }
            };
            if count == 0 {
                return walker.finish().map_err(|e| self.failed(e));
            }
            let walked = walker.feed(&buf[..count], &mut |member| {
                each(member);
                Ok(())
            });
            walked.map_err(|e| self.failed(e))?;
            if self.cancel.is_set() {
                return Err(self.failed(ArchiveCause::Open(io::Error::other("cancelled"))));
            }
        }
    }
}

/// An archive compressed by somebody else: at any place if there is something beside it or it is to be read first, else as a
/// stream.
fn foreign(
    host: &Host,
    path: &Path,
    first: FirstPass,
    note: &mut Option<String>,
    cancel: &Cancel,
) -> Result<Store, ArchiveCause> {
    let file = File::open(path).map_err(ArchiveCause::Open)?;
    let mut start = [0; 16];
    let got = if file.metadata().map_err(ArchiveCause::Open)?.is_file() {
        file.read_at(&mut start, 0).map_err(ArchiveCause::Open)?
    } else {
        0
    };
    // The other formats have no places to begin at.
    let Some(method) = seek::Method::recognise(&start[..got]) else { return Ok(Store::Stream) };
    let mut foreign = Foreign { host, path, file, method, first, cancel, note: note.take() };
    let opened = foreign.tar()?;
    *note = foreign.note;
    Ok(opened.map_or(Store::Stream, |bytes| Store::Foreign(Arc::new(bytes))))
}
