//! Carries out a restore plan while the guest runs already: its disks show the archive, which we serve over NBD, and QEMU moves
//! them to their volumes behind it. The guest is complete when everything is there and our lock leaves its config; until then a
//! failure, a signal and a kill end it and undo everything, and what it has written is lost.

mod before;
mod noted;

use super::execute::{ExecuteError, Tools, make_volumes, seat, stop_if_asked};
use super::plan::{DiskPlan, Plan};
use super::seat::{Restored, Seat};
use crate::guest::commands::make_by_bridge;
use crate::guest::monitor::qmp_socket;
use crate::guest::power::Power;
use crate::guest::record::{DIRECTORY, Intent, Record};
use crate::host::child::{self, Ended};
use crate::host::{Cancel, Host, bridge, files};
use crate::image::Image;
use crate::qemu::{Move, MoveError, Moving};
use noted::{Failure, Noted};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The verb of the bridge that starts the guest.
const START: &str = "vm-start-live";
/// How long that may take.
const START_LIMIT: Duration = Duration::from_secs(300);
/// How long we wait before we look how far it is, at first and later: others need the monitor, too.
const LOOKS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Where the node's daemon for the events of guests listens.
const EVENTS: &str = "/var/run/qmeventd.sock";
/// How long the data of one volume may take to its disk in the end.
const FLUSH_LIMIT: Duration = Duration::from_secs(600);
/// How often we look for the wish to stop.
const TICK: Duration = Duration::from_millis(50);

/// Serves images over NBD on a socket, by name, until what it returns is dropped.
pub type Serve<'a> = &'a dyn Fn(&Path, Vec<(String, Arc<dyn Image>)>) -> Result<Box<dyn Send>, String>;

/// The archive of a guest that is to run from it.
pub struct LiveData<'a> {
    /// A disk, by its name in the archive.
    pub disk: &'a dyn Fn(&str) -> Option<Arc<dyn Image>>,
    /// Serves it.
    pub serve: Serve<'a>,
    /// Bytes a second that are moved behind the running guest. What it reads itself is not limited.
    pub limit: Option<u64>,
}

/// Carries out `plan` as [`execute`](super::execute::execute) does, but the guest runs when its volumes are still empty.
///
/// # Errors
/// The first step that failed; the caller has what is in the record undone.
pub fn execute_live(
    plan: &mut Plan,
    data: &LiveData<'_>,
    record: &mut Record,
    tools: &mut Tools<'_>,
) -> Result<Vec<String>, ExecuteError> {
    if plan.template {
        return Err(step("cannot do live-restore for template"));
    }
    if !bridge::available(tools.host) {
        return Err(step(format!("live-restore needs the program '{}', which is not installed", bridge::PROGRAM)));
    }
    let begun = Instant::now();
    let (host, vmid) = (tools.host, plan.vmid);
    let failure = Failure::default();
    let images = images(plan, data, &failure)?;
    seat(plan).claim(record, host, &|| Ok(Power::new(host, vmid).is_running()))?;
    let volids = make_volumes(plan, record, tools)?;
    let (needed, behind): (Vec<DiskPlan>, Vec<DiskPlan>) =
        plan.disks.iter().cloned().partition(|disk| before::is_needed_before(&disk.key));
    for disk in &needed {
        restore_before(disk, &volids[&disk.key], &images[&disk.key], tools)?;
    }

    let dir = work_dir(host, vmid, record)?;
    let socket = host.path(&dir).join("nbd");
    let exports = behind.iter().map(|disk| (disk.key.clone(), Arc::clone(&images[&disk.key]))).collect();
    let server = (data.serve)(&socket, exports).map_err(step)?;
    let rules = seat(plan).rules(plan.firewall.as_deref(), record, host)?;
    let planned = plan.warnings.len();
    let config = plan.config(&volids, &mut tools.fresh);
    plan.warnings[planned..].iter().for_each(|w| (tools.line)(&format!("WARN: {w}")));
    stop_if_asked(tools.cancel)?;
    let live = seat(plan).go_live(&config, record, host)?;

    (tools.line)("starting VM for live-restore");
    for disk in &behind {
        (tools.line)(&format!("restoring '{}' to '{}'", disk.device.name, volids[&disk.key]));
    }
    let moves = start(host, vmid, &dir, &socket, &behind)?;
    // A guest that switches itself off before its data is there has to wait for that.
    let waits = keep_from_ending(host, vmid);
    // QEMU has open what it needs. Without a name nothing of it can be left behind.
    remove_work_dir(host, &dir, record)?;
    let mut moving = Moving::begin(&qmp_socket(host, vmid), moves, data.limit, tools.cancel)
        .map_err(|e| told(&e, &failure, tools.cancel))?;
    (tools.line)(&format!("VM {vmid} runs after {:.1} seconds", begun.elapsed().as_secs_f64()));
    follow(&mut moving, begun, &failure, tools)?;
    moving.complete().map_err(|e| told(&e, &failure, tools.cancel))?;
    if let Err(e) = flush(&moving, &behind, &volids, tools) {
        (tools.line)(&format!(
            "WARN: VM {vmid}: what was restored may not be on disk yet, should the node lose power now: {e}"
        ));
    }
    let replaced = &plan.replaced;
    insist(vmid, tools.cancel, tools.line, &mut || Seat::arrived(&live, rules.as_ref(), replaced, record))?;
    let restored = Restored { config: None, replaced: &plan.replaced };
    let left = seat(plan).commit(restored, record, host, tools.actions, tools.line).unwrap_or_else(|e| {
        // Whoever undoes what is in the record goes on with that.
        (tools.line)(&format!("WARN: VM {vmid} is complete and runs, but its lock could not be removed: {e}"));
        vec![format!("lock of VM {vmid}")]
    });
    (tools.line)("restore-drive jobs finished successfully, removing all tracking block devices");
    // The restore has happened. What fails now is only said.
    if let Err(e) = moving.clear() {
        (tools.line)(&format!(
            "WARN: VM {vmid} keeps block devices that it does not need until it is started anew: {e}"
        ));
    }
    if moving.is_off().unwrap_or(false) {
        (tools.line)(&format!("VM {vmid} has switched itself off meanwhile"));
        if let Err(e) = tools.actions.end(vmid) {
            (tools.line)(&format!("WARN: the QEMU of VM {vmid} could not be ended: {e}"));
        }
    }
    drop((server, waits));
    Ok(left)
}

