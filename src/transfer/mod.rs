//! Moves disks and the files of containers into archives and out of them: readers, workers that compress, one writer, a rate limit and progress.
//!
//! Memory is bounded by a fixed number of buffers, whatever the size of the disks. The first error stops every thread,
//! all of them are joined, and that first cause is what is reported. Nothing here knows what a guest is.

mod backup;
mod draft;
mod error;
mod limit;
mod output;
mod plan;
mod pool;
mod restore;
mod slot;
mod stop;
mod tar_pack;
#[cfg(test)]
mod tar_tests;
mod tar_unpack;
#[cfg(test)]
mod tests;
mod verify;

pub use backup::{Backup, BackupDisk, DEFAULT_MEMORY, Progress, Summary, backup};
pub use draft::{Draft, DraftError};
pub use error::TransferError;
pub use output::Output;
pub use restore::{RestoreProgress, RestoreSummary, restore};
pub(crate) use tar_pack::widen_pipe;
pub use tar_pack::{TarFrom, TarPack, TarProgress, TarSummary, pack_tar};
pub use tar_unpack::unpack_tar;
pub use verify::{Checked, Verified, VerifyProgress, verify};
