//! What can go wrong with what lies on a disk.

use crate::image::ImageError;

/// Something on a disk cannot be read. The name of the disk or file is put in front by who asked.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The disk cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// What is there makes no sense.
    #[error("the {what} is damaged: {why}")]
    Damaged {
        /// `partition table`, `ext4 file system` ...
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// It may be sound, but is nothing that is read here.
    #[error("{0}")]
    Unsupported(String),
    /// A file system that is known by its signature only.
    #[error("holds {0}, which is not read here")]
    Foreign(&'static str),
    /// Such a file system, and nobody who reads it is there.
    #[error("holds {0}, which is read with the help of the program 'guestfish', which is not installed")]
    NoGuestfish(&'static str),
    /// Such a file system, and who reads it cannot.
    #[error("holds {what}, which 'guestfish' cannot read: {why}")]
    Refused {
        /// What it is.
        what: &'static str,
        /// In the words of that program.
        why: String,
    },
    /// What reads such a file system failed with a file, in its own words.
    #[error("guestfish: {0}")]
    Guestfish(String),
    /// One of the above, and the disk, partition, volume or file it is about.
    #[error("{name}: {source}")]
    About {
        /// Its name.
        name: String,
        /// What is wrong with it.
        source: Box<FsError>,
    },
    /// No such file.
    #[error("there is no '{0}'")]
    Missing(String),
    /// It is something else than was asked for.
    #[error("'{path}' on the disk is {what}")]
    Unfit {
        /// What was asked for.
        path: String,
        /// What it is.
        what: &'static str,
    },
}

impl FsError {
    pub(super) fn damaged(what: &'static str, why: impl Into<String>) -> Self {
        Self::Damaged { what, why: why.into() }
    }
}
