//! Where the clusters of an archive lie in its VMA stream: made from the extents' headers alone, whatever their order.
//!
//! Neighbouring clusters in one extent are one run of 12 bytes, and so are neighbouring ones that are zero, through all
//! extents: an archive the stock programs made takes about 5 bytes for each MiB of data.

use std::io::{self, Read, Write};

use super::reader::Checker;
use super::{BLOCK, Damage, EXTENT_HEADER, ExtentHead, Header, MAX_HEADER, VmaError, array, be32};
use crate::archive::Bytes;
use crate::archive::bytes::Reading;

/// Runs that are kept track of at most, 96 MiB: an archive of a scattered 4 TiB disk has as many. The extents' offsets take a
/// part of that room.
const MAX_RUNS: usize = 8 << 20;
/// Bytes of runs and extents.
const MAX_BYTES: usize = MAX_RUNS * RUN;
/// Bytes of a run, and of an extent's offset.
const RUN: usize = size_of::<Run>();
const EXTENT: usize = size_of::<u64>();
/// Bytes of the longest map that [`ClusterMap::encode`] makes, with its counts for 256 disks.
pub(crate) const MAX_MAP: usize = MAX_BYTES + 12 + 256 * 12;
/// In the place of the extent's number: the clusters are zero.
const ZERO: u32 = u32::MAX;

/// Where a cluster lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere: it is all zeros.
    Zero,
    /// In the extent whose header lies at this byte of the stream.
    Extent(u64),
}

/// Clusters `first` to `first + count` of a disk, all in one extent or all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    first: u32,
    count: u32,
    extent: u32,
}

impl Run {
    /// The cluster behind the last one.
    fn end(&self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }
}

/// The places of all clusters of all disks; each has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClusterMap {
    /// By number of the disk; sorted, without gaps.
    disks: Vec<Vec<Run>>,
    extents: Vec<u64>,
}

impl ClusterMap {
    /// Goes through the extents' headers of a stream that can be read anywhere.
    ///
    /// # Errors
    /// When it is damaged, incomplete, or cannot be read.
    pub(crate) fn scan(bytes: &dyn Bytes) -> Result<(Header, Self), VmaError> {
        let (header, mut offset) = Header::read(&mut Reading { bytes, offset: 0 })?;
        let mut builder = Builder::new(&header);
        while offset < bytes.len() {
            let mut head = [0; EXTENT_HEADER];
            let left = usize::try_from(bytes.len() - offset).unwrap_or(usize::MAX);
            let there = left.min(EXTENT_HEADER);
            bytes.read_at(&mut head[..there], offset).map_err(|source| VmaError::Read { offset, source })?;
            if there < EXTENT_HEADER {
                return Err(truncated(bytes.len(), "an extent's header"));
            }
            let head = ExtentHead::parse(&head, &header.uuid, offset)?;
            builder.extent(offset, &head)?;
            offset += head.len() as u64;
            if offset > bytes.len() {
                return Err(truncated(bytes.len(), "an extent's data"));
            }
        }
        let map = builder.finish(offset)?;
        Ok((header, map))
    }

    /// Where the cluster lies.
    pub(crate) fn place(&self, device: u8, cluster: u32) -> Option<Place> {
        let runs = &self.disks[usize::from(device)];
        let run = runs.get(runs.partition_point(|run| run.end() <= u64::from(cluster)))?;
        match run.extent {
            _ if cluster < run.first => None,
            ZERO => Some(Place::Zero),
            extent => self.extents.get(extent as usize).copied().map(Place::Extent),
        }
    }

