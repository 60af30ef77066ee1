//! Moves disks and the files of containers into archives and out of them: readers, workers that compress, one writer, a rate limit and progress.
//!
//! Memory is bounded by a fixed number of buffers, whatever the size of the disks. The first error stops every thread,
//! all of them are joined, and that first cause is what is reported. Nothing here knows what a guest is.

mod backup;
mod compare;
mod copy;
#[cfg(test)]
mod copy_tests;
mod draft;
mod error;
mod limit;
mod output;
mod plan;
mod pool;
mod restore;
pub mod salvage;
mod slot;
mod stop;
mod tar_pack;
#[cfg(test)]
mod tar_tests;
mod tar_unpack;
#[cfg(test)]
mod tests;
mod throttled;
mod verify;
mod walk;

pub use backup::{Backup, BackupDisk, DEFAULT_MEMORY, Progress, Summary, backup, backup_numbered};
pub use compare::{Comparison, compare};
pub use copy::{CopyOptions, CopyProgress, copy};
pub use draft::{Draft, DraftError};
pub use error::TransferError;
pub use output::Output;
pub use restore::{RestoreProgress, RestoreSummary, restore};
pub(crate) use tar_pack::widen_pipe;
pub use tar_pack::{TarFrom, TarPack, TarProgress, TarSummary, pack_tar};
pub use tar_unpack::unpack_tar;
pub use throttled::{Throttle, Throttled};
pub use verify::{Checked, Verified, VerifyProgress, verify};
