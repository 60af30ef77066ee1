//! Extents: encoding clusters in place, so that header and blocks become one contiguous write without a copy, and
//! parsing extent headers.

use std::ops::Range;

use md5::{Digest, Md5};

use super::piece::Piece;
use super::{BLOCK, CLUSTER, CLUSTERS_PER_EXTENT, Damage, EXTENT_HEADER, VmaError, array, be16, be32};

const MAGIC: &[u8; 4] = b"VMAE";
const MD5_AT: usize = 24;
const INFOS_AT: usize = 40;
const BLOCKS_PER_CLUSTER: usize = CLUSTER / BLOCK;

/// A cluster that goes into an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster {
    /// Number of the disk.
    pub device: u8,
    /// Number of the cluster on its disk.
    pub number: u32,
    /// Whether its bytes are in the buffer; otherwise it is known to be zero.
    pub read: bool,
}

/// What encoding an extent gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    /// Bytes of the extent, from the start of the buffer.
    pub len: usize,
    /// Blocks left out because they were zero, those of clusters that were not read included.
    pub zero_blocks: usize,
}

/// Encodes an extent in place. The clusters that were read lie in `buf` one behind the other from [`EXTENT_HEADER`] on,
/// each padded to [`CLUSTER`] bytes; afterwards the first `len` bytes of `buf` are the extent.
///
/// # Panics
/// When there are more than [`CLUSTERS_PER_EXTENT`] clusters or `buf` is too short for them.
pub fn encode_extent(buf: &mut [u8], uuid: &[u8; 16], clusters: &[Cluster]) -> Encoded {
    assert!(clusters.len() <= CLUSTERS_PER_EXTENT, "an extent holds at most {CLUSTERS_PER_EXTENT} clusters");
    let mut infos = [0; 8 * CLUSTERS_PER_EXTENT];
    let (mut from, mut to) = (EXTENT_HEADER, EXTENT_HEADER);
    for (info, cluster) in infos.chunks_exact_mut(8).zip(clusters) {
        let mut mask = 0;
        if cluster.read {
            mask = zero_mask(&buf[from..from + CLUSTER]);
            to += compact(buf, from, to, mask);
            from += CLUSTER;
        }
        info[..2].copy_from_slice(&mask.to_be_bytes());
        info[3] = cluster.device;
        info[4..].copy_from_slice(&cluster.number.to_be_bytes());
    }
    let blocks = (to - EXTENT_HEADER) / BLOCK;
    seal(&mut buf[..EXTENT_HEADER], uuid, blocks as u16, &infos);
    Encoded { len: to, zero_blocks: clusters.len() * BLOCKS_PER_CLUSTER - blocks }
}

/// Encodes an extent of `count` zero clusters from `first` on into the first [`EXTENT_HEADER`] bytes of `buf`. With
/// `count` 0 that is the empty extent which ends an archive without disks.
///
/// # Panics
/// As [`encode_extent`].
pub fn encode_zero_extent(buf: &mut [u8], uuid: &[u8; 16], device: u8, first: u32, count: usize) {
    let mut infos = [0; 8 * CLUSTERS_PER_EXTENT];
    for (i, info) in infos.chunks_exact_mut(8).enumerate().take(count) {
        info[3] = device;
        info[4..].copy_from_slice(&(first + i as u32).to_be_bytes());
    }
    seal(&mut buf[..EXTENT_HEADER], uuid, 0, &infos);
}

fn seal(head: &mut [u8], uuid: &[u8; 16], blocks: u16, infos: &[u8]) {
    head.fill(0);
    head[..4].copy_from_slice(MAGIC);
    head[6..8].copy_from_slice(&blocks.to_be_bytes());
    head[8..24].copy_from_slice(uuid);
    head[INFOS_AT..].copy_from_slice(infos);
    let sum: [u8; 16] = Md5::digest(&*head).into();
    head[MD5_AT..MD5_AT + 16].copy_from_slice(&sum);
}

/// Bit i is set when block i of the cluster holds anything but zeros.
fn zero_mask(cluster: &[u8]) -> u16 {
    let mut mask = 0;
    for (i, block) in cluster.chunks_exact(BLOCK).enumerate() {
        mask |= u16::from(!is_zero(block)) << i;
    }
    mask
}

/// Whether all bytes are zero. Folds before it compares: one branch for 256 bytes, and the fold is vectorised.
pub fn is_zero(block: &[u8]) -> bool {
    let (chunks, rest) = block.as_chunks::<256>();
    let chunk_is_zero =
        |chunk: &[u8; 256]| chunk.as_chunks::<16>().0.iter().fold(0, |or, word| or | u128::from_ne_bytes(*word)) == 0;
    chunks.iter().all(chunk_is_zero) && rest.iter().all(|b| *b == 0)
}

