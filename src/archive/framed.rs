//! The disks of an archive in frames: which frame holds a cluster says the index, where in it the cluster lies its extents'
//! headers. Frames are decompressed one at a time, kept as long as there is room, and read ahead of a reader that goes
//! straight on.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::cache::{PieceCache, Weight};
use super::frame::{Frame, Placed, Unpacker};
use super::vma::{self, CLUSTERS_PER_EXTENT, Damage, EXTENT_HEADER, Extent, Extents, Header, VmaError};
use super::{ArchiveCause, Indexed};

/// Threads that read ahead, at most.
const AHEAD_THREADS: usize = 4;

/// Frames that are decompressed at a time, however many ask for them: each takes up to 8 MiB meanwhile.
const MAX_UNPACKING: usize = 8;

/// The frames of an archive.
pub(super) struct Framed {
    indexed: Indexed,
    header: Header,
    /// By number of the disk; sorted, without gaps.
    disks: Vec<Disk>,
    cache: PieceCache<Piece>,
    unpackers: Unpackers,
    ahead: Option<Ahead>,
}

#[derive(Default)]
struct Disk {
    frames: Vec<Placed>,
    /// The place in `frames` that was asked for last.
    last: AtomicUsize,
}

impl Placed {
    /// The cluster behind its last one.
    fn end(&self) -> u64 {
        u64::from(self.frame.first) + u64::from(self.frame.clusters)
    }

    /// Whether all of its clusters are zero: nothing else does with so little.
    fn is_zero(&self) -> bool {
        self.frame.raw as usize == least(self.frame.clusters)
    }
}

/// Bytes that so many clusters need at least: an extent for each 59.
fn least(clusters: u32) -> usize {
    EXTENT_HEADER * (clusters as usize).div_ceil(CLUSTERS_PER_EXTENT)
}

/// Where the clusters of a range lie.
pub(super) struct Piece {
    raw: Vec<u8>,
    /// The clusters that hold anything, sorted: number, offset of their blocks in `raw`, and which blocks these are.
    stored: Vec<(u32, usize, u16)>,
}

impl Weight for Piece {
    fn weight(&self) -> usize {
        self.raw.capacity() + self.stored.capacity() * size_of::<(u32, usize, u16)>()
    }
}

impl Piece {
    /// Which blocks of a cluster are stored, and those blocks.
    pub(super) fn cluster(&self, number: u32) -> (u16, &[u8]) {
        match self.stored.binary_search_by_key(&number, |stored| stored.0) {
            Ok(at) => {
                let (_, from, mask) = self.stored[at];
                (mask, &self.raw[from..from + vma::stored(mask)])
            }
            Err(_) => (0, &[]),
        }
    }
}

/// What decompresses, lent to as many threads as may do that at a time.
#[derive(Default)]
struct Unpackers {
    state: Mutex<Lent>,
    returned: Condvar,
}

#[derive(Default)]
struct Lent {
    idle: Vec<Unpacker>,
    busy: usize,
}

impl Unpackers {
    /// Does `work` with an unpacker, one of those that are there or one that `new` makes.
    fn with<T>(
        &self,
        new: impl FnOnce() -> io::Result<Unpacker>,
        work: impl FnOnce(&mut Unpacker) -> T,
    ) -> io::Result<T> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.returned.wait_while(state, |lent| lent.busy == MAX_UNPACKING);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        state.busy += 1;
        let mut loan = Loan { unpackers: self, unpacker: state.idle.pop() };
        drop(state);
        let unpacker = match loan.unpacker.take() {
            Some(unpacker) => unpacker,
            None => new()?,
        };
        Ok(work(loan.unpacker.insert(unpacker)))
    }
}

/// Given back whatever becomes of the work.
struct Loan<'a> {
    unpackers: &'a Unpackers,
    unpacker: Option<Unpacker>,
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let mut state = self.unpackers.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.busy -= 1;
        state.idle.extend(self.unpacker.take());
        drop(state);
        self.unpackers.returned.notify_one();
    }
}

/// Asks other threads for frames that will be wanted.
struct Ahead {
    sender: Sender<(u8, usize)>,
    depth: usize,
}

