//! The record of what a run does to one guest, kept so that somebody else can undo it when the run is killed.
//!
//! `<root>/var/lib/vzkeep/<vmid>.json` holds one JSON object a line: first who we are, then every [`Intent`] *before* its
//! action and a `done` line after it was undone. Appending is one write; a torn last line belongs to an action that never
//! began. The owner holds a lock on `<vmid>.lock` as long as it lives: whoever gets that lock knows the owner is gone.

use super::actions::LEAVING;
use crate::host::files::{self, sync_parent};
use crate::host::{Host, procfs};
use nix::fcntl::Flock;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;
mod words;

pub use words::{Intent, Owner};
use words::{Line, parse};

/// Directory of the records on the node. Below `/var/lib`, so that it outlives a reboot.
pub const DIRECTORY: &str = "/var/lib/vzkeep";
/// How long the guardian of a killed run may take to undo what it left: a guest that was told to shut down takes the longest.
const RECOVERY: Duration = LEAVING.saturating_add(Duration::from_secs(60));

/// The record could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A living run of ours works on this guest.
    #[error("guest {vmid} is being worked on by {by}; wait for it to end")]
    Busy {
        /// The guest.
        vmid: u32,
        /// `vzdump (process 4711)`.
        by: String,
    },
    /// Something a killed run left could not be undone.
    #[error("guest {vmid}: an earlier run was killed and not everything it left could be undone: {what}")]
    Unresolved {
        /// The guest.
        vmid: u32,
        /// One sentence a leftover.
        what: String,
    },
    /// Reading or writing failed.
    #[error("record of guest {vmid}: {op} '{path}' failed: {source}")]
    Io {
        /// The guest.
        vmid: u32,
        /// `write`, `open` ...
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// What [`Record::open`] found.
#[derive(Debug)]
pub enum Opened {
    /// Nobody left anything: work may begin.
    Fresh(Record),
    /// A killed run left something that has to be undone first.
    Orphaned(Orphan),
}

/// The lock on a guest's record. Held by the owner as long as it lives; the kernel lets go of it when the owner dies.
#[derive(Debug)]
struct Held {
    vmid: u32,
    path: PathBuf,
    _lock: Flock<File>,
}

impl Held {
    fn err(&self, op: &'static str, source: io::Error) -> RecordError {
        RecordError::Io { vmid: self.vmid, op, path: self.path.clone(), source }
    }

    fn append(&self, file: &mut File, line: Line, durable: bool) -> Result<(), RecordError> {
        self.append_all(file, &[line], durable)
    }

    /// Appends lines by one write: a kill leaves all of them or none.
    fn append_all(&self, file: &mut File, lines: &[Line], durable: bool) -> Result<(), RecordError> {
        let mut text = String::new();
        for line in lines {
            text += &serde_json::to_string(line).map_err(|e| self.err("write", e.into()))?;
            text.push('\n');
        }
        let before = file.metadata().map_err(|e| self.err("look at", e))?.len();
        let mut appended = file.write_all(text.as_bytes()).map_err(|e| self.err("write", e));
        if durable && appended.is_ok() {
            appended = file.sync_data().map_err(|e| self.err("sync", e));
        }
        if appended.is_err() {
            // What is appended later, or once more, must not continue a torn line.
            let _ = file.set_len(before);
        }
        appended
    }
}

/// The record of our own run on one guest.
#[derive(Debug)]
pub struct Record {
    held: Held,
    file: File,
}

/// A record whose owner is gone, and the lock on it. [`super::recover::recover`] works it off; then it becomes a [`Record`].
#[derive(Debug)]
pub struct Orphan {
    held: Held,
    file: File,
    /// Who left it.
    pub owner: Option<Owner>,
    /// What is still to be undone, in the order it was noted.
    pub intents: Vec<Intent>,
}

impl Record {
    /// Opens the record of guest `vmid` for a run of `command`.
    ///
    /// # Errors
    /// [`RecordError::Busy`] when a living run of ours has it; [`RecordError::Io`].
    pub fn open(host: &Host, vmid: u32, command: &str) -> Result<Opened, RecordError> {
        match Orphan::read(lock_from_the_dead(host, vmid)?)? {
            Ok(orphan) => Ok(Opened::Orphaned(orphan)),
            Err(held) => Ok(Opened::Fresh(Self::create(held, command)?)),
        }
    }

    fn create(held: Held, command: &str) -> Result<Self, RecordError> {
        let io_err = |op: &'static str| {
            let (vmid, path) = (held.vmid, held.path.clone());
            move |source| RecordError::Io { vmid, op, path, source }
        };
        let pid = std::process::id();
        let owner = Owner {
            vmid: held.vmid,
            pid,
            start: procfs::start_time(pid).map_err(io_err("start time for"))?,
            boot_id: procfs::boot_id().map_err(io_err("boot id for"))?,
            command: command.to_owned(),
        };
        let mut file = OpenOptions::new().create(true).append(true).open(&held.path).map_err(io_err("open"))?;
        file.set_len(0).map_err(io_err("truncate"))?;
        held.append(&mut file, Line::Owner(owner), true)?;
        sync_parent(&held.path).map_err(io_err("sync the directory of"))?;
        Ok(Self { held, file })
    }

    /// The guest.
    pub fn vmid(&self) -> u32 {
        self.held.vmid
    }

    /// Notes what is about to be done. Call it *before* the action; returns when the note is safe.
    ///
    /// # Errors
    /// When the note cannot be written; then the action must not happen.
    pub fn note(&mut self, intent: &Intent) -> Result<(), RecordError> {
        self.held.append(&mut self.file, Line::Intent(intent.clone()), intent.outlives_boot())
    }

    /// Notes that `intent` was undone (the guest resumed, the file renamed or removed) and needs no recovery any more.
    ///
    /// # Errors
    /// As [`Record::note`].
    pub fn done(&mut self, intent: &Intent) -> Result<(), RecordError> {
        self.held.append(&mut self.file, Line::Done(intent.clone()), intent.outlives_boot())
    }

    /// Notes by one write that `done` need no recovery any more, and `after` do from then on; `before` already earlier. Should
    /// a power failure tear that, the record ends somewhere in this order.
    ///
    /// # Errors
    /// As [`Record::note`]; then nothing of it is noted.
    pub fn exchange(&mut self, before: &Intent, done: &[&Intent], after: &[Intent]) -> Result<(), RecordError> {
        let mut lines = vec![Line::Intent(before.clone())];
        lines.extend(done.iter().map(|intent| Line::Done((*intent).clone())));
        lines.extend(after.iter().cloned().map(Line::Intent));
        self.held.append_all(&mut self.file, &lines, true)
    }

    /// Gives the run up: what it still has noted is to be undone by [`recover`](super::recover::recover), like another's.
    ///
    /// # Errors
    /// When the record cannot be read back.
    pub fn into_orphan(self) -> Result<Orphan, RecordError> {
        let Self { held, file } = self;
        let text = std::fs::read(&held.path).map_err(|e| held.err("read", e))?;
        let (owner, intents) = parse(&String::from_utf8_lossy(&text)).map_err(|e| held.err("read", e))?;
        Ok(Orphan { held, file, owner, intents })
    }

    /// Everything is undone: removes the record and lets go of the guest.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn clear(self) -> Result<(), RecordError> {
        remove(&self.held)
    }
}

