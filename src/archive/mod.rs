//! Archive formats: VMA, the container of a virtual machine's disks and configuration, and the compressed containers it
//! is kept in.
//!
//! [`vma`] knows the bytes of VMA, [`frame`] compresses it in independent frames and finds them again, [`Source`] opens
//! any archive for reading. Moving data through threads is [`crate::transfer`]'s business.

pub mod frame;
mod input;
mod source;
pub mod vma;

pub(crate) use input::lzop_verdict;
pub use source::{ArchiveCause, ArchiveError, Source};
pub(crate) use source::{Indexed, Input};

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Plain `.vma`.
    None,
    /// `.vma.zst`: independent zstd frames of level 3 and an index.
    Zstd {
        /// Threads that compress, at least 1.
        threads: usize,
    },
    /// `.vma.gz`: independent gzip members of level 6 and an index.
    Gzip {
        /// Threads that compress, at least 1.
        threads: usize,
    },
    /// `.vma.lzo`: written by a child `lzop`.
    Lzo,
}

impl Compression {
    /// What follows `.vma` in the archive's name: `.zst`, `.gz`, `.lzo` or nothing.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Zstd { .. } => ".zst",
            Self::Gzip { .. } => ".gz",
            Self::Lzo => ".lzo",
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
