//! The archive of a container read back: decompressed, every member vetted, then handed on as plain tar data, for GNU tar.
//!
//! An archive with an index is decompressed by several threads, any other by one. Another one puts the pieces in order and
//! hands a piece on only when all headers in it were found good. What is read is never more than a fixed number of pieces
//! ahead.

use std::io::{self, Read};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::thread::Builder;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::TransferError;
use super::limit::Limiter;
use super::output::{Output, Sink};
use super::pool::{self, Piece};
use super::slot::Slot;
use super::stop::{Stop, StopOnPanic, lock};
use super::tar_pack::{Counters, TarProgress, TarSummary};
use crate::archive::frame::{MAX_FRAME, Placed, Places, Unpacker};
use crate::archive::tar::{TarInput, TarSource, Vetting, Walker};
use crate::archive::{ArchiveCause, ArchiveError, Indexed};
use crate::host::Cancel;

/// Threads that decompress frames side by side, at most.
const MAX_WORKERS: usize = 8;
/// Bytes read at once from an archive without an index.
const PIECE: usize = 1 << 20;
/// Bytes all buffers together may have.
const MEMORY: u64 = 96 << 20;

struct Shared<'a> {
    stop: &'a Stop,
    archive: &'a str,
    limiter: Limiter,
    counters: Counters,
}

impl Shared<'_> {
    fn failed(&self, cause: impl Into<ArchiveCause>) -> TransferError {
        ArchiveError { archive: self.archive.to_owned(), cause: cause.into() }.into()
    }
}

/// Reads the whole archive, has `vetting` look at every member and writes plain tar data to `output`, usually the standard
/// input of GNU tar. Nothing of a member that is refused is written. `bwlimit` bounds the bytes of tar data per second.
/// `progress` is called every 50 ms by the calling thread.
///
/// How the program that reads `output` ended is for the caller to see: it may have failed although all was written.
///
/// The wish to stop is honoured within about 100 ms when `output` is a [`Output::Fd`].
///
/// # Errors
/// The first thing that went wrong. A [`TransferError::Write`] about a broken pipe means that the reader of `output` ended,
/// and it knows better why.
pub fn unpack_tar(
    source: TarSource,
    output: Output<'_>,
    vetting: &mut Vetting,
    bwlimit: Option<u64>,
    progress: &mut dyn FnMut(&TarProgress),
    cancel: &Cancel,
) -> Result<TarSummary, TransferError> {
    let TarSource { name, input, stop: input_stop, .. } = source;
    let stop = Stop::new(cancel);
    let shared = Shared { stop: &stop, archive: &name, limiter: Limiter::new(bwlimit), counters: Counters::default() };
    std::thread::scope(|scope| {
        let _stop_on_panic = StopOnPanic(&stop);
        let (done_sender, done) = bounded::<()>(0);
        let (shared, stop) = (&shared, &stop);
        let spawn = |name: &'static str, body: Box<dyn FnOnce() -> Result<(), TransferError> + Send>| {
            let done = done_sender.clone();
            let body = move || {
                let _done = done;
                stop.guard(name, body);
            };
            if let Err(e) = Builder::new().name(name.to_owned()).spawn_scoped(scope, body) {
                stop.fail(TransferError::Thread(e));
            }
        };
        let (ready_sender, ready) = unbounded();
        let give_slot = match input {
            TarInput::Indexed(indexed) => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
                let (slot, give) = pool::slots(MEMORY, Slot::bytes_of(MAX_FRAME, true), 2 * cores + 2);
                let frames = std::sync::Arc::new((indexed, Mutex::new(Place::default())));
                for _ in 0..cores {
                    let (frames, slot, give, ready) =
                        (frames.clone(), slot.clone(), give.clone(), ready_sender.clone());
                    let body = move || stop.told(read_frames(shared, &frames.0, &frames.1, &(slot, give), &ready));
                    spawn("unpack frames", Box::new(body));
                }
                give
            }
            TarInput::Stream(stream) => {
                let (slot, give) = pool::slots(MEMORY, PIECE as u64, 8);
                let ready = ready_sender.clone();
                spawn("read archive", Box::new(move || stop.told(read_stream(shared, stream, &slot, &ready))));
                give
            }
            TarInput::Plain(file) => {
                let (slot, give) = pool::slots(MEMORY, PIECE as u64, 8);
                let ready = ready_sender.clone();
                spawn("read archive", Box::new(move || stop.told(read_stream(shared, Box::new(file), &slot, &ready))));
                give
            }
        };
        drop(ready_sender);
        let sink = Sink::for_tar(output);
        spawn("vet and write", Box::new(move || write(shared, sink, vetting, &ready, &give_slot)));
        drop(done_sender);
        let mut tick = || progress(&shared.counters.progress());
        pool::watch(stop, cancel, Some(&input_stop), &done, &mut tick);
    });
    let Shared { counters, .. } = shared;
    stop.into_result()?;
    let summary = TarSummary { progress: counters.progress(), note: None };
    progress(&summary.progress);
    Ok(summary)
}

