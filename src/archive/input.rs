//! Byte streams that can be given up: a file descriptor that is polled, and a stock program that decompresses.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ExitStatus, Stdio};
use std::thread::JoinHandle;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::host::{Cancel, Host};

/// How long a wait goes on before the flags are looked at again.
const TICK_MS: u16 = 50;

/// Reads a pipe, socket or file and gives up within [`TICK_MS`] when one of its flags is set. A read of a file on a
/// dead network file system cannot be given up.
pub(crate) struct PolledRead {
    file: File,
    cancels: Vec<Cancel>,
    /// A read that would block says so.
    nonblocking: bool,
}

impl PolledRead {
    pub(crate) fn new(file: File, cancels: Vec<Cancel>) -> Self {
        Self { file, cancels, nonblocking: false }
    }

    /// For a pipe whose reading end nobody shares: it is only polled when it is empty.
    pub(crate) fn of_own_pipe(file: File, cancels: Vec<Cancel>) -> Self {
        let flags = fcntl(&file, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
        let set = flags.and_then(|flags| fcntl(&file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)));
        Self { nonblocking: set.is_ok(), ..Self::new(file, cancels) }
    }
}

impl Read for PolledRead {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut ready = self.nonblocking;
        loop {
            if self.cancels.iter().any(Cancel::is_set) {
                return Err(io::Error::other("cancelled"));
            }
            if ready {
                match self.file.read(buf) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    read => return read,
                }
            }
            let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(TICK_MS)) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => ready = false,
                Ok(_) => ready = true,
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// The output of `<program> -d -c`; a failure of the child ends it with an error instead of an end of file.
pub(super) struct Decompressor {
    child: Child,
    program: &'static str,
    output: PolledRead,
    /// Feeds the child when its input is no file.
    feeder: Option<JoinHandle<io::Result<()>>>,
    stop: Cancel,
}

/// What the child is to read.
pub(crate) enum Packed {
    File(File),
    Stream(Box<dyn Read + Send>),
}

impl Decompressor {
    /// `stop` is set when this is dropped; a [`Packed::Stream`] that can block has to look at it.
    pub(super) fn start(
        host: &Host,
        program: &'static str,
        packed: Packed,
        cancel: &Cancel,
        stop: &Cancel,
    ) -> io::Result<Self> {
        let (stdin, stream) = match packed {
            Packed::File(file) => (Stdio::from(file), None),
            Packed::Stream(stream) => (Stdio::piped(), Some(stream)),
        };
        let mut command = host.command(program);
        // Its own process group: a Ctrl-C is ours to handle, and the child ends with its pipes.
        command.args(["-d", "-c"]).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let unable = |e| io::Error::other(Unable(format!("cannot start {program}, which this archive needs: {e}")));
        let mut child = command.spawn().map_err(unable)?;
        let output =
            child.stdout.take().map(OwnedFd::from).ok_or_else(|| io::Error::other("a child without output"))?;
        let output = PolledRead::new(File::from(output), vec![cancel.clone(), stop.clone()]);
        let feeder = match (child.stdin.take(), stream) {
            (Some(mut stdin), Some(mut stream)) => Some(std::thread::spawn(move || copy(&mut stream, &mut stdin))),
            _ => None,
        };
        Ok(Self { child, program, output, feeder, stop: stop.clone() })
    }

    fn end(&mut self) -> io::Result<()> {
        if let Some(feeder) = self.feeder.take() {
            match feeder.join() {
                // The child says better what it did not like than a broken pipe does.
                Ok(Err(e)) if e.kind() != io::ErrorKind::BrokenPipe => return Err(e),
                Ok(_) => {}
                Err(_) => return Err(io::Error::other(format!("the thread that feeds {} panicked", self.program))),
            }
        }
        let status = self.child.wait()?;
        verdict(self.program, &mut self.child, status)
    }
}

/// What the end of a `program` means, in its own words if it failed; its standard error is a pipe nobody has read.
pub(crate) fn verdict(program: &str, child: &mut Child, status: ExitStatus) -> io::Result<()> {
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(stderr) = &mut child.stderr {
        stderr.take(4096).read_to_string(&mut said)?;
    }
    let what = format!("{program} failed ({status}): {}", said.trim());
    // Whoever is killed has not said anything about the data.
    Err(if status.code().is_none() { io::Error::other(Unable(what)) } else { io::Error::other(what) })
}

/// A program could not do its work, whatever the data is like.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unable(String);

/// Whether an error says something about the data, and not about the machine: the system did not refuse anything, and no program
/// was missing or killed.
pub(crate) fn is_of_the_data(error: &(dyn Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        let inner = error.get_ref().map(|inner| is_of_the_data(inner));
        return error.raw_os_error().is_none() && inner.unwrap_or(true);
    }
    !error.is::<Unable>() && error.source().is_none_or(is_of_the_data)
}

/// As [`io::copy`], but reads in pieces worth a system call.
fn copy(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
    let mut buf = vec![0; 128 << 10];
    loop {
        match from.read(&mut buf)? {
            0 => return Ok(()),
            n => to.write_all(&buf[..n])?,
        }
    }
}

impl Read for Decompressor {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.output.read(buf)? {
            0 if !buf.is_empty() => self.end().map(|()| 0),
            n => Ok(n),
        }
    }
}

impl Drop for Decompressor {
    fn drop(&mut self) {
        self.stop.set();
        // Both fail only when the child is gone, which is what is wanted.
        self.child.kill().ok();
        self.child.wait().ok();
        if let Some(feeder) = self.feeder.take() {
            feeder.join().ok();
        }
    }
}
