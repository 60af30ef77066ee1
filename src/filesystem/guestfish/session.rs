//! A running `guestfish`: takes commands from a pipe, one after the other. It ends by itself when the pipe does, and takes its
//! machine and its files with it: that is also what happens when we are killed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
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
/// What tells an error from a warning.
const ERROR: &str = "libguestfs: error: ";
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
        let complaints = tempfile::tempfile()?;
        let mut command = host.command(PROGRAM);
        command.args(["--no-progress-bars", "--no-sync"]).current_dir("/");
        // With libvirt, QEMU would run as another user, who cannot connect to our socket.
        command
            .env("LIBGUESTFS_BACKEND", "direct")
            .env("LC_ALL", "C")
            .env_remove("LIBGUESTFS_DEBUG")
            .env_remove("LIBGUESTFS_TRACE");
        command.env("LIBGUESTFS_TMPDIR", directory);
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
            Some(complaint) if complaint.contains(ERROR) => Err(Broken::Refused(plain(&complaint))),
            // A warning, such as that there is no KVM for this user.
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

    /// What it complained about since this was last asked.
    fn complaint(&mut self) -> io::Result<Option<String>> {
        // The program writes at the end of the same open file: where that is must not be changed while it may do so.
        let len = self.complaints.metadata()?.len();
        if len == self.heard {
            return Ok(None);
        }
        let mut text = vec![0; usize::try_from(len - self.heard).unwrap_or(usize::MAX).min(64 << 10)];
        std::os::unix::fs::FileExt::read_exact_at(&self.complaints, &mut text, self.heard)?;
        self.heard = len;
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    }
}

/// A complaint in one line, without what only a script needs to know.
fn plain(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let line = line.trim();
        line.split_once(ERROR).map_or(line, |(_, what)| what)
    });
    let mut plain = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
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
        if self.busy {
            // It waits for its machine or for what builds it: without them it comes to that end.
            for pid in procfs::members(self.child.id()).unwrap_or_default() {
                if pid != self.child.id() {
                    kill(Pid::from_raw(pid as i32), Signal::SIGTERM).unwrap_or_default();
                }
            }
        }
        let give_up = Instant::now() + END;
        while Instant::now() < give_up {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child::end_group(&mut self.child).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn complaints_are_one_line() {
        let text = "*stdin*:11: libguestfs: error: lstatns: /nix: No such file or directory\n\nmore\n";
        assert_eq!(plain(text), "lstatns: /nix: No such file or directory; more");
        assert_eq!(plain(&"ä".repeat(700)), format!("{}...", "ä".repeat(600)));
    }
}
