//! Looks at everything that says whose a guest's lock is, and removes the lock of one that is gone. The rule is
//! [`crate::guest::unlock`]'s.

use std::fs::File;
use std::io;
use std::time::Duration;

use nix::fcntl::Flock;
use serde_json::json;

use super::global_lock;
use super::upid::{TASKS, Upid};
use crate::guest::conffile;
use crate::guest::held;
use crate::guest::monitor::qmp_socket;
use crate::guest::power::Power;
use crate::guest::record::{self, Intent, Orphan, RecordError, Seen};
use crate::guest::recover::describe;
use crate::guest::unlock::{Facts, Journal, QemuState, Verdict, judge};
use crate::host::{Host, files};
use crate::qemu::{QemuError, Qmp};

/// How long a monitor may be in use by somebody else.
const QMP_PATIENCE: Duration = Duration::from_secs(5);

/// A lock was not removed.
#[derive(Debug, thiserror::Error)]
pub enum UnlockError {
    /// There is no such VM here, and nothing is left of one.
    #[error("there is no VM {0} on this node")]
    NotFound(u32),
    /// The guest lives elsewhere, and so do those who could have locked it.
    #[error("VM {vmid} lives on node '{node}': run 'vzkeep unlock {vmid}' there")]
    Elsewhere {
        /// The guest.
        vmid: u32,
        /// Its node.
        node: String,
    },
    /// Its owner is not provably gone.
    #[error("VM {vmid} stays as it is: {why}\n{advice}")]
    Refused {
        /// The guest.
        vmid: u32,
        /// Why.
        why: String,
        /// What to do instead.
        advice: String,
    },
    /// Something could not be undone; it stays recorded.
    #[error("VM {vmid}: {what}")]
    Left {
        /// The guest.
        vmid: u32,
        /// One line a leftover.
        what: String,
    },
    /// Our own record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A file of the node cannot be read or written.
    #[error("VM {vmid}: cannot {what}: {source}")]
    Io {
        /// The guest.
        vmid: u32,
        /// `read its config` ...
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// What was found; as long as it is kept, no backup job begins on this node and no run of ours on this guest.
struct Found {
    facts: Facts,
    orphan: Option<Orphan>,
    _global: Option<Flock<File>>,
}

/// Removes the lock of VM `vmid` if whoever set it is provably gone, and undoes what a killed run of ours left of it. Each
/// step is told to `tell`; with `dry_run` it is only told.
///
/// # Errors
/// [`UnlockError`], with nothing changed unless it says so.
pub fn unlock(host: &Host, vmid: u32, dry_run: bool, tell: &mut dyn FnMut(&str)) -> Result<(), UnlockError> {
    let io_error = |what| move |source| UnlockError::Io { vmid, what, source };
    if conffile::read(host, vmid).map_err(io_error("read its config"))?.is_none() {
        elsewhere(host, vmid)?;
    }
    let Found { facts, orphan, _global } = look(host, vmid)?;
    let by = match judge(&facts) {
        Verdict::Free => {
            tell(&format!("VM {vmid} is not locked, and no killed run left anything of it: nothing to do"));
            return Ok(());
        }
        Verdict::Refused { why, advice } => return Err(UnlockError::Refused { vmid, why, advice }),
        Verdict::Stale { by } => by,
    };
    match &facts.lock {
        Some(lock) => tell(&format!("VM {vmid} is locked ({lock}); the lock was left behind by {by}")),
        None => tell(&format!("VM {vmid} is not locked, but not all is undone that was done by {by}")),
    }
    if dry_run {
        let left = orphan.iter().flat_map(|orphan| orphan.intents.iter().rev()).map(describe);
        left.for_each(|what| tell(&format!("would undo: {what}")));
        if orphan.is_none() {
            facts.lock.iter().for_each(|lock| tell(&format!("would remove: lock '{lock}' in the guest's config")));
        }
        return Ok(());
    }
    if let Some(orphan) = orphan {
        let report = held::undo_and_clear(host, orphan, None);
        report.done.iter().for_each(|line| tell(line));
        if !report.failed.is_empty() {
            return Err(UnlockError::Left { vmid, what: report.failed.join("\n") });
        }
    }
    // The killed run's record may have been worked off without the lock, or there was none.
    if let Some(lock) = &facts.lock
        && conffile::remove_lock(host, vmid, lock).map_err(io_error("remove its lock"))?
    {
        tell(&format!("removed lock '{lock}' of VM {vmid}"));
    }
    Ok(())
}

/// Who left the lock of VM `vmid` behind, if they are gone; asked by a job that could not lock it.
pub(super) fn left_behind(host: &Host, vmid: u32) -> Option<String> {
    match judge(&look(host, vmid).ok()?.facts) {
        Verdict::Stale { by } => Some(by),
        Verdict::Free | Verdict::Refused { .. } => None,
    }
}

/// Explains why a guest without a config is not here.
fn elsewhere(host: &Host, vmid: u32) -> Result<(), UnlockError> {
    let nodes = host.path("/etc/pve/nodes");
    for node in std::fs::read_dir(nodes).into_iter().flatten().flatten() {
        if ["qemu-server", "lxc"].iter().any(|kind| node.path().join(format!("{kind}/{vmid}.conf")).exists()) {
            return Err(UnlockError::Elsewhere { vmid, node: node.file_name().to_string_lossy().into_owned() });
        }
    }
    // A restore that was killed may have left something of a guest that never came into being.
    let recorded = record::recorded(host).unwrap_or_default().contains(&vmid);
    if recorded { Ok(()) } else { Err(UnlockError::NotFound(vmid)) }
}

fn look(host: &Host, vmid: u32) -> Result<Found, UnlockError> {
    let (journal, orphan) = match record::look(host, vmid)? {
        Seen::Nothing => (Journal::Empty, None),
        Seen::Living(by) => (Journal::Living(by), None),
        Seen::Recovering(by) => (Journal::Recovering(by), None),
        Seen::Left(orphan) => {
            let by = orphan.owner.as_ref().map_or_else(|| "a run of vzkeep".into(), ToString::to_string);
            let lock = |intent: &Intent| match intent {
                Intent::ConfigLock { lock } => Some(lock.clone()),
                Intent::NewConfig => Some("create".to_owned()),
                _ => None,
            };
            (Journal::Left { by, locks: orphan.intents.iter().filter_map(lock).collect() }, Some(orphan))
        }
    };
    let tasks = tasks(host, vmid);
    let (global, holder) = global_lock_holder(host, vmid)?;
    let shown = |task: &Upid| format!("task {task} (process {})", task.pid);
    let runner = holder.or_else(|| tasks.iter().find(|task| task.is_alive() && !is_us(task)).map(shown));
    let qemu = qemu_state(host, vmid);
    let io_error = |source| UnlockError::Io { vmid, what: "read its config", source };
    // Last: whoever set the lock that is there now has been there all the time.
    let config = conffile::read(host, vmid).map_err(io_error)?;
    let facts = Facts {
        vmid,
        kind: conffile::Kind::of(host, vmid),
        lock: config.as_deref().and_then(conffile::lock_of),
        journal,
        runner,
        qemu,
        trace: tasks.iter().rfind(|task| !task.is_alive()).map(shown),
    };
    Ok(Found { facts, orphan, _global: global })
}

/// The node's vzdump lock, if it is to be had; else who has it, unless that is us or a job of another guest.
fn global_lock_holder(host: &Host, vmid: u32) -> Result<(Option<Flock<File>>, Option<String>), UnlockError> {
    let io_error = |source| UnlockError::Io { vmid, what: "look at the backup jobs of the node", source };
    if let Some(lock) = files::lock(&host.path(global_lock::LOCK), Duration::ZERO).map_err(io_error)? {
        return Ok((Some(lock), None));
    }
    let text = std::fs::read_to_string(host.path(global_lock::PID_FILE)).unwrap_or_default();
    let holder = match text.trim().parse::<Upid>().ok().filter(Upid::is_alive) {
        Some(task) if is_us(&task) || !may_concern(&task, vmid) => None,
        Some(task) => Some(format!("task {task} (process {})", task.pid)),
        None => Some(format!("an unknown process, which holds '{}'", global_lock::LOCK)),
    };
    Ok((None, holder))
}

/// The backup jobs of this node that are recorded as running and may be about guest `vmid`, dead ones included, in the order
/// they were begun.
fn tasks(host: &Host, vmid: u32) -> Vec<Upid> {
    let text = std::fs::read(host.path(TASKS).join("active")).unwrap_or_default();
    let mut tasks: Vec<Upid> = running(&String::from_utf8_lossy(&text), vmid);
    tasks.sort_by_key(|task| task.start);
    tasks
}

/// `UPID:...: 0` is a task that has not ended; `UPID:...: 1 <end> <status>` one that has.
fn running(active: &str, vmid: u32) -> Vec<Upid> {
    let open = active.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let upid: Upid = words.next()?.parse().ok()?;
        (words.next() != Some("1")).then_some(upid)
    });
    open.filter(|task| may_concern(task, vmid)).collect()
}

