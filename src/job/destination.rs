//! Where a job's archives go: the dump directory of a storage, or a directory given by the user.

use std::path::{Path, PathBuf};

use crate::config::{Storage, StorageError};
use crate::host::Host;
use crate::schema::{Keep, VzdumpOptions};
use crate::storage::pbs::{self, PbsError, Repository};
use crate::storage::{VolumeError, Volumes};

/// A job's destination.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The storage; none with `--dumpdir`.
    pub storage: Option<Storage>,
    /// The directory of archives and logs; empty for a backup server.
    pub dump_dir: PathBuf,
    /// The backup server instead of a directory.
    pub pbs: Option<Repository>,
}

/// There is no usable destination.
#[derive(Debug, thiserror::Error)]
pub enum DestinationError {
    /// `--dumpdir` does not exist.
    #[error("dumpdir '{0}' does not exist")]
    DumpDir(PathBuf),
    /// The storage cannot be used at all.
    #[error("could not activate storage '{id}': {source}\ncould not get storage information for '{id}': {source}")]
    Unusable {
        /// Its name.
        id: String,
        /// Why.
        #[source]
        source: VolumeError,
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
    /// The dump directory cannot be made or used.
    #[error("could not activate storage '{id}': cannot make directory '{dir}': {source}")]
    Directory {
        /// The storage's name.
        id: String,
        /// Its dump directory.
        dir: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl Destination {
    /// The destination that `options` name, ready for archives.
    ///
    /// # Errors
    /// When it does not exist or cannot hold backups.
    pub fn open(host: &Host, options: &VzdumpOptions, volumes: &Volumes) -> Result<Self, DestinationError> {
        if let Some(dir) = &options.dumpdir {
            let dir = absolute(dir);
            if !dir.is_dir() {
                return Err(DestinationError::DumpDir(dir));
            }
            return Ok(Self { storage: None, dump_dir: dir, pbs: None });
        }
        let id = options.storage.clone().unwrap_or_else(|| "local".into());
        let unusable = |source| DestinationError::Unusable { id: id.clone(), source };
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
            return Ok(Self { storage: Some(storage.clone()), dump_dir: PathBuf::new(), pbs: Some(repository) });
        }
        let kind = || DestinationError::Kind { id: id.clone(), kind: storage.kind.clone() };
        let dump_dir = host.path(storage.dump_dir().ok_or_else(kind)?);
        std::fs::create_dir_all(&dump_dir).map_err(|source| DestinationError::Directory {
            id: id.clone(),
            dir: dump_dir.clone(),
            source,
        })?;
        Ok(Self { storage: Some(storage.clone()), dump_dir, pbs: None })
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

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
