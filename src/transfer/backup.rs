//! Backup: from images into an archive.
//!
//! Two readers per disk, which also encode -> workers that compress -> one writer, which puts the groups back in order. A wish to stop is honoured within
//! about 100 ms, except during a read of the image, the compression of one group, and what [`super::output`] names.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, Scope};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::TransferError;
use super::limit::Limiter;
use super::output::{Output, Sink};
use super::plan::{Group, Plan};
use super::pool::{self, Piece, Slots};
use super::slot::{RAW, Slot, encode};
use super::stop::{Stop, StopOnPanic, lock};
use crate::archive::Compression;
use crate::archive::frame::{Container, Frame, IndexBuilder, Packer};
use crate::archive::vma::{CLUSTER, Device, EXTENT_HEADER, Header, VmaError, encode_zero_extent};
use crate::host::{Cancel, Host};
use crate::image::Image;

/// Memory the whole process may have unless told otherwise.
pub const DEFAULT_MEMORY: u64 = 256 << 20;
/// Threads that read each disk, unless fewer requests are allowed.
const READERS: usize = 2;

/// A disk to back up.
#[derive(Clone)]
pub struct BackupDisk {
    /// Its name in the archive: `drive-scsi0`.
    pub name: String,
    /// Its data.
    pub image: Arc<dyn Image>,
}

/// What goes into an archive, and how.
pub struct Backup {
    /// The disks; they get the numbers 1, 2, ... in this order.
    pub disks: Vec<BackupDisk>,
    /// Configuration files, name and content.
    pub configs: Vec<(String, Vec<u8>)>,
    /// How it is compressed.
    pub compression: Compression,
    /// Identity of the archive.
    pub uuid: [u8; 16],
    /// Time of the backup, seconds since 1970.
    pub ctime: i64,
    /// At most so many bytes per second, all disks together and zeros included.
    pub bwlimit: Option<u64>,
    /// At most so many requests in flight per disk; see [`Image::limit_requests`].
    pub max_workers: usize,
    /// Memory the process may have; about half of it becomes buffers. See [`DEFAULT_MEMORY`].
    pub memory: u64,
    /// Where `lzop` is found.
    pub host: Host,
}

/// How far a backup is, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Size of all disks.
    pub total: u64,
    /// Done of it, zeros included.
    pub read: u64,
    /// Zeros among what is done, which the archive does not hold.
    pub zero: u64,
    /// Size of the archive so far.
    pub written: u64,
}

/// What a backup came to: its last progress.
pub type Summary = Progress;

#[derive(Default)]
struct Counters {
    read: AtomicU64,
    zero: AtomicU64,
    written: AtomicU64,
}

impl Counters {
    fn progress(&self, total: u64) -> Progress {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Progress { total, read: get(&self.read), zero: get(&self.zero), written: get(&self.written) }
    }
}

/// A disk with what is left of it.
struct Disk<'a> {
    disk: &'a BackupDisk,
    id: u8,
    plan: Mutex<Plan>,
}

/// What is known of a group on its way; its slot holds extents.
struct Extents {
    disk: usize,
    group: Group,
    /// Bytes of zeros left out of them.
    zero: u64,
}

struct Shared<'a> {
    stop: &'a Stop,
    disks: &'a [Disk<'a>],
    uuid: [u8; 16],
    container: Option<Container>,
    sequence: AtomicU64,
    limiter: Limiter,
    counters: &'a Counters,
}

/// Writes the archive to `output`. `progress` is called every 50 ms by the calling thread. A [`Output::Draft`] is
/// complete afterwards, but neither synced nor named: that is [`super::Draft::commit`].
///
/// # Errors
/// The first thing that went wrong; nothing of this transfer runs any more then.
pub fn backup(
    job: &Backup,
    output: Output<'_>,
    progress: &mut dyn FnMut(&Progress),
    cancel: &Cancel,
) -> Result<Summary, TransferError> {
    let numbers: Vec<u8> = (1..=255).take(job.disks.len()).collect();
    backup_numbered(job, &numbers, output, progress, cancel)
}

