//! Undoes what a killed run left behind, from its record: the guest runs on first, then QEMU is cleaned, then files and
//! volumes go, then the locks. Every step may be repeated and finds it normal that there is nothing left to do, that the
//! guest is gone, or that the node was started anew.

use super::commands::wait_for_makers;
use super::conffile;
use super::container::freeze;
use super::record::{Intent, Orphan};
use crate::config::{GuestConfig, disks};
use crate::host::{Host, files};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

#[cfg(test)]
mod tests;

/// What a step did: a line for the log, or nothing because there was nothing to do.
pub type Step = Result<Option<String>, String>;

/// What recovery does to guests and volumes. A guest whose QEMU is gone is no error: there is nothing to do then.
pub trait GuestActions {
    /// Lets a paused guest run on.
    fn resume(&self, vmid: u32) -> Step;
    /// Thaws the guest's file systems.
    fn thaw(&self, vmid: u32) -> Step;
    /// Takes everything of ours out of the guest's QEMU behind the monitor `qmp` (a path of the node).
    fn sweep(&self, vmid: u32, qmp: &Path) -> Step;
    /// Ends a backup that the guest's QEMU sends to a server.
    fn cancel_backup(&self, vmid: u32) -> Step;
    /// Starts the guest if it does not run; lets it run on if it is paused. One that still runs in the QEMU process
    /// `leaving` was told to shut down a moment ago: it is waited for.
    fn start(&self, vmid: u32, leaving: Option<u32>) -> Step;
    /// Stops the guest if its QEMU runs and it has not been let run since.
    fn stop(&self, vmid: u32) -> Step;
    /// Stops the guest if its QEMU runs, whatever it has done since it was started.
    fn end(&self, vmid: u32) -> Step;
    /// Removes a volume; one that is gone already is fine.
    fn free(&self, volid: &str) -> Step;
}

/// How sure the caller is that a `lock: backup` still in the config is the killed run's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockClaim {
    /// The caller holds the node's vzdump lock, or follows the killed run by milliseconds: nobody else can have set it.
    Certain,
    /// Somebody may have unlocked the guest by hand and started the stock tool since: the lock is left alone while
    /// any vzdump runs on the node.
    UnlessVzdumpRuns,
}

/// What recovery did, and what it could not do.
#[derive(Debug, Default)]
pub struct Report {
    /// What was done, a line each.
    pub done: Vec<String>,
    /// What failed, a line each. These steps stay in the record for the next run.
    pub failed: Vec<String>,
}

/// Undoes what `orphan` records, as far as possible; what is undone is struck out of the record at once, so that a
/// killed recovery goes on where it stopped.
pub fn recover(host: &Host, orphan: &mut Orphan, actions: &dyn GuestActions, claim: LockClaim) -> Report {
    let mut report = Report::default();
    let mut intents = orphan.intents.clone();
    // Within one rank the newest first, as with any undoing.
    intents.reverse();
    intents.sort_by_key(rank);
    let mut swept = true;
    let mut sending = false;
    let mut torn = false;
    let mut lives = false;
    for intent in intents {
        let waits_for_sweep =
            matches!(intent, Intent::File { in_qemu: true, .. } | Intent::Volume { in_qemu: true, .. });
        let outcome = if waits_for_sweep && !swept {
            Err("QEMU may still have it open".to_owned())
        } else if lives && rank(&intent) > LIVE {
            Err("the guest may still run from what was restored so far".to_owned())
        } else if sending && matches!(intent, Intent::ConfigLock { .. }) {
            Err("a backup may still run in the guest's QEMU".to_owned())
        } else if torn && matches!(intent, Intent::ConfigLock { .. }) {
            // By the lock the next attempt knows that the guest was not replaced.
            Err("its firewall rules may still be those of the archive".to_owned())
        } else if !intent.outlives_boot() && !orphan.same_boot() {
            Ok(None)
        } else {
            undo(host, orphan.vmid(), &intent, actions, claim)
        };
        match outcome {
            Ok(line) => {
                report.done.extend(line);
                if let Err(e) = orphan.resolve(&intent) {
                    report.failed.push(e.to_string());
                }
            }
            Err(e) => {
                swept &= !matches!(intent, Intent::Session { .. });
                sending |= matches!(intent, Intent::QemuBackup);
                torn |= matches!(intent, Intent::OldFirewall { .. });
                lives |= matches!(intent, Intent::LiveGuest { .. });
                report.failed.push(format!("{} could not be undone: {e}", describe(&intent)));
            }
        }
    }
    report
}

