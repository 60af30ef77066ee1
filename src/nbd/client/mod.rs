//! The client: reads, writes and the rest of the commands, cut into requests that fit the server.
//!
//! How requests of many threads share one connection is the business of [`exchange`]; this file knows about sizes,
//! alignment and what the export can do.

mod connect;
mod exchange;

use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::vocabulary::EOVERFLOW;
use super::wire::Command;
use super::{Export, NbdError};
use exchange::{Connection, Payload};

/// Reads are cut into requests of at least this size, so that several are in flight even for a modest buffer.
const MIN_PIECE: u64 = 256 << 10;
/// And of at most this size, so that the server's memory and the time between two signs of life stay small.
const MAX_PIECE: u64 = 1 << 20;
/// Zeros and trims carry no payload; cut all the same, so that a slow device answers within the time-out.
const MAX_EMPTY_PIECE: u64 = 64 << 20;
/// The longest range one block status request asks for.
const MAX_STATUS_PIECE: u64 = 1 << 30;
/// Where zeros come from when the server cannot write zeros by itself.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// How to connect.
#[derive(Debug, Clone)]
pub struct Options {
    /// Meta contexts to ask for; see [`Client::has_context`] for what the server agreed to.
    pub meta_contexts: Vec<String>,
    /// The connection is given up when the server sends nothing for this long although a request is open; also the limit
    /// of the whole handshake.
    pub timeout: Duration,
    /// The same while a write, trim or flush is open: a flush writes back whatever the server's cache holds.
    pub write_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            meta_contexts: Vec::new(),
            timeout: Duration::from_secs(120),
            write_timeout: Duration::from_secs(30 * 60),
        }
    }
}

/// A connection to one export. Shared between threads; requests of all of them are in flight side by side.
#[derive(Debug)]
pub struct Client {
    export: Export,
    connection: Connection,
    /// Held while a block is read, changed and written back, because the server only takes whole blocks.
    unaligned: Mutex<()>,
}

impl Client {
    /// Connects to the unix socket at `socket` and opens `export`.
    ///
    /// # Errors
    /// When nobody listens, the server refuses the export, breaks the protocol or does not answer in time.
    pub fn connect_unix(socket: &Path, export: &str, options: &Options) -> Result<Self, NbdError> {
        Self::from_stream(connect::connect(socket, options.timeout)?, export, options)
    }

    /// Opens `export` on a connection that is made already.
    ///
    /// # Errors
    /// As [`Client::connect_unix`].
    pub fn from_stream(stream: UnixStream, export: &str, options: &Options) -> Result<Self, NbdError> {
        let export = connect::handshake(&stream, export, options)?;
        let connection = Connection::new(stream, &export, options)?;
        Ok(Self { export, connection, unaligned: Mutex::default() })
    }

    /// What the server said about the export.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// Size of the export in bytes.
    pub fn size(&self) -> u64 {
        self.export.size
    }

    /// Whether the server agreed to show meta context `name`.
    pub fn has_context(&self, name: &str) -> bool {
        self.context(name).is_some()
    }