impl Orphan {
    /// Waits up to `patience` for the owner of guest `vmid`'s record to be gone; `None` when there is nothing to undo, or
    /// when somebody else has taken it up.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn take(host: &Host, vmid: u32, patience: Duration) -> Result<Option<Self>, RecordError> {
        let give_up = Instant::now() + patience;
        loop {
            match lock(host, vmid) {
                Ok(held) => return Ok(Self::read(held)?.ok()),
                // A dying process closes its pipes a little before its locks.
                Err(RecordError::Busy { .. }) if Instant::now() < give_up => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(RecordError::Busy { .. }) => return Ok(None),
                Err(other) => return Err(other),
            }
        }
    }

    /// Reads the record below a lock; hands the lock back when there is none.
    fn read(held: Held) -> Result<Result<Self, Held>, RecordError> {
        let text = match std::fs::read(&held.path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Err(held)),
            Err(e) => return Err(held.err("read", e)),
        };
        let (owner, intents) = parse(&text).map_err(|e| held.err("read", e))?;
        if intents.is_empty() {
            return Ok(Err(held));
        }
        let mut file = OpenOptions::new().append(true).open(&held.path).map_err(|e| held.err("open", e))?;
        if !text.ends_with('\n') {
            // What is appended from now on must not continue a torn line.
            file.write_all(b"\n").map_err(|e| held.err("write", e))?;
        }
        Ok(Ok(Self { held, file, owner, intents }))
    }

    /// The guest.
    pub fn vmid(&self) -> u32 {
        self.held.vmid
    }

    /// Whether the node is still in the boot in which the record was written, and with it perhaps the guest's QEMU.
    pub fn same_boot(&self) -> bool {
        match (&self.owner, procfs::boot_id()) {
            (Some(owner), Ok(now)) => owner.boot_id == now,
            _ => true,
        }
    }

    /// Notes that `intent` is undone.
    ///
    /// # Errors
    /// When the note cannot be written.
    pub fn resolve(&mut self, intent: &Intent) -> Result<(), RecordError> {
        self.held.append(&mut self.file, Line::Done(intent.clone()), false)?;
        self.intents.retain(|i| i != intent);
        Ok(())
    }

    /// Turns a record that is worked off into our own. What may be frozen in the guest goes on to the new record: a guest
    /// whose agent does not answer any more must not be without backups for that.
    ///
    /// # Errors
    /// [`RecordError::Unresolved`] when something else is still to be undone; [`RecordError::Io`].
    pub fn into_record(mut self, command: &str) -> Result<Record, RecordError> {
        let before = self.intents.len();
        self.intents.retain(|intent| *intent != Intent::Frozen);
        let frozen = self.intents.len() < before;
        self.check()?;
        let mut record = Record::create(self.held, command)?;
        if frozen {
            record.note(&Intent::Frozen)?;
        }
        Ok(record)
    }

    /// Removes a record that is worked off.
    ///
    /// # Errors
    /// As [`Orphan::into_record`].
    pub fn clear(self) -> Result<(), RecordError> {
        self.check()?;
        remove(&self.held)
    }

    fn check(&self) -> Result<(), RecordError> {
        if self.intents.is_empty() {
            return Ok(());
        }
        let what: Vec<String> = self.intents.iter().map(super::recover::describe).collect();
        Err(RecordError::Unresolved { vmid: self.held.vmid, what: what.join(", ") })
    }
}

