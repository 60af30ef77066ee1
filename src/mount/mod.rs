//! An archive as a directory, through FUSE: the configuration files, log and notes, and each disk as a file that can be
//! looked at, read at any place and is sparse; a container's files as a tree.
//!
//! [`View`] is what is shown, pure and without FUSE; [`vm`] and [`container`] make one of an archive. [`Mounted`] shows it
//! on a [`Place`], an empty directory that was looked at before. Nothing here writes to an archive, and nothing waits
//! for one without an end: who asks gets an I/O error when the archive is gone.

mod acl;
mod answer;
pub(crate) mod beside;
mod container;
mod flat;
mod place;
mod serve;
mod tree;
mod view;
mod vm;

pub use flat::{Flat, Owner};
pub use place::Place;
pub use serve::{Mounted, Options, Say};
pub use view::{Attributes, Entry, Inode, Kind, TOP, View, ViewError, Xattrs};

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::archive::{ArchiveCause, ArchiveError, Holds, VmaArchive, holds};
use crate::host::{Cancel, Host};

/// An archive cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The directory cannot be looked at.
    #[error("cannot mount on '{directory}': {source}")]
    Directory {
        /// Its path.
        directory: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is a file.
    #[error("cannot mount on '{0}': it is no directory")]
    NoDirectory(String),
    /// Files in it would be hidden.
    #[error("cannot mount on '{0}': the directory is not empty")]
    NotEmpty(String),
    /// Something is mounted there.
    #[error("cannot mount on '{directory}': {what} is mounted there already; 'umount {directory}' ends that")]
    Taken {
        /// Its path.
        directory: String,
        /// What.
        what: String,
    },
    /// The kernel's part is missing.
    #[error("cannot mount: /dev/fuse cannot be opened: {0}; 'modprobe fuse' loads what the kernel needs")]
    NoFuse(#[source] io::Error),
    /// The system does not want to.
    #[error("mounting on '{directory}' failed: {source}")]
    Refused {
        /// Its path.
        directory: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The mount stays.
    #[error("unmounting '{directory}' failed: {source}")]
    Unmount {
        /// Its path.
        directory: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Its content cannot be read at any place.
    #[error("archive '{0}' can only be read from its start on, because of how it is compressed: decompress it first")]
    OnlyFromStart(String),
    /// Its files would take too much memory.
    #[error("archive '{0}' has too many files to be shown")]
    TooMany(String),
    /// Somebody asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A file beside the archive cannot be read.
    #[error(transparent)]
    Beside(#[from] crate::image::ImageError),
}

/// What there is to show of the archive at `path`. What it takes long for, or cannot show, is told with `say`.
///
/// # Errors
/// When it is no archive, or cannot be read.
pub fn open(host: &Host, path: &Path, cancel: &Cancel, say: &mut dyn FnMut(&str)) -> Result<Arc<dyn View>, MountError> {
    let held = holds(host, path, cancel)?;
    let failed = |source| ArchiveError { archive: path.display().to_string(), cause: ArchiveCause::Open(source) };
    let owner = Owner::of(&std::fs::metadata(path).map_err(failed)?);
    if held == Holds::Container {
        return Ok(Arc::new(container::Container::open(host, path, cancel, owner, say)?));
    }
    let archive = VmaArchive::open(host, path, cancel)?;
    if let Some(note) = archive.note() {
        say(note);
    }
    Ok(Arc::new(vm::view(path, archive.header(), &archive.disks(), owner, say)?))
}
