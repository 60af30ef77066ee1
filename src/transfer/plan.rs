//! What to read of a disk: asks for its extents a GiB ahead, cuts them on the cluster grid, and hands out groups that
//! become one frame of the archive each.

use std::collections::VecDeque;
use std::sync::Arc;

use super::TransferError;
use crate::archive::vma::{CLUSTER, CLUSTERS_PER_EXTENT};
use crate::image::{ExtentKind, Image};

/// Bytes of disk for which extents are asked at once; a multiple of the cluster.
const AHEAD: u64 = 1 << 30;
/// Clusters of the largest group, 4 GiB of disk: nearly all of them zero.
const MAX_CLUSTERS: u64 = 65536;

/// Neighbouring clusters that are all known to be zero or all have to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) zero: bool,
}

/// Neighbouring clusters of one disk of which at most 59 have to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) runs: Vec<Run>,
}

impl Group {
    /// The clusters to read.
    pub(super) fn data(&self) -> impl Iterator<Item = u64> + '_ {
        self.runs.iter().filter(|r| !r.zero).flat_map(|r| r.first..r.first + r.count)
    }

    /// The clusters known to be zero.
    pub(super) fn zeros(&self) -> impl Iterator<Item = u64> + '_ {
        self.runs.iter().filter(|r| r.zero).flat_map(|r| r.first..r.first + r.count)
    }
}

/// Walks over one disk.
pub(super) struct Plan {
    image: Arc<dyn Image>,
    size: u64,
    /// Bytes for which extents were asked.
    asked: u64,
    /// Clusters of the largest group.
    most: u64,
    runs: VecDeque<Run>,
}

impl Plan {
    pub(super) fn new(image: Arc<dyn Image>) -> Self {
        let size = image.size();
        Self { image, size, asked: 0, most: MAX_CLUSTERS, runs: VecDeque::new() }
    }

    /// Groups have at most about `bytes` bytes of disk: progress counts groups, and under a limit it shall move every second.
    pub(super) fn limit_groups(mut self, bytes: u64) -> Self {
        self.most = (bytes / CLUSTER as u64).clamp(CLUSTERS_PER_EXTENT as u64, MAX_CLUSTERS);
        self
    }

    /// The next group; `None` at the end of the disk.
    pub(super) fn next_group(&mut self) -> Result<Option<Group>, TransferError> {
        let (mut runs, mut data, mut count) = (Vec::new(), 0, 0);
        while count < self.most {
            if self.runs.is_empty() && self.asked < self.size {
                self.ask()?;
            }
            let Some(next) = self.runs.front_mut() else { break };
            let room = if next.zero { self.most - count } else { CLUSTERS_PER_EXTENT as u64 - data };
            let taken = next.count.min(room).min(self.most - count);
            if taken == 0 {
                break;
            }
            runs.push(Run { count: taken, ..*next });
            count += taken;
            data += if next.zero { 0 } else { taken };
            next.first += taken;
            next.count -= taken;
            if next.count == 0 {
                self.runs.pop_front();
            }
            // A full extent that zeros follow ends here when those are enough for a group of their own.
            if data == CLUSTERS_PER_EXTENT as u64 && self.runs.front().is_some_and(|r| r.count > data) {
                break;
            }
        }
        Ok(runs.first().map(|r| r.first).map(|first| Group { first, count, runs }))
    }

    /// Asks for the next extents and cuts them: a cluster is zero when all of its bytes are known to be.
    fn ask(&mut self) -> Result<(), TransferError> {
        let (start, end) = (self.asked, self.size.min(self.asked + AHEAD));
        let (mut at, mut zero_from) = (start, None);
        let mut clusters = start / CLUSTER as u64;
        for extent in self.image.extents(start..end)? {
            if extent.offset != at || extent.len == 0 || extent.len > end - at {
                return Err(TransferError::Extents { image: self.image.name().to_owned(), start, end, at });
            }
            if extent.kind == ExtentKind::Zero {
                zero_from.get_or_insert(at);
            } else if let Some(from) = zero_from.take() {
                self.zeros(&mut clusters, from, at);
            }
            at += extent.len;
        }
        if at != end {
            return Err(TransferError::Extents { image: self.image.name().to_owned(), start, end, at });
        }
        if let Some(from) = zero_from {
            self.zeros(&mut clusters, from, end);
        }
        self.run(&mut clusters, end.div_ceil(CLUSTER as u64), false);
        self.asked = end;
        Ok(())
    }

    /// Bytes `from` to `to` are zero: so are the clusters that lie within, and everything before has to be read.
    fn zeros(&mut self, clusters: &mut u64, from: u64, to: u64) {
        let first = from.div_ceil(CLUSTER as u64);
        let end = if to == self.size { to.div_ceil(CLUSTER as u64) } else { to / CLUSTER as u64 };
        if first < end {
            self.run(clusters, first, false);
            self.run(clusters, end, true);
        }
    }

    fn run(&mut self, clusters: &mut u64, end: u64, zero: bool) {
        if end > *clusters {
            self.runs.push_back(Run { first: *clusters, count: end - *clusters, zero });
            *clusters = end;
        }
    }
}
