//! Finds and removes everything of ours in a QEMU process, in whatever half-built state we left it.
//!
//! The same code ends a session normally, so it is exercised by every backup. It trusts only what QEMU reports: names
//! with our prefix, who uses them, and marker objects that say what cannot be seen otherwise (that the NBD server is
//! ours, which process is at work). The guest runs on meanwhile.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::names::{self, NBD, PREFIX};
use super::{QemuError, Qmp, disks, nodes};

/// Exports and jobs end in their own time: connections are closed, requests in flight finish.
const SETTLE: Duration = Duration::from_secs(20);

/// What a sweep did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// What was removed or put back, in order: `export vzkeep-export-scsi0`, `drive of scsi0 back to drive-scsi0` ...
    pub removed: Vec<String>,
}

impl Swept {
    /// Whether there was nothing to do.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty()
    }
}

/// Removes what earlier runs left in the QEMU process behind `qmp_socket`. Does nothing when there is nothing of ours; may
/// be repeated.
///
/// # Errors
/// `InUse` when another live process has a session open; `LeftBehind` when QEMU refuses; else what went wrong with the
/// connection (`NotRunning`, `Busy` after 30 seconds).
pub fn sweep(qmp_socket: &Path, vmid: u32) -> Result<Swept, QemuError> {
    sweep_connected(&mut Qmp::connect(qmp_socket, Duration::from_secs(30))?, vmid)
}

/// As [`sweep`], on a connection that exists already.
pub(super) fn sweep_connected(qmp: &mut Qmp, vmid: u32) -> Result<Swept, QemuError> {
    let markers = markers(qmp)?;
    if let Some(pid) = markers.iter().find_map(|m| names::other_owner(m)) {
        return Err(QemuError::InUse { vmid, pid });
    }
    let mut work = Work { qmp, vmid, done: Swept::default(), refused: None };
    work.exports()?;
    if markers.iter().any(|m| m == NBD) {
        work.nbd_server()?;
    }
    work.jobs()?;
    work.nodes()?;
    // The mark of the owner goes last, so that nobody takes the guest for free while we are at it.
    if work.refused.is_none() {
        for marker in markers.iter().filter(|m| *m != NBD) {
            work.object(marker)?;
        }
    }
    match work.refused {
        None => Ok(work.done),
        Some((left, cause)) => Err(QemuError::LeftBehind { vmid, left, cause }),
    }
}

/// Our objects. They carry no state but their existence.
pub(super) fn markers(qmp: &mut Qmp) -> Result<Vec<String>, QemuError> {
    let objects = qmp.execute("qom-list", json!({ "path": "/objects" }))?;
    Ok(strings(&objects, "name").into_iter().filter(|n| n.starts_with(PREFIX)).collect())
}

struct Work<'a> {
    qmp: &'a mut Qmp,
    vmid: u32,
    done: Swept,
    /// Names of what could not be removed, and the first reason.
    refused: Option<(String, String)>,
}