/// The same with a number given for each disk.
///
/// # Errors
/// As [`backup`].
pub fn backup_numbered(
    job: &Backup,
    numbers: &[u8],
    output: Output<'_>,
    progress: &mut dyn FnMut(&Progress),
    cancel: &Cancel,
) -> Result<Summary, TransferError> {
    let header = header(job, numbers)?.encode()?;
    let limiter = Limiter::new(job.bwlimit);
    let plan = |disk: &BackupDisk| {
        let plan = Plan::new(Arc::clone(&disk.image));
        match limiter.rate() {
            Some(rate) => plan.limit_groups(rate),
            None => plan,
        }
    };
    let disks: Vec<Disk> =
        job.disks.iter().zip(numbers).map(|(disk, id)| Disk { disk, id: *id, plan: Mutex::new(plan(disk)) }).collect();
    let total = job.disks.iter().map(|d| d.image.size()).sum();
    let (stop, counters) = (Stop::new(cancel), Counters::default());
    let shared = Shared {
        stop: &stop,
        disks: &disks,
        uuid: job.uuid,
        container: job.compression.container(),
        sequence: AtomicU64::new(0),
        limiter,
        counters: &counters,
    };
    std::thread::scope(|scope| {
        let _stop_on_panic = StopOnPanic(&stop);
        match start(scope, job, &shared, header, output) {
            Ok(done) => pool::watch(&stop, cancel, None, &done, &mut || progress(&counters.progress(total))),
            Err(cause) => stop.fail(cause),
        }
    });
    stop.into_result()?;
    let summary = counters.progress(total);
    progress(&summary);
    Ok(summary)
}

fn header(job: &Backup, numbers: &[u8]) -> Result<Header, TransferError> {
    if job.disks.len() != numbers.len() {
        return Err(VmaError::Unfit(format!("{} disks, at most 255", job.disks.len())).into());
    }
    let device = |(disk, id): (&BackupDisk, &u8)| Device { id: *id, name: disk.name.clone(), size: disk.image.size() };
    let devices = job.disks.iter().zip(numbers).map(device).collect();
    Ok(Header { uuid: job.uuid, ctime: job.ctime, configs: job.configs.clone(), devices })
}

/// Starts all threads. What is returned is disconnected when the last of them, the writer, ends.
fn start<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    job: &'env Backup,
    shared: &'env Shared<'env>,
    header: Vec<u8>,
    output: Output<'env>,
) -> Result<Receiver<()>, TransferError> {
    let stop = shared.stop;
    let mut sink = Sink::open(output);
    if job.compression == Compression::Lzo {
        sink = sink.through_lzop(&job.host, stop, scope)?;
    }
    let workers = job.compression.workers();
    let readers = READERS.min(job.max_workers).max(1);
    let useful = readers * shared.disks.len() + 2 * workers + 4;
    let (slot, give_slot) = pool::slots(job.memory / 2, Slot::bytes(shared.container.is_some()), useful);
    // The slots bound what these hold.
    let (job_sender, jobs) = unbounded();
    let (ready_sender, ready) = unbounded();
    let spawn = |name: String, body: Box<dyn FnOnce() -> Result<(), TransferError> + Send + 'scope>| {
        let thread = Builder::new().name(name.chars().take(15).collect());
        thread.spawn_scoped(scope, move || stop.guard(&name, body)).map(|_| ()).map_err(TransferError::Thread)
    };
    for index in 0..shared.disks.len() {
        shared.disks[index].disk.image.limit_requests(job.max_workers.max(1));
        for _ in 0..readers {
            let (pool, jobs) = ((slot.clone(), give_slot.clone()), job_sender.clone());
            let name = format!("read {}", shared.disks[index].disk.name);
            spawn(name, Box::new(move || stop.told(read(shared, index, &pool, &jobs))))?;
        }
    }
    drop(job_sender);
    for number in 0..workers {
        let (jobs, ready) = (jobs.clone(), ready_sender.clone());
        let failed = |what: Option<&Extents>, e| failed(shared, what, e);
        let body = move || stop.told(pool::compress(stop, shared.container, &jobs, &ready, failed));
        spawn(format!("compress {number}"), Box::new(body))?;
    }
    drop(ready_sender);
    let (done_sender, done) = bounded(0);
    spawn(
        "write".to_owned(),
        Box::new(move || {
            let _done: Sender<()> = done_sender;
            write(shared, &header, sink, &ready, &give_slot)
        }),
    )?;
    Ok(done)
}

fn read(shared: &Shared, index: usize, pool: &Slots, jobs: &Sender<Piece<Extents>>) -> Result<(), TransferError> {
    let Disk { disk, id, plan } = &shared.disks[index];
    while let Some(mut slot) = shared.stop.recv(&pool.0) {
        let (sequence, group) = {
            let mut plan = lock(plan);
            let Some(group) = plan.next_group()? else {
                // The other disks' readers may be waiting for it. There is room for every slot that exists.
                pool.1.try_send(slot).ok();
                return Ok(());
            };
            (shared.sequence.fetch_add(1, Ordering::Relaxed), group)
        };
        if slot.raw.is_empty() {
            slot.raw = vec![0; RAW];
        }
        let mut at = EXTENT_HEADER;
        for run in &group.runs {
            if run.zero {
                if !shared.limiter.take(run.count * CLUSTER as u64, shared.stop) {
                    return Ok(());
                }
                continue;
            }
            let bytes = run.count as usize * CLUSTER;
            if !read_run(shared, disk.image.as_ref(), run.first, &mut slot.raw[at..at + bytes])? {
                return Ok(());
            }
            at += bytes;
        }
        // Here and not in the worker: the data is still in this core's cache, and the workers are what takes longest.
        let (raw, zero) = encode(&group, *id, &shared.uuid, &mut slot.raw);
        let range = byte_range(&group, disk.image.size());
        // Nobody listens only when the transfer was stopped.
        if jobs.send(Piece { sequence, slot, raw, what: Extents { disk: index, group, zero } }).is_err() {
            return Ok(());
        }
        // After the group is on its way, and not in the worker: giving space back is a round trip to QEMU, or work for the
        // kernel, and the workers are what a backup waits for.
        disk.image.release(range);
    }
    Ok(())
}

