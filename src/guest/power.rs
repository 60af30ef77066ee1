//! Power and run state of a VM: what the pid file says, and `qm` for everything that changes it.
//!
//! The state is read from the pid file and `/proc`, as `qm status` does, without the half second of Perl.
//! Commands carry `--skiplock` because the guest's config holds our own `lock: backup`, as with the original.

use std::process::Stdio;
use std::time::Duration;

use serde_json::json;

use crate::host::{Cancel, Host, bridge};

/// How often a wait looks at the wish to stop.
const TICK: Duration = Duration::from_millis(50);

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
    /// The job was told to stop meanwhile.
    #[error("interrupted by signal")]
    Interrupted,
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

    /// Asks the guest to shut down and waits until it is off, or `cancel` is set. What `qm` says goes to `line`, as with the
    /// original.
    ///
    /// # Errors
    /// When it is not off after `patience`; it may still be shutting down then. So it may after [`PowerError::Interrupted`].
    pub fn shutdown(&self, patience: Duration, cancel: &Cancel, line: &mut dyn FnMut(&str)) -> Result<(), PowerError> {
        let seconds = patience.as_secs().to_string();
        let args = ["shutdown", &self.id(), "--skiplock", "--keepActive", "--timeout", &seconds];
        let command = format!("qm {}", args.join(" "));
        let failed = |reason: String| PowerError::Command { command: command.clone(), reason };
        let io = |e: std::io::Error| failed(e.to_string());
        let mut qm = self.host.command("qm");
        qm.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = qm.spawn().map_err(io)?;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(io)? {
                break status;
            }
            if cancel.is_set() {
                // It only waits; the guest keeps what it was told.
                child.kill().and_then(|()| child.wait()).map_err(io)?;
                return Err(PowerError::Interrupted);
            }
            std::thread::sleep(TICK);
        };
        let output = child.wait_with_output().map_err(io)?;
        for said in [&output.stdout, &output.stderr] {
            String::from_utf8_lossy(said).lines().for_each(&mut *line);
        }
        match status.code() {
            Some(0) => Ok(()),
            Some(code) => Err(failed(format!("exit code {code}"))),
            None => Err(failed(status.to_string())),
        }
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

    /// Ends QEMU without asking the guest.
    ///
    /// # Errors
    /// When it is still there.
    pub fn stop(&self) -> Result<(), PowerError> {
        self.qm(&["stop", &self.id(), "--skiplock"])
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