impl Framed {
    /// `budget`: bytes of decompressed frames that are kept.
    ///
    /// # Errors
    /// When the index leaves clusters out, or has them twice.
    pub(super) fn open(indexed: Indexed, header: Header, budget: usize) -> Result<Arc<Self>, ArchiveCause> {
        let mut disks: Vec<Disk> = (0..256).map(|_| Disk::default()).collect();
        for placed in indexed.index.placed() {
            let frame = placed.frame;
            if frame.clusters > 0 {
                // So many are not in there, and memory for them is not to be had for the asking.
                if (frame.raw as usize) < least(frame.clusters) {
                    let (device, cluster) = (usize::from(frame.device), u64::from(frame.first));
                    return Err(ArchiveCause::Coverage { device, cluster });
                }
                disks[usize::from(frame.device)].frames.push(placed);
            }
        }
        for (number, disk) in disks.iter_mut().enumerate() {
            disk.frames.sort_unstable_by_key(|placed| placed.frame.first);
            let device = u8::try_from(number).ok().and_then(|id| header.device(id));
            let mut end = 0;
            for placed in &disk.frames {
                if u64::from(placed.frame.first) != end {
                    return Err(ArchiveCause::Coverage { device: number, cluster: end });
                }
                end = placed.end();
            }
            if end != device.map_or(0, vma::Device::clusters) {
                return Err(ArchiveCause::Coverage { device: number, cluster: end });
            }
        }
        let (cache, unpackers) = (PieceCache::new(budget), Unpackers::default());
        Ok(Arc::new_cyclic(|framed| Self { indexed, header, disks, cache, unpackers, ahead: Ahead::start(framed) }))
    }

    /// The frame that holds the cluster, decompressed; `None` when the cluster is known to be zero.
    pub(super) fn piece(&self, device: u8, cluster: u32) -> io::Result<Option<Arc<Piece>>> {
        let disk = &self.disks[usize::from(device)];
        let at = disk.frames.partition_point(|placed| placed.end() <= u64::from(cluster));
        let placed = *disk.frames.get(at).ok_or(io::ErrorKind::InvalidInput)?;
        let last = disk.last.swap(at, Ordering::Relaxed);
        if let Some(ahead) = &self.ahead
            && last + 1 == at
        {
            for next in at + 1..at + 1 + ahead.depth {
                if disk.frames.get(next).is_some_and(|placed| !placed.is_zero() && !self.cache.has(key(device, next))) {
                    // When all are busy, the reader does it itself.
                    ahead.sender.try_send((device, next)).ok();
                }
            }
        }
        if placed.is_zero() {
            return Ok(None);
        }
        self.cache.get(key(device, at), || self.unpack(&placed)).map(Some)
    }

    /// Runs of the clusters from `first` to `end`: the number behind the last one, and whether they are known to be zero.
    pub(super) fn runs(&self, device: u8, first: u64, end: u64) -> io::Result<Vec<(u64, bool)>> {
        let frames = &self.disks[usize::from(device)].frames;
        let (mut runs, mut at) = (Vec::new(), first);
        for placed in frames[frames.partition_point(|placed| placed.end() <= first)..].iter() {
            if u64::from(placed.frame.first) >= end {
                break;
            }
            let stop = placed.end().min(end);
            // A small frame that holds anything is as good as full. One that spans gigabytes holds hardly more, so it is worth
            // a look.
            if placed.is_zero() || placed.frame.clusters as usize <= CLUSTERS_PER_EXTENT {
                runs.push((stop, placed.is_zero()));
            } else if let Some(piece) = self.piece(device, at as u32)? {
                while at < stop {
                    let zero = |number: u64| piece.cluster(number as u32).0 == 0;
                    let is_zero = zero(at);
                    at += 1;
                    while at < stop && zero(at) == is_zero {
                        at += 1;
                    }
                    runs.push((at, is_zero));
                }
            }
            at = stop;
        }
        Ok(runs)
    }

