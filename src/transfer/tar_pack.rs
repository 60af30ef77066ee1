//! The archive of a container: from the output of GNU tar into frames.
//!
//! One reader, which walks the headers that pass by -> workers that compress -> one writer. A frame ends before a member
//! where one begins in its second half: small members are whole in one frame, a large one goes through several. A wish to
//! stop ends waits for a [`TarFrom::Fd`]; a [`TarFrom::Reader`] that blocks has to be ended by its owner.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{Builder, Scope};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use nix::fcntl::{FcntlArg, fcntl};

use super::TransferError;
use super::limit::Limiter;
use super::output::{Output, Sink};
use super::pool::{self, Piece};
use super::slot::Slot;
use super::stop::{Stop, StopOnPanic, lock};
use crate::archive::frame::{Container, Frame, IndexBuilder, TAR_ID};
use crate::archive::tar::{TableBuilder, Walker};
use crate::archive::{Compression, PolledRead};
use crate::host::{Cancel, Host};

/// Bytes of tar data in a frame, at most.
const FRAME: usize = 4 << 20;
/// Pieces that are read at once when a limit is set.
const GRID: usize = 64 << 10;
/// Bytes a pipe holds when the system lets us: tar goes on while a frame is handed over.
const PIPE: i32 = 1 << 20;

/// Lets a pipe hold more. A matter of speed, so it does not matter when this is no pipe, or the user has too many of them.
pub(crate) fn widen_pipe(pipe: impl AsFd) {
    fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE)).ok();
}

/// Where tar data comes from, and its name in messages: `tar`.
pub enum TarFrom<'a> {
    /// The reading end of a pipe that nobody shares, which is set not to block, or another file descriptor.
    Fd(OwnedFd, String),
    /// Anything else. While its `read` blocks, the transfer cannot be cancelled.
    Reader(Box<dyn Read + Send + 'a>, String),
}

/// How tar data becomes an archive.
pub struct TarPack {
    /// How it is compressed.
    pub compression: Compression,
    /// At most so many bytes of tar data per second.
    pub bwlimit: Option<u64>,
    /// Memory the process may have; about half of it becomes buffers. See [`super::DEFAULT_MEMORY`].
    pub memory: u64,
    /// Where `lzop` is found.
    pub host: Host,
}

/// How far a transfer of tar data is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TarProgress {
    /// Bytes of tar data, without compression.
    pub raw: u64,
    /// Bytes written.
    pub written: u64,
    /// Members.
    pub members: u64,
}

/// What a transfer of tar data came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TarSummary {
    /// The last progress.
    pub progress: TarProgress,
    /// Something worth a line in the log: why the archive has no table of its members.
    pub note: Option<String>,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) raw: AtomicU64,
    pub(super) written: AtomicU64,
    pub(super) members: AtomicU64,
}

impl Counters {
    pub(super) fn progress(&self) -> TarProgress {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TarProgress { raw: get(&self.raw), written: get(&self.written), members: get(&self.members) }
    }
}

struct Shared<'a> {
    stop: &'a Stop,
    container: Option<Container>,
    limiter: Limiter,
    counters: Counters,
    from: String,
    /// Left by the reader when it is through.
    table: Mutex<Option<TableBuilder>>,
    note: Mutex<Option<String>>,
}

/// Writes the tar data `from` to `output` as an archive. `progress` is called every 50 ms by the calling thread. A
/// [`Output::Draft`] is complete afterwards, but neither synced nor named: that is [`super::Draft::commit`]. How the program
/// that makes the data ended is for the caller to see.
///
/// # Errors
/// The first thing that went wrong, also when the tar data is damaged or has no end; nothing of this transfer runs any more
/// then.
pub fn pack_tar(
    from: TarFrom<'_>,
    output: Output<'_>,
    how: &TarPack,
    progress: &mut dyn FnMut(&TarProgress),
    cancel: &Cancel,
) -> Result<TarSummary, TransferError> {
    let input_stop = Cancel::new();
    let (source, from): (Box<dyn Read + Send + '_>, String) = match from {
        TarFrom::Fd(fd, name) => {
            widen_pipe(&fd);
            (Box::new(PolledRead::of_own_pipe(File::from(fd), vec![cancel.clone(), input_stop.clone()])), name)
        }
        TarFrom::Reader(reader, name) => (reader, name),
    };
    let stop = Stop::new(cancel);
    let shared = Shared {
        stop: &stop,
        container: how.compression.container(),
        limiter: Limiter::new(how.bwlimit),
        counters: Counters::default(),
        from,
        table: Mutex::new(None),
        note: Mutex::new(None),
    };
    std::thread::scope(|scope| {
        let _stop_on_panic = StopOnPanic(&stop);
        match start(scope, how, &shared, source, output) {
            Ok(done) => {
                let mut tick = || progress(&shared.counters.progress());
                pool::watch(&stop, cancel, Some(&input_stop), &done, &mut tick);
            }
            Err(cause) => {
                stop.fail(cause);
                input_stop.set();
            }
        }
    });
    let Shared { counters, note, .. } = shared;
    stop.into_result()?;
    let note = note.into_inner().unwrap_or_default();
    let summary = TarSummary { progress: counters.progress(), note };
    progress(&summary.progress);
    Ok(summary)
}