/// The rank of a guest that is being restored while it runs. All that is undone later belongs to it.
const LIVE: u8 = 4;

/// The order of undoing: first what keeps the guest from running, last what keeps others from touching it.
fn rank(intent: &Intent) -> u8 {
    match intent {
        Intent::Paused => 0,
        Intent::StandsStill { .. } => 0,
        // After that: an agent in a paused guest cannot answer.
        Intent::Frozen => 1,
        Intent::Session { .. } => 2,
        Intent::QemuBackup => 2,
        Intent::Started => 3,
        Intent::LiveGuest { .. } => LIVE,
        Intent::ShutDown { .. } => 4,
        Intent::Volume { .. } => 5,
        Intent::StorageSnapshot { .. } => 5,
        Intent::SwitchedOn { .. } => 5,
        Intent::File { .. } => 6,
        Intent::Dir { .. } => 7,
        Intent::NewFirewall | Intent::OldFirewall { .. } => 7,
        Intent::NewConfig => 8,
        Intent::ConfigLock { .. } => 9,
    }
}

/// An intent as a noun, for messages.
pub fn describe(intent: &Intent) -> String {
    match intent {
        Intent::ConfigLock { lock } => format!("lock '{lock}' in the guest's config"),
        Intent::NewConfig => "placeholder config of the new guest".into(),
        Intent::NewFirewall => "firewall file of the new guest".into(),
        Intent::OldFirewall { .. } => "firewall file of the old guest".into(),
        Intent::Paused => "paused guest".into(),
        Intent::Frozen => "frozen file systems of the guest".into(),
        Intent::StandsStill { .. } => "frozen container".into(),
        Intent::StorageSnapshot { of } => of.to_string(),
        Intent::SwitchedOn { of } => format!("{of}, which was switched on"),
        Intent::ShutDown { .. } => "shut down guest".into(),
        Intent::Started => "started guest".into(),
        Intent::LiveGuest { .. } => "guest that was being restored while it ran".into(),
        Intent::QemuBackup => "backup that the guest's QEMU sends".into(),
        Intent::Session { qmp } => format!("backup session in the QEMU behind '{}'", qmp.display()),
        Intent::File { path, .. } => format!("file '{}'", path.display()),
        Intent::Dir { path } => format!("directory '{}'", path.display()),
        Intent::Volume { volid, .. } => format!("volume '{volid}'"),
    }
}