/// Says how far the disks are, until all of them wait only to be completed.
fn follow(moving: &mut Moving, begun: Instant, failure: &Failure, tools: &mut Tools<'_>) -> Result<(), ExecuteError> {
    let (mut percent, mut pause) = (0, LOOKS.0);
    loop {
        let progress = match moving.progress() {
            // Somebody else has the monitor, and the guest must not pay for that.
            Err(e) if e.is_busy() && !tools.cancel.is_set() => continue,
            other => other.map_err(|e| told(&e, failure, tools.cancel))?,
        };
        let now = progress.done.saturating_mul(100).checked_div(progress.total).unwrap_or(100);
        if now > percent {
            percent = now;
            let seconds = begun.elapsed().as_secs();
            (tools.line)(&format!("progress {percent}% (moved {} bytes, duration {seconds} sec)", progress.done));
        }
        stop_if_asked(tools.cancel)?;
        if progress.ready {
            return Ok(());
        }
        let next = Instant::now() + pause;
        while Instant::now() < next {
            std::thread::sleep(TICK.min(pause));
            stop_if_asked(tools.cancel)?;
        }
        pause = (pause * 2).min(LOOKS.1);
    }
}

/// Has the arrival of a guest noted, however long that cannot be done: /var/lib may be full. Without the note it would be removed.
///
/// # Errors
/// Why it cannot be noted, when the wish to stop comes.
fn insist(
    vmid: u32,
    cancel: &Cancel,
    line: &mut dyn FnMut(&str),
    note: &mut dyn FnMut() -> Result<(), ExecuteError>,
) -> Result<(), ExecuteError> {
    let mut said = false;
    loop {
        match note() {
            Err(e) if !cancel.is_set() => {
                if !said {
                    line(&format!(
                        "WARN: VM {vmid} is complete and runs, but that cannot be noted; trying again until it can, for an interrupted restore is undone: {e}"
                    ));
                }
                said = true;
                std::thread::sleep(LOOKS.1);
            }
            other => return other,
        }
    }
}

/// Makes durable what was moved. Data first and by us: QEMU would hold the guest up for it.
fn flush(
    moving: &Moving,
    disks: &[DiskPlan],
    volids: &BTreeMap<String, String>,
    tools: &Tools<'_>,
) -> Result<(), String> {
    for disk in disks {
        let path = tools.volumes.path(&volids[&disk.key])?;
        if path.is_absolute() {
            let mut sync = tools.host.command("sync");
            sync.arg(tools.host.path(&path));
            match child::run(&mut sync, None, FLUSH_LIMIT, tools.cancel).map_err(|e| format!("sync: {e}"))? {
                Ended::Exited(output) if output.status.success() => {}
                Ended::Exited(output) => return Err(output.complaint()),
                Ended::Late(_) | Ended::Cancelled => return Err(format!("sync of '{}' did not end", path.display())),
            }
        }
    }
    moving.flush().map_err(|e| e.to_string())
}

/// Why the disks did not arrive, with what we know of it and QEMU does not.
fn told(error: &MoveError, failure: &Failure, cancel: &Cancel) -> ExecuteError {
    match (cancel.is_set(), failure.get()) {
        (true, _) => ExecuteError::Interrupted,
        (false, None) => step(format!("live-restore failed: {error}")),
        (false, Some(cause)) => step(format!("live-restore failed: {error}: {cause}")),
    }
}

