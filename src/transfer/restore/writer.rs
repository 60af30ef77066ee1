//! Writes extents to their disks: every cluster once, neighbours at once, zeros put together.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::Shared;
use crate::archive::vma::{BLOCK, CLUSTER, ExtentHead, Run};
use crate::transfer::TransferError;
use crate::transfer::stop::lock;

const BLOCKS: u64 = (CLUSTER / BLOCK) as u64;

/// Zeros of one disk that are still to be written: they are put together as far as they reach.
#[derive(Clone, Copy)]
struct Zeros {
    device: u8,
    start: u64,
    end: u64,
}

/// Writes extents to the targets.
pub(super) struct Writer<'a> {
    shared: &'a Shared<'a>,
    zeros: Option<Zeros>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(shared: &'a Shared<'a>) -> Self {
        Self { shared, zeros: None }
    }

    /// Returns false when the transfer was stopped.
    pub(super) fn extent(&mut self, head: &ExtentHead, data: &[u8], offset: u64) -> Result<bool, TransferError> {
        let shared = self.shared;
        // First the check: nothing is written twice or outside.
        lock(&shared.checker).extent(head, offset).map_err(|e| shared.archive_error(e))?;
        if !shared.limiter.take(data.len() as u64, shared.stop) {
            return Ok(false);
        }
        // Blocks lie one behind the other: they can be written at once as long as they are neighbours on the disk, too.
        let (mut run, mut at) = (None::<(u8, u64, usize)>, 0);
        for piece in &head.pieces {
            for Run { range, stored } in piece.runs() {
                let start = u64::from(piece.number) * CLUSTER as u64;
                let (place, end) = (start + range.start as u64, start + range.end as u64);
                if stored.is_none() {
                    self.zero(piece.device, place..end)?;
                    continue;
                }
                match run {
                    Some((device, start, from)) if device == piece.device && start + (at - from) as u64 == place => {}
                    _ => {
                        self.write(run.replace((piece.device, place, at)), &data[..at])?;
                    }
                }
                at += range.len();
            }
        }
        self.write(run, &data[..at])?;
        let sparse = head.pieces.iter().filter(|p| p.mask == 0).count() as u64;
        let zero_blocks = (head.pieces.len() as u64 - sparse) * BLOCKS - head.blocks as u64;
        shared.clusters.fetch_add(head.pieces.len() as u64, Ordering::Relaxed);
        shared.sparse.fetch_add(sparse * CLUSTER as u64, Ordering::Relaxed);
        shared.zero_blocks.fetch_add(zero_blocks * BLOCK as u64, Ordering::Relaxed);
        Ok(!shared.stop.is_set())
    }

    /// Writes `data` from the run's start on, cut at the end of the disk.
    fn write(&self, run: Option<(u8, u64, usize)>, data: &[u8]) -> Result<(), TransferError> {
        let Some((device, place, from)) = run else { return Ok(()) };
        let Some(target) = self.shared.targets.get(&device) else { return Ok(()) };
        let data = &data[from..];
        let left = self.size(device).saturating_sub(place);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
        if len > 0 {
            target.write_at(&data[..len], place)?;
        }
        Ok(())
    }

    fn zero(&mut self, device: u8, Range { start, end }: Range<u64>) -> Result<(), TransferError> {
        if self.shared.targets.get(&device).is_none_or(|target| target.starts_zeroed()) {
            return Ok(());
        }
        match &mut self.zeros {
            Some(zeros) if zeros.device == device && zeros.end == start => zeros.end = end,
            _ => {
                self.finish()?;
                self.zeros = Some(Zeros { device, start, end });
            }
        }
        Ok(())
    }

    /// Writes the zeros that are left.
    pub(super) fn finish(&mut self) -> Result<(), TransferError> {
        let Some(Zeros { device, start, end }) = self.zeros.take() else { return Ok(()) };
        let end = end.min(self.size(device));
        match self.shared.targets.get(&device) {
            Some(target) if start < end => Ok(target.write_zeroes(start..end)?),
            _ => Ok(()),
        }
    }

    fn size(&self, device: u8) -> u64 {
        self.shared.header.device(device).map_or(0, |d| d.size)
    }
}