fn undo(host: &Host, vmid: u32, intent: &Intent, actions: &dyn GuestActions, claim: LockClaim) -> Step {
    match intent {
        Intent::Paused => actions.resume(vmid),
        Intent::Frozen => actions.thaw(vmid),
        Intent::StandsStill { freezer } => match freeze::thaw(freezer) {
            Ok(thawed) => Ok(thawed.then(|| format!("CT {vmid} runs again"))),
            Err(e) => Err(e.to_string()),
        },
        Intent::StorageSnapshot { of } => wait_for_makers(host, vmid).and_then(|()| of.remove(host)),
        Intent::SwitchedOn { of } => wait_for_makers(host, vmid).and_then(|()| of.switch_off(host, None)),
        Intent::QemuBackup if claim == LockClaim::UnlessVzdumpRuns && vzdump_runs(host) => {
            Err("a vzdump is running on this node, and the backup may be its".into())
        }
        Intent::QemuBackup => actions.cancel_backup(vmid),
        Intent::Session { qmp } => actions.sweep(vmid, qmp),
        Intent::ShutDown { qemu } => actions.start(vmid, *qemu),
        Intent::Started => actions.stop(vmid),
        Intent::LiveGuest { old, new } => {
            wait_for_makers(host, vmid).and_then(|()| end_live(host, vmid, old.as_deref(), new, actions))
        }
        Intent::File { path, .. } => remove_path(host, path, |p, _| remove_unless_locked(p)),
        Intent::Dir { path } => remove_path(host, path, |p, gone| {
            files::remove_tree(p, &|| {
                gone.fetch_add(1, Ordering::Relaxed);
            })
        }),
        Intent::Volume { volid, .. } => {
            wait_for_makers(host, vmid).and_then(|()| free_unless_named(host, volid, actions))
        }
        Intent::NewFirewall => match conffile::read(host, vmid) {
            Ok(Some(config)) if !conffile::is_placeholder(&config) => Ok(None),
            Ok(_) => remove_path(host, &conffile::firewall_path(vmid), |p, _| std::fs::remove_file(p)),
            Err(e) => Err(format!("whether the guest came into being cannot be told: {e}")),
        },
        Intent::OldFirewall { rules } => put_back(host, vmid, rules.as_deref()),
        Intent::NewConfig => match conffile::remove_placeholder(host, vmid) {
            Ok(Some(kind)) => Ok(Some(format!("removed the placeholder config of {kind} {vmid}"))),
            Ok(None) => Ok(None),
            Err(e) => Err(e.to_string()),
        },
        Intent::ConfigLock { lock } => {
            if claim == LockClaim::UnlessVzdumpRuns && lock == "backup" && vzdump_runs(host) {
                return Err("a vzdump is running on this node, and the lock may be its".into());
            }
            match conffile::remove_lock(host, vmid, lock) {
                Ok(true) => Ok(Some(format!("removed lock '{lock}' of {} {vmid}", conffile::Kind::of(host, vmid)))),
                Ok(false) => Ok(None),
                Err(e) => Err(e.to_string()),
            }
        }
    }
}

/// A volume that some guest's config names is in use, whatever the record says; this one rule makes the renaming of the
/// restored config the moment from which the new volumes stay and the replaced ones go.
pub fn free_unless_named(host: &Host, volid: &str, actions: &dyn GuestActions) -> Step {
    match conffile::names_volume(host, volid) {
        Ok(true) => Ok(None),
        Ok(false) => actions.free(volid),
        Err(e) => Err(format!("whether a guest uses it cannot be told: {e}")),
    }
}

/// Ends a guest that was being restored while it ran, and puts back the config of the one it was to replace, or the placeholder.
/// Its lock goes later, with the note of that. A guest that somebody made in its place is left alone.
fn end_live(host: &Host, vmid: u32, old: Option<&[u8]>, new: &[u8], actions: &dyn GuestActions) -> Step {
    let volumes: Vec<_> = disks(&GuestConfig::parse(new)).into_iter().filter(|disk| !disk.is_cdrom()).collect();
    let ours = |config: &[u8]| {
        let text = String::from_utf8_lossy(config);
        let locked = conffile::lock_of(config).as_deref() == Some("create");
        // With the lock people may have changed some line; without it nothing but the whole config tells.
        (locked && volumes.iter().any(|disk| conffile::mentions(&text, &disk.volid)))
            || same_lines(&conffile::with_lock(config, None), new)
    };
    match conffile::read(host, vmid) {
        Ok(Some(config)) if ours(&config) => {}
        Ok(_) => return Ok(None),
        Err(e) => return Err(format!("whether it is still there cannot be told: {e}")),
    }
    let ended = actions.end(vmid)?;
    let before = conffile::with_lock(old.unwrap_or_default(), Some("create"));
    conffile::edit(host, vmid, |config| Ok(config.filter(|config| ours(config)).map(|_| before)))
        .map_err(|e| format!("the config from before cannot be put back: {e}"))?;
    Ok(ended)
}

