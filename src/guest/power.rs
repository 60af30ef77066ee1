//! Power and run state of a VM: what the pid file says, and `qm` for everything that changes it.
//!
//! The state is read from the pid file and `/proc`, as `qm status` does, without the half second of Perl.
//! Commands carry `--skiplock` because the guest's config holds our own `lock: backup`, as with the original.

use std::process::Stdio;
use std::time::Duration;

use serde_json::json;

use crate::host::{Host, bridge};

/// A change of the guest's power state failed.
#[derive(Debug, thiserror::Error)]
pub enum PowerError {
    /// A `qm` command failed; its command line, how it ended and its last words.
    #[error("command '{command}' failed: {reason}")]
    Command {
        /// The command line.
        command: String,
        /// Exit code or I/O error, and what it printed last.
        reason: String,
    },
    /// The bridge failed.
    #[error(transparent)]
    Bridge(#[from] bridge::BridgeError),
}

/// The power switch of one VM.
#[derive(Debug, Clone)]
pub struct Power {
    host: Host,
    vmid: u32,
}

impl Power {
    /// The power switch of VM `vmid`.
    pub fn new(host: &Host, vmid: u32) -> Self {
        Self { host: host.clone(), vmid }
    }

    /// Whether a QEMU process runs for this VM.
    pub fn is_running(&self) -> bool {
        self.pid().is_some()
    }

    /// The QEMU process of this VM: the pid in `run/qemu-server/<vmid>.pid`, if it is alive and was started with that file as its
    /// pid file (a recycled pid was not).
    pub fn pid(&self) -> Option<u32> {
        let pid_file = self.host.path(format!("/var/run/qemu-server/{}.pid", self.vmid));
        let pid = std::fs::read_to_string(pid_file).ok()?.trim().parse::<u32>().ok()?;
        let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let name = format!("/qemu-server/{}.pid", self.vmid);
        let words: Vec<&[u8]> = command_line.split(|b| *b == 0).collect();
        words.windows(2).any(|pair| pair[0] == b"-pidfile" && pair[1].ends_with(name.as_bytes())).then_some(pid)
    }

    /// Asks the guest to shut down and waits until it is off.
    ///
    /// # Errors
    /// When it is not off after `patience`; it may still be shutting down then.
    pub fn shutdown(&self, patience: Duration) -> Result<(), PowerError> {
        self.qm(&["shutdown", &self.id(), "--skiplock", "--keepActive", "--timeout", &patience.as_secs().to_string()])
    }

    /// Starts the VM; it runs.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn start(&self) -> Result<(), PowerError> {
        self.qm(&["start", &self.id(), "--skiplock"])
    }

    /// Starts QEMU for the VM without letting the guest run.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn start_paused(&self) -> Result<(), PowerError> {
        bridge::call(&self.host, "vm-start-paused", &json!({ "vmid": self.vmid }))?;
        Ok(())
    }

    /// Pauses the running guest.
    ///
    /// # Errors
    /// When it could not be paused.
    pub fn suspend(&self) -> Result<(), PowerError> {
        self.qm(&["suspend", &self.id(), "--skiplock"])
    }

    /// Lets a paused guest run again.
    ///
    /// # Errors
    /// When it could not be resumed.
    pub fn resume(&self) -> Result<(), PowerError> {
        self.qm(&["resume", &self.id(), "--skiplock"])
    }

    fn id(&self) -> String {
        self.vmid.to_string()
    }

    fn qm(&self, args: &[&str]) -> Result<(), PowerError> {
        let command = format!("qm {}", args.join(" "));
        let failed = |reason: String| PowerError::Command { command: command.clone(), reason };
        let mut command = self.host.command("qm");
        command.args(args).stdin(Stdio::null());
        let output = command.output().map_err(|e| failed(e.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        let how = output.status.code().map_or_else(|| output.status.to_string(), |code| format!("exit code {code}"));
        let text = String::from_utf8_lossy(&output.stderr);
        match text.lines().map(str::trim).rfind(|line| !line.is_empty()) {
            Some(words) => Err(failed(format!("{how} ({words})"))),
            None => Err(failed(how)),
        }
    }
}
