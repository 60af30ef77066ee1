//! Many threads, one connection.
//!
//! There is no receiving thread. Whoever waits for an answer while nobody reads takes the [`Reader`] out of the shared
//! state and reads for all: small answers it books for their owners, and when the data of another thread's read comes
//! along it hands the reader to that thread, which reads into its own buffer. So payloads are copied once, from the socket
//! to where they belong, a lone thread never switches context, and no buffer is ever shared.
//!
//! A batch of requests is sent in one go before any answer is awaited; a thread that has to read its data is therefore
//! never stuck in sending.

use std::io::{self, IoSlice, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Options;
use crate::nbd::reader::{Arrival, Reader};
use crate::nbd::reply::{self, Finished, SLOTS, Step, Table};
use crate::nbd::wire::{Command, DONT_FRAGMENT, encode_request};
use crate::nbd::{Export, NbdError};

/// The bytes that go with a command.
pub(super) enum Payload<'a> {
    None,
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

/// An open request: slot, cookie and length.
type Request = (usize, u64, u32);

/// The buffer of a batch of reads, and the place in the image of its first byte.
type Buffer<'a> = Option<(&'a mut [u8], u64)>;

#[derive(Debug)]
pub(super) struct Connection {
    state: Mutex<State>,
    /// One per slot; a thread sleeps on that of the first request of its batch.
    wake: [Condvar; SLOTS],
    /// Signalled when slots become free.
    free: Condvar,
    sender: Mutex<UnixStream>,
    /// For shutting down from outside of both locks.
    stream: UnixStream,
    /// Reads ask for one piece; see [`Connection::allow_fragments`].
    unfragmented: AtomicBool,
    timeout: Duration,
    write_timeout: Duration,
}

#[derive(Debug)]
struct State {
    table: Table,
    /// Which condition variable the owner of each slot sleeps on.
    homes: [usize; SLOTS],
    /// Whether somebody sleeps on that condition variable.
    sleeping: [bool; SLOTS],
    /// `None` while a thread reads.
    reader: Option<Reader>,
    /// Data that comes next in the stream, for the owner of its slot to read.
    payload: Option<reply::Payload>,
    /// Why the connection is no more.
    dead: Option<NbdError>,
}

/// The reader on loan. If the borrower panics the stream is out of step, and nobody else may wait for it.
struct Loan<'a> {
    connection: &'a Connection,
    reader: Option<Reader>,
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        if self.reader.is_some() {
            self.connection.kill(NbdError::Lost("a thread panicked while it read a reply".into()));
        }
    }
}

impl Connection {
    pub(super) fn new(stream: UnixStream, export: &Export, options: &Options) -> Result<Self, NbdError> {
        let clone = || stream.try_clone().map_err(|e| NbdError::from_io(&e));
        let contexts = export.contexts.iter().map(|(_, id)| *id).collect();
        let state = State {
            table: Table::new(export.structured, contexts),
            homes: [0; SLOTS],
            sleeping: [false; SLOTS],
            reader: Some(Reader::new(clone()?)),
            payload: None,
            dead: None,
        };
        Ok(Self {
            state: Mutex::new(state),
            wake: Default::default(),
            free: Condvar::new(),
            sender: Mutex::new(clone()?),
            stream,
            unfragmented: AtomicBool::new(export.can_df),
            timeout: options.timeout,
            write_timeout: options.write_timeout.max(options.timeout),
        })
    }

    /// Does `command` for all of `range`, in requests of `piece` bytes, as many in flight as there is room for.
    pub(super) fn run(
        &self,
        command: Command,
        range: Range<u64>,
        piece: u64,
        mut payload: Payload<'_>,
    ) -> Result<(), NbdError> {
        let mut at = range.start;
        while at < range.end {
            let (batch, end) = self.reserve(command, at..range.end, piece)?;
            let (from, to) = ((at - range.start) as usize, (end - range.start) as usize);
            let (buffer, data): (Buffer<'_>, &[u8]) = match &mut payload {
                Payload::None => (None, &[]),
                Payload::Read(buf) => (Some((&mut buf[from..to], at)), &[]),
                Payload::Write(data) => (None, &data[from..to]),
            };
            self.send(command, at, &batch, data)?;
            let slots: Vec<usize> = batch.iter().map(|(slot, ..)| *slot).collect();
            self.wait(&slots, buffer)?;
            at = end;
        }
        Ok(())
    }

