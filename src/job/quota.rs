//! How many backups of a guest there may be: the limits that are checked before anything is begun, with the sentences of
//! the original.

use super::Job;
use super::guest_run::GuestError;
use crate::schema::Vmid;
use crate::storage::{Entry, GuestKind, entries};

impl Job<'_> {
    /// Refuses one backup more of guest `vmid` than its limits allow: that of protected backups when this one will be
    /// protected, else that of `keep-N` when nothing may be removed.
    pub(super) fn check_quota(&self, kind: GuestKind, vmid: Vmid) -> Result<(), GuestError> {
        let (keep, remove) = self.options.retention(self.destination.keep());
        let limit = if keep.all || remove { 0 } else { keep.total() };
        let protects = self.options.protected;
        // A backup server counts for itself.
        if self.options.stdout || self.destination.pbs.is_some() || (limit == 0 && !protects) {
            return Ok(());
        }
        let names = self.destination.names(self.host)?;
        let found = entries(names.iter().map(String::as_str), &jiff::tz::TimeZone::system());
        // In a directory of the user's own only names that vzdump gave count.
        let counts = |entry: &&Entry| self.destination.storage.is_some() || entry.archive.standard.is_some();
        let of_guest = found.iter().filter(|entry| entry.is_of(kind, vmid)).filter(counts);
        let (protected, free): (Vec<_>, Vec<_>) = of_guest.partition(|entry| entry.protected);
        match &self.destination.storage {
            Some(storage) if protects => match storage.max_protected_backups() {
                Some(most) if protected.len() as u64 >= most => {
                    Err(GuestError::TooManyProtected { most, storage: storage.id.clone() })
                }
                _ => Ok(()),
            },
            _ if !protects && free.len() as u64 >= limit => Err(GuestError::TooMany(limit)),
            _ => Ok(()),
        }
    }
}