/// Moves the blocks named by `mask` from the cluster at `from` down to `to`. Returns the bytes they have.
fn compact(buf: &mut [u8], from: usize, to: usize, mask: u16) -> usize {
    if mask == u16::MAX {
        if from != to {
            buf.copy_within(from..from + CLUSTER, to);
        }
        return CLUSTER;
    }
    let mut len = 0;
    for block in (0..BLOCKS_PER_CLUSTER).filter(|i| mask >> i & 1 == 1) {
        let at = from + block * BLOCK;
        if at != to + len {
            buf.copy_within(at..at + BLOCK, to + len);
        }
        len += BLOCK;
    }
    len
}

/// A parsed extent header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentHead {
    /// Blocks that follow the header.
    pub blocks: usize,
    /// The clusters, in the order of their blocks.
    pub pieces: Vec<Piece>,
}

impl ExtentHead {
    /// Parses the header of an extent of the archive `uuid`; `offset` is where it was found.
    ///
    /// # Errors
    /// When magic, UUID, checksum or count of blocks are wrong.
    pub fn parse(head: &[u8; EXTENT_HEADER], uuid: &[u8; 16], offset: u64) -> Result<Self, VmaError> {
        let damaged = |damage| Err(VmaError::Damaged { offset, damage });
        if &head[..4] != MAGIC {
            return damaged(Damage::ExtentMagic(array(head, 0)));
        }
        let mut plain = *head;
        plain[MD5_AT..MD5_AT + 16].fill(0);
        if Md5::digest(plain)[..] != head[MD5_AT..MD5_AT + 16] {
            return damaged(Damage::ExtentChecksum);
        }
        if &head[8..24] != uuid {
            return damaged(Damage::ExtentUuid);
        }
        let mut pieces = Vec::with_capacity(CLUSTERS_PER_EXTENT);
        for info in head[INFOS_AT..].chunks_exact(8).filter(|info| info.iter().any(|b| *b != 0)) {
            pieces.push(Piece { mask: be16(info, 0), device: info[3], number: be32(info, 4) });
        }
        let announced = usize::from(be16(head, 6));
        let listed = pieces.iter().map(|p: &Piece| p.stored() / BLOCK).sum();
        if announced != listed {
            return damaged(Damage::BlockCount { announced, listed });
        }
        Ok(Self { blocks: announced, pieces })
    }

    /// Bytes of the extent, header included.
    pub fn len(&self) -> usize {
        EXTENT_HEADER + self.blocks * BLOCK
    }

    /// The blocks of a cluster of the extent: which are stored, and where the first one lies, in bytes from the extent's start.
    /// `None` when the cluster is not in it.
    pub fn find(&self, device: u8, number: u32) -> Option<(u16, usize)> {
        self.places()
            .find(|(piece, _)| piece.device == device && piece.number == number)
            .map(|(p, at)| (p.mask, at.start))
    }

    /// The clusters, and where the blocks of each lie, in bytes from the extent's start.
    pub fn places(&self) -> impl Iterator<Item = (Piece, Range<usize>)> + '_ {
        let mut at = EXTENT_HEADER;
        self.pieces.iter().map(move |piece| {
            let start = at;
            at += piece.stored();
            (*piece, start..at)
        })
    }

    /// Whether the extent holds no cluster at all.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}

/// An extent among others in memory.
#[derive(Debug)]
pub struct Extent<'a> {
    /// Its parsed header.
    pub head: ExtentHead,
    /// Its blocks.
    pub data: &'a [u8],
    /// Where it begins in the bytes gone through.
    pub at: usize,
    /// Where it begins in the VMA stream.
    pub offset: u64,
}

/// Goes through extents that lie one behind the other and fill their bytes: those of a frame. Ends with the first error.
#[derive(Debug)]
pub struct Extents<'a> {
    bytes: &'a [u8],
    uuid: &'a [u8; 16],
    start: u64,
    at: usize,
}

impl<'a> Extents<'a> {
    /// In `bytes`, which begin at `start` in the stream of the archive `uuid`.
    pub fn new(bytes: &'a [u8], uuid: &'a [u8; 16], start: u64) -> Self {
        Self { bytes, uuid, start, at: 0 }
    }

    fn parse(&self) -> Result<Extent<'a>, VmaError> {
        let (at, offset) = (self.at, self.start + self.at as u64);
        let truncated = |what| VmaError::Damaged { offset, damage: Damage::Truncated(what) };
        let (head, rest) = self.bytes[at..].split_first_chunk().ok_or_else(|| truncated("an extent's header"))?;
        let head = ExtentHead::parse(head, self.uuid, offset)?;
        let data = rest.get(..head.blocks * BLOCK).ok_or_else(|| truncated("an extent's data"))?;
        Ok(Extent { head, data, at, offset })
    }
}

impl<'a> Iterator for Extents<'a> {
    type Item = Result<Extent<'a>, VmaError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.bytes.len() {
            return None;
        }
        let parsed = self.parse();
        self.at = parsed.as_ref().map_or(self.bytes.len(), |extent| extent.at + extent.head.len());
        Some(parsed)
    }
}
