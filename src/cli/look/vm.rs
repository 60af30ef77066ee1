//! The archive of a virtual machine, looked at: its configuration files, what lies beside it, and the files on its disks.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::outlet::{Marks, Outlet, Way, WriteError, write_data};
use super::{Failed, Shown, interrupted, last_name};
use crate::archive::VmaArchive;
use crate::archive::tar::{MemberError, printable};
use crate::filesystem::{Content, FileKind, FileSystem, FsError, Guestfish, Machine, Metadata, Node, Place, resolve};
use crate::host::{Cancel, Host};
use crate::mount::beside;

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;
/// Files of several names whose first name is remembered.
const MOST_LINKS: usize = 1 << 20;

/// An archive and its disks.
pub(super) struct Vm {
    name: String,
    machine: Machine,
    /// Configuration files, notes and log.
    files: Vec<(String, Vec<u8>)>,
    beside: Vec<(&'static str, PathBuf)>,
    /// When the backup was made.
    time: i64,
    /// What is worth a word about what was looked at.
    notes: RefCell<Vec<String>>,
    cancel: Cancel,
}

/// Takes a file below a directory, and what is known of it or why nothing is.
type Each<'a> = dyn FnMut(&Way, Node, Result<Metadata, FsError>) -> Result<(), Failed> + 'a;

/// What a path leads to.
enum Found {
    Bytes(Vec<u8>),
    Level(Vec<(String, u64)>),
    File(Arc<dyn FileSystem>, Node),
}

impl Vm {
    pub fn new(host: &Host, archive: &Arc<VmaArchive>, path: &Path, cancel: &Cancel) -> Self {
        let files = archive.header().configs.iter().map(|(name, content)| (name.clone(), content.clone())).collect();
        let beside = beside::files(path).into_iter().filter(|(_, path)| path.is_file()).collect();
        Self {
            name: archive.name().to_owned(),
            machine: Machine::new(archive.disks(), Guestfish::new(host, cancel)),
            files,
            beside,
            time: archive.header().ctime,
            notes: RefCell::default(),
            cancel: cancel.clone(),
        }
    }

    /// What is worth a word about what was looked at.
    pub fn notes(&self) -> Vec<String> {
        self.notes.take()
    }

    fn failed(&self, error: FsError) -> Failed {
        let archive = self.name.clone();
        match error {
            FsError::Missing(name) => MemberError::Missing { archive, name }.into(),
            FsError::Unfit { path: name, what } => MemberError::Unfit { archive, name, what }.into(),
            FsError::Guestfish(_) | FsError::Image(_) | FsError::About { .. } if self.cancel.is_set() => {
                Failed::Interrupted
            }
            FsError::About { ref name, ref source }
                if matches!(**source, FsError::NoGuestfish(_) | FsError::Refused { .. }) =>
            {
                let file = name.replace('/', ".");
                let hint = format!(
                    "{error}; 'vzkeep mount {archive} DIR' makes it a file, which 'mount -o ro,loop DIR/{file}.raw DIR2' shows"
                );
                Failed::Disk { archive, source: FsError::Unsupported(hint) }
            }
            source => Failed::Disk { archive, source },
        }
    }

    fn unfit(&self, path: &[u8], what: &'static str) -> Failed {
        MemberError::Unfit { archive: self.name.clone(), name: printable(path), what }.into()
    }

    fn find(&self, path: &[u8], follow: bool) -> Result<Found, Failed> {
        let only = String::from_utf8_lossy(path.strip_prefix(b"./").unwrap_or(path));
        if let Some((_, content)) = self.files.iter().find(|(name, _)| *name == only) {
            return Ok(Found::Bytes(content.clone()));
        }
        if let Some((_, file)) = self.beside.iter().find(|(name, _)| *name == only) {
            let content = std::fs::read(file).map_err(|source| Failed::Beside { path: file.clone(), source })?;
            return Ok(Found::Bytes(content));
        }
        let place = match path.strip_prefix(b"/") {
            Some(rest) => self.machine.root().map(|(_, fs)| Place::Files(fs, rest.to_vec())),
            None => self.machine.place(path),
        };
        match place.map_err(|e| self.failed(e))? {
            Place::Level(names) => Ok(Found::Level(names)),
            Place::Files(fs, way) => {
                let new = fs.note().filter(|note| !self.notes.borrow().contains(note));
                self.notes.borrow_mut().extend(new);
                let node = resolve(&*fs, &way, follow).map_err(|e| match e {
                    // The whole path, as it was asked for.
                    FsError::Missing(_) => self.failed(FsError::Missing(printable(path))),
                    FsError::Unfit { what, .. } => self.unfit(path, what),
                    e => self.failed(e),
                })?;
                Ok(Found::File(fs, node))
            }
        }
    }

