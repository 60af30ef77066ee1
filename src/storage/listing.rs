//! The archives among the names of a dump directory, and what they count for.

use std::collections::BTreeSet;

use jiff::tz::TimeZone;

use super::{ArchiveInfo, GuestKind};
use crate::schema::Vmid;

/// An archive that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What its name tells.
    pub archive: ArchiveInfo,
    /// Whether it is protected.
    pub protected: bool,
    /// When it was made, by its name, seconds since 1970; none if it was renamed.
    pub ctime: Option<i64>,
}

impl Entry {
    /// Whether it is a backup of guest `vmid` of this kind.
    pub fn is_of(&self, kind: GuestKind, vmid: Vmid) -> bool {
        self.archive.kind == kind && self.archive.vmid() == Some(vmid)
    }
}

/// The archives among the names of a directory, oldest first, the renamed ones before them; everything else is passed over.
pub fn entries<'a>(names: impl IntoIterator<Item = &'a str>, zone: &TimeZone) -> Vec<Entry> {
    let names: BTreeSet<&str> = names.into_iter().collect();
    let entry = |file: &&str| {
        let archive = ArchiveInfo::parse(file)?;
        let protected = names.contains(archive.protected().as_str());
        let ctime = archive.standard.as_ref().and_then(|name| name.timestamp(zone)).map(|time| time.as_second());
        Some(Entry { archive, protected, ctime })
    };
    let mut found: Vec<_> = names.iter().filter_map(entry).collect();
    found.sort_by_key(|entry| entry.ctime);
    found
}
