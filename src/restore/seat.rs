//! The place of a guest on the node, by its number: claimed before anything is made, taken by the restored guest at one
//! instant. Until then the old guest, or none, is there; what is noted in the record on the way undoes the rest.

use super::execute::ExecuteError;
use crate::guest::conffile::{self, Kind};
use crate::guest::record::{Intent, Record};
use crate::guest::recover::{GuestActions, free_unless_named};
use crate::host::{Host, files};
use std::io;

/// The lock in the config while the restore runs.
const LOCK: &str = "create";

/// The number a guest is restored to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seat {
    /// What is restored.
    pub kind: Kind,
    /// The number.
    pub vmid: u32,
    /// Whether a guest of this number is replaced.
    pub overwrite: bool,
}

/// What takes the place.
pub(super) struct Restored<'a> {
    /// The new config; none if it is in place already and only our lock has to go.
    pub config: Option<Vec<u8>>,
    /// Volumes of the old guest that go.
    pub replaced: &'a [String],
}

impl Seat {
    /// Puts `lock: create` into the config, or a config with nothing else in its place, so that nobody else makes a guest of
    /// this number or starts it.
    ///
    /// # Errors
    /// When somebody else was faster, or the guest runs.
    pub(super) fn claim(
        self,
        record: &mut Record,
        host: &Host,
        runs: &dyn Fn() -> Result<bool, String>,
    ) -> Result<(), ExecuteError> {
        let intent = if self.overwrite { Intent::ConfigLock { lock: LOCK.into() } } else { Intent::NewConfig };
        let changed = |what: &str| Err(io::Error::other(what.to_owned()));
        // Looked at before the note: a lock or placeholder that is there already is not ours, and recovery must not take it.
        let look = |text: Option<&[u8]>| match (text, self.overwrite) {
            (Some(_), false) => changed("a guest of this id was made meanwhile"),
            (None, true) => changed("the guest was removed meanwhile"),
            (Some(text), true) if conffile::lock_of(text).is_some() => changed("the guest was locked meanwhile"),
            _ => Ok(()),
        };
        let mut noted = Ok(());
        conffile::edit_of(host, self.kind, self.vmid, |text| {
            look(text.as_deref())?;
            noted = record.note(&intent);
            if noted.is_err() {
                return Ok(None);
            }
            Ok(Some(conffile::with_lock(text.as_deref().unwrap_or_default(), Some(LOCK))))
        })
        .map_err(|source| self.config_error(source))?;
        noted?;
        // With the lock in place nobody can start it any more: what was asked before the archive was opened is asked again.
        if self.overwrite && runs().map_err(ExecuteError::Step)? {
            return Err(ExecuteError::Step(running(self.kind).into()));
        }
        Ok(())
    }

    /// Makes the restored guest the one of this number, and takes away what it replaces. Returns the volumes that could not be
    /// removed.
    ///
    /// # Errors
    /// When it could not: then the old guest, or none, is still there.
    pub(super) fn commit(
        self,
        restored: Restored<'_>,
        record: &mut Record,
        host: &Host,
        actions: &dyn GuestActions,
        line: &mut dyn FnMut(&str),
    ) -> Result<Vec<String>, ExecuteError> {
        match restored.config {
            Some(config) => {
                // Noted while the old config still names them, and so still safe from recovery.
                for volid in restored.replaced {
                    record.note(&replaced(volid))?;
                }
                self.replace_locked(host, config)?;
            }
            // They are noted since the guest arrived. Somebody may have removed the lock: that is all there was to do.
            None => drop(conffile::remove_lock(host, self.vmid, LOCK).map_err(|source| self.config_error(source))?),
        }
        // From here on the restore has happened; what fails now is reported and left to the record.
        let mut left = Vec::new();
        for volid in restored.replaced {
            match free_unless_named(host, volid, actions) {
                Ok(_) => line(&format!("replaced volume '{volid}' removed")),
                Err(e) => {
                    line(&format!("WARN: replaced volume '{volid}' could not be removed: {e}"));
                    left.push(volid.clone());
                }
            }
        }
        Ok(left)
    }

    /// Puts firewall rules in their place. Returns what was noted for that.
    ///
    /// # Errors
    /// When they could not be noted or written.
    pub(super) fn rules(
        self,
        rules: Option<&[u8]>,
        record: &mut Record,
        host: &Host,
    ) -> Result<Option<Intent>, ExecuteError> {
        let Some(rules) = rules else { return Ok(None) };
        let shown = conffile::firewall_path(self.vmid);
        let path = host.path(&shown);
        let intent = if self.overwrite {
            let old = match std::fs::read(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                other => other.map(Some),
            };
            let rules = old.map_err(|e| ExecuteError::Step(format!("reading '{}' failed: {e}", path.display())))?;
            Intent::OldFirewall { rules }
        } else {
            Intent::NewFirewall
        };
        record.note(&intent)?;
        path.parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| files::replace(&path, rules))
            .map_err(|e| ExecuteError::Step(format!("writing '{}' failed: {e}", shown.display())))?;
        Ok(Some(intent))
    }

    /// Puts the config of a guest in its place that is to run before it is complete. Our lock stays in it. Returns what was
    /// noted for that.
    ///
    /// # Errors
    /// As [`Seat::commit`].
    pub(super) fn go_live(self, config: &[u8], record: &mut Record, host: &Host) -> Result<Intent, ExecuteError> {
        let mut old = None;
        if self.overwrite {
            let text = conffile::read(host, self.vmid).map_err(|source| self.config_error(source))?;
            old = text.map(|text| conffile::with_lock(&text, None));
        }
        let live = Intent::LiveGuest { old, new: conffile::with_lock(config, None) };
        record.note(&live)?;
        self.replace_locked(host, conffile::with_lock(config, Some(LOCK)))?;
        Ok(live)
    }

    /// From now on the guest that was put in its place is complete: it stays whatever happens, and only our lock and the
    /// volumes of the old guest have to go.
    ///
    /// # Errors
    /// When that cannot be noted; it may be tried again.
    pub(super) fn arrived(
        live: &Intent,
        rules: Option<&Intent>,
        volids: &[String],
        record: &mut Record,
    ) -> Result<(), ExecuteError> {
        let done: Vec<&Intent> = rules.into_iter().chain([live]).collect();
        // Not before: until then the old guest may have to be put back, or somebody may have removed what would name them.
        let volumes: Vec<Intent> = volids.iter().map(|volid| replaced(volid)).collect();
        Ok(record.exchange(&Intent::ConfigLock { lock: LOCK.into() }, &done, &volumes)?)
    }

    /// Replaces the config, in which our lock has to be.
    fn replace_locked(self, host: &Host, new: Vec<u8>) -> Result<(), ExecuteError> {
        conffile::edit_of(host, self.kind, self.vmid, |text| match text {
            Some(text) if conffile::lock_of(&text).as_deref() == Some(LOCK) => Ok(Some(new)),
            _ => Err(io::Error::other("somebody removed our lock from it during the restore")),
        })
        .map_err(|source| self.config_error(source))
    }

    fn config_error(self, source: io::Error) -> ExecuteError {
        ExecuteError::Config { kind: self.kind, vmid: self.vmid, source }
    }
}

/// The note of a volume of the old guest that goes.
fn replaced(volid: &str) -> Intent {
    Intent::Volume { volid: volid.to_owned(), in_qemu: false }
}

/// That a guest runs, in the original's words.
pub(super) fn running(kind: Kind) -> &'static str {
    match kind {
        Kind::Vm => "vm is running",
        Kind::Container => "can't overwrite running container",
    }
}
