//! What one pass over a compressed file leaves: access points, and a checksum of every piece of the data.
//!
//! How much that is: a piece has 256 KiB and its checksum 4 bytes, and there are at most two million of them; for more than
//! 512 GiB of data, two pieces become one. An access point in the middle of a zstd frame or gzip member needs the bytes in
//! front of it, at most 8 MiB (2 MiB for what `zstd` makes without an option, 32 KiB for gzip). They are kept compressed,
//! without those that zstd's later blocks do not copy: 40 KiB each for a tar of programs, 15 KiB for gzip. All access points together may take a thirty-second of the compressed file, but at least 1 MiB and at most
//! 64 MiB: when they take more, the distance between them is doubled and every second one is dropped. So 1 TiB of data has
//! 8 MiB of checksums and less than 64 MiB of access points.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crc32fast::Hasher;

use super::{Method, SeekError};

/// Bytes of a piece, as a power of two: at first, and at most.
pub(super) const PIECE: u32 = 18;
pub(super) const MAX_PIECE: u32 = 25;
/// Most pieces.
pub(super) const MAX_PIECES: usize = 1 << 21;
/// Bytes of data between two access points, at first.
const SPACING: u64 = 4 << 20;
/// The same where an access point costs nothing.
const SPACING_OF_STARTS: u64 = 1 << 20;
/// Bytes of memory for all access points: least and most.
const BUDGET: (u64, u64) = (1 << 20, 64 << 20);
/// The share of the compressed file that access points may have.
const SHARE: u64 = 32;
/// Bytes of an access point beside its window.
const POINT: u64 = 64;
/// Bytes of all access points and checksums at most, and how many access points these may be.
pub(super) const MAX_WEIGHT: u64 = BUDGET.1 + 4 * MAX_PIECES as u64;
pub(super) const MAX_POINTS: usize = (BUDGET.1 / POINT) as usize;
/// Windows are compressed at this level of zstd.
const LEVEL: i32 = 1;
/// Bytes of the largest window.
pub(super) const MAX_WINDOW: usize = 8 << 20;
/// Most notes that are kept.
const MAX_NOTES: usize = 4;

/// What it takes to decompress from a place on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// A zstd frame or gzip member begins there.
    Start,
    /// Between two blocks of a zstd frame.
    Zstd {
        /// A dictionary without its content.
        head: Vec<u8>,
        /// Its content, compressed.
        window: Vec<u8>,
        /// The byte of the frame's header that tells the window's size.
        window_byte: u8,
        /// The frame ends with a checksum.
        checksum: bool,
    },
    /// Between two deflate blocks.
    Gzip {
        /// Bits of the byte in front that belong to the next block, below 8.
        bits: u8,
        /// These bits.
        held: u8,
        /// The bytes in front, compressed.
        window: Vec<u8>,
    },
    /// An lzop block begins there.
    Lzop {
        /// Where the header lies that is in force.
        header: u64,
    },
}

/// A place from which a compressed file can be decompressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Point {
    /// Offset in the compressed file.
    pub(super) packed: u64,
    /// Offset in the data.
    pub(super) raw: u64,
    pub(super) entry: Entry,
}

impl Point {
    fn weight(&self) -> u64 {
        POINT
            + match &self.entry {
                Entry::Start | Entry::Lzop { .. } => 0,
                Entry::Zstd { head, window, .. } => (head.len() + window.len()) as u64,
                Entry::Gzip { window, .. } => window.len() as u64,
            }
    }
}

/// Access points to the data of a compressed file, and its checksums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Points {
    pub(super) method: Method,
    /// Bytes of data; of a damaged file, those before the damage.
    pub(super) raw: u64,
    /// Bytes of a piece, as a power of two.
    pub(super) piece: u32,
    /// CRC32 of each piece.
    pub(super) sums: Vec<u32>,
    /// By rising offsets; the first one is the start of the data, if there is any.
    pub(super) points: Vec<Point>,
    pub(super) notes: Vec<String>,
}

impl Points {
    /// How the file is compressed.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Bytes of uncompressed data.
    pub fn raw(&self) -> u64 {
        self.raw
    }

    /// How many access points there are.
    pub fn count(&self) -> usize {
        self.points.len()
    }

    /// Bytes of memory the access points and checksums take.
    pub fn weight(&self) -> u64 {
        self.points.iter().map(Point::weight).sum::<u64>() + 4 * self.sums.len() as u64
    }

    /// What is worth a line in a log: a part that can only be read slowly.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Bytes of a piece, the last one excepted.
    pub(super) fn piece_len(&self) -> u64 {
        1 << self.piece
    }

