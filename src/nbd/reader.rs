//! The receiving half of a connection: a small buffer for headers, payloads straight into the caller's memory, and the
//! clock that tells a slow server from a dead one.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::NbdError;
use super::wire::{Event, read_event};

/// Big enough for a chunk header and its offset, so that one system call gets both; small, because what it reads beyond
/// them is payload that has to be copied once more.
const HEADER_BUFFER: usize = 64;

/// The receiving half. Whoever holds the value may read; it is handed from thread to thread.
#[derive(Debug)]
pub(super) struct Reader {
    input: BufReader<UnixStream>,
}

/// What came while waiting for a reply.
pub(super) enum Arrival {
    /// A reply or chunk; its payload, if any, is next in the stream.
    Event(Event),
    /// Not a single byte within the time-out.
    Silence,
}

impl Reader {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { input: BufReader::with_capacity(HEADER_BUFFER, stream) }
    }

    /// Waits for the next reply or chunk.
    pub(super) fn next(&mut self) -> Result<Arrival, NbdError> {
        loop {
            match self.input.fill_buf() {
                Ok([]) => return Err(NbdError::Lost("the server closed it".into())),
                Ok(_) => return read_event(&mut self.input).map(Arrival::Event),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Arrival::Silence),
                Err(e) => return Err(NbdError::from_io(&e)),
            }
        }
    }

    /// Reads payload.
    pub(super) fn fill(&mut self, buf: &mut [u8]) -> Result<(), NbdError> {
        self.input.read_exact(buf).map_err(|e| NbdError::from_io(&e))
    }
}

/// A stream that times out as a whole, not byte by byte: for the handshake, whose length the server decides.
pub(super) struct Deadline<'a> {
    pub(super) stream: &'a UnixStream,
    pub(super) end: Instant,
}

impl Deadline<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(left)
    }
}

impl Read for Deadline<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        let mut stream = self.stream;
        stream.read(buf)
    }
}

impl Write for Deadline<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        let mut stream = self.stream;
        stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
