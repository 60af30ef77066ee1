//! A unix socket that speaks lines: connect, send and receive with deadlines, lines of bounded length.
//!
//! Both QMP and the guest agent sit behind QEMU character devices that serve one client at a time; a second client
//! is accepted by the kernel but hears nothing, and once the backlog is full even `connect` would block for ever.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::QemuError;
use crate::host::Cancel;

/// How often a waiting call looks whether it was cancelled.
const SLICE: Duration = Duration::from_millis(100);

/// A point in time by which something must have happened, and how long that was from the start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    pub(super) total: Duration,
}

impl Deadline {
    pub(super) fn after(total: Duration) -> Self {
        Self { at: Instant::now() + total, total }
    }

    pub(super) fn left(&self) -> Option<Duration> {
        let left = self.at.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }
}

/// A connection that carries lines.
pub(super) struct LineSocket {
    stream: UnixStream,
    what: &'static str,
    path: PathBuf,
    pending: Vec<u8>,
    limit: usize,
}

impl LineSocket {
    /// Connects to `path`. A full backlog is waited for until the deadline, then reported as busy.
    pub(super) fn connect(
        what: &'static str,
        path: &Path,
        limit: usize,
        deadline: Deadline,
        cancel: Option<&Cancel>,
    ) -> Result<Self, QemuError> {
        let failed = |op: &'static str, e: Errno| QemuError::Socket { what, path: path.into(), op, source: e.into() };
        let address = UnixAddr::new(path).map_err(|e| failed("connect (path too long?)", e))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd: OwnedFd =
            socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(|e| failed("socket", e))?;
        loop {
            match connect(fd.as_raw_fd(), &address) {
                Ok(()) => break,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    check(cancel)?;
                    let Some(left) = deadline.left() else {
                        return Err(QemuError::Busy { what, path: path.into(), waited: deadline.total });
                    };
                    std::thread::sleep(left.min(Duration::from_millis(20)));
                }
                Err(e @ (Errno::ENOENT | Errno::ECONNREFUSED)) => {
                    return Err(QemuError::NotRunning { what, path: path.into(), source: e.into() });
                }
                Err(e) => return Err(failed("connect", e)),
            }
        }
        let stream = UnixStream::from(fd);
        let socket = Self { stream, what, path: path.into(), pending: Vec::new(), limit };
        socket.stream.set_nonblocking(false).map_err(|e| socket.failed("connect", e))?;
        Ok(socket)
    }

    fn failed(&self, op: &'static str, source: io::Error) -> QemuError {
        QemuError::Socket { what: self.what, path: self.path.clone(), op, source }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn protocol(&self, command: &str, detail: impl Into<String>) -> QemuError {
        QemuError::Protocol { what: self.what, path: self.path.clone(), command: command.into(), detail: detail.into() }
    }

    pub(super) fn timeout(&self, command: &str, waited: Duration) -> QemuError {
        QemuError::Timeout { what: self.what, path: self.path.clone(), command: command.into(), waited }
    }

    pub(super) fn refused(&self, command: &str, error: &serde_json::Value) -> QemuError {
        let text = |key: &str| error[key].as_str().unwrap_or("unknown").to_owned();
        QemuError::Command { what: self.what, command: command.into(), class: text("class"), desc: text("desc") }
    }

    /// Sends all of `bytes` before the deadline.
    pub(super) fn send(&mut self, command: &str, mut bytes: &[u8], deadline: Deadline) -> Result<(), QemuError> {
        while !bytes.is_empty() {
            let left = deadline.left().ok_or_else(|| self.timeout(command, deadline.total))?;
            self.stream.set_write_timeout(Some(left)).map_err(|e| self.failed("write", e))?;
            match self.stream.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    return Err(self.closed(command));
                }
                Err(e) => return Err(self.failed("write", e)),
            }
        }
        Ok(())
    }

    fn closed(&self, command: &str) -> QemuError {
        QemuError::Closed { what: self.what, path: self.path.clone(), command: command.into() }
    }

    /// The next line without its end, or `Timeout`. A longer line than allowed is a protocol error.
    pub(super) fn line(
        &mut self,
        command: &str,
        deadline: Deadline,
        cancel: Option<&Cancel>,
    ) -> Result<Vec<u8>, QemuError> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.pending[searched..].iter().position(|&b| b == b'\n') {
                let rest = self.pending.split_off(searched + end + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                while line.last().is_some_and(|b| matches!(b, b'\n' | b'\r')) {
                    line.pop();
                }
                return Ok(line);
            }
            searched = self.pending.len();
            if searched > self.limit {
                return Err(self.protocol(command, format!("a line longer than {} bytes", self.limit)));
            }
            check(cancel)?;
            let left = deadline.left().ok_or_else(|| self.timeout(command, deadline.total))?;
            self.stream.set_read_timeout(Some(left.min(SLICE))).map_err(|e| self.failed("read", e))?;
            let mut chunk = [0u8; 16 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(self.closed(command)),
                Ok(n) => self.pending.extend_from_slice(&chunk[..n]),
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Err(self.closed(command)),
                Err(e) => return Err(self.failed("read", e)),
            }
        }
    }
}

fn check(cancel: Option<&Cancel>) -> Result<(), QemuError> {
    match cancel {
        Some(c) if c.is_set() => Err(QemuError::Cancelled),
        _ => Ok(()),
    }
}
