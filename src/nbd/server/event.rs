//! What the server tells whoever runs it.

use std::fmt;

use super::Ended;
use crate::image::ImageError;

/// Something happened that somebody may want to know. As text: one line without its end.
#[derive(Debug)]
pub enum Event<'a> {
    /// A client opened an export.
    Opened {
        /// Number of the connection, counted from 1.
        client: u64,
        /// The export.
        export: &'a str,
    },
    /// A client that had opened an export is gone.
    Closed {
        /// Number of the connection.
        client: u64,
        /// The export.
        export: &'a str,
    },
    /// A request failed because of the disk; the client got an error.
    Failed {
        /// Number of the connection.
        client: u64,
        /// Disk, operation, place and cause.
        error: &'a ImageError,
    },
    /// A connection was ended by us.
    Ended {
        /// Number of the connection.
        client: u64,
        /// Why.
        reason: &'a Ended,
    },
    /// A connection was not taken.
    Refused {
        /// Why.
        reason: String,
    },
}

impl Event<'_> {
    /// Whether this is trouble, and not the ordinary coming and going.
    pub fn is_trouble(&self) -> bool {
        !matches!(self, Self::Opened { .. } | Self::Closed { .. })
    }
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opened { client, export } => write!(f, "client {client} opened {export}"),
            Self::Closed { client, export } => write!(f, "client {client} left {export}"),
            Self::Failed { error, .. } => error.fmt(f),
            Self::Ended { client, reason } => write!(f, "the connection of client {client} was closed: {reason}"),
            Self::Refused { reason } => write!(f, "a client was not let in: {reason}"),
        }
    }
}
