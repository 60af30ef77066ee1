//! Where a job's archives go: the dump directory of a storage, or a directory given by the user.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::{Storage, StorageError};
use crate::host::Host;
use crate::schema::{Keep, VzdumpOptions};
use crate::storage::pbs::{self, PbsError, Repository};
use crate::storage::{Question, VolumeError, Volumes, mount_of};

/// A job's destination.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The storage; none with `--dumpdir`.
    pub storage: Option<Storage>,
    /// The directory of archives and logs; empty for a backup server.
    pub dump_dir: PathBuf,
    /// The backup server instead of a directory.
    pub pbs: Option<Repository>,
    /// Where the file system that the directory is on was mounted when it was opened; empty for a backup server.
    mount: PathBuf,
}

/// There is no usable destination.
#[derive(Debug, thiserror::Error)]
pub enum DestinationError {
    /// `--dumpdir` does not exist.
    #[error("dumpdir '{0}' does not exist")]
    DumpDir(PathBuf),
    /// `--dumpdir` cannot be looked at.
    #[error("dumpdir '{0}' cannot be used: {1}")]
    BadDumpDir(PathBuf, #[source] io::Error),
    /// There is no such storage.
    #[error("could not activate storage '{id}': {source}\ncould not get storage information for '{id}': {source}")]
    Missing {
        /// Its name.
        id: String,
        /// Why.
        #[source]
        source: VolumeError,
    },
    /// The storage cannot be used at all.
    #[error("could not activate storage '{id}': {source}")]
    Unusable {
        /// Its name.
        id: String,
        /// Why.
        #[source]
        source: VolumeError,
    },
    /// What the dump directory was on was unmounted: writing would fill the file system below it.
    #[error("'{dir}' is not on the file system any more that was mounted at '{mount}' when the job began")]
    Unmounted {
        /// The dump directory.
        dir: PathBuf,
        /// The mount point.
        mount: PathBuf,
    },
    /// The storage is there but not for backups.
    #[error("could not get storage information for '{id}': {source}")]
    Content {
        /// Its name.
        id: String,
        /// Why.
        #[source]
        source: StorageError,
    },
    /// The backup server cannot be used.
    #[error("could not activate storage '{id}': {source}")]
    Server {
        /// Its name.
        id: String,
        /// Why.
        #[source]
        source: PbsError,
    },
    /// A storage that holds no files.
    #[error("could not get storage information for '{id}': can't use storage type '{kind}' for backup")]
    Kind {
        /// Its name.
        id: String,
        /// `lvmthin`, `rbd` ...
        kind: String,
    },
    /// The storage's retention cannot be read: then nothing must be removed, and nothing is begun.
    #[error("storage '{id}': prune-backups: {reason}")]
    Retention {
        /// Its name.
        id: String,
        /// What is wrong.
        reason: String,
    },
}

impl Destination {
    /// The destination that `options` name, ready for archives.
    ///
    /// # Errors
    /// When it does not exist or cannot hold backups.
    pub fn open(host: &Host, options: &VzdumpOptions, volumes: &Volumes) -> Result<Self, DestinationError> {
        if let Some(dir) = &options.dumpdir {
            return Self::at(host, None, absolute(dir));
        }
        let id = options.storage.clone().unwrap_or_else(|| "local".into());
        let unusable = |source| match source {
            VolumeError::Storage(StorageError::Missing(_)) => DestinationError::Missing { id: id.clone(), source },
            source => DestinationError::Unusable { id: id.clone(), source },
        };
        // With the look at its mount: an archive beside an empty mount point fills the node's own disk, and is never found.
        let storage = volumes.storage(&id).map_err(unusable)?;
        storage.check_backup_content().map_err(|source| DestinationError::Content { id: id.clone(), source })?;
        storage.prune_backups().map_err(|reason| DestinationError::Retention { id: id.clone(), reason })?;
        if storage.kind == "pbs" {
            let server = |source| DestinationError::Server { id: id.clone(), source };
            if !host.has_command(pbs::CLIENT) {
                return Err(server(PbsError::NoClient));
            }
            let repository = Repository::open(host, storage).map_err(server)?;
            return Ok(Self {
                storage: Some(storage.clone()),
                dump_dir: PathBuf::new(),
                pbs: Some(repository),
                mount: PathBuf::new(),
            });
        }
        let kind = || DestinationError::Kind { id: id.clone(), kind: storage.kind.clone() };
        let (base, dump_dir) = (storage.path().ok_or_else(kind)?, storage.dump_dir().ok_or_else(kind)?);
        for dir in [&base, &dump_dir] {
            volumes.directory(storage, dir).map_err(unusable)?;
        }
        Self::at(host, Some(storage.clone()), host.path(dump_dir))
    }

    fn at(host: &Host, storage: Option<Storage>, dump_dir: PathBuf) -> Result<Self, DestinationError> {
        let mount = look(host, storage.as_ref(), &dump_dir)?;
        Ok(Self { storage, dump_dir, pbs: None, mount })
    }

    /// Makes sure that archives still go where they went when the job began: between two guests, or in a hook, a disk may
    /// have been pulled or a server may have died. A file system that was mounted meanwhile is as good as the one before.
    ///
    /// # Errors
    /// When it is gone or does not answer.
    pub fn check(&self, host: &Host, volumes: &Volumes) -> Result<(), DestinationError> {
        if self.pbs.is_some() {
            return Ok(());
        }
        if let Some(storage) = &self.storage {
            let unusable = |source| DestinationError::Unusable { id: storage.id.clone(), source };
            volumes.storage(&storage.id).map_err(unusable)?;
        }
        let mount = look(host, self.storage.as_ref(), &self.dump_dir)?;
        if mount != self.mount && self.mount.starts_with(&mount) {
            return Err(DestinationError::Unmounted { dir: self.dump_dir.clone(), mount: self.mount.clone() });
        }
        Ok(())
    }

    /// The names in the dump directory.
    ///
    /// # Errors
    /// When they cannot be read, or the directory does not answer.
    pub fn names(&self, host: &Host) -> Result<Vec<String>, DestinationError> {
        let listed = Question::List.ask(host, &self.dump_dir);
        Ok(listed.map_err(|error| explain(self.storage.as_ref(), &self.dump_dir, error))?.names)
    }

    /// The storage's name, as hooks see it.
    pub fn storage_id(&self) -> Option<&str> {
        self.storage.as_ref().map(|s| s.id.as_str())
    }

    /// What the storage says about keeping backups.
    pub fn keep(&self) -> Option<Keep> {
        // Checked when it was opened.
        self.storage.as_ref().and_then(|s| s.prune_backups().ok().flatten())
    }
}

/// Where the file system that `dir` is on is mounted.
fn look(host: &Host, storage: Option<&Storage>, dir: &Path) -> Result<PathBuf, DestinationError> {
    let looked = Question::Look.ask(host, dir).and_then(|answer| mount_of(&answer.path));
    looked.map_err(|error| explain(storage, dir, error))
}

fn explain(storage: Option<&Storage>, dir: &Path, error: io::Error) -> DestinationError {
    let absent = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    match storage {
        None if absent => DestinationError::DumpDir(dir.to_owned()),
        None => DestinationError::BadDumpDir(dir.to_owned(), error),
        Some(storage) => {
            let source = VolumeError::of_directory(storage, dir, error);
            DestinationError::Unusable { id: storage.id.clone(), source }
        }
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
