//! A guest held for one run: the record of what was done to it, the guardian beside us, the lock in its config. Whatever goes
//! wrong is undone in one way, from the record, by us, by the guardian or by the next run.

use super::actions::{LEAVING, NodeActions};
use super::conffile;
use super::guard::Guard;
use super::monitor::QemuMonitor;
use super::record::{Intent, Opened, Orphan, Record, RecordError, recorded};
use super::recover::{LockClaim, Report, recover};
use std::time::Duration;

use crate::host::Host;

/// The guest could not be taken or let go.
#[derive(Debug, thiserror::Error)]
pub enum HeldError {
    /// Somebody else's operation holds the guest.
    #[error("VM is locked ({0})")]
    Locked(String),
    /// The config vanished or cannot be edited.
    #[error("cannot lock the config of VM {vmid}: {source}")]
    Config {
        /// The guest.
        vmid: u32,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The record cannot be kept.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// There is no guardian.
    #[error("cannot watch over VM {vmid}: {source}")]
    Guard {
        /// The guest.
        vmid: u32,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// A guest that is ours until it is let go.
#[derive(Debug)]
pub struct Held {
    host: Host,
    vmid: u32,
    record: Record,
    guard: Guard,
    /// How long a guest that was told to shut down is waited for before it is let go.
    pub leaving: Duration,
}

impl Held {
    /// Takes guest `vmid` for a run of `command`: undoes what a killed run left (each step a line to `told`), starts a guardian,
    /// sets `lock: backup`.
    ///
    /// # Errors
    /// When the guest is locked or busy, or what a killed run left cannot be undone.
    pub fn take(host: &Host, vmid: u32, command: &str, told: &mut dyn FnMut(&str)) -> Result<Self, HeldError> {
        let record = match Record::open(host, vmid, command)? {
            Opened::Fresh(record) => record,
            Opened::Orphaned(mut orphan) => {
                let who = orphan.owner.as_ref().map_or("a run".into(), ToString::to_string);
                told(&format!("{who} was killed while it worked on VM {vmid}; undoing what it left"));
                let report = undo(host, &mut orphan, None);
                report.done.iter().chain(&report.failed).for_each(|line| told(line));
                orphan.into_record(command)?
            }
        };
        let guard = match Guard::spawn(host, vmid) {
            Ok(guard) => guard,
            Err(source) => {
                record.clear()?;
                return Err(HeldError::Guard { vmid, source });
            }
        };
        let mut held = Self { host: host.clone(), vmid, record, guard, leaving: LEAVING };
        match held.lock() {
            Ok(()) => Ok(held),
            Err(e) => {
                held.release().failed.iter().for_each(|line| told(line));
                Err(e)
            }
        }
    }

    fn lock(&mut self) -> Result<(), HeldError> {
        // Noted before it is set, and only when nobody else's is there: recovery must not take away a foreign lock.
        let (record, mut noted, mut foreign) = (&mut self.record, Ok(()), None);
        let edited = conffile::edit(&self.host, self.vmid, |text| {
            let text = text.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
            foreign = conffile::lock_of(&text);
            if foreign.is_none() {
                noted = record.note(&Intent::ConfigLock { lock: "backup".into() });
            }
            Ok((foreign.is_none() && noted.is_ok()).then(|| conffile::with_lock(&text, Some("backup"))))
        });
        noted?;
        if let Some(other) = foreign {
            return Err(HeldError::Locked(other));
        }
        edited.map_err(|source| HeldError::Config { vmid: self.vmid, source })
    }

    /// Notes what is about to be done to the guest or on its behalf.
    ///
    /// # Errors
    /// When the note cannot be written; then the action must not happen.
    pub fn note(&mut self, intent: &Intent) -> Result<(), HeldError> {
        Ok(self.record.note(intent)?)
    }

    /// Notes that it was undone, or needs no undoing any more.
    ///
    /// # Errors
    /// When the note cannot be written.
    pub fn done(&mut self, intent: &Intent) -> Result<(), HeldError> {
        Ok(self.record.done(intent)?)
    }

    /// Takes our lock out of the config before the rest is undone: hooks that follow find the guest free, as with the original.
    ///
    /// # Errors
    /// When the config cannot be edited; the lock stays noted.
    pub fn unlock(&mut self) -> Result<(), HeldError> {
        let config = |source| HeldError::Config { vmid: self.vmid, source };
        conffile::remove_lock(&self.host, self.vmid, "backup").map_err(config)?;
        self.done(&Intent::ConfigLock { lock: "backup".into() })
    }

    /// Undoes everything still noted, the lock last, and lets the guest go. What failed stays in the record for the next run.
    pub fn release(self) -> Report {
        let Self { host, record, guard, leaving, .. } = self;
        let mut report = match record.into_orphan() {
            Ok(orphan) => undo_and_clear(&host, orphan, Some(leaving)),
            Err(e) => Report { done: Vec::new(), failed: vec![e.to_string()] },
        };
        if !report.failed.is_empty() {
            // The guardian takes over, and tries again for as long as it makes sense.
            drop(guard);
        } else if let Err(e) = guard.done() {
            report.failed.push(format!("the guardian process was lost: {e}"));
        }
        report
    }
}

/// Undoes what killed runs of vzdump left of any guest of this node, each step a line to `told`; what fails is a line of the
/// second kind and stays recorded. Only for a caller that holds the node's vzdump lock.
pub fn recover_all(host: &Host, told: &mut dyn FnMut(&str), failed: &mut dyn FnMut(&str)) {
    for vmid in recorded(host).unwrap_or_default() {
        // A guest that a living run or its guardian works on is not ours to touch.
        let Ok(Some(orphan)) = Orphan::take(host, vmid, Duration::ZERO) else { continue };
        if orphan.owner.as_ref().is_some_and(|owner| owner.command != "vzdump") {
            continue;
        }
        let report = undo_and_clear(host, orphan, None);
        report.done.iter().for_each(|line| told(&format!("undoing what a killed run left: {line}")));
        report.failed.iter().for_each(|line| failed(&format!("a killed run of VM {vmid}: {line}")));
    }
}

/// Undoes what `orphan` records and removes it; what fails stays recorded. For a caller who knows that nobody else can
/// have set the locks it names. A guest that is shutting down is waited for as long as
/// `leaving`; `None` after a killed run.
pub fn undo_and_clear(host: &Host, mut orphan: Orphan, leaving: Option<Duration>) -> Report {
    let mut report = undo(host, &mut orphan, leaving);
    if report.failed.is_empty() {
        report.failed.extend(orphan.clear().err().map(|e| e.to_string()));
    }
    report
}

/// Undoes what `orphan` records, by the node's own commands and the guest's monitor.
fn undo(host: &Host, orphan: &mut Orphan, leaving: Option<Duration>) -> Report {
    let monitor = QemuMonitor::new(host);
    recover(host, orphan, &NodeActions { host, monitor: &monitor, leaving }, LockClaim::Certain)
}
