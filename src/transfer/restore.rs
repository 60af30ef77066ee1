//! Restore: from an archive to targets, or to nowhere, which is a check of the archive.
//!
//! An archive with an index is decompressed, checked and written frame by frame by several threads that share nothing
//! but the list of clusters seen. Anything else is decompressed by one thread and written by others beside it.

mod writer;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::Builder;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use self::writer::Writer;
use super::TransferError;
use super::limit::Limiter;
use super::stop::{Stop, StopOnPanic, lock};
use crate::archive::frame::{Placed, Places, Unpacker};
use crate::archive::vma::{CLUSTER, Checker, EXTENT_HEADER, Extent, ExtentHead, Extents, Header, MAX_EXTENT, Reader};
use crate::archive::{ArchiveCause, ArchiveError, Indexed, Input, Source};
use crate::host::Cancel;
use crate::image::Target;

/// Threads that decompress frames side by side, at most: each has buffers of about 12 MiB.
const MAX_WORKERS: usize = 8;
/// Threads that write what one thread decompresses.
const WRITERS: usize = 2;
/// How often progress is reported and the wish to stop looked at.
const TICK: Duration = Duration::from_millis(50);

/// How far a restore is, in bytes of whole clusters, as the stock tool counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RestoreProgress {
    /// Clusters of all disks in the archive.
    pub total: u64,
    /// Clusters done.
    pub done: u64,
}

/// What a restore came to, in bytes of whole clusters; its text is what the stock tool prints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RestoreSummary {
    /// Clusters read.
    pub read: u64,
    /// Clusters without any data.
    pub sparse: u64,
    /// Zero blocks of 4 KiB that were left out of the other clusters.
    pub zero_blocks: u64,
}

impl Display for RestoreSummary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = |part: u64, whole: u64| short(100.0 * part as f64 / whole as f64);
        if self.read > 0 {
            let share = percent(self.sparse, self.read);
            write!(f, "total bytes read {}, sparse bytes {} ({share}%)", self.read, self.sparse)?;
            if self.read > self.sparse {
                let share = percent(self.zero_blocks, self.read - self.sparse);
                write!(f, "\nspace reduction due to 4K zero blocks {share}%")?;
            }
        }
        Ok(())
    }
}

/// C's `%.3g` for 0 to 100.
fn short(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let exponent: i32 = format!("{value:.2e}").split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    if exponent < -4 {
        let text = format!("{value:.2e}");
        let (mantissa, _) = text.split_once('e').unwrap_or((&text, ""));
        let mantissa =
            if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { mantissa };
        return format!("{mantissa}e-{:02}", -exponent);
    }
    let text = format!("{value:.*}", usize::try_from(2 - exponent).unwrap_or(0));
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

struct Shared<'a> {
    stop: &'a Stop,
    archive: &'a str,
    header: &'a Header,
    targets: &'a BTreeMap<u8, Arc<dyn Target>>,
    checker: Mutex<Checker>,
    limiter: Limiter,
    clusters: AtomicU64,
    sparse: AtomicU64,
    zero_blocks: AtomicU64,
    /// Where the VMA stream ends.
    end: AtomicU64,
}

/// Reads the whole archive and writes the disks that have a target, keyed by disk number; the others are only checked.
/// `bwlimit` bounds the bytes of data per second. `progress` is called every 50 ms by the calling thread. Every target
/// is flushed at the end.
///
/// The wish to stop is honoured within about 100 ms, except during one write to or flush of a target.
///
/// # Errors
/// The first thing that went wrong; the targets then hold part of the data.
pub fn restore(
    source: Source,
    targets: &BTreeMap<u8, Arc<dyn Target>>,
    bwlimit: Option<u64>,
    progress: &mut dyn FnMut(&RestoreProgress),
    cancel: &Cancel,
) -> Result<RestoreSummary, TransferError> {
    let Source { name, header, input, stop: input_stop, .. } = source;
    check_targets(&name, &header, targets)?;
    let total = header.clusters() * CLUSTER as u64;
    let stop = Stop::new(cancel);
    let shared = Shared {
        stop: &stop,
        archive: &name,
        header: &header,
        targets,
        checker: Mutex::new(Checker::new(&header)),
        limiter: Limiter::new(bwlimit),
        clusters: AtomicU64::new(0),
        sparse: AtomicU64::new(0),
        zero_blocks: AtomicU64::new(0),
        end: AtomicU64::new(0),
    };
    let done_bytes = || shared.clusters.load(Ordering::Relaxed) * CLUSTER as u64;
    std::thread::scope(|scope| {
        let _stop_on_panic = StopOnPanic(&stop);
        let (done_sender, done) = bounded::<()>(0);
        let spawn = |name: &'static str, body: Box<dyn FnOnce() -> Result<(), TransferError> + Send>| {
            let (done, stop) = (done_sender.clone(), &stop);
            let body = move || {
                let _done = done;
                stop.guard(name, body);
            };
            if let Err(e) = Builder::new().name(name.to_owned()).spawn_scoped(scope, body) {
                stop.fail(TransferError::Thread(e));
            }
        };
        let shared = &shared;
        match input {
            Input::Indexed(indexed) => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                let mut places = Places::default();
                // The first frame holds the header.
                places.take(&indexed.index);
                let place = Mutex::new(places);
                let frames = Arc::new((indexed, place));
                for _ in 0..cores.clamp(1, MAX_WORKERS) {
                    let frames = Arc::clone(&frames);
                    spawn("restore frames", Box::new(move || restore_frames(shared, &frames.0, &frames.1)));
                }
            }
            Input::Stream(reader) => {
                let (give, free) = unbounded();
                for _ in 0..WRITERS + 4 {
                    give.send(Vec::with_capacity(MAX_EXTENT)).ok();
                }
                let (full, extents) = unbounded();
                spawn("read archive", Box::new(move || read_stream(shared, reader, &free, &full)));
                for _ in 0..WRITERS {
                    let (extents, give) = (extents.clone(), give.clone());
                    spawn("write disks", Box::new(move || write_extents(shared, &extents, &give)));
                }
            }
        }
        drop(done_sender);
        loop {
            if cancel.is_set() {
                stop.fail(TransferError::Cancelled);
            }
            if stop.is_set() {
                input_stop.set();
            }
            match done.recv_timeout(TICK) {
                Err(RecvTimeoutError::Timeout) => progress(&RestoreProgress { total, done: done_bytes() }),
                _ => break,
            }
        }
    });
    let summary = RestoreSummary {
        read: done_bytes(),
        sparse: shared.sparse.load(Ordering::Relaxed),
        zero_blocks: shared.zero_blocks.load(Ordering::Relaxed),
    };
    // Only when nothing else went wrong: what is missing then is the archive's fault.
    if !stop.is_set() {
        let complete = lock(&shared.checker).finish(shared.end.load(Ordering::Relaxed));
        complete.map_err(|e| shared.archive_error(e))?;
    }
    drop(shared);
    stop.into_result()?;
    for target in targets.values() {
        target.flush()?;
    }
    progress(&RestoreProgress { total, done: summary.read });
    Ok(summary)
}

