//! Compare: two images side by side, to the end, whatever differs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::TransferError;
use super::limit::Limiter;
use super::pool;
use super::stop::{Stop, lock};
use super::walk::{PIECE, Stretch, Walk};
use crate::host::Cancel;
use crate::image::Image;

/// Threads that read.
const WORKERS: usize = 4;
/// What differs is said in whole sectors.
const SECTOR: usize = 512;
/// Ranges kept beyond those asked for: pieces do not come in order, and some may grow together.
const SPARE: usize = 64;

/// How two disks differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Their sizes in bytes. What the longer one has behind the end of the other is not compared.
    pub sizes: (u64, u64),
    /// Bytes in sectors that differ.
    pub bytes: u64,
    /// The first ranges that differ, in whole sectors of 512 bytes, neighbours as one.
    pub ranges: Vec<Range<u64>>,
    /// There are more of them.
    pub more: bool,
}

impl Comparison {
    /// Whether every byte is the same, and their number.
    pub fn same(&self) -> bool {
        self.bytes == 0 && self.sizes.0 == self.sizes.1
    }
}

struct Shared<'a> {
    stop: &'a Stop,
    images: [&'a dyn Image; 2],
    walk: Mutex<Walk>,
    limiter: Limiter,
    done: AtomicU64,
    differing: Mutex<Differing>,
}

/// Ranges that differ, by their start; only the first ones are kept.
struct Differing {
    ranges: BTreeMap<u64, u64>,
    most: usize,
    bytes: u64,
    more: bool,
}

impl Differing {
    fn add(&mut self, mut range: Range<u64>) {
        self.bytes += range.end - range.start;
        if let Some((start, end)) = self.ranges.range(..range.start).next_back().map(|(s, e)| (*s, *e))
            && end == range.start
        {
            self.ranges.remove(&start);
            range.start = start;
        }
        if let Some(end) = self.ranges.remove(&range.end) {
            range.end = end;
        }
        self.ranges.insert(range.start, range.end);
        if self.ranges.len() > self.most + SPARE {
            self.ranges.pop_last();
            self.more = true;
        }
    }
}

/// Compares two disks. At most `most` ranges are listed. `bwlimit` bounds the bytes a second read of each. `progress` gets the
/// bytes done and in total, every 50 ms, from the calling thread.
///
/// # Errors
/// When one of them cannot be read.
pub fn compare(
    a: &Arc<dyn Image>,
    b: &Arc<dyn Image>,
    most: usize,
    bwlimit: Option<u64>,
    progress: &mut dyn FnMut(u64, u64),
    cancel: &Cancel,
) -> Result<Comparison, TransferError> {
    let total = a.size().min(b.size());
    let stop = Stop::new(cancel);
    let limiter = Limiter::new(bwlimit);
    let piece = limiter.piece(PIECE, SECTOR);
    let shared = Shared {
        stop: &stop,
        images: [a.as_ref(), b.as_ref()],
        walk: Mutex::new(Walk::new(vec![Arc::clone(a), Arc::clone(b)], 0..total, piece)),
        limiter,
        done: AtomicU64::new(0),
        differing: Mutex::new(Differing { ranges: BTreeMap::new(), most, bytes: 0, more: false }),
    };
    pool::run("compare", WORKERS, &stop, cancel, &|| work(&shared), &mut || {
        progress(shared.done.load(Ordering::Relaxed), total)
    });
    let Shared { differing, .. } = shared;
    stop.into_result()?;
    progress(total, total);
    let Differing { ranges, bytes, more, .. } =
        differing.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let more = more || ranges.len() > most;
    let ranges = ranges.into_iter().take(most).map(|(start, end)| start..end).collect();
    Ok(Comparison { sizes: (a.size(), b.size()), bytes, ranges, more })
}

fn work(shared: &Shared) -> Result<(), TransferError> {
    let [mut first, mut second] = [Vec::new(), Vec::new()];
    while !shared.stop.is_set() {
        let Some(Stretch { range, zero }) = lock(&shared.walk).next()? else { break };
        let len = range.end - range.start;
        if !zero {
            if !shared.limiter.take(len, shared.stop) {
                break;
            }
            for (image, buf) in shared.images.iter().zip([&mut first, &mut second]) {
                buf.resize(len as usize, 0);
                image.read_at(buf, range.start)?;
            }
            if first != second {
                let mut differing = lock(&shared.differing);
                let sectors = first.chunks(SECTOR).zip(second.chunks(SECTOR)).zip((range.start..).step_by(SECTOR));
                for ((a, b), at) in sectors.filter(|((a, b), _)| a != b) {
                    debug_assert_eq!(a.len(), b.len());
                    differing.add(at..at + a.len() as u64);
                }
            }
        }
        shared.done.fetch_add(len, Ordering::Relaxed);
    }
    Ok(())
}
