//! Where an archive is written: a draft, a pipe, any writer, each directly or through `lzop`.
//!
//! Waits end when the transfer is stopped, with two exceptions that the system does not let us end: a write to a file
//! on a device or server that hangs, and a write into a plain [`Write`] that blocks.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::process::{Child, ChildStdin, Stdio};
use std::thread::Scope;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Draft;
use super::TransferError;
use super::stop::Stop;
use crate::archive::verdict;
use crate::host::Host;

/// How long a wait for a pipe goes on before the flag is looked at again.
const TICK_MS: u16 = 50;
/// Bytes written to a file in one call, so that a slow device does not hide a wish to stop for long.
const PIECE: usize = 1 << 20;
/// A pipe that is ready takes this much without blocking (POSIX's PIPE_BUF).
const PIPE_BUF: usize = 4096;

/// Where an archive is written.
pub enum Output<'a> {
    /// A file that gets its name when the caller commits it.
    Draft(&'a mut Draft),
    /// A pipe or another file descriptor, and its name in messages: `stdout`.
    Fd(OwnedFd, String),
    /// Anything else, and its name in messages. While its `write` blocks, the transfer cannot be cancelled.
    Writer(Box<dyn Write + Send + 'a>, String),
}

/// An open output.
pub(super) struct Sink<'a> {
    kind: Kind<'a>,
    name: String,
    /// Bytes handed over, uncompressed when `lzop` compresses.
    written: u64,
    /// Whether it is an archive of a virtual machine, whose errors have QEMU's words.
    is_vma: bool,
}

enum Kind<'a> {
    Draft(&'a mut Draft),
    Fd(PolledWrite),
    Writer(Box<dyn Write + Send + 'a>),
    Lzop(Lzop<'a>),
}

impl<'a> Sink<'a> {
    pub(super) fn open(output: Output<'a>) -> Self {
        let (kind, name) = match output {
            Output::Draft(draft) => {
                let name = draft.final_path().display().to_string();
                (Kind::Draft(draft), name)
            }
            Output::Fd(fd, name) => (Kind::Fd(PolledWrite::new(File::from(fd))), name),
            Output::Writer(writer, name) => (Kind::Writer(writer), name),
        };
        Self { kind, name, written: 0, is_vma: true }
    }

    /// The same for the archive of a container.
    pub(super) fn for_tar(output: Output<'a>) -> Self {
        Self { is_vma: false, ..Self::open(output) }
    }

    /// Puts `lzop` in front: it writes a draft itself, everything else is pumped by a thread of `scope`.
    pub(super) fn through_lzop<'scope>(
        self,
        host: &Host,
        stop: &'scope Stop,
        scope: &'scope Scope<'scope, '_>,
    ) -> Result<Self, TransferError>
    where
        'a: 'scope,
    {
        let (name, is_vma) = (self.name.clone(), self.is_vma);
        let failed = |source| write_error(is_vma, &name, 0, source);
        let stdout = match &self.kind {
            Kind::Draft(draft) => Stdio::from(draft.file().map_err(failed)?),
            _ => Stdio::piped(),
        };
        let mut command = host.command("lzop");
        // Its own process group: a Ctrl-C is ours to handle. It ends when its pipes do, so never outlives us.
        command.arg("-c").stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| {
            failed(io::Error::new(e.kind(), format!("cannot start lzop, which --compress lzo needs: {e}")))
        })?;
        // The command holds a copy of the draft's descriptor until it is dropped.
        drop(command);
        let stdin = child.stdin.take().map(own_pipe).transpose().map_err(failed)?;
        let mut lzop = Lzop { child, stdin, draft: None, pumped: None };
        match (self.kind, lzop.child.stdout.take()) {
            (Kind::Draft(draft), _) => lzop.draft = Some(draft),
            (kind, Some(mut from)) => {
                let (done, pumped) = bounded(1);
                lzop.pumped = Some(pumped);
                let mut to = Sink { kind, name: self.name.clone(), written: 0, is_vma };
                let pump = move || {
                    stop.guard("lzop's output", || {
                        let mut buf = vec![0; 256 << 10];
                        loop {
                            match from.read(&mut buf).map_err(|e| to.failed(e))? {
                                0 => break,
                                n => to.write_all(&buf[..n], stop)?,
                            }
                        }
                        to.finish(stop)?;
                        // The other end is gone only when the transfer was stopped.
                        done.send(to.written).ok();
                        Ok(())
                    });
                };
                std::thread::Builder::new().spawn_scoped(scope, pump).map_err(TransferError::Thread)?;
            }
            (_, None) => {}
        }
        Ok(Self { kind: Kind::Lzop(lzop), name: self.name, written: 0, is_vma })
    }

    /// Writes all of `bytes`, or fails. Returns early without an error when the transfer was stopped.
    pub(super) fn write_all(&mut self, bytes: &[u8], stop: &Stop) -> Result<(), TransferError> {
        for piece in bytes.chunks(PIECE) {
            if stop.is_set() {
                return Ok(());
            }
            let result = match &mut self.kind {
                Kind::Draft(draft) => draft.write_all(piece),
                Kind::Fd(fd) => fd.write_all(piece, stop),
                Kind::Writer(writer) => writer.write_all(piece),
                Kind::Lzop(lzop) => lzop.write_all(piece, stop),
            };
            result.map_err(|e| self.failed(e))?;
            self.written += piece.len() as u64;
        }
        Ok(())
    }

    /// Bytes in the archive so far, as far as they can be known.
    pub(super) fn archive_bytes(&self) -> u64 {
        match &self.kind {
            Kind::Lzop(Lzop { draft: Some(draft), .. }) => {
                draft.file().and_then(|f| f.metadata()).map_or(self.written, |meta| meta.len())
            }
            _ => self.written,
        }
    }

    /// Everything was written: hands the rest over and returns the bytes of the archive.
    pub(super) fn finish(&mut self, stop: &Stop) -> Result<u64, TransferError> {
        let result = match &mut self.kind {
            Kind::Writer(writer) => writer.flush().map(|()| None),
            Kind::Lzop(lzop) => lzop.finish(stop),
            Kind::Draft(_) | Kind::Fd(_) => Ok(None),
        };
        let pumped = result.map_err(|e| self.failed(e))?;
        Ok(pumped.unwrap_or_else(|| self.archive_bytes()))
    }

    fn failed(&self, source: io::Error) -> TransferError {
        write_error(self.is_vma, &self.name, self.written, source)
    }
}

