//! Commands that may hang: run with a deadline and the wish to stop, as a process group of their own, which is ended whole. TERM
//! first, KILL for those that do not listen. Nobody waits for a process that cannot be ended, or for one that has our pipes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::Cancel;

/// How often we look whether a command ended or is to stop.
const TICK: Duration = Duration::from_millis(20);
/// How long a command that ended may leave its output open, to a child of its in the background.
pub const DRAIN: Duration = Duration::from_millis(500);
/// How long a command may take to end after TERM before it is killed.
pub const TERM_GRACE: Duration = Duration::from_secs(5);
/// The most a pipe holds, unless the node's administrator allows more.
const PIPE: usize = 1 << 20;
/// The end of a command that may take as long as it likes.
const LIFETIME: Duration = Duration::from_secs(u32::MAX as u64);
/// What is kept of an output; the rest is read and forgotten.
const LONGEST: u64 = 64 << 20;

/// How a command ended.
#[derive(Debug)]
pub enum Ended {
    /// By itself.
    Exited(Output),
    /// By us: it took longer than this.
    Late(Duration),
    /// By us: somebody asked to stop.
    Cancelled,
}

/// What a command that ended by itself left.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it complained about.
    pub stderr: Vec<u8>,
    /// Why it did not get all of its input.
    pub unfed: Option<io::Error>,
}

impl Output {
    /// What it complained about, else how it ended.
    pub fn complaint(&self) -> String {
        let said = String::from_utf8_lossy(&self.stderr).trim().to_owned();
        if said.is_empty() { self.status.to_string() } else { said }
    }
}

/// Runs `command` with `input` to its end, to the end of `limit`, or until `cancel` is set.
///
/// # Errors
/// When it cannot be run, or not be ended.
pub fn run(command: &mut Command, input: Option<Vec<u8>>, limit: Duration, cancel: &Cancel) -> io::Result<Ended> {
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    finish(command, input, limit, cancel)
}

/// Runs a short command of the node with `stdin` and returns what it printed. It is not interruptible: what was begun has to be
/// known as done or not done. `limit`, if there is one, ends it.
///
/// # Errors
/// One sentence that names the command and what it complained about, else how it ended.
pub fn said(command: &mut Command, stdin: Stdio, limit: Option<Duration>) -> Result<String, String> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    match fed(command.env("LC_ALL", "C"), stdin, limit.unwrap_or(LIFETIME)) {
        Ok(Ended::Exited(output)) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(Ended::Exited(output)) => {
            Err(format!("command '{line}' failed: {}", output.complaint().replace('\n', "; ")))
        }
        Ok(Ended::Late(_) | Ended::Cancelled) => Err(format!("command '{line}' failed: got timeout")),
        Err(error) => Err(format!("command '{line}' failed: {error}")),
    }
}

/// Runs `command`, which is not interruptible, with `stdin` to its end or to the end of `limit`.
///
/// # Errors
/// As [`run`].
pub fn fed(command: &mut Command, stdin: Stdio, limit: Duration) -> io::Result<Ended> {
    let ended = finish(command.stdin(stdin), None, limit, &Cancel::new());
    // The command's standard input is not to be kept open by us.
    command.stdin(Stdio::null());
    ended
}

/// As [`run`], for a command whose standard input is settled.
fn finish(command: &mut Command, input: Option<Vec<u8>>, limit: Duration, cancel: &Cancel) -> io::Result<Ended> {
    command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
    let give_up = Instant::now() + limit;
    let mut child = command.spawn()?;
    let feeder = child
        .stdin
        .take()
        .zip(input)
        .map(|(mut stdin, input)| std::thread::spawn(move || stdin.write_all(&input).err()));
    let mut outputs = [Pipe::default(), Pipe::default()];
    let status = match attend(&mut child, &mut outputs, give_up, cancel) {
        Ok(Attended::Exited(status)) => status,
        Ok(Attended::Late) => {
            end_group(&mut child)?;
            return Ok(Ended::Late(limit));
        }
        Ok(Attended::Cancelled) => {
            end_group(&mut child)?;
            return Ok(Ended::Cancelled);
        }
        Err(error) => {
            // Nobody would know what became of it.
            end_group(&mut child)?;
            return Err(error);
        }
    };
    // A child of its may have more to say, and may also keep the pipes open for ever.
    let drained = Instant::now() + DRAIN;
    while outputs.iter().any(|pipe| pipe.end.is_some()) && Instant::now() < drained {
        wait(&outputs, TICK)?;
        outputs.iter_mut().try_for_each(Pipe::read)?;
    }
    let [stdout, stderr] = outputs.map(|pipe| pipe.said);
    while feeder.as_ref().is_some_and(|feeder| !feeder.is_finished()) && Instant::now() < drained {
        std::thread::sleep(Duration::from_millis(1));
    }
    // A feeder that is stuck feeds a child of the command, which is none of ours.
    let unfed = feeder.filter(JoinHandle::is_finished).and_then(|feeder| feeder.join().ok().flatten());
    Ok(Ended::Exited(Output { status, stdout, stderr, unfed }))
}

/// How the attendance of a command ended.
enum Attended {
    Exited(ExitStatus),
    Late,
    Cancelled,
}

