//! A command that runs in the node's world, and what it left behind.

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; 128 + number for a signal, as a shell says it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
}

/// A command that runs. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
    stdout: NamedTempFile,
    stderr: NamedTempFile,
}

impl Running {
    /// Starts `command`; its output goes to files in `dir`, so that nobody has to read it for it to go on.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command, dir: &Path) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let (stdout, stderr) = (NamedTempFile::new_in(dir)?, NamedTempFile::new_in(dir)?);
        command.stdin(Stdio::null()).stdout(stdout.reopen()?).stderr(stderr.reopen()?);
        let child = command.spawn().with_context(|| format!("{name} cannot be started"))?;
        Ok(Self { child, name, stdout, stderr })
    }

    /// Process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or_default()
    }

    /// What it printed so far.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn stdout_so_far(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(self.stdout.path())?).into_owned())
    }

    /// Waits until what it printed contains `text`.
    ///
    /// # Errors
    /// When it ends, or the time is over, before.
    pub fn wait_for(&mut self, text: &str, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let ended = self.child.try_wait()?;
            let said = self.stdout_so_far()?;
            if said.contains(text) {
                return Ok(());
            }
            if ended.is_some() || Instant::now() > deadline {
                bail!("{} did not say '{text}', but:\n{said}", self.name);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether it has not ended yet.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid()), signal)?)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it does not end in time; it is killed then.
    pub fn wait(mut self, timeout: Duration) -> Result<Output> {
        let deadline = Instant::now() + timeout;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                bail!("{} did not end within {timeout:?}; it said:\n{}", self.name, self.stdout_so_far()?);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let stdout = self.stdout_so_far()?;
        let stderr = String::from_utf8_lossy(&std::fs::read(self.stderr.path())?).into_owned();
        Ok(Output { code: code(status), stdout, stderr })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_)))
            && let Err(error) = self.child.kill().and_then(|()| self.child.wait())
        {
            eprintln!("lab: {} cannot be killed: {error}", self.name);
        }
    }
}

/// The exit code as a shell says it.
pub fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}
