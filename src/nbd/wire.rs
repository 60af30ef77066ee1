//! The transmission phase on the wire: requests as bytes, replies from bytes.
//!
//! [`read_event`] reads one reply or chunk from anything that is a `Read` and knows nothing of open requests; whether the
//! event makes sense is decided in [`super::reply`]. The bytes of a read are *not* consumed here: they follow in the stream,
//! so that they can go straight into the buffer of whoever asked.

use std::io::Read;

use super::NbdError;
use super::vocabulary::*;

/// Size of a request header.
pub const REQUEST_LEN: usize = 28;

/// QEMU sends at most 1 MiB of extents in one chunk; twice that is more than anybody needs.
const MAX_STATUS: u32 = 2 << 20;

/// A command of the transmission phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Read bytes.
    Read,
    /// Write bytes.
    Write,
    /// Say goodbye; has no reply.
    Disconnect,
    /// Make everything written durable.
    Flush,
    /// Bytes are no longer needed.
    Trim,
    /// Make bytes read as zeros.
    WriteZeroes,
    /// Ask what is known about a range.
    BlockStatus,
}

impl Command {
    fn code(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
        }
    }

    /// The command with this number.
    pub fn from_code(code: u16) -> Option<Self> {
        let all =
            [Self::Read, Self::Write, Self::Disconnect, Self::Flush, Self::Trim, Self::WriteZeroes, Self::BlockStatus];
        all.into_iter().find(|command| command.code() == code)
    }

    /// The command in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Disconnect => "disconnect",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::WriteZeroes => "write zeroes",
            Self::BlockStatus => "block status",
        }
    }
}

/// Flag of a read: answer in one chunk or with one error.
pub const DONT_FRAGMENT: u16 = 1 << 2;

/// The header of a request. Of the flags only [`DONT_FRAGMENT`] is ever used: zeros may become holes, and durability is
/// asked for by a flush.
pub fn encode_request(command: Command, flags: u16, cookie: u64, offset: u64, len: u32) -> [u8; REQUEST_LEN] {
    let mut out = [0; REQUEST_LEN];
    out[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    out[4..6].copy_from_slice(&flags.to_be_bytes());
    out[6..8].copy_from_slice(&command.code().to_be_bytes());
    out[8..16].copy_from_slice(&cookie.to_be_bytes());
    out[16..24].copy_from_slice(&offset.to_be_bytes());
    out[24..28].copy_from_slice(&len.to_be_bytes());
    out
}

/// One reply, or one chunk of a structured reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Which request it answers.
    pub cookie: u64,
    /// Whether the request is finished with this.
    pub done: bool,
    /// What it says.
    pub body: Body,
}

/// What a reply or chunk says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A simple reply without error; if it answers a read, all its bytes follow in the stream.
    Simple,
    /// A chunk that only ends a structured reply.
    None,
    /// `len` bytes of the image from `offset` follow in the stream.
    Data {
        /// First byte, counted from the start of the image.
        offset: u64,
        /// Number of bytes, never 0.
        len: u32,
    },
    /// `len` bytes from `offset` are zero.
    Hole {
        /// First byte, counted from the start of the image.
        offset: u64,
        /// Number of bytes, never 0.
        len: u32,
    },
    /// Lengths and flags, in order, in one meta context.
    Status {
        /// The number the server gave the context.
        context: u32,
        /// Length (never 0) and flags.
        extents: Vec<(u32, u32)>,
    },
    /// The request failed.
    Error {
        /// The error number, never 0.
        errno: u32,
        /// The server's own words; may be empty.
        message: String,
        /// Where it failed, when the server tells.
        offset: Option<u64>,
        /// Whether it came as a simple reply.
        simple: bool,
    },
}

/// Reads one reply or chunk header, and its body unless that is the data of a read.
///
/// # Errors
/// When the stream ends or times out, or when what it holds cannot be a reply. The stream is then out of step.
pub fn read_event(input: &mut impl Read) -> Result<Event, NbdError> {
    match u32::from_be_bytes(take(input)?) {
        SIMPLE_MAGIC => {
            let errno = u32::from_be_bytes(take(input)?);
            let cookie = u64::from_be_bytes(take(input)?);
            let body = match errno {
                0 => Body::Simple,
                errno => Body::Error { errno, message: String::new(), offset: None, simple: true },
            };
            Ok(Event { cookie, done: true, body })
        }
        CHUNK_MAGIC => {
            let flags = u16::from_be_bytes(take(input)?);
            let kind = u16::from_be_bytes(take(input)?);
            let cookie = u64::from_be_bytes(take(input)?);
            let len = u32::from_be_bytes(take(input)?);
            let done = flags & FLAG_DONE != 0;
            Ok(Event { cookie, done, body: read_chunk(input, kind, done, len)? })
        }
        other => Err(NbdError::Protocol(format!("{other:#010x} is not the start of a reply"))),
    }
}