fn check_targets(archive: &str, header: &Header, targets: &BTreeMap<u8, Arc<dyn Target>>) -> Result<(), TransferError> {
    for (id, target) in targets {
        let Some(device) = header.device(*id) else {
            return Err(TransferError::Targets(format!(
                "archive '{archive}' has no disk number {id} for {}",
                target.name()
            )));
        };
        if target.size() < device.size {
            return Err(TransferError::Targets(format!(
                "{} has {} bytes, {} in archive '{archive}' needs {}",
                target.name(),
                target.size(),
                device.name,
                device.size
            )));
        }
    }
    Ok(())
}

impl Shared<'_> {
    fn archive_error(&self, cause: impl Into<ArchiveCause>) -> TransferError {
        ArchiveError { archive: self.archive.to_owned(), cause: cause.into() }.into()
    }
}

fn restore_frames(shared: &Shared, indexed: &Indexed, places: &Mutex<Places>) -> Result<(), TransferError> {
    let mut unpacker = Unpacker::new(indexed.container).map_err(|source| frame_error(shared, 0, 0, source))?;
    let (mut packed, mut raw) = (Vec::new(), Vec::new());
    while !shared.stop.is_set() {
        let Some(Placed { frame, number, offset, raw: start }) = lock(places).take(&indexed.index) else {
            return Ok(());
        };
        let unpacked = indexed.unpack(frame, offset, &mut unpacker, &mut packed, &mut raw);
        unpacked.map_err(|source| frame_error(shared, number, offset, source))?;
        let mut writer = Writer::new(shared);
        for extent in Extents::new(&raw, &shared.header.uuid, start) {
            let Extent { head, data, offset, .. } = extent.map_err(|e| shared.archive_error(e))?;
            if !writer.extent(&head, data, offset)? {
                return Ok(());
            }
        }
        writer.finish()?;
        shared.end.fetch_max(start + raw.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

fn frame_error(shared: &Shared, frame: usize, offset: u64, source: io::Error) -> TransferError {
    shared.archive_error(ArchiveCause::Frame { frame, offset, source })
}

/// An extent from a stream: parsed header, all of its bytes, offset.
type StreamExtent = (ExtentHead, Vec<u8>, u64);

fn read_stream(
    shared: &Shared,
    mut reader: Reader<Box<dyn io::Read + Send>>,
    free: &Receiver<Vec<u8>>,
    full: &Sender<StreamExtent>,
) -> Result<(), TransferError> {
    while let Some(mut buf) = shared.stop.recv(free) {
        let offset = reader.offset();
        let head = reader.next_extent(&mut buf).map_err(|e| shared.archive_error(e))?;
        shared.end.fetch_max(reader.offset(), Ordering::Relaxed);
        let Some(head) = head else { break };
        if full.send((head, buf, offset)).is_err() {
            break;
        }
    }
    Ok(())
}

fn write_extents(
    shared: &Shared,
    extents: &Receiver<StreamExtent>,
    give: &Sender<Vec<u8>>,
) -> Result<(), TransferError> {
    while let Some((head, buf, offset)) = shared.stop.recv(extents) {
        let mut writer = Writer::new(shared);
        if !writer.extent(&head, &buf[EXTENT_HEADER..], offset)? {
            return Ok(());
        }
        writer.finish()?;
        // The reader has ended when nobody takes it.
        give.send(buf).ok();
    }
    Ok(())
}