/// A job of several guests does not say which.
fn may_concern(task: &Upid, vmid: u32) -> bool {
    task.kind == "vzdump" && (task.id.is_empty() || task.id == vmid.to_string())
}

fn is_us(task: &Upid) -> bool {
    task.pid == std::process::id()
}

/// Asks the guest's QEMU for backups that run inside it, which outlive the program that began them.
fn qemu_state(host: &Host, vmid: u32) -> QemuState {
    if Power::new(host, vmid).pid().is_none() {
        return QemuState::Quiet;
    }
    match running_backup(host, vmid) {
        Ok(Some(what)) => QemuState::Backup(what),
        Ok(None) | Err(QemuError::NotRunning { .. }) => QemuState::Quiet,
        Err(error) => QemuState::Unknown(error.to_string()),
    }
}

fn running_backup(host: &Host, vmid: u32) -> Result<Option<String>, QemuError> {
    let mut qmp = Qmp::connect(&qmp_socket(host, vmid), QMP_PATIENCE)?;
    // Only the node's own QEMU has this command.
    match qmp.execute("query-backup", json!({})) {
        Ok(state) if state["status"] == "active" => return Ok(Some("query-backup says active".into())),
        Err(error) if !error.is_refusal() => return Err(error),
        _ => {}
    }
    let jobs = qmp.execute("query-block-jobs", json!({}))?;
    let backup = jobs.as_array().into_iter().flatten().find(|job| job["type"] == "backup");
    Ok(backup.map(|job| format!("block job '{}'", job["device"].as_str().unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_that_may_have_locked_a_guest() {
        let upid = |kind: &str, id: &str| format!("UPID:pve1:00001D88:00066E9A:6B02B435:{kind}:{id}:root@pam:");
        let active = [
            upid("vzdump", "100") + " 0",
            upid("vzdump", "") + " 0",
            upid("vzdump", "101") + " 0",
            upid("vzdump", "100") + " 1 6B02B500 OK",
            upid("qmstart", "100") + " 0",
            "rubbish \u{fffd}".to_owned(),
            upid("vzdump", "100"),
        ];
        let found = running(&active.join("\n"), 100);
        assert_eq!(found.iter().map(|task| task.id.as_str()).collect::<Vec<_>>(), ["100", "", "100"]);
        assert!(running("", 100).is_empty());
    }
}