/// The next frame to take.
#[derive(Default)]
struct Place {
    places: Places,
    sequence: u64,
}

impl Place {
    /// The next frame with data, and how many of those there are before it.
    fn take(&mut self, indexed: &Indexed) -> Option<(Placed, u64)> {
        loop {
            let placed = self.places.take(&indexed.index)?;
            if !placed.frame.is_table() {
                self.sequence += 1;
                return Some((placed, self.sequence - 1));
            }
        }
    }
}

fn read_frames(
    shared: &Shared,
    indexed: &Indexed,
    place: &Mutex<Place>,
    slots: &pool::Slots,
    ready: &Sender<Piece<()>>,
) -> Result<(), TransferError> {
    let mut unpacker = Unpacker::new(indexed.container)
        .map_err(|source| shared.failed(ArchiveCause::Frame { frame: 0, offset: 0, source }))?;
    // The slot first: who has the frame that is next in line never waits for one.
    while let Some(mut slot) = shared.stop.recv(&slots.0) {
        let Some((Placed { frame, number, offset, .. }, sequence)) = lock(place).take(indexed) else {
            // Another thread may be waiting for it.
            slots.1.try_send(slot).ok();
            return Ok(());
        };
        let unpacked = indexed.unpack(frame, offset, &mut unpacker, &mut slot.packed, &mut slot.raw);
        unpacked.map_err(|source| shared.failed(ArchiveCause::Frame { frame: number, offset, source }))?;
        let raw = slot.raw.len();
        if ready.send(Piece { sequence, slot, raw, what: () }).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn read_stream(
    shared: &Shared,
    mut stream: Box<dyn Read + Send>,
    slots: &Receiver<Slot>,
    ready: &Sender<Piece<()>>,
) -> Result<(), TransferError> {
    let (mut offset, mut sequence) = (0, 0);
    while let Some(mut slot) = shared.stop.recv(slots) {
        slot.raw.resize(PIECE, 0);
        let raw = match stream.read(&mut slot.raw) {
            Ok(0) => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            raw => raw.map_err(|source| shared.failed(ArchiveCause::TarRead { offset, source }))?,
        };
        if ready.send(Piece { sequence, slot, raw, what: () }).is_err() {
            break;
        }
        offset += raw as u64;
        sequence += 1;
    }
    Ok(())
}

fn write(
    shared: &Shared,
    mut sink: Sink,
    vetting: &mut Vetting,
    ready: &Receiver<Piece<()>>,
    slots: &Sender<Slot>,
) -> Result<(), TransferError> {
    let (stop, counters) = (shared.stop, &shared.counters);
    let mut walker = Walker::new();
    let mut listening = true;
    pool::in_order(stop, ready, slots, |piece| {
        let raw = &piece.slot.raw[..piece.raw];
        let mut members = 0;
        let vetted = walker.feed(raw, &mut |member| {
            members += 1;
            vetting.check(&member)
        });
        vetted.map_err(|e| shared.failed(e))?;
        for part in raw.chunks(shared.limiter.piece(raw.len().max(1), PIECE / 16)) {
            if !shared.limiter.take(part.len() as u64, stop) {
                return Ok(());
            }
            match sink.write_all(part, stop) {
                // tar may stop reading at the mark that ends the archive, and all that follows are zeros.
                Err(TransferError::Write { source, .. })
                    if walker.ended() && listening && source.kind() == io::ErrorKind::BrokenPipe =>
                {
                    listening = false;
                    break;
                }
                written if listening => written?,
                _ => break,
            }
        }
        counters.members.fetch_add(members, Ordering::Relaxed);
        counters.raw.fetch_add(raw.len() as u64, Ordering::Relaxed);
        counters.written.store(sink.archive_bytes(), Ordering::Relaxed);
        Ok(())
    })?;
    if stop.is_set() {
        return Ok(());
    }
    walker.finish().map_err(|e| shared.failed(e))?;
    if listening {
        sink.finish(stop)?;
    }
    Ok(())
}
