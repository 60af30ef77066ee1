//! Where archives and images live: names and paths on storages, volumes made and removed,
//! what lies in a dump directory and what retention makes of it.

mod listing;
mod mounts;
mod names;
pub mod pbs;
pub mod probe;
mod prune;
mod verdicts;
mod volid;
mod volume;

pub use listing::{Entry, entries};
pub use mounts::{Mount, mount_of, mounted_on};
pub use names::{ArchiveInfo, ArchiveName, GuestKind};
pub use probe::Question;
pub use prune::{Backup, Mark, plan_prune};
pub use verdicts::{VERDICTS, Verdict, changed, record, verdicts};
pub use volid::{ContentPath, VolId, VolIdError};
pub use volume::{VolumeError, Volumes};

#[cfg(test)]
mod tests;
