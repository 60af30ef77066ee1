//! Getting connected: the socket, with a deadline, and the handshake.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, setsockopt, socket, sockopt};
use nix::sys::time::TimeVal;

use super::Options;
use crate::nbd::NbdError;
use crate::nbd::handshake::{Export, negotiate};
use crate::nbd::reader::Deadline;

/// Connects to a unix socket. A server that hangs with a full queue of callers must not hang us too, hence the time-out,
/// which the standard library cannot set before connecting.
pub(super) fn connect(path: &Path, timeout: Duration) -> Result<UnixStream, NbdError> {
    let attempt = || -> nix::Result<UnixStream> {
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::SendTimeout, &TimeVal::new(timeout.as_secs().max(1) as i64, 0))?;
        nix::sys::socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(UnixStream::from(fd))
    };
    attempt().map_err(|e| NbdError::Connect { socket: path.to_owned(), source: Arc::new(io::Error::from(e)) })
}

/// The handshake; afterwards the stream has the time-outs of the transmission phase.
pub(super) fn handshake(stream: &UnixStream, export: &str, options: &Options) -> Result<Export, NbdError> {
    let mut timed = Deadline { stream, end: Instant::now() + options.timeout };
    let export = negotiate(&mut timed, export, &options.meta_contexts).map_err(|e| e.after(options.timeout))?;
    let set = || -> io::Result<()> {
        stream.set_read_timeout(Some(options.timeout))?;
        stream.set_write_timeout(Some(options.timeout))
    };
    set().map_err(|e| NbdError::from_io(&e))?;
    Ok(export)
}
