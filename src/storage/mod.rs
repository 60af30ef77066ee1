//! Where archives and images live: names and paths on storages, an archive while it is written, volumes made and removed,
//! what lies in a dump directory and what retention makes of it.

mod draft;
mod listing;
mod names;
mod prune;
mod volid;
mod volume;

pub use draft::{Draft, DraftError};
pub use listing::{Entry, entries, list};
pub use names::{ArchiveName, GuestKind};
pub use prune::{Backup, Mark, plan_prune};
pub use volid::{ContentPath, VolId, VolIdError};
pub use volume::{VolumeError, Volumes};

#[cfg(test)]
mod tests;