    /// What a directory holds; all that is below it when `recursive` is set.
    pub fn list(
        &self,
        path: &[u8],
        recursive: bool,
        each: &mut dyn FnMut(Shown) -> Result<(), Failed>,
    ) -> Result<(), Failed> {
        match self.find(path, true)? {
            Found::Bytes(_) => Err(self.unfit(path, "no directory")),
            Found::Level(names) => {
                self.notes.borrow_mut().extend(self.machine.notes());
                if path.iter().all(|byte| matches!(byte, b'/' | b'.')) {
                    for (name, content) in &self.files {
                        each(Shown::new(name.as_bytes(), '-', content.len() as u64))?;
                    }
                    for (name, file) in &self.beside {
                        each(Shown::new(name.as_bytes(), '-', file.metadata().map_or(0, |meta| meta.len())))?;
                    }
                }
                names.iter().try_for_each(|(name, size)| each(Shown::new(name.as_bytes(), 'd', *size)))
            }
            Found::File(fs, top) => {
                if fs.metadata(top).map_err(|e| self.failed(e))?.kind != FileKind::Directory {
                    return Err(self.unfit(path, "no directory"));
                }
                // What cannot be read is said at the end: the rest is worth seeing.
                let mut first = None;
                self.walk(&*fs, top, recursive, &mut |way, _, metadata| {
                    let name = way.join(&b'/');
                    match metadata {
                        Ok(metadata) => each(Shown { more: Some(metadata.clone()), ..Shown::of(&name, &metadata) })?,
                        Err(e) => {
                            if way.is_empty() {
                                return Err(self.failed(e));
                            }
                            each(Shown::new(&name, '?', 0))?;
                            first.get_or_insert(
                                self.failed(FsError::About { name: printable(&name), source: e.into() }),
                            );
                        }
                    }
                    Ok(())
                })?;
                first.map_or(Ok(()), Err)
            }
        }
    }

    /// Calls `each` with everything below a directory, directories before what they hold, and with what cannot be read.
    fn walk(&self, fs: &dyn FileSystem, top: Node, recursive: bool, each: &mut Each<'_>) -> Result<(), Failed> {
        let (mut ahead, mut seen) = (vec![(Way::new(), top)], HashSet::from([top]));
        while let Some((way, node)) = ahead.pop() {
            interrupted(&self.cancel)?;
            let mut entries = match fs.read_dir(node) {
                Ok(entries) => entries,
                Err(e) => {
                    each(&way, node, Err(e))?;
                    continue;
                }
            };
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            let mut below = Vec::new();
            for entry in entries {
                let mut way = way.clone();
                way.push(entry.name);
                let mut metadata = fs.metadata(entry.node);
                if metadata.as_ref().is_ok_and(|m| m.kind == FileKind::Directory) && recursive {
                    // A directory has one name; a second one is a circle or would multiply what is below it.
                    if seen.insert(entry.node) {
                        below.push((way.clone(), entry.node));
                    } else {
                        let why = "a directory is in two places".to_owned();
                        metadata = Err(FsError::Damaged { what: "file system", why });
                    }
                }
                each(&way, entry.node, metadata)?;
            }
            ahead.extend(below.into_iter().rev());
        }
        Ok(())
    }

    /// Writes the content of a file.
    pub fn cat(&self, path: &[u8], out: &mut dyn Write) -> Result<(), Failed> {
        let (fs, node) = match self.find(path, true)? {
            Found::Bytes(content) => return Ok(out.write_all(&content)?),
            Found::Level(_) => return Err(self.unfit(path, "a directory")),
            Found::File(fs, node) => (fs, node),
        };
        match fs.metadata(node).map_err(|e| self.failed(e))?.kind {
            FileKind::File => {}
            FileKind::Directory => return Err(self.unfit(path, "a directory")),
            _ => return Err(self.unfit(path, "no regular file")),
        }
        let content = fs.open(node).map_err(|e| self.failed(e))?;
        let (mut at, mut buf) = (0, vec![0; PIECE]);
        while at < content.size() {
            interrupted(&self.cancel)?;
            let count = content.read_at(&mut buf, at).map_err(|e| self.failed(e))?;
            out.write_all(&buf[..count])?;
            at += count as u64;
        }
        Ok(())
    }