    /// The runs of clusters from `first` to `end`: number of the first one behind it, and whether they are zero.
    pub(crate) fn runs(&self, device: u8, first: u64, end: u64) -> impl Iterator<Item = (u64, bool)> + '_ {
        let runs = &self.disks[usize::from(device)];
        let from = runs.partition_point(move |run| run.end() <= first);
        let within = runs[from..].iter().take_while(move |run| u64::from(run.first) < end);
        within.map(move |run| (run.end().min(end), run.extent == ZERO))
    }

    /// For an index file: count of extents u64, their offsets u64; count of disks u32, for each its number u32, count of runs
    /// u64, runs of three u32. Little endian.
    ///
    /// # Errors
    /// As `out`.
    pub(crate) fn encode(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&(self.extents.len() as u64).to_le_bytes())?;
        self.extents.iter().try_for_each(|offset| out.write_all(&offset.to_le_bytes()))?;
        let disks: Vec<_> = self.disks.iter().enumerate().filter(|(_, runs)| !runs.is_empty()).collect();
        out.write_all(&(disks.len() as u32).to_le_bytes())?;
        for (number, runs) in disks {
            out.write_all(&(number as u32).to_le_bytes())?;
            out.write_all(&(runs.len() as u64).to_le_bytes())?;
            for run in runs {
                [run.first, run.count, run.extent].iter().try_for_each(|v| out.write_all(&v.to_le_bytes()))?;
            }
        }
        Ok(())
    }

    /// Bytes that [`ClusterMap::encode`] writes.
    pub(crate) fn encoded_len(&self) -> u64 {
        let disks = self.disks.iter().filter(|runs| !runs.is_empty());
        let runs: usize = disks.map(|runs| 12 + runs.len() * RUN).sum();
        (12 + self.extents.len() * EXTENT + runs) as u64
    }

    /// What [`ClusterMap::encode`] made for an archive with this header; `None` when it is anything else.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn decode(header: &Header, from: &mut dyn Read, len: u64) -> io::Result<Option<Self>> {
        let mut words = Words { from, left: len };
        let mut disks = vec![Vec::new(); 256];
        let Some(count) = words.count(EXTENT as u64)? else { return Ok(None) };
        let extents = (0..count).map(|_| words.u64()).collect::<io::Result<_>>()?;
        if words.left < 4 {
            return Ok(None);
        }
        for _ in 0..words.u32()? {
            if words.left < 12 {
                return Ok(None);
            }
            let number = u8::try_from(words.u32()?).ok();
            let Some((number, count)) = number.zip(words.count(RUN as u64)?) else { return Ok(None) };
            let run = |_| Ok(Run { first: words.u32()?, count: words.u32()?, extent: words.u32()? });
            disks[usize::from(number)] = (0..count).map(run).collect::<io::Result<_>>()?;
        }
        let map = Self { disks, extents };
        Ok((words.left == 0 && map.fits(header)).then_some(map))
    }

    /// Whether every cluster of every disk has a place, and no other.
    fn fits(&self, header: &Header) -> bool {
        self.disks.iter().enumerate().all(|(number, runs)| {
            let mut end = 0;
            let good = runs.iter().all(|run| {
                let follows = u64::from(run.first) == end && run.count > 0;
                end = run.end();
                follows && (run.extent == ZERO || (run.extent as usize) < self.extents.len())
            });
            let device = u8::try_from(number).ok().and_then(|id| header.device(id));
            good && end == device.map_or(0, super::Device::clusters)
        })
    }
}

/// Takes the extents as they come.
struct Builder {
    checker: Checker,
    map: ClusterMap,
    runs: usize,
}

impl Builder {
    fn new(header: &Header) -> Self {
        let map = ClusterMap { disks: vec![Vec::new(); 256], extents: Vec::new() };
        Self { checker: Checker::new(header), map, runs: 0 }
    }

    fn extent(&mut self, offset: u64, head: &ExtentHead) -> Result<(), VmaError> {
        self.checker.extent(head, offset)?;
        let scattered = || VmaError::Damaged { offset, damage: Damage::TooScattered };
        let number = u32::try_from(self.map.extents.len()).ok().filter(|n| *n != ZERO).ok_or_else(scattered)?;
        if head.blocks > 0 {
            self.map.extents.push(offset);
        }
        for piece in &head.pieces {
            let extent = if piece.mask == 0 { ZERO } else { number };
            let runs = &mut self.map.disks[usize::from(piece.device)];
            match runs.last_mut() {
                Some(last) if last.extent == extent && last.end() == u64::from(piece.number) => last.count += 1,
                _ => {
                    runs.push(Run { first: piece.number, count: 1, extent });
                    self.runs += 1;
                }
            }
        }
        let bytes = RUN * self.runs + EXTENT * self.map.extents.len();
        if bytes > MAX_BYTES { Err(scattered()) } else { Ok(()) }
    }