    /// From now on at most `most` requests are in flight, of all threads together.
    pub fn limit_requests(&self, most: usize) {
        self.connection.limit(most);
    }

    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    /// When the range is outside the export, the server cannot read it, or the connection fails. The content of `buf` is
    /// then undefined.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), NbdError> {
        let range = self.check(offset, buf.len() as u64)?;
        let inner = self.inner(&range);
        if inner == range {
            return self.read_aligned(buf, offset);
        }
        let (head, rest) = buf.split_at_mut((inner.start - range.start) as usize);
        let (body, tail) = rest.split_at_mut((inner.end - inner.start) as usize);
        for (part, at) in [(head, range.start), (tail, inner.end)] {
            if !part.is_empty() {
                let outer = self.outer(&(at..at + part.len() as u64));
                let mut block = vec![0; (outer.end - outer.start) as usize];
                self.read_aligned(&mut block, outer.start)?;
                let skip = (at - outer.start) as usize;
                part.copy_from_slice(&block[skip..skip + part.len()]);
            }
        }
        self.read_aligned(body, inner.start)
    }

    /// Writes all of `buf` at `offset`.
    ///
    /// # Errors
    /// When the range is outside the export, the export is read-only or refuses, or the connection fails.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), NbdError> {
        self.writable("writing")?;
        let range = self.check(offset, buf.len() as u64)?;
        let inner = self.inner(&range);
        if inner == range {
            return self.write_aligned(buf, offset);
        }
        let (head, rest) = buf.split_at((inner.start - range.start) as usize);
        let (body, tail) = rest.split_at((inner.end - inner.start) as usize);
        for (part, at) in [(head, range.start), (tail, inner.end)] {
            if !part.is_empty() {
                let outer = self.outer(&(at..at + part.len() as u64));
                let mut block = vec![0; (outer.end - outer.start) as usize];
                let _only_one = self.unaligned.lock().unwrap_or_else(PoisonError::into_inner);
                self.read_aligned(&mut block, outer.start)?;
                let skip = (at - outer.start) as usize;
                block[skip..skip + part.len()].copy_from_slice(part);
                self.write_aligned(&block, outer.start)?;
            }
        }
        self.write_aligned(body, inner.start)
    }

    /// Makes `len` bytes from `offset` on read as zeros; the server may make a hole of them.
    ///
    /// # Errors
    /// As [`Client::write_at`].
    pub fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), NbdError> {
        self.writable("writing zeroes")?;
        let range = self.check(offset, len)?;
        let inner = match self.export.can_write_zeroes {
            true => self.inner(&range),
            false => range.end..range.end,
        };
        for edge in [range.start..inner.start, inner.end..range.end] {
            let mut at = edge.start;
            while at < edge.end {
                let len = (edge.end - at).min(ZEROS.len() as u64);
                self.write_at(&ZEROS[..len as usize], at)?;
                at += len;
            }
        }
        self.connection.run(Command::WriteZeroes, inner, MAX_EMPTY_PIECE, Payload::None)
    }

    /// Tells the server that `len` bytes from `offset` on are no longer needed; what they read as afterwards is undefined.
    ///
    /// # Errors
    /// As [`Client::write_at`], and when the export cannot trim.
    pub fn trim(&self, offset: u64, len: u64) -> Result<(), NbdError> {
        self.writable("trim")?;
        if !self.export.can_trim {
            return Err(NbdError::Unsupported("trim".into()));
        }
        let range = self.check(offset, len)?;
        self.connection.run(Command::Trim, self.inner(&range), MAX_EMPTY_PIECE, Payload::None)
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// When the server cannot promise that, or the connection fails.
    pub fn flush(&self) -> Result<(), NbdError> {
        if !self.export.can_flush {
            return Err(NbdError::Unsupported("flush".into()));
        }
        self.connection.request(Command::Flush, 0..0).map(drop)
    }

    /// What meta context `context` says about `len` bytes from `offset` on: lengths and flags, in order, without gaps;
    /// neighbours with equal flags are merged.
    ///
    /// # Errors
    /// When the server did not agree to the context, the range is outside the export, or the connection fails.
    pub fn block_status(&self, context: &str, offset: u64, len: u64) -> Result<Vec<(u64, u32)>, NbdError> {
        let id = self.context(context).ok_or_else(|| NbdError::Unsupported(format!("meta context {context:?}")))?;
        let range = self.check(offset, len)?;
        let outer = self.outer(&range);
        let mut found: Vec<(u64, u32)> = Vec::new();
        let mut pieces = 0;
        let mut at = outer.start;
        while at < outer.end {
            let ask = at..outer.end.min(at + MAX_STATUS_PIECE);
            let status = self.connection.request(Command::BlockStatus, ask.clone())?.status;
            let Some((_, extents)) = status.into_iter().find(|(i, _)| *i == id) else {
                return Err(self.connection.broken(format!("a block status without meta context {context:?}")));
            };
            for (len, flags) in extents {
                // The last extent may reach beyond what was asked for; the export's end is the limit.
                let end = (at + u64::from(len)).min(outer.end);
                pieces += 1;
                if end > at {
                    let kept = end.min(range.end).saturating_sub(at.max(range.start));
                    match found.last_mut() {
                        Some((len, last)) if *last == flags => *len += kept,
                        _ if kept > 0 => found.push((kept, flags)),
                        _ => {}
                    }
                    at = end;
                }
            }
            // At a byte a time a server could keep us here for years.
            if pieces > (outer.end - outer.start) / 512 + 64 {
                return Err(self.connection.broken("a block status in absurdly small pieces".into()));
            }
        }
        Ok(found)
    }

    fn read_aligned(&self, buf: &mut [u8], offset: u64) -> Result<(), NbdError> {
        let len = buf.len() as u64;
        let piece = (len / 8).next_multiple_of(1 << 16).clamp(MIN_PIECE, MAX_PIECE).min(self.export.max_block.into());
        let range = offset..offset + len;
        match self.connection.run(Command::Read, range.clone(), piece, Payload::Read(&mut *buf)) {
            // The server's way to say that this is too much for one chunk.
            Err(NbdError::Server { errno: EOVERFLOW, .. }) if self.connection.allow_fragments() => {
                self.connection.run(Command::Read, range, piece, Payload::Read(buf))
            }
            result => result,
        }
    }

    fn write_aligned(&self, buf: &[u8], offset: u64) -> Result<(), NbdError> {
        let piece = MAX_PIECE.min(self.export.max_block.into());
        self.connection.run(Command::Write, offset..offset + buf.len() as u64, piece, Payload::Write(buf))
    }

    fn context(&self, name: &str) -> Option<u32> {
        self.export.contexts.iter().find(|(n, _)| n == name).map(|(_, id)| *id)
    }

    fn writable(&self, what: &str) -> Result<(), NbdError> {
        match self.export.read_only {
            true => Err(NbdError::Unsupported(format!("{what}: it is read-only"))),
            false => Ok(()),
        }
    }

    fn check(&self, offset: u64, len: u64) -> Result<Range<u64>, NbdError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.export.size => Ok(offset..end),
            _ => Err(NbdError::OutOfRange { offset, len, size: self.export.size }),
        }
    }

    /// The whole blocks that hold `range`. An export's last block may be a partial one.
    fn outer(&self, range: &Range<u64>) -> Range<u64> {
        let block = u64::from(self.export.min_block);
        range.start / block * block..range.end.next_multiple_of(block).min(self.export.size)
    }

    /// The whole blocks inside `range`; empty, at the end of `range`, when there is none.
    fn inner(&self, range: &Range<u64>) -> Range<u64> {
        let block = u64::from(self.export.min_block);
        let start = range.start.next_multiple_of(block);
        let end = if range.end == self.export.size { range.end } else { range.end / block * block };
        if start < end { start..end } else { range.end..range.end }
    }
}
