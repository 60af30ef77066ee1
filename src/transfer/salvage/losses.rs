//! What was lost: collected while the archive is read, settled at its end, written as a map.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

use crate::archive::vma::{CLUSTER, Device, Header};

/// Damages that are told one by one.
const MOST_DAMAGES: usize = 1000;
/// Ranges of lost clusters that are kept apart, all disks together. What comes behind is put together with what lies between:
/// rather too much is called lost than too little.
const MOST_RUNS: usize = 1 << 20;

/// A range of a disk that could not be saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Number of the disk.
    pub device: u8,
    /// Bytes of the disk.
    pub range: Range<u64>,
    /// Why.
    pub reason: String,
    /// Where in the archive's file, as far as that is known.
    pub offset: Option<u64>,
}

/// What a salvage came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Losses {
    /// What was wrong with the archive, in the order of its bytes.
    pub damages: Vec<String>,
    /// What is lost of the disks, by disk and place.
    pub lost: Vec<Loss>,
    /// Something may be wrong although it is there: the header, or a cluster that came twice.
    pub doubtful: bool,
    archive: String,
}

impl Losses {
    /// Whether everything was saved.
    pub fn is_empty(&self) -> bool {
        self.lost.is_empty() && !self.doubtful
    }

    /// The map of a disk, in the format of ddrescue's mapfiles; `None` when nothing of it is lost.
    pub fn map(&self, header: &Header, device: &Device) -> Option<String> {
        let mut lost = self.lost.iter().filter(|loss| loss.device == device.id).peekable();
        lost.peek()?;
        let date = header.ctime;
        let mut map = format!(
            "# Mapfile. Created by vzkeep\n# {} of the archive '{}' (backup of {date} seconds since 1970)\n# + saved, - lost\n\
             # current_pos  current_status  current_pass\n0x{:08X}     +               1\n#      pos        size  status\n",
            device.name,
            self.archive.escape_debug(),
            device.size,
        );
        let mut line = |range: Range<u64>, status| {
            if !range.is_empty() {
                // Writing to a string does not fail.
                writeln!(map, "0x{:08X}  0x{:08X}  {status}", range.start, range.end - range.start).unwrap_or_default();
            }
        };
        let mut at = 0;
        let mut next: Option<Range<u64>> = None;
        for Loss { range, .. } in lost {
            match &mut next {
                // Neighbours with different reasons are one range here.
                Some(open) if open.end == range.start => open.end = range.end,
                _ => {
                    if let Some(open) = next.replace(range.clone()) {
                        line(at..open.start, '+');
                        at = open.end;
                        line(open, '-');
                    }
                }
            }
        }
        if let Some(open) = next {
            line(at..open.start, '+');
            at = open.end;
            line(open, '-');
        }
        line(at..device.size, '+');
        Some(map)
    }
}

/// Clusters of which it is known why they could not be had.
#[derive(Debug)]
struct Known {
    clusters: Range<u64>,
    reason: String,
    offset: u64,
}

/// A part of the archive of which it is not known what was in it, between two clusters of which it is known.
#[derive(Debug)]
struct Gap {
    reason: String,
    offset: u64,
    before: Option<(u8, u32)>,
    after: Option<(u8, u32)>,
}

/// Collects it.
#[derive(Debug, Default)]
pub(super) struct Book {
    damages: Vec<String>,
    untold: usize,
    known: BTreeMap<u8, Vec<Known>>,
    count: usize,
    gaps: Vec<Gap>,
    pub(super) doubtful: bool,
}

impl Book {
    /// `doubtful`: the header's checksum is wrong.
    pub(super) fn new(doubtful: bool) -> Self {
        Self { doubtful, ..Self::default() }
    }

    pub(super) fn damage(&mut self, what: String, offset: Option<u64>) {
        if self.damages.len() < MOST_DAMAGES {
            let at = offset.map(|at| format!("archive byte {at}: ")).unwrap_or_default();
            self.damages.push(format!("{at}{what}"));
        } else {
            self.untold += 1;
        }
    }

    /// These clusters could not be had, unless they come from elsewhere.
    pub(super) fn lost(&mut self, device: u8, clusters: Range<u64>, reason: &str, offset: u64) {
        let known = self.known.entry(device).or_default();
        if let Some(last) = known.last_mut()
            && last.clusters.end == clusters.start
            && last.reason == reason
            && last.offset == offset
        {
            last.clusters.end = clusters.end;
        } else if self.count < MOST_RUNS {
            self.count += 1;
            known.push(Known { clusters, reason: reason.to_owned(), offset });
        }
    }

    pub(super) fn gap(&mut self, reason: String, offset: u64, before: Option<(u8, u32)>, after: Option<(u8, u32)>) {
        self.damage(reason.clone(), Some(offset));
        if self.gaps.len() < MOST_DAMAGES {
            self.gaps.push(Gap { reason, offset, before, after });
        }
    }

    /// Settles what is missing, by disk and first cluster.
    pub(super) fn settle(
        mut self,
        archive: &str,
        missing: impl Iterator<Item = (Device, Range<u64>)>,
        disks: &dyn Fn(u8) -> bool,
    ) -> Losses {
        if self.untold > 0 {
            self.damages.push(format!("and {} more damages", self.untold));
        }
        for known in self.known.values_mut() {
            known.sort_by_key(|known| known.clusters.start);
        }
        let mut lost: Vec<Loss> = Vec::new();
        for (device, run) in missing.filter(|(device, _)| disks(device.id)) {
            let mut at = run.start;
            let known = self.known.get(&device.id).map_or(&[][..], Vec::as_slice);
            let first = known.partition_point(|known| known.clusters.end <= at);
            let mut add = |clusters: Range<u64>, reason: &str, offset: Option<u64>| {
                if clusters.is_empty() {
                    return;
                }
                let bytes = CLUSTER as u64;
                let range = clusters.start * bytes..device.size.min(clusters.end * bytes);
                let full = lost.len() >= MOST_RUNS;
                match lost.last_mut() {
                    Some(last) if full && last.device == device.id => last.range.end = range.end,
                    _ => lost.push(Loss { device: device.id, range, reason: reason.to_owned(), offset }),
                }
            };
            for Known { clusters, reason, offset } in &known[first.min(known.len())..] {
                if clusters.start >= run.end {
                    break;
                }
                let (start, end) = (clusters.start.max(at), clusters.end.min(run.end));
                if start >= end {
                    continue;
                }
                let (why, place) = self.guess(device.id, at..start);
                add(at..start, why, place);
                add(start..end, reason, Some(*offset));
                at = end;
            }
            let (why, place) = self.guess(device.id, at..run.end);
            add(at..run.end, why, place);
        }
        Losses { damages: self.damages, lost, doubtful: self.doubtful, archive: archive.to_owned() }
    }

    /// Why clusters are missing that nothing is known of: they belong where the archive is damaged between their neighbours.
    fn guess(&self, device: u8, clusters: Range<u64>) -> (&str, Option<u64>) {
        let fits = |gap: &&Gap| {
            let before = gap.before.is_some_and(|(disk, last)| disk == device && u64::from(last) + 1 == clusters.start);
            let after = gap.after.is_some_and(|(disk, first)| disk == device && u64::from(first) == clusters.end);
            before || after
        };
        let only = || self.gaps.first().filter(|_| self.gaps.len() == 1);
        match self.gaps.iter().find(fits).or_else(only) {
            Some(gap) => (&gap.reason, Some(gap.offset)),
            None => ("the archive does not have it", None),
        }
    }
}