/// Starts all threads. What is returned is disconnected when the last of them, the writer, ends.
fn start<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    how: &'env TarPack,
    shared: &'env Shared<'env>,
    source: Box<dyn Read + Send + 'env>,
    output: Output<'env>,
) -> Result<Receiver<()>, TransferError> {
    let stop = shared.stop;
    let mut sink = Sink::for_tar(output);
    if how.compression == Compression::Lzo {
        sink = sink.through_lzop(&how.host, stop, scope)?;
    }
    let workers = how.compression.workers();
    let bytes = Slot::bytes_of(FRAME, shared.container.is_some());
    let (slot, give_slot) = pool::slots(how.memory / 2, bytes, 2 * workers + 4);
    // The slots bound what these hold.
    let (piece_sender, pieces) = unbounded();
    let (ready_sender, ready) = unbounded();
    let spawn = |name: String, body: Box<dyn FnOnce() -> Result<(), TransferError> + Send + 'scope>| {
        let thread = Builder::new().name(name.clone());
        thread.spawn_scoped(scope, move || stop.guard(&name, body)).map(|_| ()).map_err(TransferError::Thread)
    };
    spawn("read tar".to_owned(), Box::new(move || stop.told(read(shared, source, &slot, &piece_sender))))?;
    for number in 0..workers {
        let (pieces, ready) = (pieces.clone(), ready_sender.clone());
        let work = move || {
            stop.told(pool::compress(stop, shared.container, &pieces, &ready, |offset, source| {
                TransferError::Compress {
                    disk: shared.from.clone(),
                    offset: offset.copied().unwrap_or_default(),
                    source,
                }
            }))
        };
        spawn(format!("compress {number}"), Box::new(work))?;
    }
    drop(ready_sender);
    let (done_sender, done) = bounded(0);
    spawn(
        "write".to_owned(),
        Box::new(move || {
            let _done: Sender<()> = done_sender;
            stop.told(write(shared, sink, &ready, &give_slot))
        }),
    )?;
    Ok(done)
}

fn read(
    shared: &Shared,
    mut source: Box<dyn Read + Send + '_>,
    slots: &Receiver<Slot>,
    pieces: &Sender<Piece<u64>>,
) -> Result<(), TransferError> {
    let (mut walker, mut table) = (Walker::new(), shared.container.map(|_| TableBuilder::new()));
    let damaged = |cause| TransferError::Tar { from: shared.from.clone(), cause };
    // The start of a member that was read with the frame before.
    let mut rest = Vec::new();
    let (mut sequence, mut base, mut end) = (0, 0, false);
    while !end {
        let Some(mut slot) = shared.stop.recv(slots) else { return Ok(()) };
        slot.raw.resize(FRAME, 0);
        slot.raw[..rest.len()].copy_from_slice(&rest);
        let (mut len, mut cut) = (rest.len(), 0);
        while len < FRAME && !end {
            let most = shared.limiter.piece(FRAME, GRID).min(FRAME - len);
            let bytes = &mut slot.raw[len..len + most];
            let count = match source.read(bytes) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                count => count.map_err(|source| TransferError::Read {
                    from: shared.from.clone(),
                    offset: walker.offset(),
                    source,
                })?,
            };
            end = count == 0;
            if !shared.limiter.take(count as u64, shared.stop) {
                return Ok(());
            }
            let mut members = 0;
            let walked = walker.feed(&bytes[..count], &mut |member| {
                members += 1;
                if let Some(at) = member.offset.checked_sub(base).and_then(|at| usize::try_from(at).ok()) {
                    cut = at;
                }
                if let Some(table) = &mut table {
                    table.push(&member);
                }
                Ok(())
            });
            walked.map_err(damaged)?;
            shared.counters.members.fetch_add(members, Ordering::Relaxed);
            shared.counters.raw.fetch_add(count as u64, Ordering::Relaxed);
            len += count;
        }
        let raw = if !end && cut >= FRAME / 2 { cut } else { len };
        rest.clear();
        rest.extend_from_slice(&slot.raw[raw..len]);
        // Nobody listens only when the transfer was stopped.
        if raw > 0 && pieces.send(Piece { sequence, slot, raw, what: base }).is_err() {
            return Ok(());
        }
        sequence += 1;
        base += raw as u64;
    }
    walker.finish().map_err(damaged)?;
    // While the last frames are compressed.
    table.iter_mut().for_each(TableBuilder::close);
    *lock(&shared.table) = table;
    Ok(())
}

fn write(
    shared: &Shared,
    mut sink: Sink,
    ready: &Receiver<Piece<u64>>,
    slots: &Sender<Slot>,
) -> Result<(), TransferError> {
    let (stop, counters) = (shared.stop, &shared.counters);
    let mut index = IndexBuilder::new(TAR_ID);
    let mut total = 0;
    let complete = pool::in_order(stop, ready, slots, |piece| {
        let raw = &piece.slot.raw[..piece.raw];
        let bytes = if shared.container.is_some() { &piece.slot.packed } else { raw };
        sink.write_all(bytes, stop)?;
        if shared.container.is_some() {
            index.push(Frame::of_data(bytes, raw.len()));
        }
        total += raw.len() as u64;
        counters.written.store(sink.archive_bytes(), Ordering::Relaxed);
        Ok(())
    })?;
    if stop.is_set() {
        return Ok(());
    }
    let read = counters.raw.load(Ordering::Relaxed);
    assert!(complete && total == read, "the archive holds {total} of {read} bytes of tar data");
    if let Some(container) = shared.container {
        let table = lock(&shared.table).take();
        match table.map(|table| table.finish(container)) {
            Some(Ok(parts)) => {
                for part in parts {
                    let part = part.map_err(|source| TransferError::Compress {
                        disk: "the table of members".to_owned(),
                        offset: 0,
                        source,
                    })?;
                    index.push(Frame::of_table(&part));
                    sink.write_all(&part, stop)?;
                }
            }
            Some(Err(note)) => *lock(&shared.note) = Some(note),
            None => {}
        }
        sink.write_all(&index.finish(container), stop)?;
    }
    let written = sink.finish(stop)?;
    counters.written.store(written, Ordering::Relaxed);
    Ok(())
}
