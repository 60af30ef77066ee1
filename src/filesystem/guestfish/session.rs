//! A running `guestfish`: takes commands from a pipe, one after the other. It ends by itself when the pipe does, and takes its
//! machine and its files with it: that is also what happens when we are killed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uuid::Uuid;

use super::PROGRAM;
use crate::host::{Cancel, Host, child, procfs};

/// How often we look whether we are to stop.
const TICK: u16 = 100;
/// Bytes of the longest answer: the names of the largest directory.
const LONGEST: usize = 128 << 20;
/// How long it may take to end, once it has nothing to do.
const END: Duration = Duration::from_secs(20);
/// Bytes of the longest line: the program's reader has room for 8 KiB.
pub(super) const LONGEST_LINE: usize = 8000;
/// How most errors begin, and what tells warnings from errors: guestfish's own have no sign.
const ERROR: &str = "libguestfs: error: ";
const WARNING: &str = "warning: ";
/// What libguestfs advises to do is nothing that can be done here.
const ADVICE: &str = "To see full error messages";
const LONGEST_COMPLAINT: usize = 64 << 10;
/// Letters that are said of a complaint.
const WORDS: usize = 600;

/// A command was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// It refused, in its words; it takes other commands.
    #[error("{0}")]
    Refused(String),
    /// It is gone or useless.
    #[error("{0}")]
    Ended(String),
    /// Its answer makes no sense.
    #[error("its answer to '{0}' makes no sense")]
    Odd(&'static str),
    /// The machine we run on.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Somebody wants us to stop.
    #[error("interrupted")]
    Cancelled,
}

/// The program and its pipes.
pub(super) struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    /// What it complains about; a file, so that it never waits for a reader.
    complaints: File,
    /// How much of that is known.
    heard: u64,
    /// Printed behind each answer; nobody else can know it.
    mark: String,
    /// A command is under way.
    busy: bool,
    cancel: Cancel,
}

