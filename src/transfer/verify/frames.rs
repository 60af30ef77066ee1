//! Judges the frames of an archive one by one, by several threads: one that is damaged does not hide the next. Of a virtual
//! machine's archive also what is in them: every cluster once, in the frame that the index names.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Checked, Verified, VerifyProgress, good};
use crate::archive::frame::{Frame, Placed, Places, Unpacker};
use crate::archive::vma::{CLUSTER, Checker, Damage, Extent, Extents, Header, VmaError};
use crate::archive::{ArchiveCause, ArchiveError, Indexed, is_of_the_data};
use crate::host::Cancel;
use crate::transfer::limit::Limiter;
use crate::transfer::stop::{Stop, lock};
use crate::transfer::{TransferError, pool};

/// Threads that decompress frames side by side, at most.
const MAX_WORKERS: usize = 8;
/// Damaged places that are named; the others are counted.
const MAX_NAMED: usize = 100;

/// An archive in frames.
pub(super) struct Frames<'a> {
    /// The archive's path.
    pub(super) name: &'a str,
    pub(super) indexed: &'a Indexed,
    /// Of a VMA; none of tar data.
    pub(super) header: Option<&'a Header>,
    pub(super) bwlimit: Option<u64>,
}

struct Found {
    /// By offset in the file.
    damage: BTreeMap<u64, String>,
    more: u64,
    checker: Option<Checker>,
}

impl Frames<'_> {
    /// Judges all frames.
    pub(super) fn all(
        &self,
        progress: &mut dyn FnMut(&VerifyProgress),
        cancel: &Cancel,
    ) -> Result<Verified, TransferError> {
        self.judge(&|_| true, progress, cancel)
    }

    /// Judges the table of members, which whoever reads the members has not seen.
    pub(super) fn tables(&self, cancel: &Cancel) -> Result<Verified, TransferError> {
        self.judge(&Frame::is_table, &mut |_| {}, cancel)
    }

    fn judge(
        &self,
        wanted: &(dyn Fn(&Frame) -> bool + Sync),
        progress: &mut dyn FnMut(&VerifyProgress),
        cancel: &Cancel,
    ) -> Result<Verified, TransferError> {
        let total = self.indexed.index.iter().map(|frame| u64::from(frame.raw)).sum();
        let (stop, limiter, done) = (Stop::new(cancel), Limiter::new(self.bwlimit), AtomicU64::new(0));
        let found = Found { damage: BTreeMap::new(), more: 0, checker: self.header.map(Checker::new) };
        let (places, found) = (Mutex::new(Places::default()), Mutex::new(found));
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
        let mut tick = || progress(&VerifyProgress { done: done.load(Ordering::Relaxed), total: Some(total) });
        let work = || self.work(wanted, &stop, &limiter, &places, &found, &done);
        pool::run("verify", workers, &stop, cancel, &work, &mut tick);
        stop.into_result()?;
        let end = lock(&places);
        let Found { damage, more, checker } = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut verified = Verified { more, ..good(Checked::EveryByte, total, None) };
        verified.damage = damage.into_values().collect();
        // What a damaged frame should hold is missing, of course.
        if let Some(checker) = checker.filter(|_| verified.damage.is_empty())
            && let Err(e) = checker.finish(end.raw)
        {
            verified.damage.push(e.to_string());
        }
        let intact = self.indexed.index_is_intact();
        match intact.map_err(|source| ArchiveCause::Frame { frame: end.number, offset: end.offset, source }) {
            Ok(true) => {}
            Ok(false) => verified.damage.push(format!("the index at byte {} of the file is damaged", end.offset)),
            Err(cause) if is_of_the_data(&cause) => verified.damage.push(cause.to_string()),
            Err(cause) => return Err(ArchiveError { archive: self.name.to_owned(), cause }.into()),
        }
        progress(&VerifyProgress { done: total, total: Some(total) });
        Ok(verified)
    }

    fn work(
        &self,
        wanted: &(dyn Fn(&Frame) -> bool + Sync),
        stop: &Stop,
        limiter: &Limiter,
        places: &Mutex<Places>,
        found: &Mutex<Found>,
        done: &AtomicU64,
    ) -> Result<(), TransferError> {
        let mut unpacker = Unpacker::new(self.indexed.container).map_err(TransferError::Thread)?;
        let (mut packed, mut raw) = (Vec::new(), Vec::new());
        while !stop.is_set() {
            let Some(placed) = lock(places).take(&self.indexed.index) else { return Ok(()) };
            let Placed { frame, number, offset, raw: start } = placed;
            if !wanted(&frame) {
                continue;
            }
            if !limiter.take(frame.raw.into(), stop) {
                return Ok(());
            }
            let read = match frame.is_table() {
                true => self.indexed.read(frame, offset, &mut packed),
                false => self.indexed.unpack(frame, offset, &mut unpacker, &mut packed, &mut raw),
            };
            let judged = read.map_err(|source| ArchiveCause::Frame { frame: number, offset, source });
            let judged = judged.and_then(|()| match self.header {
                Some(header) if number > 0 => self.extents(header, frame, start, &raw, found),
                _ => Ok(()),
            });
            if let Err(cause) = judged {
                if !is_of_the_data(&cause) {
                    return Err(ArchiveError { archive: self.name.to_owned(), cause }.into());
                }
                let mut found = lock(found);
                if found.damage.len() < MAX_NAMED {
                    found.damage.insert(offset, format!("{}{cause}", self.range_of(frame)));
                } else {
                    found.more += 1;
                }
            }
            done.fetch_add(frame.raw.into(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// The clusters of a frame have to be those that the index has there.
    fn extents(
        &self,
        header: &Header,
        frame: Frame,
        start: u64,
        raw: &[u8],
        found: &Mutex<Found>,
    ) -> Result<(), ArchiveCause> {
        for extent in Extents::new(raw, &header.uuid, start) {
            let Extent { head, offset, .. } = extent?;
            let within = frame.first..frame.first.saturating_add(frame.clusters);
            if let Some(other) = head.pieces.iter().find(|p| p.device != frame.device || !within.contains(&p.number)) {
                let damage = Damage::Index { device: other.device, cluster: other.number };
                return Err(VmaError::Damaged { offset, damage }.into());
            }
            if let Some(checker) = &mut lock(found).checker {
                checker.extent(&head, offset)?;
            }
        }
        Ok(())
    }

    /// Which part of which disk is in a frame, as the beginning of a sentence.
    fn range_of(&self, frame: Frame) -> String {
        let device = self.header.and_then(|header| header.device(frame.device)).filter(|_| frame.clusters > 0);
        device.map_or_else(String::new, |device| {
            let start = u64::from(frame.first) * CLUSTER as u64;
            let end = (start + u64::from(frame.clusters) * CLUSTER as u64).min(device.size);
            format!("{}, bytes {start} to {end}: ", device.name)
        })
    }
}
