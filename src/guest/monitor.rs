//! The way into a guest's QEMU for recovery: lets it run on, thaws it, takes our nodes and exports away.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::actions::Monitor;
use super::pbs;
use super::recover::Step;
use crate::host::Host;
use crate::qemu::{Agent, FreezeStatus, QemuError, Qmp, sweep};

/// [`Monitor`] by QMP and the guest agent.
#[derive(Debug, Clone)]
pub struct QemuMonitor {
    host: Host,
}

impl QemuMonitor {
    /// The monitors of this node's guests.
    pub fn new(host: &Host) -> Self {
        Self { host: host.clone() }
    }

    fn socket(&self, vmid: u32) -> PathBuf {
        qmp_socket(&self.host, vmid)
    }
}

/// The monitor socket of a running VM.
pub fn qmp_socket(host: &Host, vmid: u32) -> PathBuf {
    host.path(format!("/var/run/qemu-server/{vmid}.qmp"))
}

/// The guest agent's socket of a running VM.
pub fn agent_socket(host: &Host, vmid: u32) -> PathBuf {
    host.path(format!("/var/run/qemu-server/{vmid}.qga"))
}

/// How long recovery waits for a monitor that somebody else uses.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a guest agent may take to answer or to thaw.
const AGENT_PATIENCE: Duration = Duration::from_secs(10);

impl Monitor for QemuMonitor {
    fn resume(&self, vmid: u32) -> Step {
        let resumed = Qmp::connect(&self.socket(vmid), PATIENCE).and_then(|mut qmp| resume(&mut qmp));
        step(resumed.map(|did| did.then(|| format!("VM {vmid} runs again"))))
    }

    fn thaw(&self, vmid: u32) -> Step {
        let socket = agent_socket(&self.host, vmid);
        step(Agent::connect(&socket, AGENT_PATIENCE).and_then(|mut agent| {
            if agent.freeze_status(AGENT_PATIENCE)? == FreezeStatus::Thawed {
                return Ok(None);
            }
            agent.execute("guest-fsfreeze-thaw", json!({}), AGENT_PATIENCE)?;
            Ok(Some(format!("thawed the file systems of VM {vmid}")))
        }))
    }

    fn cancel_backup(&self, vmid: u32) -> Step {
        let cancelled = pbs::cancel(&self.socket(vmid));
        step(cancelled.map(|ran| ran.then(|| format!("cancelled the backup in the QEMU of VM {vmid}"))))
    }

    fn has_run(&self, vmid: u32) -> Result<bool, String> {
        match pbs::never_ran(&self.socket(vmid)) {
            Ok((never, _)) => Ok(!never),
            // Nobody is there who could have.
            Err(QemuError::NotRunning { .. }) => Ok(false),
            Err(e) => Err(e.to_string()),
        }
    }

    fn sweep(&self, vmid: u32, qmp: &Path) -> Step {
        step(sweep(&self.host.path(qmp), vmid).map(|swept| {
            (!swept.is_empty()).then(|| format!("removed from the QEMU of VM {vmid}: {}", swept.removed.join(", ")))
        }))
    }
}

/// Lets the guest behind `qmp` run if it stands still. Returns whether it did.
///
/// # Errors
/// When QEMU refuses or does not answer.
pub fn resume(qmp: &mut Qmp) -> Result<bool, QemuError> {
    let state = qmp.execute("query-status", json!({}))?;
    // One that has switched itself off does not stand still: its QEMU is about to end.
    if state["running"] == true || state["status"] == "shutdown" {
        return Ok(false);
    }
    qmp.execute("cont", json!({}))?;
    Ok(true)
}

/// A guest whose QEMU is gone needs nothing undone in it.
fn step(result: Result<Option<String>, QemuError>) -> Step {
    match result {
        Err(QemuError::NotRunning { .. }) => Ok(None),
        other => other.map_err(|e| e.to_string()),
    }
}