    fn finish(mut self, offset: u64) -> Result<ClusterMap, VmaError> {
        self.checker.finish(offset)?;
        for runs in &mut self.map.disks {
            runs.sort_unstable_by_key(|run| run.first);
            runs.shrink_to_fit();
        }
        Ok(self.map)
    }
}

/// Makes the map from a stream that is pushed through, for archives that have to be decompressed from start to end.
pub(crate) struct Scanner {
    /// What is not complete yet: the archive's header or an extent's.
    pending: Vec<u8>,
    /// Where `pending` lies in the stream.
    offset: u64,
    /// Bytes of blocks still to come.
    skip: u64,
    found: Option<(Header, Builder)>,
}

impl Scanner {
    pub(crate) fn new() -> Self {
        Self { pending: Vec::new(), offset: 0, skip: 0, found: None }
    }

    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    /// When they are not those of an archive.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), VmaError> {
        loop {
            let skipped = bytes.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
            self.skip -= skipped as u64;
            self.offset += skipped as u64;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return Ok(());
            }
            let wanted = self.wanted();
            let taken = bytes.len().min(wanted.saturating_sub(self.pending.len()));
            self.pending.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.pending.len() < wanted || self.wanted() > wanted {
                continue;
            }
            match &mut self.found {
                None => {
                    let (header, len) = Header::read(&mut self.pending.as_slice())?;
                    let builder = Builder::new(&header);
                    self.found = Some((header, builder));
                    self.offset += len;
                }
                Some((header, builder)) => {
                    let head = ExtentHead::parse(&array(&self.pending, 0), &header.uuid, self.offset)?;
                    builder.extent(self.offset, &head)?;
                    self.offset += EXTENT_HEADER as u64;
                    self.skip = (head.blocks * BLOCK) as u64;
                }
            }
            self.pending.clear();
        }
    }

    /// Bytes that `pending` has to have before something can be made of it.
    fn wanted(&self) -> usize {
        match (&self.found, self.pending.len()) {
            (Some(_), _) => EXTENT_HEADER,
            (None, 0..60) => 60,
            // An impossible size is told by whoever parses it.
            (None, _) => (be32(&self.pending, 56) as usize).clamp(60, MAX_HEADER),
        }
    }

    /// The stream has ended.
    ///
    /// # Errors
    /// When it ended too early, or clusters are missing.
    pub(crate) fn finish(self) -> Result<(Header, ClusterMap), VmaError> {
        let end = self.offset + self.pending.len() as u64;
        let Some((header, builder)) = self.found else {
            Header::read(&mut self.pending.as_slice())?;
            return Err(truncated(end, "the header"));
        };
        if self.skip > 0 {
            return Err(truncated(end, "an extent's data"));
        }
        if !self.pending.is_empty() {
            return Err(truncated(end, "an extent's header"));
        }
        let map = builder.finish(end)?;
        Ok((header, map))
    }
}

fn truncated(offset: u64, what: &'static str) -> VmaError {
    VmaError::Damaged { offset, damage: Damage::Truncated(what) }
}

/// Numbers that are read one after the other.
struct Words<'a> {
    from: &'a mut dyn Read,
    left: u64,
}

impl Words<'_> {
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut array = [0; N];
        self.left = self.left.checked_sub(N as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.from.read_exact(&mut array)?;
        Ok(array)
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> io::Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// How many things of `size` bytes follow; none if there is no room for as many.
    fn count(&mut self, size: u64) -> io::Result<Option<usize>> {
        if self.left < 8 {
            return Ok(None);
        }
        let count = self.u64()?;
        Ok(usize::try_from(count).ok().filter(|_| count <= self.left / size))
    }
}