/// Reads whole clusters; what lies behind the end of the disk is zero. Returns false when the transfer was stopped.
fn read_run(shared: &Shared, image: &dyn Image, first: u64, buf: &mut [u8]) -> Result<bool, TransferError> {
    let start = first * CLUSTER as u64;
    let len = usize::try_from(image.size() - start).unwrap_or(usize::MAX).min(buf.len());
    let (data, behind) = buf.split_at_mut(len);
    behind.fill(0);
    let piece = shared.limiter.piece(usize::MAX, CLUSTER);
    let mut offset = start;
    for part in data.chunks_mut(piece) {
        if !shared.limiter.take(part.len() as u64, shared.stop) {
            return Ok(false);
        }
        image.read_at(part, offset)?;
        offset += part.len() as u64;
    }
    Ok(true)
}

fn failed(shared: &Shared, what: Option<&Extents>, source: std::io::Error) -> TransferError {
    let Some(Extents { disk, group, .. }) = what else { return compress_error("archive", 0, source) };
    let disk = shared.disks[*disk].disk;
    compress_error(&disk.name, byte_range(group, disk.image.size()).start, source)
}

fn byte_range(group: &Group, size: u64) -> Range<u64> {
    group.first * CLUSTER as u64..size.min((group.first + group.count) * CLUSTER as u64)
}

fn compress_error(disk: &str, offset: u64, source: std::io::Error) -> TransferError {
    TransferError::Compress { disk: disk.to_owned(), offset, source }
}

fn write(
    shared: &Shared,
    header: &[u8],
    mut sink: Sink,
    ready: &Receiver<Piece<Extents>>,
    slots: &Sender<Slot>,
) -> Result<(), TransferError> {
    let (stop, counters) = (shared.stop, shared.counters);
    let mut index = IndexBuilder::new(shared.uuid);
    let mut packer = shared.container.map(Packer::new).transpose().map_err(|e| compress_error("header", 0, e))?;
    let mut single = |sink: &mut Sink, index: &mut IndexBuilder, raw: &[u8]| match &mut packer {
        None => sink.write_all(raw, stop),
        Some(packer) => {
            let mut packed = Vec::new();
            packer.pack(raw, &mut packed).map_err(|e| compress_error("header", 0, e))?;
            index.push(Frame::of_data(&packed, raw.len()));
            sink.write_all(&packed, stop)
        }
    };
    single(&mut sink, &mut index, header)?;
    if shared.disks.is_empty() {
        // As the stock tool ends an archive without disks.
        let mut extent = [0; EXTENT_HEADER];
        encode_zero_extent(&mut extent, &shared.uuid, 0, 0, 0);
        single(&mut sink, &mut index, &extent)?;
    }
    let complete =
        pool::in_order(stop, ready, slots, |Piece { slot, raw, what: Extents { disk, group, zero }, .. }| {
            let Disk { disk, id, .. } = &shared.disks[*disk];
            if shared.container.is_some() {
                sink.write_all(&slot.packed, stop)?;
                let (first, count) = (group.first as u32, group.count as u32);
                index.push(Frame::of_clusters(&slot.packed, *raw, *id, first, count));
            } else {
                sink.write_all(&slot.raw[..*raw], stop)?;
            }
            let range = byte_range(group, disk.image.size());
            let read = range.end - range.start;
            counters.read.fetch_add(read, Ordering::Relaxed);
            // Padding behind the end of the disk is zero, but no part of the disk.
            counters.zero.fetch_add(read.min(*zero), Ordering::Relaxed);
            counters.written.store(sink.archive_bytes(), Ordering::Relaxed);
            Ok(())
        })?;
    if stop.is_set() {
        return Ok(());
    }
    let total: u64 = shared.disks.iter().map(|d| d.disk.image.size()).sum();
    assert!(
        complete && counters.read.load(Ordering::Relaxed) == total,
        "the archive holds {} of {total} bytes of the disks",
        counters.read.load(Ordering::Relaxed)
    );
    if let Some(container) = shared.container {
        sink.write_all(&index.finish(container), stop)?;
    }
    let written = sink.finish(stop)?;
    counters.written.store(written, Ordering::Relaxed);
    Ok(())
}
