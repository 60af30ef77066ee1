//! Copy: from any image to any target.
//!
//! Several threads take the next piece each, read it and write it; zeros are left out where the target starts with them.

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
use crate::image::{Image, Target};

/// Threads that read and write.
const WORKERS: usize = 4;
/// Zeros are looked for in blocks of so many bytes.
const BLOCK: usize = 4096;

/// How a copy is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyOptions {
    /// The first byte that is copied: what is before it stays as it is in the target.
    pub start: u64,
    /// At most so many bytes of data a second.
    pub bwlimit: Option<u64>,
}

/// How far a copy is, in bytes of the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyProgress {
    /// Bytes to copy.
    pub total: u64,
    /// Copied, zeros included.
    pub done: u64,
    /// Everything before this byte of the disk is copied.
    pub complete: u64,
}

struct Shared<'a> {
    stop: &'a Stop,
    image: &'a dyn Image,
    target: &'a dyn Target,
    walk: Mutex<Walk>,
    limiter: Limiter,
    done: AtomicU64,
    complete: Mutex<Complete>,
}

/// What is copied without a gap, and the pieces behind the first gap.
struct Complete {
    until: u64,
    later: BTreeMap<u64, u64>,
}

impl Complete {
    fn add(&mut self, range: &Range<u64>) {
        self.later.insert(range.start, range.end);
        while let Some(end) = self.later.remove(&self.until) {
            self.until = end;
        }
    }
}

/// Copies `image` to `target`, which has to be at least as large, and flushes it. `progress` is called every 50 ms by the
/// calling thread, and once at the end, however that came.
///
/// The wish to stop is honoured within about 100 ms, except during one read or write.
///
/// # Errors
/// The first thing that went wrong; the target then holds part of the data.
pub fn copy(
    image: &Arc<dyn Image>,
    target: &dyn Target,
    options: CopyOptions,
    progress: &mut dyn FnMut(&CopyProgress),
    cancel: &Cancel,
) -> Result<CopyProgress, TransferError> {
    let (start, end) = (options.start, image.size());
    if start > end {
        let what = format!("{} has {end} bytes, nothing of it can be copied from byte {start} on", image.name());
        return Err(TransferError::Targets(what));
    }
    if target.size() < end {
        let (to, has) = (target.name(), target.size());
        return Err(TransferError::Targets(format!("{to} has {has} bytes, {} needs {end}", image.name())));
    }
    let limiter = Limiter::new(options.bwlimit);
    let piece = limiter.piece(PIECE, BLOCK);
    let stop = Stop::new(cancel);
    let shared = Shared {
        stop: &stop,
        image: image.as_ref(),
        target,
        walk: Mutex::new(Walk::new(vec![Arc::clone(image)], start..end, piece)),
        limiter,
        done: AtomicU64::new(0),
        complete: Mutex::new(Complete { until: start, later: BTreeMap::new() }),
    };
    let now = |shared: &Shared| CopyProgress {
        total: end - start,
        done: shared.done.load(Ordering::Relaxed),
        complete: lock(&shared.complete).until,
    };
    pool::run("copy", WORKERS, &stop, cancel, &|| work(&shared), &mut || progress(&now(&shared)));
    let summary = now(&shared);
    drop(shared);
    progress(&summary);
    stop.into_result()?;
    target.flush()?;
    Ok(summary)
}

fn work(shared: &Shared) -> Result<(), TransferError> {
    let mut buf = Vec::new();
    while !shared.stop.is_set() {
        let Some(Stretch { range, zero }) = lock(&shared.walk).next()? else { break };
        if zero {
            if !shared.target.starts_zeroed() {
                shared.target.write_zeroes(range.clone())?;
            }
        } else {
            let len = range.end - range.start;
            if !shared.limiter.take(len, shared.stop) {
                break;
            }
            buf.resize(len as usize, 0);
            shared.image.read_at(&mut buf, range.start)?;
            write(shared.target, &buf, range.start)?;
        }
        shared.done.fetch_add(range.end - range.start, Ordering::Relaxed);
        lock(&shared.complete).add(&range);
    }
    Ok(())
}

/// Writes data as data and zeros as zeros, neighbours of a kind at once.
pub(super) fn write(target: &dyn Target, data: &[u8], offset: u64) -> Result<(), TransferError> {
    let is_zero = |block: &[u8]| block.iter().fold(0, |sum, byte| sum | byte) == 0;
    let mut at = 0;
    while at < data.len() {
        let zero = is_zero(&data[at..data.len().min(at + BLOCK)]);
        let alike = data[at..].chunks(BLOCK).take_while(|block| is_zero(block) == zero).map(<[u8]>::len).sum::<usize>();
        let place = offset + at as u64;
        if !zero {
            target.write_at(&data[at..at + alike], place)?;
        } else if !target.starts_zeroed() {
            target.write_zeroes(place..place + alike as u64)?;
        }
        at += alike;
    }
    Ok(())
}
