//! Hook scripts: called at every phase of a job with arguments, an otherwise empty environment and an empty standard
//! input; what they print becomes lines of the log as it comes, and their exit code decides.

use crate::host::{Cancel, Host};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{AccessFlags, Pid, access};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// How often we look whether the script ended or the job is to stop.
const TICK: Duration = Duration::from_millis(20);
/// How long a script that ended may leave its output open, to a child of its in the background.
const DRAIN: Duration = Duration::from_millis(500);
/// How long a script may take to end after TERM before it is killed.
const TERM_GRACE: Duration = Duration::from_secs(5);
/// `exec` of a file that is no program.
const ENOEXEC: i32 = 8;

/// Why a hook failed. The texts are those that scripts and people know from vzdump.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// There is no such file.
    #[error("Error: The hook script '{0}' does not exist.")]
    Missing(String),
    /// It may not be run.
    #[error("Error: The hook script '{0}' is not executable.")]
    NotExecutable(String),
    /// It ran and said no, or could not be run.
    #[error("command '{command}' failed: {why}")]
    Failed {
        /// Script and arguments.
        command: String,
        /// `exit code 1`
        why: String,
    },
    /// The job was told to stop while the script ran.
    #[error("interrupted by signal")]
    Interrupted,
}

/// The variables a hook sees, beside `LC_ALL` and `LVM_SUPPRESS_FD_WARNINGS`. What is `None` is not set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HookEnv {
    /// `STOREID`: the storage; absent with `--dumpdir`.
    pub storeid: Option<String>,
    /// `DUMPDIR`: the directory of the archives; absent in job-init with a storage.
    pub dumpdir: Option<String>,
    /// `VMTYPE`: `qemu` or `lxc`.
    pub vmtype: Option<String>,
    /// `HOSTNAME`: the guest's name.
    pub hostname: Option<String>,
    /// `TARGET`: the archive.
    pub target: Option<String>,
    /// `LOGFILE`: the log beside the archive.
    pub logfile: Option<String>,
}

impl HookEnv {
    fn pairs(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let fixed = [("LC_ALL", Some("C")), ("LVM_SUPPRESS_FD_WARNINGS", Some("1"))];
        let given = [
            ("STOREID", &self.storeid),
            ("DUMPDIR", &self.dumpdir),
            ("VMTYPE", &self.vmtype),
            ("HOSTNAME", &self.hostname),
            ("TARGET", &self.target),
            ("LOGFILE", &self.logfile),
        ];
        fixed.into_iter().chain(given.map(|(k, v)| (k, v.as_deref()))).filter_map(|(k, v)| Some((k, v?)))
    }
}

/// A hook script that exists and may be run.
#[derive(Debug, Clone)]
pub struct Hook {
    shown: String,
    file: PathBuf,
}

impl Hook {
    /// The script `path`, a path of the node; a relative one is looked for from `/` on, where jobs run.
    ///
    /// # Errors
    /// [`HookError::Missing`], [`HookError::NotExecutable`].
    pub fn new(host: &Host, path: &str) -> Result<Self, HookError> {
        let file = host.path(path);
        if !file.is_file() {
            return Err(HookError::Missing(path.to_owned()));
        }
        access(&file, AccessFlags::X_OK).map_err(|_| HookError::NotExecutable(path.to_owned()))?;
        Ok(Self { shown: path.to_owned(), file })
    }

