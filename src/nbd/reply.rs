//! The open requests of a connection and what has been answered of them.
//!
//! Pure bookkeeping, no I/O: events go in, and out comes what to do next. Every byte of a read must be answered exactly
//! once, by data or by a hole, in any order; replies come in any order; whatever does not fit an open request is an error
//! that ends the connection.

use std::ops::Range;

use super::NbdError;
use super::wire::{Body, Command, Event, printable};

/// Requests in flight at most; QEMU serves this many side by side per connection.
pub const SLOTS: usize = 16;

/// Errors that one structured reply may carry before we stop believing it.
const MAX_ERRORS: u32 = 16;

/// The extents of one meta context in a reply: context number, then lengths and flags.
pub type Status = (u32, Vec<(u32, u32)>);

/// Bytes of a read that follow in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The request they belong to.
    pub slot: usize,
    /// Their place in the image.
    pub range: Range<u64>,
    done: bool,
}

/// What to do after an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Read these bytes from the stream, then call [`Table::payload_read`].
    Payload(Payload),
    /// The request in this slot is answered completely.
    Settled(usize),
    /// Wait for more.
    More,
}

/// A request that is answered completely.
#[derive(Debug, Default)]
pub struct Finished {
    /// Ranges of the image that are zero and were not sent.
    pub holes: Vec<Range<u64>>,
    /// The block status, per meta context.
    pub status: Vec<Status>,
    /// The error the server reported.
    pub error: Option<NbdError>,
}

#[derive(Debug)]
struct Open {
    cookie: u64,
    command: Command,
    range: Range<u64>,
    /// Answered parts of a read: sorted, disjoint, neighbours merged.
    covered: Vec<Range<u64>>,
    chunks: u64,
    errors: u32,
    structured: bool,
    settled: bool,
    finished: Finished,
}

/// The open requests of one connection.
#[derive(Debug)]
pub struct Table {
    slots: [Option<Open>; SLOTS],
    most: usize,
    serial: u64,
    structured: bool,
    contexts: Vec<u32>,
}

impl Table {
    /// No request open. `structured`: the server agreed to structured replies; `contexts`: the numbers it gave the meta
    /// contexts.
    pub fn new(structured: bool, contexts: Vec<u32>) -> Self {
        Self { slots: Default::default(), most: SLOTS, serial: 0, structured, contexts }
    }

    /// From now on at most `most` requests are open at once, though always one may be.
    pub fn limit(&mut self, most: usize) {
        self.most = most.clamp(1, SLOTS);
    }

    /// Takes a free slot for a request; `None` when all are taken.
    pub fn open(&mut self, command: Command, range: Range<u64>) -> Option<usize> {
        if self.slots.iter().flatten().count() >= self.most {
            return None;
        }
        let slot = self.slots.iter().position(Option::is_none)?;
        // The serial number keeps a late second reply from being taken for the reply to the slot's next request.
        self.serial += 1;
        self.slots[slot] = Some(Open {
            cookie: self.serial * SLOTS as u64 + slot as u64,
            command,
            range,
            covered: Vec::new(),
            chunks: 0,
            errors: 0,
            structured: false,
            settled: false,
            finished: Finished::default(),
        });
        Some(slot)
    }

    /// The cookie of the request in `slot`; 0 for a free slot.
    pub fn cookie(&self, slot: usize) -> u64 {
        self.slots[slot].as_ref().map_or(0, |r| r.cookie)
    }

    /// Whether the request in `slot` is answered completely.
    pub fn is_settled(&self, slot: usize) -> bool {
        self.slots[slot].as_ref().is_none_or(|r| r.settled)
    }

    /// Whether a request is open that may take long: anything but a read or block status.
    pub fn has_slow(&self) -> bool {
        let quick = |command| matches!(command, Command::Read | Command::BlockStatus);
        self.slots.iter().flatten().any(|r| !r.settled && !quick(r.command))
    }

    /// Frees `slot` and gives what was answered.
    pub fn take(&mut self, slot: usize) -> Finished {
        self.slots[slot].take().map(|r| r.finished).unwrap_or_default()
    }