    /// Writes a file, or a directory with everything in it, to `outlet`. What cannot be read or written is given to
    /// `complain`, and the rest is written all the same.
    pub fn extract(&self, path: &[u8], outlet: &mut Outlet, complain: &mut dyn FnMut(&Failed)) -> Result<(), Failed> {
        let base: Way = last_name(path).into_iter().collect();
        let (fs, top) = match self.find(path, false)? {
            Found::Bytes(content) => {
                let marks = Marks { mode: 0o644, uid: 0, gid: 0, modified: (self.time, 0) };
                return outlet.file(&base, marks, &mut |file, failed| {
                    file.write_all_at(&content, 0).map_err(|e| Failed::from(failed(e)))
                });
            }
            Found::Level(_) => return Err(self.unfit(path, "no file system, but above some: name one of them")),
            Found::File(fs, node) => (fs, node),
        };
        let metadata = fs.metadata(top).map_err(|e| self.failed(e))?;
        let is_directory = metadata.kind == FileKind::Directory;
        let mut links = HashMap::new();
        self.put(&*fs, top, &metadata, &base, outlet, &mut links)?;
        if !is_directory {
            return Ok(());
        }
        self.walk(&*fs, top, true, &mut |way, node, metadata| {
            let whole: Way = base.iter().chain(way).cloned().collect();
            let about = |e| self.failed(FsError::About { name: printable(&way.join(&b'/')), source: Box::new(e) });
            let done = metadata.map_err(about).and_then(|metadata| {
                self.put(&*fs, node, &metadata, &whole, outlet, &mut links).map_err(|e| match e {
                    Failed::Disk { source, .. } => about(source),
                    e => e,
                })
            });
            match done {
                Err(Failed::Write(e)) if !e.is_of_one_file() => Err(e.into()),
                Err(Failed::Interrupted) => Err(Failed::Interrupted),
                Err(e) => {
                    complain(&e);
                    Ok(())
                }
                Ok(()) => Ok(()),
            }
        })
    }

    fn put(
        &self,
        fs: &dyn FileSystem,
        node: Node,
        metadata: &Metadata,
        way: &Way,
        outlet: &mut Outlet,
        links: &mut HashMap<Node, Way>,
    ) -> Result<(), Failed> {
        interrupted(&self.cancel)?;
        let Metadata { mode, uid, gid, modified, .. } = *metadata;
        let marks = Marks { mode, uid, gid, modified };
        match metadata.kind {
            FileKind::Directory => outlet.directory(way, marks)?,
            FileKind::Symlink => outlet.symlink(way, &fs.read_link(node).map_err(|e| self.failed(e))?, marks)?,
            FileKind::File => {
                if let Some(known) = links.get(&node) {
                    return Ok(outlet.hard_link(way, known)?);
                }
                let content = fs.open(node).map_err(|e| self.failed(e))?;
                outlet.file(way, marks, &mut |file, failed| self.copy(&content, file, failed))?;
                if metadata.links > 1 && links.len() < MOST_LINKS {
                    links.insert(node, way.clone());
                }
            }
            _ => return Err(Failed::Left(printable(&way.join(&b'/')))),
        }
        Ok(())
    }

    /// Copies what is data; the rest becomes holes.
    fn copy(
        &self,
        content: &Content,
        file: &std::fs::File,
        failed: &dyn Fn(std::io::Error) -> WriteError,
    ) -> Result<(), Failed> {
        file.set_len(content.size()).map_err(failed)?;
        let (mut at, mut buf) = (0, vec![0; PIECE]);
        while let Some(data) = content.data_from(at) {
            interrupted(&self.cancel)?;
            let len = buf.len().min(usize::try_from(data.end - data.start).unwrap_or(usize::MAX));
            let count = content.read_at(&mut buf[..len], data.start).map_err(|e| self.failed(e))?;
            // Not every reader knows where the holes are.
            write_data(file, &buf[..count], data.start).map_err(failed)?;
            at = data.start + count as u64;
        }
        Ok(())
    }
}

/// The archive as it can be looked at.
pub(super) fn open(host: &Host, path: &Path, cancel: &Cancel) -> Result<(Vm, Option<String>), Failed> {
    let archive = VmaArchive::open(host, path, cancel).map_err(MemberError::from)?;
    let note = archive.note().map(str::to_owned);
    Ok((Vm::new(host, &archive, path, cancel), note))
}