    /// Calls the script with `args` (`["backup-start", "snapshot", "100"]`) and waits for it. Each line of its standard
    /// output and error goes to `line` as it comes. With `cancel`, a wish to stop ends the script; phases that clean up
    /// after such a wish pass `None`.
    ///
    /// # Errors
    /// [`HookError::Failed`] unless it ends with exit code 0; [`HookError::Interrupted`].
    pub fn run(
        &self,
        args: &[&str],
        env: &HookEnv,
        cancel: Option<&Cancel>,
        line: &mut dyn FnMut(&str),
    ) -> Result<(), HookError> {
        let command = [&[self.shown.as_str()], args].concat().join(" ");
        let failed = |why: String| HookError::Failed { command: command.clone(), why };
        let mut child = self.spawn(args, env).map_err(|e| failed(e.to_string()))?;
        // A pipe that is closed at once: a script that reads finds the end, not our own standard input.
        drop(child.stdin.take());
        let (sender, lines) = channel();
        let readers = [
            child.stdout.take().map(|out| forward(out, sender.clone())),
            child.stderr.take().map(|err| forward(err, sender)),
        ];
        if let Some(e) = readers.into_iter().flatten().find_map(Result::err) {
            let ended = end(&mut child).map(|_| ());
            return Err(failed(ended.err().unwrap_or(e).to_string()));
        }
        let status = match wait(&mut child, &lines, cancel, line) {
            Ok(Some(status)) => status,
            Ok(None) => return Err(HookError::Interrupted),
            Err(e) => return Err(failed(e.to_string())),
        };
        match (status.code(), status.signal()) {
            (Some(0), _) => Ok(()),
            (Some(code), _) => Err(failed(format!("exit code {code}"))),
            (None, Some(signal)) => Err(failed(format!("got signal {signal}"))),
            (None, None) => Err(failed(status.to_string())),
        }
    }

    fn spawn(&self, args: &[&str], env: &HookEnv) -> io::Result<Child> {
        let start = |mut command: Command| {
            command.args(args).env_clear().envs(env.pairs()).current_dir("/");
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
        };
        match start(Command::new(&self.file)) {
            // A script without a `#!` line is one for the shell, as execvp(3) has it.
            Err(e) if e.raw_os_error() == Some(ENOEXEC) => {
                let mut shell = Command::new("/bin/sh");
                shell.arg(&self.file);
                start(shell)
            }
            other => other,
        }
    }
}

/// Waits for the script's end and passes its lines on; `None` when it was ended because of `cancel`.
fn wait(
    child: &mut Child,
    lines: &Receiver<String>,
    cancel: Option<&Cancel>,
    line: &mut dyn FnMut(&str),
) -> io::Result<Option<ExitStatus>> {
    let mut ended: Option<(ExitStatus, Instant)> = None;
    loop {
        let mut closed = false;
        match lines.recv_timeout(TICK) {
            Ok(text) => line(&text),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                closed = true;
                if ended.is_none() {
                    std::thread::sleep(TICK);
                }
            }
        }
        match ended {
            None => ended = child.try_wait()?.map(|status| (status, Instant::now())),
            Some((status, at)) if closed || at.elapsed() > DRAIN => {
                lines.try_iter().take(MOST_LINES_LEFT).for_each(|text| line(&text));
                return Ok(Some(status));
            }
            Some(_) => {}
        }
        if ended.is_none() && cancel.is_some_and(Cancel::is_set) {
            end(child)?;
            return Ok(None);
        }
    }
}

/// Ends a script: TERM, and KILL for one that does not listen.
fn end(child: &mut Child) -> io::Result<ExitStatus> {
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    kill(pid, Signal::SIGTERM)?;
    let give_up = Instant::now() + TERM_GRACE;
    while Instant::now() < give_up {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(TICK);
    }
    child.kill()?;
    child.wait()
}

/// Reads lines until the end of `input`, in a thread of its own: a child of the script may keep it open for ever.
fn forward(input: impl Read + Send + 'static, lines: Sender<String>) -> io::Result<()> {
    let read = move || {
        let mut input = BufReader::new(input);
        let mut line = Vec::new();
        while matches!(input.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line), Ok(n) if n > 0) {
            let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
            line.clear();
            if lines.send(text).is_err() {
                break;
            }
        }
    };
    std::thread::Builder::new().name("hook output".into()).spawn(read).map(|_| ())
}

/// How many lines that are already here are still taken from a script that ended, when a child of its writes on and on.
const MOST_LINES_LEFT: usize = 10_000;
/// A longer line is cut into several, so that a script that never ends its line does not fill our memory.
const LONGEST_LINE: u64 = 64 << 10;