    /// Number of the last access point that is not after `raw`.
    pub(super) fn before(&self, raw: u64) -> Option<usize> {
        self.points.partition_point(|point| point.raw <= raw).checked_sub(1)
    }
}

/// Takes all data of a file in order and collects its [`Points`].
pub(super) struct Collector {
    points: Points,
    /// Of the piece that is not complete.
    sum: Hasher,
    sum_len: u64,
    /// Bytes between two access points that have a window.
    spacing: Arc<AtomicU64>,
    spacing_of_starts: u64,
    weight: u64,
    budget: u64,
}

impl Collector {
    /// For a file of `packed` bytes.
    pub(super) fn new(method: Method, packed: u64) -> Self {
        Self {
            points: Points { method, raw: 0, piece: PIECE, sums: Vec::new(), points: Vec::new(), notes: Vec::new() },
            sum: Hasher::new(),
            sum_len: 0,
            spacing: Arc::new(AtomicU64::new(SPACING)),
            spacing_of_starts: SPACING_OF_STARTS,
            weight: 0,
            budget: (packed / SHARE).clamp(BUDGET.0, BUDGET.1),
        }
    }

    /// With access points at other distances.
    #[cfg(test)]
    pub(super) fn spaced(mut self, spacing: u64, budget: u64) -> Self {
        self.spacing.store(spacing, Ordering::Relaxed);
        (self.spacing_of_starts, self.budget) = (spacing, budget);
        self
    }

    /// Bytes there should be between two access points that have a window.
    pub(super) fn spacing(&self) -> &Arc<AtomicU64> {
        &self.spacing
    }

    pub(super) fn method(&self) -> Method {
        self.points.method
    }

    /// Bytes of data so far.
    pub(super) fn raw(&self) -> u64 {
        self.points.raw
    }

    /// Whether an access point with a window is due.
    pub(super) fn is_due(&self) -> bool {
        let last = self.points.points.last().map_or(0, |point| point.raw);
        self.points.raw - last >= self.spacing.load(Ordering::Relaxed)
    }