impl Session {
    /// Starts the program; its files for the time it runs lie in `directory`.
    pub(super) fn start(host: &Host, directory: &Path, cancel: &Cancel) -> io::Result<Self> {
        // In memory: a full disk must not make a failure look like a success.
        let complaints = File::from(memfd_create(c"guestfish", MFdFlags::MFD_CLOEXEC)?);
        let mut command = host.command(PROGRAM);
        command.args(["--no-progress-bars", "--no-sync"]);
        // With libvirt, QEMU would run as another user, who cannot connect to our socket.
        command
            .env("LIBGUESTFS_BACKEND", "direct")
            .env("LC_ALL", "C")
            .env_remove("LIBGUESTFS_DEBUG")
            .env_remove("LIBGUESTFS_TRACE");
        command.env("LIBGUESTFS_TMPDIR", directory);
        if std::env::var_os("TMPDIR").is_some() {
            // What it builds its machine with goes to another directory before it looks for this one.
            command.env("TMPDIR", directory.parent().unwrap_or(directory));
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(complaints.try_clone()?).spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let stdout = stdout.ok_or_else(|| io::Error::other("a pipe is missing"))?;
        let mark = Uuid::new_v4().to_string();
        Ok(Self { child, stdin, stdout, complaints, heard: 0, mark, busy: false, cancel: cancel.clone() })
    }

    /// Gives a command and returns what it printed.
    pub(super) fn ask(&mut self, line: &[u8], limit: Duration) -> Result<Vec<u8>, Broken> {
        let answer = self.exchange(line, limit)?;
        match self.complaint()? {
            // What it printed before it failed is not all of the answer.
            Some(complaint) if is_failure(&complaint) => Err(Broken::Refused(plain(&complaint))),
            _ => Ok(answer),
        }
    }

    /// Writes a line and reads until the mark behind its answer.
    fn exchange(&mut self, line: &[u8], limit: Duration) -> Result<Vec<u8>, Broken> {
        if self.busy {
            return Err(Broken::Ended("it was given up before".to_owned()));
        }
        if line.len() > LONGEST_LINE {
            return Err(Broken::Refused("the path is longer than it takes".to_owned()));
        }
        self.busy = true;
        // With the dash it goes on when the command fails.
        let text = [b"-", line, b"\necho ", self.mark.as_bytes(), b"\n"].concat();
        let written = self.stdin.as_mut().map_or(Ok(()), |stdin| stdin.write_all(&text));
        if let Err(e) = written {
            return Err(self.gone(&format!("it takes no commands: {e}")));
        }
        let end = [self.mark.as_bytes(), b"\n"].concat();
        let (give_up, mut answer) = (Instant::now() + limit, Vec::new());
        while !answer.ends_with(&end) {
            if self.cancel.is_set() {
                return Err(Broken::Cancelled);
            }
            if Instant::now() >= give_up {
                return Err(self.gone(&format!("it did not answer within {} s", limit.as_secs())));
            }
            if answer.len() > LONGEST {
                return Err(self.gone("its answer has no end"));
            }
            let mut fds = [PollFd::new(self.stdout.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(TICK)) {
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(e) => return Err(io::Error::from(e).into()),
            }
            let mut piece = [0; 64 << 10];
            match self.stdout.read(&mut piece) {
                Ok(0) => return Err(self.gone("it ended")),
                Ok(count) => answer.extend_from_slice(&piece[..count]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.busy = false;
        answer.truncate(answer.len() - end.len());
        Ok(answer)
    }

    /// It is of no use any more.
    fn gone(&mut self, why: &str) -> Broken {
        match self.complaint() {
            Ok(Some(complaint)) => Broken::Ended(format!("{why}: {}", plain(&complaint))),
            _ => Broken::Ended(why.to_owned()),
        }
    }

    /// It waits for its machine, or for what builds that: without them it comes to the end of its input.
    fn end_others(&self) {
        let own = self.child.id();
        for pid in procfs::members(own).unwrap_or_default().into_iter().filter(|pid| *pid != own) {
            kill(Pid::from_raw(pid as i32), Signal::SIGTERM).unwrap_or_default();
        }
    }

    /// What it complained about since this was last asked.
    fn complaint(&mut self) -> io::Result<Option<String>> {
        // The program writes at the end of the same open file: where that is must not be changed while it may do so.
        let len = self.complaints.metadata()?.len();
        if len == self.heard {
            return Ok(None);
        }
        let new = usize::try_from(len - self.heard).unwrap_or(usize::MAX);
        let mut text = vec![0; new.min(LONGEST_COMPLAINT)];
        self.complaints.read_exact_at(&mut text, self.heard)?;
        self.heard = len;
        if new > LONGEST_COMPLAINT {
            // Whatever the rest is, it is too much for a warning.
            text.extend_from_slice(b"...\n");
        }
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    }
}

/// Whether there is anything but warnings, such as that this user may not use KVM.
fn is_failure(complaint: &str) -> bool {
    let is_warning = |line: &str| line.contains(WARNING) && !line.contains("error: ");
    complaint.lines().any(|line| !line.trim().is_empty() && !is_warning(line))
}

/// A complaint in one line, without what only a script needs to know. It may quote names from the disk.
fn plain(text: &str) -> String {
    let text = text.split_once(ADVICE).map_or(text, |(before, _)| before);
    let lines = text.lines().map(|line| {
        let line = line.trim();
        line.split_once(ERROR).map_or(line, |(_, what)| what)
    });
    let plain = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    let mut plain: String = plain.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    if let Some((end, _)) = plain.char_indices().nth(WORDS) {
        plain.truncate(end);
        plain.push_str("...");
    }
    plain
}

impl Drop for Session {
    fn drop(&mut self) {
        // At the end of its input it takes its machine and its files away.
        drop(self.stdin.take());
        let (give_up, mut next) = (Instant::now() + END, Instant::now());
        while Instant::now() < give_up {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            if self.busy && Instant::now() >= next {
                self.end_others();
                next = Instant::now() + Duration::from_secs(1);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child::end_group(&mut self.child).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::{is_failure, plain};

    #[test]
    fn complaints_are_one_line() {
        let text = "*stdin*:11: libguestfs: error: lstatns: /nix\u{1b}: No such file or directory\n\nmore\n";
        assert_eq!(plain(text), "lstatns: /nix?: No such file or directory; more");
        assert_eq!(plain(&"ä".repeat(700)), format!("{}...", "ä".repeat(600)));
        assert_eq!(plain("it did not start.\nTo see full error messages you may need to\n"), "it did not start.");
    }

    #[test]
    fn whatever_is_no_warning_is_a_failure() {
        // As guestfish 1.48 and libguestfs print them.
        for failure in [
            "*stdin*:2: libguestfs: error: unknown protocol ‘foo’\n",
            "error: incorrect number of arguments\nusage: lstatns path\n",
            "guestfish: unterminated double quote\n",
            "Runaway quote in string \"a'\"\n",
            "pread: count: invalid integer parameter (xstrtol returned 4)\n",
            "nonsense: unknown command\n",
            "libguestfs: error: lstatns: /warning: x: No such file or directory\n",
            "libguestfs: warning: something\nnonsense: unknown command\n",
        ] {
            assert!(is_failure(failure), "{failure}");
        }
        assert!(!is_failure("libguestfs: warning: current user is not a member of the KVM group (group ID 108).\n\n"));
        assert!(!is_failure(""));
    }
}
