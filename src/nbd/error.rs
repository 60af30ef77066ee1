//! What can go wrong between us and an NBD server. Cloneable, because the end of a connection is reported to every thread
//! that waits on it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// An NBD connection or one request on it failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NbdError {
    /// The socket cannot be reached.
    #[error("cannot connect to the NBD server at {}: {source}", socket.display())]
    Connect {
        /// Path of the unix socket.
        socket: PathBuf,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// The server does not offer what we need, or refused it during the handshake.
    #[error("the NBD server refused export {export:?}: {reason}")]
    Refused {
        /// Name of the export that was asked for.
        export: String,
        /// What the server said, or what it lacks.
        reason: String,
    },
    /// The server sent something the protocol forbids; the connection is closed.
    #[error("the NBD server broke the protocol: {0}")]
    Protocol(String),
    /// The connection ended; also given to every request after the first failure.
    #[error("the connection to the NBD server is lost: {0}")]
    Lost(String),
    /// The server fell silent; the connection is closed.
    #[error("the NBD server sent nothing for {0:?} although a request was open")]
    Timeout(Duration),
    /// The server answered a request with an error; the connection lives on.
    #[error("the NBD server answered {command} of {len} bytes at offset {offset} with: {reason}")]
    Server {
        /// The command: `read`, `write` ...
        command: &'static str,
        /// First byte concerned, as exact as the server told it.
        offset: u64,
        /// Number of bytes asked for.
        len: u64,
        /// The error number of the protocol, equal to Linux's.
        errno: u32,
        /// The error in words, with the server's own message.
        reason: String,
    },
    /// The export does not offer this operation.
    #[error("the NBD export does not support {0}")]
    Unsupported(String),
    /// The range is not inside the export.
    #[error("the range of {len} bytes at offset {offset} is outside the NBD export of {size} bytes")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Size of the export in bytes.
        size: u64,
    },
}

impl NbdError {
    /// Whether the connection can no longer be used after this error.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::Server { .. } | Self::Unsupported(_) | Self::OutOfRange { .. })
    }

    /// The error of a `read` or `write` on the socket. The duration of a time-out is filled in by [`Self::after`].
    pub(crate) fn from_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Timeout(Duration::ZERO),
            io::ErrorKind::UnexpectedEof => Self::Lost("the server closed it".into()),
            _ => Self::Lost(error.to_string()),
        }
    }

    /// The same error, with the duration of a time-out known.
    pub(crate) fn after(self, timeout: Duration) -> Self {
        match self {
            Self::Timeout(_) => Self::Timeout(timeout),
            other => other,
        }
    }
}

impl From<NbdError> for io::Error {
    fn from(error: NbdError) -> Self {
        let kind = match &error {
            NbdError::Connect { source, .. } => source.kind(),
            NbdError::Refused { .. } => io::ErrorKind::ConnectionRefused,
            NbdError::Protocol(_) => io::ErrorKind::InvalidData,
            NbdError::Lost(_) => io::ErrorKind::ConnectionAborted,
            NbdError::Timeout(_) => io::ErrorKind::TimedOut,
            NbdError::Server { errno, .. } => {
                io::Error::from_raw_os_error(i32::try_from(*errno).unwrap_or(nix::libc::EIO)).kind()
            }
            NbdError::Unsupported(_) => io::ErrorKind::Unsupported,
            NbdError::OutOfRange { .. } => io::ErrorKind::InvalidInput,
        };
        io::Error::new(kind, error)
    }
}
