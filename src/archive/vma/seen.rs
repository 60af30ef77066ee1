//! Which clusters of a disk were seen: a bit set that keeps only the incomplete areas, so that neither a huge disk nor
//! a hostile archive makes it grow without bound.

use std::collections::HashMap;

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
    }
}
