//! The two ways something goes wrong with a client: one request fails, or the whole connection ends.

use std::io;
use std::time::Duration;

use crate::image::ImageError;
use crate::nbd::vocabulary::*;

/// Why a connection ended before the client said goodbye.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The client closed the connection, or its process is gone.
    #[error("the client closed the connection")]
    Left,
    /// The client sent something the protocol forbids.
    #[error("the client broke the protocol: {0}")]
    Protocol(String),
    /// The client sent half a message, or took half an answer, and then nothing happened.
    #[error("nothing came from the client, or nothing was taken by it, for {0:?} in the middle of a message")]
    Silent(Duration),
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Lost(io::Error),
}

impl Ended {
    /// The error of a `read` or `write` on a socket that waits for `patience` at most.
    pub(super) fn from_io(error: io::Error, patience: Duration) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Left,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent(patience),
            _ => Self::Lost(error),
        }
    }
}

/// A request that is answered with an error; the connection lives on.
#[derive(Debug)]
pub(super) struct Fault {
    /// The protocol's error number.
    pub errno: u32,
    /// The error in words.
    pub message: String,
    /// Where it happened.
    pub offset: Option<u64>,
}

impl Fault {
    /// A request that makes no sense, or is not allowed.
    pub fn refused(errno: u32, message: impl Into<String>) -> Self {
        Self { errno, message: message.into(), offset: None }
    }

    /// The image could not do it.
    pub fn image(error: &ImageError) -> Self {
        let errno = match error.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => ENOSPC,
            _ => EIO,
        };
        Self { errno, message: error.to_string(), offset: Some(error.offset) }
    }
}
