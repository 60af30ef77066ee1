//! Hook scripts: called at every phase of a job with arguments and an otherwise empty environment; what they print becomes
//! lines of the log as it comes, and their exit code decides. Here is one call of one program; which programs a job has, and
//! what `/etc/vzkeep.conf` adds for them, is in [`set`], [`directory`] and [`describe`].

pub mod describe;
mod directory;
pub mod set;

use crate::host::child::{DRAIN, TERM_GRACE, group, has_ended, signal_group};
use crate::host::{Cancel, Host};
use nix::sys::signal::Signal;
use nix::unistd::{AccessFlags, access};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// How often we look whether the script ended or the job is to stop.
const TICK: Duration = Duration::from_millis(20);
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
    /// The directory of hooks cannot be read.
    #[error("Error: The hook directory '{path}' (hooks-dir in /etc/vzkeep.conf) cannot be read: {source}")]
    Directory {
        /// Path of the node.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The settings of hooks cannot be read.
    #[error("cannot read '{path}': {source}")]
    Settings {
        /// The file.
        path: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
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

    /// What scripts from before version 6.2 rely on.
    fn legacy_pairs(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let path = ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        std::iter::once(path).chain(self.target.as_deref().map(|target| ("TARFILE", target)))
    }
}

/// What a hook is given beside its arguments.
#[derive(Debug, Default)]
struct Given<'a> {
    env: Vec<(&'static str, &'a str)>,
    /// Its standard input; nothing: an empty one.
    input: Option<Vec<u8>>,
}

/// When a hook that has not ended is ended.
#[derive(Debug, Clone, Copy)]
struct Limits<'a> {
    cancel: &'a Cancel,
    /// A phase that cleans up goes on after a wish to stop; only a second one ends its hook.
    clean_up: bool,
    timeout: Option<Duration>,
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
    /// output and error goes to `line` as it comes.
    ///
    /// # Errors
    /// [`HookError::Failed`] unless it ends with exit code 0 in time; [`HookError::Interrupted`].
    fn run(
        &self,
        args: &[&str],
        given: Given<'_>,
        limits: Limits<'_>,
        line: &mut dyn FnMut(&str),
    ) -> Result<(), HookError> {
        let command = [&[self.shown.as_str()], args].concat().join(" ");
        let failed = |why: String| HookError::Failed { command: command.clone(), why };
        let mut child = self.spawn(args, &given.env).map_err(|e| failed(e.to_string()))?;
        let (sender, lines) = sync_channel(LINES_WAITING);
        let threads = [
            child.stdin.take().zip(given.input).map(|(stdin, input)| feed(stdin, input)),
            child.stdout.take().map(|out| forward(out, sender.clone())),
            child.stderr.take().map(|err| forward(err, sender)),
        ];
        if let Some(e) = threads.into_iter().flatten().find_map(Result::err) {
            let ended = end(&mut child, &lines, line).map(|_| ());
            return Err(failed(ended.err().unwrap_or(e).to_string()));
        }
        let status = match wait(&mut child, &lines, limits, line) {
            Ok(End::Exited(status)) => status,
            Ok(End::Interrupted) => return Err(HookError::Interrupted),
            Ok(End::Late(limit)) => {
                let seconds = limit.as_secs();
                return Err(failed(format!("not finished after {seconds} seconds (hook-timeout in /etc/vzkeep.conf)")));
            }
            Ok(End::SecondSignal) => return Err(failed("ended by a second signal".into())),
            Err(e) => return Err(failed(e.to_string())),
        };
        match (status.code(), status.signal()) {
            (Some(0), _) => Ok(()),
            (Some(code), _) => Err(failed(format!("exit code {code}"))),
            (None, Some(signal)) => Err(failed(format!("got signal {signal}"))),
            (None, None) => Err(failed(status.to_string())),
        }
    }

    fn spawn(&self, args: &[&str], env: &[(&str, &str)]) -> io::Result<Child> {
        let start = |mut command: Command| {
            command.args(args).env_clear().envs(env.iter().copied()).current_dir("/");
            // A group of its own: it is ended with all it started, and Ctrl-C is for us, who decide what that means.
            command.process_group(0);
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

/// How a call ended.
enum End {
    Exited(ExitStatus),
    /// We ended it because the job is to stop.
    Interrupted,
    /// We ended it because it took longer than this.
    Late(Duration),
    /// We ended it because it cleaned up for longer than somebody wanted to wait.
    SecondSignal,
}

/// Waits for the script's end and passes its lines on.
fn wait(
    child: &mut Child,
    lines: &Receiver<String>,
    limits: Limits<'_>,
    line: &mut dyn FnMut(&str),
) -> io::Result<End> {
    let begun = Instant::now();
    let mut ended: Option<(ExitStatus, Instant)> = None;
    let mut asked_to_stop = limits.cancel.is_set();
    // What arrived before the phase began is known already.
    limits.cancel.take_signal();
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
                return Ok(End::Exited(status));
            }
            Some(_) => {}
        }
        if ended.is_some() {
            continue;
        }
        let why = if !limits.clean_up && limits.cancel.is_set() {
            Some(End::Interrupted)
        } else if limits.clean_up && limits.cancel.take_signal() && std::mem::replace(&mut asked_to_stop, true) {
            Some(End::SecondSignal)
        } else {
            limits.timeout.filter(|limit| begun.elapsed() >= *limit).map(End::Late)
        };
        if let Some(why) = why {
            end(child, lines, line)?;
            return Ok(why);
        }
    }
}

/// Ends a script and what it started: TERM to its process group, and KILL for those that do not listen.
fn end(child: &mut Child, lines: &Receiver<String>, line: &mut dyn FnMut(&str)) -> io::Result<ExitStatus> {
    let group = group(child)?;
    signal_group(group, Signal::SIGTERM)?;
    let mut give_up = Instant::now() + TERM_GRACE;
    let mut left = MOST_LINES_LEFT;
    let mut gone = false;
    while Instant::now() < give_up {
        match lines.recv_timeout(TICK) {
            Ok(text) if left > 0 => {
                left -= 1;
                line(&text);
            }
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            // Nobody writes any more: all have ended, or have nothing left to say.
            Err(RecvTimeoutError::Disconnected) if gone => break,
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(TICK),
        }
        if !gone && has_ended(group)? {
            gone = true;
            give_up = give_up.min(Instant::now() + DRAIN);
        }
    }
    // The script itself was not waited for yet, so that the group's number is still its own.
    signal_group(group, Signal::SIGKILL)?;
    child.wait()
}

/// Writes a script's standard input, in a thread of its own: a script need not read it, and then nobody waits for it.
fn feed(mut stdin: ChildStdin, input: Vec<u8>) -> io::Result<()> {
    // A script that ends without reading all of it breaks the pipe, which is its right.
    let write = move || stdin.write_all(&input).unwrap_or_default();
    std::thread::Builder::new().name("hook input".into()).spawn(write).map(|_| ())
}

/// Reads lines until the end of `input`, in a thread of its own: a child of the script may keep it open for ever.
fn forward(input: impl Read + Send + 'static, lines: SyncSender<String>) -> io::Result<()> {
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

/// How many lines wait for the log at most; a script that writes faster than that waits.
const LINES_WAITING: usize = 1000;
/// How many lines that are already here are still taken from a script that ended, when a child of its writes on and on.
const MOST_LINES_LEFT: usize = 10_000;
/// A longer line is cut into several, so that a script that never ends its line does not fill our memory.
const LONGEST_LINE: u64 = 64 << 10;
