//! Moves disks into archives and out of them: readers, workers that compress, one writer, a rate limit and progress.
//!
//! Memory is bounded by a fixed number of buffers, whatever the size of the disks. The first error stops every thread,
//! all of them are joined, and that first cause is what is reported. Nothing here knows what a guest is.

mod backup;
mod draft;
mod error;
mod limit;
mod output;
mod plan;
mod restore;
mod slot;
mod stop;
#[cfg(test)]
mod tests;

pub use backup::{Backup, BackupDisk, DEFAULT_MEMORY, Progress, Summary, backup};
pub use draft::{Draft, DraftError};
pub use error::TransferError;
pub use output::Output;
pub use restore::{RestoreProgress, RestoreSummary, restore};