    /// Does `command` in one request.
    pub(super) fn request(&self, command: Command, range: Range<u64>) -> Result<Finished, NbdError> {
        let len = (range.end - range.start).max(1);
        let (batch, _) = self.reserve(command, range.clone(), len)?;
        self.send(command, range.start, &batch, &[])?;
        self.wait(&[batch[0].0], None)
    }

    /// From now on at most `most` requests are in flight.
    pub(super) fn limit(&self, most: usize) {
        self.lock().table.limit(most);
    }

    /// From now on reads may be answered in several chunks; `false` when that was so already.
    ///
    /// Until then they may not, if the server can do so. Answering in chunks, QEMU asks for the block status before each
    /// read, which we know already, and when a sector cannot be read it drops the connection instead of saying so.
    pub(super) fn allow_fragments(&self) -> bool {
        self.unfragmented.swap(false, Ordering::Relaxed)
    }

    /// Closes the connection because of what the server said.
    pub(super) fn broken(&self, what: String) -> NbdError {
        self.kill(NbdError::Protocol(what))
    }

    /// Opens as many requests as are needed and as there is room for, at least one; also tells
    /// where the last one ends.
    fn reserve(&self, command: Command, range: Range<u64>, piece: u64) -> Result<(Vec<Request>, u64), NbdError> {
        let mut batch = Vec::with_capacity(SLOTS);
        let mut state = self.lock();
        loop {
            if let Some(dead) = &state.dead {
                return Err(dead.clone());
            }
            let mut at = range.start;
            while at < range.end || batch.is_empty() {
                let end = range.end.min(at + piece);
                let Some(slot) = state.table.open(command, at..end) else { break };
                batch.push((slot, state.table.cookie(slot), (end - at) as u32));
                at = end;
            }
            if let Some((home, ..)) = batch.first() {
                for (slot, ..) in &batch {
                    state.homes[*slot] = *home;
                }
                return Ok((batch, at));
            }
            state = self.free.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn send(&self, command: Command, at: u64, batch: &[Request], data: &[u8]) -> Result<(), NbdError> {
        let whole = command == Command::Read && self.unfragmented.load(Ordering::Relaxed);
        let flags = if whole { DONT_FRAGMENT } else { 0 };
        let mut offset = at;
        let mut headers = Vec::with_capacity(batch.len());
        for (_, cookie, len) in batch {
            headers.push(encode_request(command, flags, *cookie, offset, *len));
            offset += u64::from(*len);
        }
        let mut slices = Vec::with_capacity(2 * batch.len());
        for (header, (_, _, len)) in headers.iter().zip(batch) {
            let start = slices.len() / 2;
            slices.push(IoSlice::new(header));
            let from = batch[..start].iter().map(|b| b.2 as usize).sum::<usize>();
            slices.push(IoSlice::new(if data.is_empty() { &[] } else { &data[from..from + *len as usize] }));
        }
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        write_all_vectored(&mut sender, &mut slices).map_err(|e| self.kill(NbdError::from_io(&e).after(self.timeout)))
    }

    /// Waits until every request of the batch is answered; gives what the last one brought, or the first error.
    fn wait(&self, batch: &[usize], mut buffer: Buffer<'_>) -> Result<Finished, NbdError> {
        let mut idle = Duration::ZERO;
        let mut state = self.lock();
        loop {
            if let Some(dead) = &state.dead {
                return Err(dead.clone());
            }
            if batch.iter().all(|slot| state.table.is_settled(*slot)) {
                break;
            }
            let my_turn = state.payload.as_ref().is_none_or(|p| batch.contains(&p.slot));
            let Some(reader) = state.reader.take_if(|_| my_turn) else {
                let home = batch[0];
                state.sleeping[home] = true;
                state = self.wake[home].wait(state).unwrap_or_else(PoisonError::into_inner);
                state.sleeping[home] = false;
                continue;
            };
            let payload = state.payload.take();
            drop(state);
            let mut loan = Loan { connection: self, reader: Some(reader) };
            let received = self.receive(&mut loan, payload, batch, &mut buffer, &mut idle);
            let reader = loan.reader.take();
            received.map_err(|e| self.kill(e.after(self.timeout)))?;
            state = self.lock();
            state.reader = reader;
            if let Some(slot) = state.payload.as_ref().map(|p| p.slot).filter(|slot| !batch.contains(slot)) {
                self.wake[state.homes[slot]].notify_one();
            }
        }
        self.leave(state, batch, buffer)
    }

    /// Reads one thing from the stream: the data that is known to come next, or a reply and, if it is ours, its data.
    fn receive(
        &self,
        loan: &mut Loan<'_>,
        payload: Option<reply::Payload>,
        batch: &[usize],
        buffer: &mut Buffer<'_>,
        idle: &mut Duration,
    ) -> Result<(), NbdError> {
        let Some(reader) = &mut loan.reader else { return Ok(()) };
        let payload = match payload {
            Some(payload) => payload,
            None => {
                let event = match reader.next()? {
                    Arrival::Event(event) => event,
                    Arrival::Silence => return self.silence(idle),
                };
                *idle = Duration::ZERO;
                let mut state = self.lock();
                match state.table.apply(event)? {
                    Step::Payload(payload) if batch.contains(&payload.slot) => payload,
                    Step::Payload(payload) => {
                        state.payload = Some(payload);
                        return Ok(());
                    }
                    Step::Settled(slot) if !batch.contains(&slot) => {
                        self.wake[state.homes[slot]].notify_one();
                        return Ok(());
                    }
                    Step::Settled(_) | Step::More => return Ok(()),
                }
            }
        };
        let place = buffer.as_mut().and_then(|(buf, base)| {
            let from = payload.range.start.checked_sub(*base)? as usize;
            buf.get_mut(from..from + (payload.range.end - payload.range.start) as usize)
        });
        let place = place.ok_or_else(|| NbdError::Protocol("data for a request that is no read".into()))?;
        reader.fill(place)?;
        self.lock().table.payload_read(&payload).map(drop)
    }

    fn silence(&self, idle: &mut Duration) -> Result<(), NbdError> {
        let state = self.lock();
        *idle += self.timeout;
        match state.table.has_slow() && *idle < self.write_timeout {
            true => Ok(()),
            false => Err(NbdError::Timeout(*idle)),
        }
    }

    /// Frees the slots of a batch and leaves the connection to the others.
    fn leave(
        &self,
        mut state: MutexGuard<'_, State>,
        batch: &[usize],
        mut buffer: Buffer<'_>,
    ) -> Result<Finished, NbdError> {
        let mut answers: Vec<Finished> = batch.iter().map(|slot| state.table.take(*slot)).collect();
        self.free.notify_all();
        // Somebody has to read on. Only a sleeper will do: a thread that still sends may be waiting for the server, and the
        // server for us to read; it comes here by itself when it is done.
        if state.reader.is_some() && state.payload.is_none() {
            let next = (0..SLOTS).find(|slot| !state.table.is_settled(*slot) && state.sleeping[state.homes[*slot]]);
            next.inspect(|slot| self.wake[state.homes[*slot]].notify_one());
        }
        drop(state);
        if let Some(error) = answers.iter_mut().find_map(|a| a.error.take()) {
            return Err(error);
        }
        if let Some((buf, base)) = &mut buffer {
            for hole in answers.iter().flat_map(|a| &a.holes) {
                buf[(hole.start - *base) as usize..(hole.end - *base) as usize].fill(0);
            }
        }
        Ok(answers.pop().unwrap_or_default())
    }

    /// Ends the connection for everybody; gives the reason, the first one if there were several.
    fn kill(&self, reason: NbdError) -> NbdError {
        let mut state = self.lock();
        let reason = state.dead.get_or_insert(reason).clone();
        drop(state);
        // Whoever is inside a system call on the socket comes back at once. It may be closed already.
        drop(self.stream.shutdown(Shutdown::Both));
        self.wake.iter().for_each(Condvar::notify_all);
        self.free.notify_all();
        reason
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.lock().dead.is_none() {
            // A courtesy; a server copes with a client that just goes.
            let goodbye = encode_request(Command::Disconnect, 0, 0, 0, 0);
            drop(self.stream.set_write_timeout(Some(Duration::from_secs(1))));
            drop(self.stream.write_all(&goodbye));
        }
    }
}

fn write_all_vectored(stream: &mut UnixStream, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match stream.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut slices, n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
