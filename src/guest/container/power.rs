//! Power and run state of a container, by `pct` and LXC's own programs. Nothing is guessed: a container that was taken for a
//! stopped one would have its volumes mounted twice.
//!
//! `pct shutdown` refuses a container with a lock and has no option against it, so `lxc-stop` is called, as the original does.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::output;
use crate::guest::commands::mark;
use crate::host::{Cancel, Host};

/// How often a wait looks at the wish to stop.
const TICK: Duration = Duration::from_millis(50);
/// How long a container that has ended may take to let go of its volumes.
const LETTING_GO: Duration = Duration::from_secs(30);

/// The container's state cannot be told or changed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerPowerError {
    /// A command failed; its sentence.
    #[error("{0}")]
    Command(String),
    /// `pct status` said something new.
    #[error("'pct status {vmid}' says '{said}', which is neither 'running' nor 'stopped'")]
    State {
        /// The container.
        vmid: u32,
        /// Its state.
        said: String,
    },
    /// It was told to shut down and did not.
    #[error("CT {0} still runs after 'lxc-stop' came back")]
    StillRuns(u32),
    /// The job was told to stop meanwhile.
    #[error("interrupted by signal")]
    Interrupted,
}

/// The power switch of one container.
#[derive(Debug, Clone)]
pub struct ContainerPower {
    host: Host,
    vmid: u32,
}

impl ContainerPower {
    /// The power switch of container `vmid`.
    pub fn new(host: &Host, vmid: u32) -> Self {
        Self { host: host.clone(), vmid }
    }

    fn id(&self) -> String {
        self.vmid.to_string()
    }

    /// Whether it runs.
    ///
    /// # Errors
    /// When nobody can say.
    pub fn is_running(&self) -> Result<bool, ContainerPowerError> {
        let said = output(&self.host, "pct", &["status", &self.id()]).map_err(ContainerPowerError::Command)?;
        match said.trim().strip_prefix("status:").unwrap_or(&said).trim() {
            "running" => Ok(true),
            "stopped" => Ok(false),
            other => Err(ContainerPowerError::State { vmid: self.vmid, said: other.to_owned() }),
        }
    }

    /// Its first process, as the node numbers it.
    ///
    /// # Errors
    /// When it has none, or nobody can say.
    pub fn init(&self) -> Result<u32, ContainerPowerError> {
        let said =
            output(&self.host, "lxc-info", &["-n", &self.id(), "-p", "-H"]).map_err(ContainerPowerError::Command)?;
        said.trim().parse().ok().filter(|pid| *pid > 1).ok_or_else(|| {
            let said = said.trim();
            ContainerPowerError::Command(format!(
                "'lxc-info -n {} -p -H' says '{said}' instead of a process",
                self.vmid
            ))
        })
    }

    /// Asks it to shut down and waits until it is off, or `cancel` is set. What `lxc-stop` says goes to `line`.
    ///
    /// # Errors
    /// When it is not off after `patience`; it may still be shutting down then, and so it may when interrupted.
    pub fn shutdown(
        &self,
        patience: Duration,
        cancel: &Cancel,
        line: &mut dyn FnMut(&str),
    ) -> Result<(), ContainerPowerError> {
        let args = ["-n", &self.id(), "--nokill", "--timeout", &patience.as_secs().to_string()].map(str::to_owned);
        let command = format!("command 'lxc-stop {}' failed", args.join(" "));
        let failed = |reason: String| ContainerPowerError::Command(format!("{command}: {reason}"));
        let io = |error: std::io::Error| failed(error.to_string());
        let mut stop = self.host.command("lxc-stop");
        // Who undoes what we did sees by the mark whether the container has been told and is about to end.
        stop.args(&args).stdin(mark(&self.host, self.vmid).map_err(io)?).stdout(Stdio::piped()).stderr(Stdio::piped());
        let give_up = Instant::now() + patience + LETTING_GO;
        let mut child = stop.spawn().map_err(io)?;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(io)? {
                break status;
            }
            if cancel.is_set() {
                // The container keeps what it was told, and the command waits for it.
                return Err(ContainerPowerError::Interrupted);
            }
            // It has a time limit of its own. If that does not hold, its request to LXC's monitor hangs.
            if Instant::now() > give_up {
                child.kill().and_then(|()| child.wait()).map_err(io)?;
                return Err(failed("got timeout".to_owned()));
            }
            std::thread::sleep(TICK);
        };
        let output = child.wait_with_output().map_err(io)?;
        for said in [&output.stdout, &output.stderr] {
            String::from_utf8_lossy(said).lines().for_each(&mut *line);
        }
        match status.code() {
            Some(0) => self.wait_until_off(),
            Some(code) => Err(failed(format!("exit code {code}"))),
            None => Err(failed(status.to_string())),
        }
    }

    /// Its volumes are in use until the last of its own processes has gone.
    fn wait_until_off(&self) -> Result<(), ContainerPowerError> {
        let give_up = Instant::now() + LETTING_GO;
        while self.is_running()? {
            if Instant::now() > give_up {
                return Err(ContainerPowerError::StillRuns(self.vmid));
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// Starts it, whatever lock of ours its config carries.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self) -> Result<(), ContainerPowerError> {
        output(&self.host, "pct", &["start", &self.id(), "--skiplock"]).map(drop).map_err(ContainerPowerError::Command)
    }
}