    fn unpack(&self, placed: &Placed) -> io::Result<Piece> {
        let (mut packed, mut raw) = (Vec::new(), Vec::new());
        let unpacked = self.unpackers.with(
            || Unpacker::new(self.indexed.container),
            |unpacker| self.indexed.unpack(placed.frame, placed.offset, unpacker, &mut packed, &mut raw),
        )?;
        let (frame, offset) = (placed.number, placed.offset);
        unpacked.map_err(|source| io::Error::other(ArchiveCause::Frame { frame, offset, source }))?;
        self.parse(placed, raw).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, ArchiveCause::from(e)))
    }

    /// Finds the clusters in a frame; it has to hold all that the index says, and no others.
    fn parse(&self, placed: &Placed, raw: Vec<u8>) -> Result<Piece, VmaError> {
        let Frame { device, first, clusters, .. } = placed.frame;
        let (mut stored, mut seen) = (Vec::new(), vec![false; clusters as usize]);
        for extent in Extents::new(&raw, &self.header.uuid, placed.raw) {
            let Extent { head, at, offset, .. } = extent?;
            for (piece, range) in head.places() {
                let seen = piece.number.checked_sub(first).and_then(|i| seen.get_mut(i as usize));
                match seen.filter(|seen| !**seen && piece.device == device) {
                    Some(seen) => *seen = true,
                    None => {
                        let damage = Damage::Index { device: piece.device, cluster: piece.number };
                        return Err(VmaError::Damaged { offset, damage });
                    }
                }
                if piece.mask != 0 {
                    stored.push((piece.number, at + range.start, piece.mask));
                }
            }
        }
        if let Some(missing) = seen.iter().position(|seen| !seen) {
            let damage = Damage::Index { device, cluster: first + missing as u32 };
            return Err(VmaError::Damaged { offset: placed.raw, damage });
        }
        stored.sort_unstable_by_key(|stored| stored.0);
        Ok(Piece { raw, stored })
    }
}

impl Ahead {
    /// None when there are no threads to be had: then nobody reads ahead.
    fn start(framed: &Weak<Framed>) -> Option<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(AHEAD_THREADS);
        let (sender, wanted) = bounded(threads);
        let started = (0..threads).filter(|_| {
            let (framed, wanted) = (Weak::clone(framed), wanted.clone());
            std::thread::Builder::new().name("read ahead".into()).spawn(move || work(&framed, &wanted)).is_ok()
        });
        (started.count() > 0).then_some(Self { sender, depth: threads })
    }
}

/// Ends with the archive, which has the only sender.
fn work(framed: &Weak<Framed>, wanted: &Receiver<(u8, usize)>) {
    for (device, at) in wanted {
        let Some(framed) = framed.upgrade() else { return };
        if let Some(placed) = framed.disks[usize::from(device)].frames.get(at) {
            // Whoever reads it finds out himself what is wrong with it.
            framed.cache.get(key(device, at), || framed.unpack(placed)).ok();
        }
    }
}

fn key(device: u8, at: usize) -> u64 {
    u64::from(device) << 48 | at as u64
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::super::frame::Container;
    use super::*;

    #[test]
    fn so_many_unpack_at_a_time() {
        let (unpackers, now, most) = (Unpackers::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        let failed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for number in 0..4 * MAX_UNPACKING {
                let (unpackers, now, most, failed) = (&unpackers, &now, &most, &failed);
                scope.spawn(move || {
                    // One that cannot be made, and one who panics, give theirs back.
                    let make = || match number {
                        0 => Err(io::ErrorKind::OutOfMemory.into()),
                        _ => Unpacker::new(Container::Zstd),
                    };
                    let work = |_: &mut Unpacker| {
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        now.fetch_sub(1, Ordering::SeqCst);
                        assert!(number != 1, "as the test wants it");
                    };
                    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| unpackers.with(make, work)));
                    failed.fetch_or(!matches!(done, Ok(Ok(()))), Ordering::SeqCst);
                });
            }
        });
        assert!(most.into_inner() <= MAX_UNPACKING && failed.into_inner());
        let lent = unpackers.state.lock().unwrap();
        assert!(lent.busy == 0 && (1..=MAX_UNPACKING).contains(&lent.idle.len()));
    }
}