/// Reads what a command says until it ends by itself or is to end.
fn attend(child: &mut Child, outputs: &mut [Pipe; 2], give_up: Instant, cancel: &Cancel) -> io::Result<Attended> {
    *outputs = [Pipe::new(child.stdout.take().map(OwnedFd::from))?, Pipe::new(child.stderr.take().map(OwnedFd::from))?];
    loop {
        // Asked before the pipes are read: what it wrote before it ended is in them.
        let ended = child.try_wait()?;
        outputs.iter_mut().try_for_each(Pipe::read)?;
        if let Some(status) = ended {
            return Ok(Attended::Exited(status));
        }
        if Instant::now() >= give_up {
            return Ok(Attended::Late);
        }
        if cancel.is_set() {
            return Ok(Attended::Cancelled);
        }
        wait(outputs, TICK)?;
    }
}

/// An output of a command and what was read of it.
#[derive(Default)]
struct Pipe {
    /// None when it is at its end.
    end: Option<File>,
    said: Vec<u8>,
}

impl Pipe {
    /// # Errors
    /// When it cannot be told not to wait.
    fn new(end: Option<OwnedFd>) -> io::Result<Self> {
        if let Some(end) = &end {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Self { end: end.map(File::from), said: Vec::new() })
    }

    /// Reads what is there; of a command that never stops writing, only as much as a pipe can hold.
    fn read(&mut self) -> io::Result<()> {
        let mut piece = [0; 16 << 10];
        for _ in 0..PIPE / piece.len() {
            let Some(end) = &mut self.end else { break };
            match end.read(&mut piece) {
                Ok(0) => self.end = None,
                Ok(read) if self.said.len() as u64 <= LONGEST => self.said.extend_from_slice(&piece[..read]),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Waits until one of them has something to read, or for `most`; that long when both are at their end.
fn wait(pipes: &[Pipe], most: Duration) -> io::Result<()> {
    let ends: Vec<_> = pipes.iter().filter_map(|pipe| pipe.end.as_ref()).collect();
    let mut polled: Vec<_> = ends.iter().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN)).collect();
    match poll(&mut polled, PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Ends a command, which has a process group of its own, and all it started.
///
/// # Errors
/// When it cannot be told.
pub fn end_group(child: &mut Child) -> io::Result<()> {
    let group = group(child)?;
    signal_group(group, Signal::SIGTERM)?;
    let give_up = Instant::now() + TERM_GRACE;
    while Instant::now() < give_up && !has_ended(group)? {
        std::thread::sleep(TICK);
    }
    // The command itself was not waited for yet, so that the group's number is still its own.
    signal_group(group, Signal::SIGKILL)?;
    reap(child);
    Ok(())
}

/// The process group of a child that was started with one of its own, as those of [`super::Host::command`] are.
///
/// # Errors
/// When its number is none of a process.
pub fn group(child: &Child) -> io::Result<Pid> {
    i32::try_from(child.id()).map(Pid::from_raw).map_err(io::Error::other)
}

/// Sends `signal` to a process group; one that is gone is fine.
///
/// # Errors
/// As killpg(2).
pub fn signal_group(group: Pid, signal: Signal) -> io::Result<()> {
    match killpg(group, signal) {
        Err(Errno::ESRCH) | Ok(()) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a child has ended; it can still be waited for.
///
/// # Errors
/// As waitid(2).
pub fn has_ended(child: Pid) -> io::Result<bool> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    Ok(!matches!(waitid(Id::Pid(child), flags)?, WaitStatus::StillAlive))
}

/// Kills a child and takes leave of it: waits only as long as one needs that can be ended at all.
pub fn reap(child: &mut Child) {
    let give_up = Instant::now() + DRAIN;
    // Had it ended by itself, this would find nobody.
    child.kill().unwrap_or_default();
    while Instant::now() < give_up && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_a_command_says() {
        let mut command = shell("cat; echo bad >&2; exit 3");
        let ended = run(&mut command, Some(b"fed".to_vec()), Duration::from_secs(30), &Cancel::new()).unwrap();
        let Ended::Exited(output) = ended else { panic!("{ended:?}") };
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), &b"fed"[..]));
        assert_eq!((output.complaint().as_str(), output.unfed.is_none()), ("bad", true));
        // A child in the background that keeps the pipes holds nobody up.
        let begun = Instant::now();
        let ended = run(&mut shell("echo a; sleep 20 &"), None, Duration::from_secs(30), &Cancel::new()).unwrap();
        let Ended::Exited(output) = ended else { panic!("{ended:?}") };
        assert!(output.stdout == b"a\n" && begun.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn all_of_a_long_output_and_a_flood_that_ends() {
        let long = "i=0; while [ $i -lt 40000 ]; do echo 0123456789 $i; i=$((i+1)); done";
        let ended = run(&mut shell(long), None, Duration::from_secs(60), &Cancel::new()).unwrap();
        let Ended::Exited(output) = ended else { panic!("{ended:?}") };
        assert!(output.stdout.ends_with(b"\n0123456789 39999\n"), "{}", output.stdout.len());
        let limit = Duration::from_millis(300);
        assert!(matches!(run(&mut shell("exec yes"), None, limit, &Cancel::new()), Ok(Ended::Late(_))));
    }

    #[test]
    fn who_hangs_is_ended_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 60 & echo $! > '{}'; wait", pid.display());
        let limit = Duration::from_secs(3);
        assert!(matches!(run(&mut shell(&script), None, limit, &Cancel::new()), Ok(Ended::Late(_))));
        let child: u32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        let give_up = Instant::now() + Duration::from_secs(10);
        while super::super::procfs::start_time(child).is_ok_and(|start| super::super::procfs::is_alive(child, start)) {
            assert!(Instant::now() < give_up, "{child}");
        }
        let cancel = Cancel::new();
        cancel.set();
        let ended = run(&mut shell("sleep 60"), None, Duration::from_secs(60), &cancel);
        assert!(matches!(ended, Ok(Ended::Cancelled)), "{ended:?}");
    }
}