/// On a node a daemon ends the QEMU of a guest that has switched itself off, but not while a backup or a restore says that it
/// needs it: as long as what is returned is open. Elsewhere there is nobody to tell.
fn keep_from_ending(host: &Host, vmid: u32) -> Option<UnixStream> {
    let mut daemon = UnixStream::connect(host.path(EVENTS)).ok()?;
    // Should it take nothing, the guest is lost only if it does switch itself off.
    daemon.set_write_timeout(Some(Duration::from_secs(5))).ok()?;
    daemon.write_all(json!({ "vzdump": { "vmid": vmid.to_string() } }).to_string().as_bytes()).ok()?;
    Some(daemon)
}

fn step(why: impl Into<String>) -> ExecuteError {
    ExecuteError::Step(why.into())
}

/// The disks of the archive, by key.
fn images(
    plan: &Plan,
    data: &LiveData<'_>,
    failure: &Failure,
) -> Result<BTreeMap<String, Arc<dyn Image>>, ExecuteError> {
    let mut images: BTreeMap<String, Arc<dyn Image>> = BTreeMap::new();
    for disk in &plan.disks {
        let name = &disk.device.name;
        let image = (data.disk)(name).ok_or_else(|| step(format!("the archive has no disk '{name}'")))?;
        images.insert(disk.key.clone(), Arc::new(Noted { image, failure: failure.clone() }));
    }
    Ok(images)
}

fn restore_before(
    disk: &DiskPlan,
    volid: &str,
    image: &Arc<dyn Image>,
    tools: &mut Tools<'_>,
) -> Result<(), ExecuteError> {
    let DiskPlan { device, format, starts_zeroed, .. } = disk;
    let path = tools.volumes.path(volid).map_err(step)?;
    (tools.line)(&format!("restoring '{}' to '{volid}' before the start", device.name));
    let target = (tools.open)(&path, format, &device.name, *starts_zeroed).map_err(step)?;
    match before::copy(image, &*target, tools.cancel) {
        Ok(true) => Ok(()),
        Ok(false) => Err(ExecuteError::Interrupted),
        Err(why) => Err(step(why)),
    }
}

/// Makes the directory of our socket and of what QEMU puts the guest's writes into meanwhile, if it needs that.
fn work_dir(host: &Host, vmid: u32, record: &mut Record) -> Result<PathBuf, ExecuteError> {
    let dir = Path::new(DIRECTORY).join(format!("live-{vmid}"));
    record.note(&Intent::Dir { path: dir.clone() })?;
    let real = host.path(&dir);
    // The record is ours, and so is what may lie there from a run that had it before.
    let cleared = if real.exists() { files::remove_tree(&real, &|| {}) } else { Ok(()) };
    cleared
        .and_then(|()| DirBuilder::new().mode(0o700).create(&real))
        .map_err(|e| step(format!("making the directory '{}' failed: {e}", dir.display())))?;
    Ok(dir)
}

fn remove_work_dir(host: &Host, dir: &Path, record: &mut Record) -> Result<(), ExecuteError> {
    files::remove_tree(&host.path(dir), &|| {})
        .map_err(|e| step(format!("removing the directory '{}' failed: {e}", dir.display())))?;
    Ok(record.done(&Intent::Dir { path: dir.to_owned() })?)
}

/// Has the guest started by the bridge, with its processors stopped; says how its disks get to their volumes.
fn start(host: &Host, vmid: u32, dir: &Path, socket: &Path, disks: &[DiskPlan]) -> Result<Vec<Move>, ExecuteError> {
    let source = |disk: &DiskPlan| (disk.key.clone(), json!({ "socket": socket, "export": disk.key }));
    let sources: Map<String, Value> = disks.iter().map(source).collect();
    let request = json!({ "vmid": vmid, "directory": host.path(dir), "disks": sources });
    let answer = make_by_bridge(host, vmid, START_LIMIT, START, &request).map_err(step)?;
    let moves = disks.iter().map(|disk| {
        let said = &answer["disks"][&disk.key];
        Move::parse(&disk.key, said).ok_or_else(|| {
            step(format!("'{} {START}' said of {}, which we cannot use: {said}", bridge::PROGRAM, disk.key))
        })
    });
    moves.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrival_is_noted_sooner_or_later_unless_told_to_stop() {
        let cancel = Cancel::new();
        let (mut lines, mut tries) = (Vec::new(), 0);
        let full = || step("no space");
        let noted = insist(100, &cancel, &mut |line| lines.push(line.to_owned()), &mut || {
            tries += 1;
            if tries < 3 { Err(full()) } else { Ok(()) }
        });
        assert!(noted.is_ok() && tries == 3 && lines.len() == 1, "{lines:?}");
        assert!(lines[0].starts_with("WARN: VM 100 is complete and runs") && lines[0].ends_with("no space"));
        // Once it is tried also by one who was told to stop.
        cancel.set();
        assert!(insist(100, &cancel, &mut |_| {}, &mut || Ok(())).is_ok());
        assert!(insist(100, &cancel, &mut |_| {}, &mut || Err(full())).is_err());
    }
}