fn read_chunk(input: &mut impl Read, kind: u16, done: bool, len: u32) -> Result<Body, NbdError> {
    match kind {
        TYPE_NONE if len == 0 && done => Ok(Body::None),
        TYPE_NONE => Err(NbdError::Protocol("an empty chunk that does not end its reply".into())),
        TYPE_OFFSET_DATA if len > 8 => Ok(Body::Data { offset: u64::from_be_bytes(take(input)?), len: len - 8 }),
        TYPE_OFFSET_HOLE if len == 12 => {
            let offset = u64::from_be_bytes(take(input)?);
            match u32::from_be_bytes(take(input)?) {
                0 => Err(NbdError::Protocol(format!("a hole of 0 bytes at offset {offset}"))),
                len => Ok(Body::Hole { offset, len }),
            }
        }
        TYPE_BLOCK_STATUS if len >= 12 && len % 8 == 4 && len <= MAX_STATUS => read_status(input, len),
        kind if kind & TYPE_IS_ERROR != 0 => read_error(input, kind, len),
        kind => Err(NbdError::Protocol(format!("a chunk of type {kind} with {len} bytes"))),
    }
}

fn read_status(input: &mut impl Read, len: u32) -> Result<Body, NbdError> {
    let context = u32::from_be_bytes(take(input)?);
    let bytes = take_vec(input, len - 4)?;
    let extents: Vec<(u32, u32)> = bytes
        .chunks_exact(8)
        .map(|e| (u32::from_be_bytes([e[0], e[1], e[2], e[3]]), u32::from_be_bytes([e[4], e[5], e[6], e[7]])))
        .collect();
    if extents.iter().any(|(len, _)| *len == 0) {
        return Err(NbdError::Protocol("a block status extent of 0 bytes".into()));
    }
    Ok(Body::Status { context, extents })
}

fn read_error(input: &mut impl Read, kind: u16, len: u32) -> Result<Body, NbdError> {
    let odd = || NbdError::Protocol(format!("an error chunk of type {kind:#x} with {len} bytes"));
    if !(6..=MAX_STRING + 64).contains(&len) {
        return Err(odd());
    }
    let bytes = take_vec(input, len)?;
    let errno = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let text_len = usize::from(u16::from_be_bytes([bytes[4], bytes[5]]));
    let text = bytes.get(6..6 + text_len).ok_or_else(odd)?;
    let rest = &bytes[6 + text_len..];
    let offset = match (kind, rest) {
        (TYPE_ERROR, []) => None,
        (TYPE_ERROR_OFFSET, rest) => Some(u64::from_be_bytes(rest.try_into().map_err(|_| odd())?)),
        (TYPE_ERROR, _) => return Err(odd()),
        // A type added to the protocol later: it is an error all the same.
        _ => None,
    };
    if errno == 0 {
        return Err(NbdError::Protocol("an error chunk without an error".into()));
    }
    Ok(Body::Error { errno, message: printable(text), offset, simple: false })
}

/// A server's text, fit for a log line.
pub(crate) fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect()
}

pub(crate) fn take<const N: usize>(input: &mut impl Read) -> Result<[u8; N], NbdError> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes).map_err(|e| NbdError::from_io(&e))?;
    Ok(bytes)
}

/// Reads `len` bytes. The caller has checked `len` against a limit; even so, memory grows only as bytes arrive.
pub(crate) fn take_vec(input: &mut impl Read, len: u32) -> Result<Vec<u8>, NbdError> {
    let mut bytes = Vec::with_capacity(len.min(1 << 16) as usize);
    input.take(u64::from(len)).read_to_end(&mut bytes).map_err(|e| NbdError::from_io(&e))?;
    if bytes.len() < len as usize {
        return Err(NbdError::Lost("the server closed it in the middle of a reply".into()));
    }
    Ok(bytes)
}
