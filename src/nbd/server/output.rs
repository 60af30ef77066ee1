//! Replies as bytes. Every reply or chunk leaves in one piece, with one system call if the socket takes it, and the data of
//! a read goes out from the buffer it was read into.

use std::io::{self, IoSlice, Write};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Ended;
use super::error::Fault;
use crate::nbd::vocabulary::*;

/// The sending half of a connection, shared by all who answer.
pub(super) struct Output<W> {
    stream: Mutex<W>,
    structured: bool,
    patience: Duration,
}

impl<W: Write> Output<W> {
    pub fn new(stream: W, structured: bool, patience: Duration) -> Self {
        Self { stream: Mutex::new(stream), structured, patience }
    }

    /// Whether replies go out in chunks.
    pub fn structured(&self) -> bool {
        self.structured
    }

    /// A request without data in its reply is done.
    pub fn done(&self, cookie: u64) -> Result<(), Ended> {
        match self.structured {
            true => self.chunk(cookie, true, TYPE_NONE, &[], &[]),
            false => self.simple(cookie, 0, &[]),
        }
    }

    /// All of a read, without chunks.
    pub fn simple_data(&self, cookie: u64, data: &[u8]) -> Result<(), Ended> {
        self.simple(cookie, 0, data)
    }

    /// A part of a read; the reply ends with it if it is the `last`.
    pub fn data(&self, cookie: u64, offset: u64, data: &[u8], last: bool) -> Result<(), Ended> {
        self.chunk(cookie, last, TYPE_OFFSET_DATA, &offset.to_be_bytes(), data)
    }

    /// A part of a read that is zero.
    pub fn hole(&self, cookie: u64, range: &Range<u64>, last: bool) -> Result<(), Ended> {
        let mut body = [0; 12];
        body[..8].copy_from_slice(&range.start.to_be_bytes());
        body[8..].copy_from_slice(&((range.end - range.start) as u32).to_be_bytes());
        self.chunk(cookie, last, TYPE_OFFSET_HOLE, &body, &[])
    }

    /// Lengths and flags in meta context `context`.
    pub fn status(&self, cookie: u64, context: u32, extents: &[(u32, u32)]) -> Result<(), Ended> {
        let body: Vec<u8> =
            extents.iter().flat_map(|(len, flags)| [len.to_be_bytes(), flags.to_be_bytes()]).flatten().collect();
        self.chunk(cookie, true, TYPE_BLOCK_STATUS, &context.to_be_bytes(), &body)
    }

    /// The request failed.
    pub fn fault(&self, cookie: u64, fault: &Fault) -> Result<(), Ended> {
        if !self.structured {
            return self.simple(cookie, fault.errno, &[]);
        }
        let text: String = fault.message.chars().take(MAX_STRING as usize / 4).collect();
        let mut body = fault.errno.to_be_bytes().to_vec();
        body.extend((text.len() as u16).to_be_bytes());
        body.extend(text.as_bytes());
        let kind = match fault.offset {
            Some(offset) => {
                body.extend(offset.to_be_bytes());
                TYPE_ERROR_OFFSET
            }
            None => TYPE_ERROR,
        };
        self.chunk(cookie, true, kind, &body, &[])
    }

    fn simple(&self, cookie: u64, errno: u32, data: &[u8]) -> Result<(), Ended> {
        let mut head = [0; 16];
        head[..4].copy_from_slice(&SIMPLE_MAGIC.to_be_bytes());
        head[4..8].copy_from_slice(&errno.to_be_bytes());
        head[8..].copy_from_slice(&cookie.to_be_bytes());
        self.send(&mut [IoSlice::new(&head), IoSlice::new(data)])
    }

    fn chunk(&self, cookie: u64, last: bool, kind: u16, body: &[u8], data: &[u8]) -> Result<(), Ended> {
        let mut head = [0; 20];
        head[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
        head[4..6].copy_from_slice(&if last { FLAG_DONE } else { 0 }.to_be_bytes());
        head[6..8].copy_from_slice(&kind.to_be_bytes());
        head[8..16].copy_from_slice(&cookie.to_be_bytes());
        head[16..].copy_from_slice(&((body.len() + data.len()) as u32).to_be_bytes());
        self.send(&mut [IoSlice::new(&head), IoSlice::new(body), IoSlice::new(data)])
    }

    fn send(&self, mut parts: &mut [IoSlice<'_>]) -> Result<(), Ended> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match stream.write_vectored(parts) {
                Ok(0) => return Err(Ended::Left),
                Ok(sent) => IoSlice::advance_slices(&mut parts, sent),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Ended::from_io(e, self.patience)),
            }
        }
        Ok(())
    }
}
