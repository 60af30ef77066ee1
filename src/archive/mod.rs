//! Archive formats: VMA, which holds a virtual machine's disks and configuration, tar, which holds a container's files,
//! and the compressed containers they are kept in.
//!
//! [`vma`] and [`tar`] know the bytes, [`frame`] compresses them in independent frames and finds them again, [`Source`] and
//! [`tar::TarSource`] open any archive for reading. Moving data through threads is [`crate::transfer`]'s business.

mod bytes;
mod cache;
mod disks;
mod foreign;
pub mod frame;
mod framed;
mod holds;
mod input;
mod packed;
pub mod seek;
mod source;
pub mod tar;
pub mod vma;

pub(crate) use bytes::Bytes;
pub use disks::VmaArchive;
pub use foreign::FirstPass;
pub use holds::{Holds, holds};
pub(crate) use input::Packed;
pub(crate) use input::{PolledRead, is_of_the_data, verdict};
pub(crate) use packed::Method;
pub use source::{ArchiveCause, ArchiveError, Source};
pub(crate) use source::{FOREIGN_INDEX, Indexed, Input, recognise};

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Plain `.vma` or `.tar`.
    None,
    /// `.zst`: independent zstd frames of level 3 and an index.
    Zstd {
        /// Threads that compress, at least 1.
        threads: usize,
    },
    /// `.gz`: independent gzip members of level 6 and an index.
    Gzip {
        /// Threads that compress, at least 1.
        threads: usize,
    },
    /// `.lzo`: written by a child `lzop`.
    Lzo,
}

impl Compression {
    /// What follows `.vma` or `.tar` in the archive's name: `.zst`, `.gz`, `.lzo` or nothing.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Zstd { .. } => ".zst",
            Self::Gzip { .. } => ".gz",
            Self::Lzo => ".lzo",
        }
    }

    /// The container it is written in, if it is written in frames.
    pub(crate) fn container(self) -> Option<frame::Container> {
        match self {
            Self::Zstd { .. } => Some(frame::Container::Zstd),
            Self::Gzip { .. } => Some(frame::Container::Gzip),
            Self::None | Self::Lzo => None,
        }
    }

    /// Threads that encode and compress.
    pub(crate) fn workers(self) -> usize {
        match self {
            Self::None | Self::Lzo => 1,
            Self::Zstd { threads } | Self::Gzip { threads } => threads.max(1),
        }
    }
}