/// Whether two configs say the same; the node's tools write the lines in an order of their own.
fn same_lines(one: &[u8], other: &[u8]) -> bool {
    let lines = |config: &[u8]| {
        let says = |line: &&[u8]| !line.is_empty() && !line.starts_with(b"#");
        let mut lines: Vec<Vec<u8>> =
            config.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(says).map(<[u8]>::to_vec).collect();
        lines.sort();
        lines
    };
    lines(one) == lines(other)
}

/// Removes a file, but not one that a living run writes: an archive's name that was noted may have become another node's
/// before it was ours.
fn remove_unless_locked(path: &Path) -> io::Result<()> {
    let held = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    if let Ok(file) = held
        && matches!(Flock::lock(file, FlockArg::LockExclusiveNonblock), Err((_, Errno::EWOULDBLOCK)))
    {
        return Err(io::ErrorKind::NotFound.into());
    }
    std::fs::remove_file(path)
}

/// Puts back the firewall file of a guest that was to be replaced, and was not: its config still has the lock of the restore.
fn put_back(host: &Host, vmid: u32, rules: Option<&[u8]>) -> Step {
    let path = conffile::firewall_path(vmid);
    match conffile::read(host, vmid) {
        Ok(Some(config)) if conffile::lock_of(&config).as_deref() == Some("create") => {}
        Ok(_) => return Ok(None),
        Err(e) => return Err(format!("whether the guest was replaced cannot be told: {e}")),
    }
    let real = host.path(&path);
    let Some(rules) = rules else { return remove_path(host, &path, |p, _| std::fs::remove_file(p)) };
    if std::fs::read(&real).is_ok_and(|now| now == rules) {
        return Ok(None);
    }
    let put = files::replace(&real, rules);
    put.map_err(|e| e.to_string()).map(|()| Some(format!("put back '{}' of the old guest", path.display())))
}

/// How long the removal of one file may take. On a network file system whose server is gone it would never end, and the
/// guest's lock waits behind it.
const REMOVAL: Duration = Duration::from_secs(20);

/// Removes `path` by `remove`, which counts what is gone.
fn remove_path(
    host: &Host,
    path: &Path,
    remove: impl Fn(&Path, &AtomicU64) -> io::Result<()> + Send + 'static,
) -> Step {
    let names = path.components().filter(|c| matches!(c, Component::Normal(_))).count();
    if !path.is_absolute() || names < 2 || path.components().any(|c| c == Component::ParentDir) {
        return Err("the path is not one of ours".into());
    }
    let (tell, told) = std::sync::mpsc::channel();
    let real = host.path(path);
    let gone = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&gone);
    // Abandoned, when it does not come back: it may be beyond the reach of any signal. A removal that nobody waits for any
    // more, too, removes only what is ours.
    std::thread::spawn(move || tell.send(remove(&real, &count)).unwrap_or_default());
    match ended(&told, &gone, REMOVAL).ok_or("its file system does not answer")? {
        Ok(()) => Ok(Some(format!("removed '{}'", path.display()))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

/// How a removal ended; `None` when nothing more has gone for as long as `patience`.
fn ended(told: &Receiver<io::Result<()>>, gone: &AtomicU64, patience: Duration) -> Option<io::Result<()>> {
    let mut before = gone.load(Ordering::Relaxed);
    loop {
        if let Ok(ended) = told.recv_timeout(patience) {
            return Some(ended);
        }
        let now = gone.load(Ordering::Relaxed);
        if now == before {
            return None;
        }
        before = now;
    }
}

/// Whether some vzdump, ours or the stock one, holds the node's global lock.
fn vzdump_runs(host: &Host) -> bool {
    OpenOptions::new()
        .write(true)
        .open(host.path("/var/run/vzdump.lock"))
        .is_ok_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err())
}