/// What somebody finds who only asks.
#[derive(Debug)]
pub enum Seen {
    /// No run works on the guest, and none left anything.
    Nothing,
    /// This run works on it: `vzdump (process 4711)`.
    Living(String),
    /// This run was killed, and its guardian is undoing what it did.
    Recovering(String),
    /// A run was killed, and this is still to be undone.
    Left(Orphan),
}

/// Who works on guest `vmid`, or did and was killed.
///
/// # Errors
/// [`RecordError::Io`].
pub fn look(host: &Host, vmid: u32) -> Result<Seen, RecordError> {
    if !host.path(DIRECTORY).join(format!("{vmid}.lock")).exists() {
        return Ok(Seen::Nothing);
    }
    match lock(host, vmid) {
        Ok(held) => Ok(Orphan::read(held)?.map_or(Seen::Nothing, Seen::Left)),
        // A run that has just locked the record writes who it is a moment later.
        Err(RecordError::Busy { by, .. }) if owner_lives(host, vmid) || !has_record(host, vmid) => Ok(Seen::Living(by)),
        Err(RecordError::Busy { by, .. }) => Ok(Seen::Recovering(by)),
        Err(other) => Err(other),
    }
}

fn has_record(host: &Host, vmid: u32) -> bool {
    host.path(DIRECTORY).join(format!("{vmid}.json")).exists()
}

/// The guests that have a record on this node, living or orphaned.
///
/// # Errors
/// When the directory cannot be read.
pub fn recorded(host: &Host) -> io::Result<Vec<u32>> {
    let entries = match std::fs::read_dir(host.path(DIRECTORY)) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut vmids = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        vmids.extend(name.to_str().and_then(|n| n.strip_suffix(".json")).and_then(|n| n.parse::<u32>().ok()));
    }
    vmids.sort_unstable();
    Ok(vmids)
}

/// As [`lock`], but waits for the guardian of a run that was killed: it has the lock only while it recovers.
fn lock_from_the_dead(host: &Host, vmid: u32) -> Result<Held, RecordError> {
    let give_up = Instant::now() + RECOVERY;
    loop {
        match lock(host, vmid) {
            Err(RecordError::Busy { .. }) if Instant::now() < give_up && !owner_lives(host, vmid) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

fn owner_lives(host: &Host, vmid: u32) -> bool {
    let text = std::fs::read_to_string(host.path(DIRECTORY).join(format!("{vmid}.json"))).unwrap_or_default();
    let owner = parse(&text).ok().and_then(|(owner, _)| owner);
    owner.is_some_and(|owner| procfs::is_alive(owner.pid, owner.start))
}

fn lock(host: &Host, vmid: u32) -> Result<Held, RecordError> {
    let dir = host.path(DIRECTORY);
    let path = dir.join(format!("{vmid}.json"));
    let lock_path = dir.join(format!("{vmid}.lock"));
    let err = |op: &'static str, path: &Path, source| RecordError::Io { vmid, op, path: path.to_owned(), source };
    match files::lock(&lock_path, Duration::ZERO) {
        Ok(Some(lock)) => Ok(Held { vmid, path, _lock: lock }),
        Ok(None) => {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let by = parse(&text)
                .ok()
                .and_then(|(owner, _)| owner)
                .map_or_else(|| "another run".to_owned(), |owner| owner.to_string());
            Err(RecordError::Busy { vmid, by })
        }
        Err(e) => Err(err("lock", &lock_path, e)),
    }
}

fn remove(held: &Held) -> Result<(), RecordError> {
    match std::fs::remove_file(&held.path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(held.err("remove", e)),
        _ => sync_parent(&held.path).map_err(|e| held.err("sync the directory of", e)),
    }
}