fn write_error(is_vma: bool, archive: &str, written: u64, source: io::Error) -> TransferError {
    let archive = archive.to_owned();
    if is_vma {
        TransferError::Output { archive, written, source }
    } else {
        TransferError::Write { archive, written, source }
    }
}

/// Writes to a pipe without ever blocking in the system call.
struct PolledWrite {
    file: File,
    piece: usize,
    regular: bool,
}

impl PolledWrite {
    fn new(file: File) -> Self {
        let kind = file.metadata().map(|m| m.file_type());
        let regular = kind.as_ref().is_ok_and(|k| k.is_file() || k.is_block_device());
        if kind.is_ok_and(|k| k.is_fifo()) {
            // O_NONBLOCK belongs to the open file, which others (the shell, the next command) share: open it again.
            use std::os::fd::AsRawFd;
            let again = format!("/proc/self/fd/{}", file.as_raw_fd());
            let open = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(again);
            if let Ok(file) = open {
                return Self { file, piece: PIECE, regular };
            }
        }
        Self { file, piece: if regular { PIECE } else { PIPE_BUF }, regular }
    }

    fn write_all(&mut self, mut bytes: &[u8], stop: &Stop) -> io::Result<()> {
        while !bytes.is_empty() && !stop.is_set() {
            if !self.regular {
                let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
                match poll(&mut fds, PollTimeout::from(TICK_MS)) {
                    Ok(0) | Err(Errno::EINTR) => continue,
                    Ok(_) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            match self.file.write(&bytes[..bytes.len().min(self.piece)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => bytes = &bytes[n..],
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Our end of a new pipe, which nobody shares: set not to block.
fn own_pipe(stdin: ChildStdin) -> io::Result<PolledWrite> {
    let file = File::from(OwnedFd::from(stdin));
    let flags = fcntl(&file, FcntlArg::F_GETFL)?;
    fcntl(&file, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK))?;
    Ok(PolledWrite { file, piece: PIECE, regular: false })
}

struct Lzop<'a> {
    child: Child,
    stdin: Option<PolledWrite>,
    /// What it writes to, if that is a draft ...
    draft: Option<&'a mut Draft>,
    /// ... and otherwise the count of bytes pumped from it, at the end.
    pumped: Option<Receiver<u64>>,
}

impl Lzop<'_> {
    fn write_all(&mut self, bytes: &[u8], stop: &Stop) -> io::Result<()> {
        let Some(stdin) = &mut self.stdin else { return Err(io::ErrorKind::BrokenPipe.into()) };
        match stdin.write_all(bytes, stop) {
            // What lzop says (no space left ...) tells more than the broken pipe.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.end(stop).and(Err(e)),
            result => result,
        }
    }

    fn finish(&mut self, stop: &Stop) -> io::Result<Option<u64>> {
        self.end(stop)?;
        Ok(self.pumped.as_ref().and_then(|pumped| stop.recv(pumped)))
    }

    fn end(&mut self, stop: &Stop) -> io::Result<()> {
        self.stdin = None;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if !stop.sleep(Duration::from_millis(10)) {
                return Ok(());
            }
        };
        verdict("lzop", &mut self.child, status)
    }
}

impl Drop for Lzop<'_> {
    fn drop(&mut self) {
        // Both fail only when the child is gone, which is what is wanted.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