    /// Takes in one event.
    ///
    /// # Errors
    /// When the event does not fit any open request; the connection must then be closed.
    pub fn apply(&mut self, event: Event) -> Result<Step, NbdError> {
        let slot = (event.cookie % SLOTS as u64) as usize;
        let Some(request) = self.slots[slot].as_mut().filter(|r| r.cookie == event.cookie && !r.settled) else {
            return Err(NbdError::Protocol(format!(
                "a reply with cookie {:#x} that no open request has",
                event.cookie
            )));
        };
        let done = event.done;
        let simple = matches!(event.body, Body::Simple | Body::Error { simple: true, .. });
        if !simple && !self.structured {
            return Err(request.wrong("is answered by a structured reply, which was not agreed on"));
        }
        if simple && request.structured {
            return Err(request.wrong("is answered by a simple reply after a structured one"));
        }
        request.structured = !simple;
        match event.body {
            Body::Simple => match request.command {
                Command::Read if self.structured => return Err(request.wrong("is answered by a simple reply")),
                Command::Read => {
                    let range = request.range.clone();
                    request.cover(range.clone())?;
                    return Ok(Step::Payload(Payload { slot, range, done }));
                }
                Command::BlockStatus => return Err(request.wrong("is answered by a simple reply")),
                _ => {}
            },
            Body::None => {}
            Body::Data { offset, len } => {
                let range = request.part(offset, len)?;
                request.cover(range.clone())?;
                return Ok(Step::Payload(Payload { slot, range, done }));
            }
            Body::Hole { offset, len } => {
                let range = request.part(offset, len)?;
                request.cover(range.clone())?;
                request.finished.holes.push(range);
            }
            Body::Status { context, extents } => {
                if request.command != Command::BlockStatus {
                    return Err(request.wrong("is answered by a block status"));
                }
                if !self.contexts.contains(&context) || request.finished.status.iter().any(|(c, _)| *c == context) {
                    return Err(request.wrong(&format!("is answered for meta context {context} out of turn")));
                }
                request.finished.status.push((context, extents));
            }
            Body::Error { errno, message, offset, .. } => request.fail(errno, &message, offset)?,
        }
        request.end(slot, done)
    }

    /// The bytes of `payload` were taken from the stream.
    ///
    /// # Errors
    /// When the reply ended with it and bytes are missing.
    pub fn payload_read(&mut self, payload: &Payload) -> Result<Step, NbdError> {
        match self.slots[payload.slot].as_mut() {
            Some(request) => request.end(payload.slot, payload.done),
            None => Ok(Step::More),
        }
    }
}

impl Open {
    fn wrong(&self, what: &str) -> NbdError {
        let Range { start, end } = self.range;
        NbdError::Protocol(format!("the {} of {} bytes at offset {start} {what}", self.command.name(), end - start))
    }

    /// The range of a chunk, if it lies in the read that was asked for.
    fn part(&self, offset: u64, len: u32) -> Result<Range<u64>, NbdError> {
        let end = offset.checked_add(u64::from(len));
        match end {
            Some(end) if self.command == Command::Read && offset >= self.range.start && end <= self.range.end => {
                Ok(offset..end)
            }
            _ => Err(self.wrong(&format!("is answered by a chunk of {len} bytes at offset {offset}"))),
        }
    }

    fn cover(&mut self, range: Range<u64>) -> Result<(), NbdError> {
        self.chunks += 1;
        // Nobody sends less than a sector at a time; a server that does would cost memory and time without end.
        if self.chunks > (self.range.end - self.range.start) / 512 + 64 {
            return Err(self.wrong("is answered in absurdly small pieces"));
        }
        let next = self.covered.partition_point(|c| c.start < range.start);
        let joins_left = next > 0 && self.covered[next - 1].end >= range.start;
        let overlaps = joins_left && self.covered[next - 1].end > range.start
            || self.covered.get(next).is_some_and(|c| c.start < range.end);
        if overlaps {
            let what = format!("is answered twice in the {} bytes at offset {}", range.end - range.start, range.start);
            return Err(self.wrong(&what));
        }
        let joins_right = self.covered.get(next).is_some_and(|c| c.start == range.end);
        match (joins_left, joins_right) {
            (true, true) => {
                self.covered[next - 1].end = self.covered[next].end;
                self.covered.remove(next);
            }
            (true, false) => self.covered[next - 1].end = range.end,
            (false, true) => self.covered[next].start = range.start,
            (false, false) => self.covered.insert(next, range),
        }
        Ok(())
    }

    fn fail(&mut self, errno: u32, message: &str, offset: Option<u64>) -> Result<(), NbdError> {
        self.errors += 1;
        if self.errors > MAX_ERRORS {
            return Err(self.wrong("is answered by errors without end"));
        }
        if offset.is_some_and(|o| !self.range.contains(&o)) {
            return Err(self.wrong("is answered by an error outside its range"));
        }
        let os = i32::try_from(errno)
            .map_or_else(|_| format!("error {errno}"), |e| nix::errno::Errno::from_raw(e).desc().into());
        let reason = if message.is_empty() { os } else { format!("{os} ({})", printable(message.as_bytes())) };
        self.finished.error.get_or_insert(NbdError::Server {
            command: self.command.name(),
            offset: offset.unwrap_or(self.range.start),
            len: self.range.end - self.range.start,
            errno,
            reason,
        });
        Ok(())
    }

    fn end(&mut self, slot: usize, done: bool) -> Result<Step, NbdError> {
        if !done {
            return Ok(Step::More);
        }
        if self.finished.error.is_none() {
            if self.command == Command::Read && self.covered != [self.range.clone()] {
                let have: u64 = self.covered.iter().map(|c| c.end - c.start).sum();
                return Err(self.wrong(&format!("is answered with {have} bytes only")));
            }
            if self.command == Command::BlockStatus && self.finished.status.is_empty() {
                return Err(self.wrong("is answered without extents"));
            }
        }
        self.settled = true;
        Ok(Step::Settled(slot))
    }
}
