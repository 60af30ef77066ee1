//! The archives that are there: on the node's storages, on one of them, or in a directory.

use std::fs::{File, Metadata};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::sentence;
use crate::archive::frame::{Container, Index};
use crate::host::Host;
use crate::storage::{Entry, Verdict, Volumes, entries, verdicts};

/// A directory with archives.
pub(super) struct Shelf {
    /// The storage it belongs to.
    pub storage: Option<String>,
    /// Where it really lies.
    pub dir: PathBuf,
}

/// An archive on a shelf.
pub(super) struct Found {
    /// What its name tells.
    pub entry: Entry,
    /// Its volume id, or its path.
    pub name: String,
    /// Where it really lies.
    pub path: PathBuf,
    /// Size and time of the last change.
    pub meta: Metadata,
    /// Its notes.
    pub notes: Option<String>,
    /// What its last verification came to, if it has not changed since.
    pub verdict: Option<Verdict>,
}

/// Where an archive has its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IndexAt {
    /// At its end: vzkeep made it.
    End,
    /// In a file of its own, made by `vzkeep index`; whether it is still good shows when it is used.
    Beside,
}

impl Found {
    /// Where it has an index: at its end, or beside it.
    pub(super) fn index(&self) -> Option<IndexAt> {
        let container = match self.entry.archive.compression {
            Some("zst") => Some(Container::Zstd),
            Some("gz") => Some(Container::Gzip),
            _ => None,
        };
        let announced = |container| {
            let file = File::open(&self.path)?;
            Index::announced(container, self.meta.len(), &mut |buf, offset| file.read_exact_at(buf, offset))
        };
        if container.is_some_and(|container| announced(container).unwrap_or_default()) {
            return Some(IndexAt::End);
        }
        let beside = self.path.with_file_name(format!("{}.idx", self.entry.archive.file));
        beside.is_file().then_some(IndexAt::Beside)
    }
}

/// The shelves that are asked for: the directory, the storage, or all storages of this node that keep backups; and why some of
/// these cannot be looked at.
pub(super) fn shelves(host: &Host, storage: Option<&str>, dir: Option<&Path>) -> Result<(Vec<Shelf>, Vec<String>)> {
    if let Some(dir) = dir {
        let path = std::path::absolute(dir).with_context(|| format!("'{}' is no path", dir.display()))?;
        let dir = host.path(&path);
        if !dir.is_dir() {
            bail!("'{}' is no directory", path.display());
        }
        return Ok((vec![Shelf { storage: None, dir }], Vec::new()));
    }
    let volumes = Volumes::load(host)?;
    if let Some(id) = storage {
        return Ok((vec![of_storage(host, &volumes, id)?], Vec::new()));
    }
    let (mut shelves, mut troubles) = (Vec::new(), Vec::new());
    for storage in &volumes.cfg().storages {
        let here = !storage.is_disabled() && storage.is_on_node(host.node());
        if here && storage.dump_dir().is_some() && storage.check_backup_content().is_ok() {
            match of_storage(host, &volumes, &storage.id) {
                Ok(shelf) => shelves.push(shelf),
                Err(error) => troubles.push(sentence(&error)),
            }
        }
    }
    Ok((shelves, troubles))
}

fn of_storage(host: &Host, volumes: &Volumes, id: &str) -> Result<Shelf> {
    let storage = volumes.storage(id)?;
    let dir = storage.dump_dir().with_context(|| format!("storage '{id}' keeps no backups as files"))?;
    volumes.directory(storage, &dir)?;
    Ok(Shelf { storage: Some(id.to_owned()), dir: host.path(dir) })
}

impl Shelf {
    /// Its archives, oldest first.
    pub(super) fn archives(&self, host: &Host) -> Result<Vec<Found>> {
        let failed = || format!("reading '{}' failed", self.dir.display());
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir).with_context(failed)? {
            // No archive has a name that is not text.
            names.extend(entry.with_context(failed)?.file_name().into_string().ok());
        }
        let known = verdicts(&self.dir).with_context(failed)?;
        let zone = host.now().time_zone().clone();
        let found = entries(names.iter().map(String::as_str), &zone).into_iter().filter_map(|entry| {
            let file = &entry.archive.file;
            let path = self.dir.join(file);
            // One that was removed meanwhile is not there.
            let meta = path.metadata().ok().filter(Metadata::is_file)?;
            let notes = std::fs::read(self.dir.join(entry.archive.notes())).ok();
            let notes = notes.map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned());
            let verdict = known.get(file).filter(|verdict| verdict.is_of(&meta)).cloned();
            let name = match &self.storage {
                Some(id) => format!("{id}:backup/{file}"),
                None => path.display().to_string(),
            };
            Some(Found { name, path, meta, notes, verdict, entry })
        });
        Ok(found.collect())
    }
}