    /// Takes the next bytes of data.
    pub(super) fn feed(&mut self, mut data: &[u8]) -> Result<(), SeekError> {
        self.points.raw += data.len() as u64;
        while !data.is_empty() {
            let room = (1 << self.points.piece) - self.sum_len;
            let (now, later) = data.split_at(data.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            self.sum.update(now);
            self.sum_len += now.len() as u64;
            data = later;
            if self.sum_len == 1 << self.points.piece {
                self.end_piece()?;
            }
        }
        Ok(())
    }

    fn end_piece(&mut self) -> Result<(), SeekError> {
        let sum = std::mem::take(&mut self.sum).finalize();
        let len = std::mem::take(&mut self.sum_len);
        self.points.sums.push(sum);
        if self.points.sums.len() < MAX_PIECES {
            return Ok(());
        }
        if self.points.piece == MAX_PIECE {
            return Err(SeekError::TooLarge { most: (MAX_PIECES as u64) << MAX_PIECE });
        }
        // Their number is even, and all of them are whole.
        self.points.sums = self.points.sums.chunks_exact(2).map(|pair| combine(pair, len)).collect();
        self.points.piece += 1;
        Ok(())
    }

    /// A frame or member begins at `packed`, with the next byte of data.
    pub(super) fn start(&mut self, packed: u64) {
        let point = Point { packed, raw: self.points.raw, entry: Entry::Start };
        match self.points.points.last_mut() {
            // The one before had no data.
            Some(last) if last.raw == point.raw => *last = point,
            Some(last) if point.raw - last.raw < self.spacing_of_starts => {}
            _ => self.push(point),
        }
    }

    /// An lzop block begins at `packed`, with the data at `raw`, which may not have been fed yet.
    pub(super) fn lzop(&mut self, packed: u64, raw: u64, header: u64) {
        let last = self.points.points.last().map(|point| point.raw);
        if last.is_none_or(|last| raw - last >= self.spacing_of_starts) {
            self.push(Point { packed, raw, entry: Entry::Lzop { header } });
        }
    }

    /// Adds an access point that needs `window`, and says whether it did. `made` is given the window in a small form.
    pub(super) fn point(&mut self, packed: u64, raw: u64, window: &[u8], made: impl FnOnce(Vec<u8>) -> Entry) -> bool {
        // Without it, all is slower and nothing wrong.
        let Ok(window) = zstd::bulk::compress(window, LEVEL) else { return false };
        if self.points.points.last().is_some_and(|last| last.raw >= raw) {
            return false;
        }
        self.push(Point { packed, raw, entry: made(window) });
        true
    }

    fn push(&mut self, point: Point) {
        self.weight += point.weight();
        self.points.points.push(point);
        while self.weight > self.budget && self.points.points.len() > 1 {
            let spacing = self.spacing.load(Ordering::Relaxed) * 2;
            self.spacing.store(spacing, Ordering::Relaxed);
            self.spacing_of_starts *= 2;
            self.thin(spacing);
        }
    }

    /// Keeps access points that are `spacing` bytes from each other.
    fn thin(&mut self, spacing: u64) {
        let starts = self.spacing_of_starts;
        let mut last = None;
        self.points.points.retain(|point| {
            let apart = if matches!(point.entry, Entry::Start | Entry::Lzop { .. }) { starts } else { spacing };
            let keep = last.is_none_or(|last| point.raw - last >= apart);
            if keep {
                last = Some(point.raw);
            }
            keep
        });
        self.weight = self.points.points.iter().map(Point::weight).sum();
    }

    /// Drops the access points with a window that are after `raw`.
    pub(super) fn forget_after(&mut self, raw: u64) {
        self.points.points.retain(|point| point.raw <= raw || point.entry == Entry::Start);
        self.weight = self.points.points.iter().map(Point::weight).sum();
    }

    pub(super) fn note(&mut self, note: String) {
        if self.points.notes.len() < MAX_NOTES {
            self.points.notes.push(note);
        }
    }

    /// All that was collected.
    pub(super) fn finish(mut self) -> Points {
        if self.sum_len > 0 {
            self.points.sums.push(self.sum.finalize());
        }
        // Blocks of lzop are found before their data is had.
        let raw = self.points.raw;
        self.points.points.retain(|point| point.raw < raw || raw == 0);
        self.points
    }
}

/// The checksum of two pieces of `len` bytes each.
fn combine(pair: &[u32], len: u64) -> u32 {
    let mut sum = Hasher::new_with_initial_len(pair[0], len);
    sum.combine(&Hasher::new_with_initial_len(pair[1], len));
    sum.finalize()
}

/// Appends a window that was made small to `out`.
pub(super) fn unpack_window(window: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    out.append(&mut zstd::bulk::decompress(window, MAX_WINDOW)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_grow_and_keep_their_sums() {
        let mut collector = Collector::new(Method::Gzip, 0);
        let data: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        collector.feed(&data).unwrap();
        let len = 1_usize << PIECE;
        let (first, second) = (crc32fast::hash(&data[..len]), crc32fast::hash(&data[len..2 * len]));
        assert_eq!(collector.points.sums[..2], [first, second]);
        assert_eq!(combine(&[first, second], len as u64), crc32fast::hash(&data[..2 * len]));
        collector.points.sums = vec![first; MAX_PIECES - 1];
        collector.feed(&data).unwrap();
        assert_eq!((collector.points.piece, collector.points.sums.len()), (PIECE + 1, MAX_PIECES / 2 + 5));
        collector.points.sums = vec![first; MAX_PIECES - 1];
        collector.points.piece = MAX_PIECE;
        let filled = (0..40).find_map(|_| collector.feed(&data).err());
        assert!(matches!(filled, Some(SeekError::TooLarge { .. })));
    }

    #[test]
    fn access_points_stay_within_their_budget() {
        let mut collector = Collector::new(Method::Zstd, 1 << 20);
        let mut window = vec![0; 20_000];
        for i in 0..1000_u64 {
            collector.points.raw = i * SPACING;
            if i == 0 {
                collector.start(0);
            } else if collector.is_due() {
                let mut x = i as u32 + 1;
                window.iter_mut().for_each(|byte| {
                    x = x.wrapping_mul(1664525).wrapping_add(1013904223);
                    *byte = (x >> 24) as u8;
                });
                assert!(collector.point(i, i * SPACING, &window, |window| Entry::Gzip { bits: 0, held: 0, window }));
            }
            assert!(collector.weight <= BUDGET.0, "{i}");
        }
        let points = collector.finish();
        assert_eq!((points.points[0].raw, points.points.len()), (0, 32));
        assert_eq!(points.before(0), Some(0));
        assert_eq!(points.before(points.points[3].raw - 1), Some(2));
        let apart: Vec<_> = points.points.windows(2).map(|pair| pair[1].raw - pair[0].raw).collect();
        assert!(apart.iter().all(|apart| *apart == 32 * SPACING), "{apart:?}");
    }
}
