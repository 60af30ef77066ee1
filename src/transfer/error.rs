//! Why a transfer ended early.

use std::io;

use crate::archive::ArchiveError;
use crate::archive::tar::TarError;
use crate::archive::vma::VmaError;
use crate::host::files::reason;
use crate::image::ImageError;

/// Why a transfer ended early: the first cause, with disk, offset and operation where there are any.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// A disk cannot be read or written.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A disk describes itself in a way that cannot be right.
    #[error("{image}: the extents reported for bytes {start} to {end} have a gap or an overlap at {at}")]
    Extents {
        /// The disk.
        image: String,
        /// Start of the range asked for.
        start: u64,
        /// Its end.
        end: u64,
        /// Where the extents go wrong.
        at: u64,
    },
    /// The archive cannot be written. The first words are those of stock QEMU, which people search for.
    #[error("vma_queue_write: write error - {} ('{archive}' after {written} bytes)", reason(source))]
    Output {
        /// The archive's path, or `stdout`.
        archive: String,
        /// Bytes that were written before.
        written: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The archive of a container, or what is made of it, cannot be written.
    #[error("writing '{archive}' failed after {written} bytes: {}", reason(source))]
    Write {
        /// The archive's path, or the program that reads.
        archive: String,
        /// Bytes that were written before.
        written: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The program that makes the archive's content cannot be read.
    #[error("reading the output of {from} failed after {offset} bytes: {source}")]
    Read {
        /// The program.
        from: String,
        /// Bytes that were read before.
        offset: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// What the program makes is not what it should be.
    #[error("the output of {from} makes no archive: {cause}")]
    Tar {
        /// The program.
        from: String,
        /// What is wrong with it.
        #[source]
        cause: TarError,
    },
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The disks or files do not fit into an archive.
    #[error(transparent)]
    Vma(#[from] VmaError),
    /// Compressing failed.
    #[error("{disk}: compressing the data from offset {offset} on failed: {source}")]
    Compress {
        /// The disk.
        disk: String,
        /// First byte of the data.
        offset: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The targets do not fit the archive.
    #[error("{0}")]
    Targets(String),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// A bug: a thread panicked.
    #[error("internal error in the thread '{thread}': {message}")]
    Panic {
        /// What it was doing.
        thread: String,
        /// What it said.
        message: String,
    },
    /// Somebody asked to stop.
    #[error("cancelled")]
    Cancelled,
}