impl Work<'_> {
    /// Runs a removal. A refusal is noted and the work goes on; a lost connection ends it.
    fn remove(&mut self, what: String, command: &str, arguments: Value) -> Result<bool, QemuError> {
        match self.qmp.execute(command, arguments) {
            Ok(_) => {
                self.done.removed.push(what);
                Ok(true)
            }
            Err(e) if e.is_refusal() => {
                self.refuse(&what, e.to_string());
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    fn refuse(&mut self, what: &str, cause: String) {
        match &mut self.refused {
            Some((left, _)) => {
                left.push_str(", ");
                left.push_str(what);
            }
            None => self.refused = Some((what.into(), cause)),
        }
    }

    fn object(&mut self, id: &str) -> Result<bool, QemuError> {
        self.remove(format!("object {id}"), "object-del", json!({ "id": id }))
    }

    fn exports(&mut self) -> Result<(), QemuError> {
        let ours = |answer: &Value| -> Vec<String> {
            strings(answer, "id").into_iter().filter(|id| id.starts_with(PREFIX)).collect()
        };
        for id in ours(&self.qmp.execute("query-block-exports", json!({}))?) {
            // 'hard' closes connections; an export that ends on its own meanwhile is refused and gone.
            match self.qmp.execute("block-export-del", json!({ "id": id, "mode": "hard" })) {
                Err(e) if !e.is_refusal() => return Err(e),
                _ => self.done.removed.push(format!("export {id}")),
            }
        }
        let left = self.settle("query-block-exports", ours)?;
        if !left.is_empty() {
            self.refuse(&left.join(", "), "the export does not end".into());
        }
        Ok(())
    }

    /// Stops the NBD server if it is ours and nobody else has an export on it.
    fn nbd_server(&mut self) -> Result<(), QemuError> {
        let exports = self.qmp.execute("query-block-exports", json!({}))?;
        let foreign = exports
            .as_array()
            .into_iter()
            .flatten()
            .any(|e| e["type"] == "nbd" && !e["id"].as_str().is_some_and(|id| id.starts_with(PREFIX)));
        // The mark is set a moment before the server is started; a process killed in between, on a guest where
        // somebody else's server runs, must not make us stop that one. Ours listens on a socket with our name.
        // The kernel's list is read in pieces and can miss a socket while others come and go: a server that is taken for
        // somebody else's would stay, and be in the way of the next backup.
        let alive = || {
            let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
            names::nbd_socket_alive(&sockets, self.vmid)
        };
        if !foreign && (0..5).any(|_| alive()) {
            match self.qmp.execute("nbd-server-stop", json!({})) {
                Ok(_) => self.done.removed.push("NBD server".into()),
                Err(e) if e.is_refusal() => {} // not running
                Err(e) => return Err(e),
            }
        }
        self.object(NBD).map(drop)
    }

    fn jobs(&mut self) -> Result<(), QemuError> {
        let jobs = self.qmp.execute("query-jobs", json!({}))?;
        for job in jobs.as_array().into_iter().flatten() {
            let Some(id) = job["id"].as_str().filter(|id| id.starts_with(PREFIX)) else { continue };
            // Depending on how far it is, a job wants to be cancelled, dismissed, or ends by itself.
            for command in ["job-cancel", "job-dismiss"] {
                if let Err(e) = self.qmp.execute(command, json!({ "id": id }))
                    && !e.is_refusal()
                {
                    return Err(e);
                }
            }
            self.done.removed.push(format!("job {id}"));
        }
        let deadline = Instant::now() + SETTLE;
        loop {
            let jobs = self.qmp.execute("query-jobs", json!({}))?;
            let left: Vec<String> = strings(&jobs, "id").into_iter().filter(|id| id.starts_with(PREFIX)).collect();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                self.refuse(&left.join(", "), "the job does not end".into());
                return Ok(());
            }
            for id in &left {
                if let Err(e) = self.qmp.execute("job-dismiss", json!({ "id": id }))
                    && !e.is_refusal()
                {
                    return Err(e);
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Takes our nodes away from the top down: first what nobody uses (snapshot-access), then what it takes out
    /// from under the devices (tops, filters), then the fleecing images, which nobody uses any more by then.
    fn nodes(&mut self) -> Result<(), QemuError> {
        let mut refused_once: Vec<String> = Vec::new();
        loop {
            let ours = nodes::ours(&self.qmp.execute("x-debug-query-block-graph", json!({}))?);
            if ours.is_empty() {
                return Ok(());
            }
            let mut progress = false;
            for node in ours.iter().filter(|n| !n.used) {
                if refused_once.contains(&node.name) {
                    continue;
                }
                let what = format!("node {}", node.name);
                if self.remove(what, "blockdev-del", json!({ "node-name": node.name }))? {
                    progress = true;
                } else {
                    refused_once.push(node.name.clone());
                }
            }
            if !progress {
                progress = self.lower_devices(&ours)?;
            }
            if !progress {
                let left: Vec<&str> = ours.iter().map(|n| n.name.as_str()).collect();
                self.refuse(&left.join(", "), "still in use".into());
                return Ok(());
            }
        }
    }

    /// Gives every device that sits on a node of ours the node below it, one step: from the top to the filter, and once the
    /// top is gone to the disk. The filter lets nobody else write to the disk as long as a top uses it.
    fn lower_devices(&mut self, ours: &[nodes::OurNode]) -> Result<bool, QemuError> {
        let mut progress = false;
        for disk in disks::parse(&self.qmp.execute("query-block", json!({}))?) {
            let node = ours.iter().find(|n| n.name == disk.node);
            let Some(below) = node.and_then(|n| n.below.as_deref()) else { continue };
            let what = format!("drive of {} back to {below}", disk.label());
            let arguments = json!({ "path": disk.qdev, "property": "drive", "value": below });
            progress |= self.remove(what, "qom-set", arguments)?;
        }
        Ok(progress)
    }

    /// Polls until `pick` finds nothing any more; returns what is left at the deadline.
    fn settle(&mut self, query: &str, pick: impl Fn(&Value) -> Vec<String>) -> Result<Vec<String>, QemuError> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let left = pick(&self.qmp.execute(query, json!({}))?);
            if left.is_empty() || Instant::now() > deadline {
                return Ok(left);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn strings(list: &Value, key: &str) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|e| e[key].as_str()).map(str::to_owned).collect()
}
