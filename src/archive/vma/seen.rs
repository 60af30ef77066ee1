//! Which clusters of a disk were seen: a bit set that keeps only the incomplete areas, so that neither a huge disk nor
//! a hostile archive makes it grow without bound.

use std::collections::HashMap;
use std::ops::Range;

/// Clusters per area: one area of bits is 4 KiB and stands for 2 GiB of disk.
const AREA: u32 = 32768;

type Bits = [u64; AREA as usize / 64];

/// The clusters of one disk that were seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// An area without a bit set does not exist; one with all bits set is `None`.
    areas: HashMap<u32, Option<(u32, Box<Bits>)>>,
    count: u64,
}

/// What adding a cluster did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Added {
    /// It is new; the count of incomplete areas changed by so many.
    New(i64),
    /// It was there before.
    Duplicate,
}

impl Seen {
    pub(super) fn insert(&mut self, cluster: u32) -> Added {
        let mut grown = 0;
        let area = self.areas.entry(cluster / AREA).or_insert_with(|| {
            grown = 1;
            Some((0, Box::new([0; AREA as usize / 64])))
        });
        let Some((used, bits)) = area else { return Added::Duplicate };
        let (word, bit) = ((cluster % AREA / 64) as usize, 1u64 << (cluster % 64));
        if bits[word] & bit != 0 {
            return Added::Duplicate;
        }
        bits[word] |= bit;
        *used += 1;
        self.count += 1;
        if *used == AREA {
            *area = None;
            grown -= 1;
        }
        Added::New(grown)
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Runs of those below `clusters` that were not seen.
    pub(super) fn missing(&self, clusters: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, clusters, false)?;
            at = self.next(start, clusters, true).unwrap_or(clusters);
            Some(start..at)
        })
    }

    /// The next cluster from `at` on that was, or was not, `seen`; `None` when there is none below `end`.
    fn next(&self, mut at: u64, end: u64, seen: bool) -> Option<u64> {
        while at < end {
            let (area, within) = ((at / u64::from(AREA)) as u32, (at % u64::from(AREA)) as usize);
            let behind = (u64::from(area) + 1) * u64::from(AREA);
            match self.areas.get(&area) {
                None if !seen => return Some(at),
                Some(None) if seen => return Some(at),
                Some(Some((_, bits))) => {
                    let word = if seen { bits[within / 64] } else { !bits[within / 64] };
                    let rest = word >> (within % 64);
                    if rest != 0 {
                        return Some(at + u64::from(rest.trailing_zeros())).filter(|found| *found < end);
                    }
                    at += 64 - within as u64 % 64;
                }
                _ => at = behind,
            }
        }
        None
    }

    /// The first cluster that was not seen.
    pub(super) fn first_missing(&self) -> u64 {
        for area in 0.. {
            let start = u64::from(area) * u64::from(AREA);
            match self.areas.get(&area) {
                None => return start,
                Some(None) => {}
                Some(Some((_, bits))) => {
                    let full = bits.iter().take_while(|w| **w == u64::MAX).count();
                    return start + full as u64 * 64 + u64::from(bits[full].trailing_ones());
                }
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_areas_are_dropped_and_still_known() {
        let mut seen = Seen::default();
        assert_eq!(seen.insert(AREA), Added::New(1));
        assert_eq!(seen.first_missing(), 0);
        for cluster in 0..AREA {
            let grown = i64::from(cluster == 0) - i64::from(cluster == AREA - 1);
            assert_eq!(seen.insert(cluster), Added::New(grown));
        }
        assert_eq!(seen.insert(7), Added::Duplicate);
        assert_eq!(seen.insert(AREA), Added::Duplicate);
        assert_eq!(seen.first_missing(), u64::from(AREA) + 1);
        assert_eq!(seen.count(), u64::from(AREA) + 1);
        assert_eq!(seen.insert(u32::MAX), Added::New(1));
        let area = u64::from(AREA);
        let only = |end| {
            let mut runs = seen.missing(end);
            (runs.next(), runs.next())
        };
        assert_eq!(only(3 * area + 5), (Some(area + 1..3 * area + 5), None));
        assert_eq!(seen.missing(area + 1).count(), 0);
        assert_eq!(only(1 << 32), (Some(area + 1..u64::from(u32::MAX)), None));
        seen.insert(2 * AREA + 70);
        let runs: Vec<_> = seen.missing(3 * area).collect();
        assert_eq!(runs, [area + 1..2 * area + 70, 2 * area + 71..3 * area]);
    }
}
