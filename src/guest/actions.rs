//! What recovery does on a real node, by the node's own commands and the monitor.

use super::commands::{is_at_work, output};
use super::conffile::Kind;
use super::container::power::ContainerPower;
use super::power::Power;
use super::recover::{GuestActions, Step};
use crate::host::Host;
use std::path::Path;
use std::time::{Duration, Instant};

/// Resumes, thaws and sweeps through the monitor; the lower rooms know how.
pub trait Monitor: Send + Sync {
    /// As [`GuestActions::resume`].
    fn resume(&self, vmid: u32) -> Step;
    /// As [`GuestActions::thaw`].
    fn thaw(&self, vmid: u32) -> Step;
    /// As [`GuestActions::sweep`].
    fn sweep(&self, vmid: u32, qmp: &Path) -> Step;
    /// As [`GuestActions::cancel_backup`].
    fn cancel_backup(&self, vmid: u32) -> Step;
    /// Whether the guest has run since its QEMU was started.
    ///
    /// # Errors
    /// When its monitor cannot be had.
    fn has_run(&self, vmid: u32) -> Result<bool, String>;
}

/// [`GuestActions`] by `qm`, `pvesm` and a [`Monitor`].
pub struct NodeActions<'a> {
    /// The node.
    pub host: &'a Host,
    /// The way into QEMU.
    pub monitor: &'a dyn Monitor,
    /// How long a guest that was told to shut down may take to do so; `None` after a killed run, which may not have come so far.
    pub leaving: Option<Duration>,
}

impl NodeActions<'_> {
    /// The state that `qm status` reports: `running`, `stopped`.
    pub(crate) fn status(&self, vmid: u32) -> Result<String, String> {
        let out = output(self.host, "qm", &["status", &vmid.to_string()])?;
        Ok(out.trim().strip_prefix("status:").unwrap_or(&out).trim().to_owned())
    }
}

/// How long a guest that was told to shut down may take to do so, when the run that told it is gone.
pub const LEAVING: Duration = Duration::from_secs(180);
/// How long a container may still take that the command to shut it down does not wait for any more.
const LATE: Duration = Duration::from_secs(10);

impl NodeActions<'_> {
    /// Waits until the QEMU process `leaving` of a guest is gone. False when it stays: not every guest obeys.
    fn leaves(&self, vmid: u32, leaving: Option<u32>) -> bool {
        let power = Power::new(self.host, vmid);
        let give_up = Instant::now() + self.leaving.unwrap_or(LEAVING);
        while power.pid().is_some() && power.pid() == leaving {
            if Instant::now() > give_up {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        power.pid().is_none()
    }
}

impl NodeActions<'_> {
    /// As [`GuestActions::start`]; `leaving` is the first process of a container that was told to shut down.
    fn start_container(&self, vmid: u32, leaving: Option<u32>) -> Step {
        let power = ContainerPower::new(self.host, vmid);
        let begun = Instant::now();
        while power.is_running().map_err(|e| e.to_string())? {
            // The command that shuts it down waits for it. Without one it was not told yet, or did not obey in time.
            let patience = self.leaving.unwrap_or(if is_at_work(self.host, vmid) { LEAVING } else { LATE });
            // It was started again meanwhile, or does not obey.
            if leaving.is_none()
                || power.init().ok().is_some_and(|pid| Some(pid) != leaving)
                || begun.elapsed() > patience
            {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        power.start().map_err(|e| e.to_string())?;
        Ok(Some(format!("started CT {vmid} again")))
    }
}

impl GuestActions for NodeActions<'_> {
    fn resume(&self, vmid: u32) -> Step {
        self.monitor.resume(vmid)
    }

    fn thaw(&self, vmid: u32) -> Step {
        self.monitor.thaw(vmid)
    }

    fn sweep(&self, vmid: u32, qmp: &Path) -> Step {
        self.monitor.sweep(vmid, qmp)
    }

    fn cancel_backup(&self, vmid: u32) -> Step {
        self.monitor.cancel_backup(vmid)
    }

    fn start(&self, vmid: u32, leaving: Option<u32>) -> Step {
        if Kind::of(self.host, vmid) == Kind::Container {
            return self.start_container(vmid, leaving);
        }
        if self.status(vmid)? == "running" {
            if let Some(line) = self.monitor.resume(vmid)? {
                return Ok(Some(line));
            }
            if leaving.is_none() || !self.leaves(vmid, leaving) {
                return Ok(None);
            }
        }
        // Our own `lock: backup` is still in the config and goes last, so that nobody else is let in before.
        match output(self.host, "qm", &["start", &vmid.to_string(), "--skiplock"]) {
            Ok(_) => Ok(Some(format!("started VM {vmid} again"))),
            // What the killed run had begun was faster: QEMU is there, and may hold the guest.
            Err(_) if self.status(vmid).is_ok_and(|status| status == "running") => {
                self.monitor.resume(vmid)?;
                Ok(Some(format!("started VM {vmid} again")))
            }
            Err(e) => Err(e),
        }
    }

    fn stop(&self, vmid: u32) -> Step {
        if self.status(vmid)? != "running" {
            return Ok(None);
        }
        // Somebody may have started the guest meanwhile, which lets the QEMU run that is there already.
        if self.monitor.has_run(vmid)? {
            return Ok(None);
        }
        output(self.host, "qm", &["stop", &vmid.to_string(), "--skiplock"])?;
        Ok(Some(format!("stopped VM {vmid}")))
    }

    fn end(&self, vmid: u32) -> Step {
        if self.status(vmid)? != "running" {
            return Ok(None);
        }
        output(self.host, "qm", &["stop", &vmid.to_string(), "--skiplock"])?;
        Ok(Some(format!("stopped VM {vmid}")))
    }

    fn free(&self, volid: &str) -> Step {
        free_volume(self.host, volid)
    }
}

/// Removes a volume by `pvesm free`. One that is gone already is fine.
///
/// # Errors
/// What `pvesm` said.
pub fn free_volume(host: &Host, volid: &str) -> Step {
    // Asked before: `pvesm free` does not say in a stable way that there was nothing to free.
    let file = output(host, "pvesm", &["path", volid]).map(|p| p.trim().to_owned());
    if let Ok(path) = &file {
        // A block device may be missing only because it is not active; a file that is missing is gone.
        if path.starts_with('/') && !path.starts_with("/dev/") && !host.path(path).exists() {
            return Ok(None);
        }
    }
    match output(host, "pvesm", &["free", volid]) {
        Ok(_) => Ok(Some(format!("temporary volume '{volid}' successfully removed"))),
        Err(e) if ["no such", "does not exist", "not found"].iter().any(|t| e.to_lowercase().contains(t)) => Ok(None),
        Err(e) => Err(e),
    }
}
