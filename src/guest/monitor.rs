//! The way into QEMU by the node's own command `qm` alone.

use super::actions::{Monitor, output};
use super::recover::Step;
use crate::host::Host;
use std::path::Path;

/// [`Monitor`] by `qm resume` and `qm guest cmd`. It cannot sweep: a session is reported as left to be done.
pub struct QmMonitor<'a>(pub &'a Host);

impl QmMonitor<'_> {
    fn runs(&self, vmid: u32) -> Result<bool, String> {
        Ok(output(self.0, "qm", &["status", &vmid.to_string()])?.contains("running"))
    }
}

impl Monitor for QmMonitor<'_> {
    fn resume(&self, vmid: u32) -> Step {
        if !self.runs(vmid)? {
            return Ok(None);
        }
        output(self.0, "qm", &["resume", &vmid.to_string(), "--skiplock"])?;
        Ok(Some(format!("resumed VM {vmid}")))
    }

    fn thaw(&self, vmid: u32) -> Step {
        if !self.runs(vmid)? {
            return Ok(None);
        }
        output(self.0, "qm", &["guest", "cmd", &vmid.to_string(), "fsfreeze-thaw"])?;
        Ok(Some(format!("thawed the file systems of VM {vmid}")))
    }

    fn sweep(&self, vmid: u32, qmp: &Path) -> Step {
        if !self.runs(vmid)? {
            return Ok(None);
        }
        Err(format!("'{}' cannot be swept from here", qmp.display()))
    }
}
