//! VMA, the archive format of a virtual machine: a header with the configuration files and the list of disks, then
//! extents of up to 59 clusters of 64 KiB, in any order.
//!
//! Everything here works on bytes in memory or on a plain reader; all numbers are big endian unless said otherwise.
//! Bytes from outside are never trusted: a bad one ends in a [`VmaError`] that says what and where.

mod extent;
mod header;
mod map;
mod piece;
mod reader;
mod seen;
#[cfg(test)]
pub(crate) mod tests;

pub use extent::{Cluster, Encoded, Extent, ExtentHead, Extents, encode_extent, encode_zero_extent, is_zero};
pub use header::Header;
pub(crate) use map::{ClusterMap, MAX_MAP, Place, Scanner};
pub use piece::{Piece, Run, runs, stored};
pub use reader::{Checker, Reader};

/// Bytes of a cluster, the unit in which disks are cut.
pub const CLUSTER: usize = 65536;
/// Bytes of a block; blocks of a cluster that are zero are not stored.
pub const BLOCK: usize = 4096;
/// Clusters an extent can hold.
pub const CLUSTERS_PER_EXTENT: usize = 59;
/// Bytes of the header in front of each extent's blocks.
pub const EXTENT_HEADER: usize = 512;
/// Bytes of the largest extent.
pub const MAX_EXTENT: usize = EXTENT_HEADER + CLUSTERS_PER_EXTENT * CLUSTER;
/// Bytes of the largest header that is accepted: 256 configurations and 255 names of at most 64 KiB each fit.
pub const MAX_HEADER: usize = 64 << 20;
/// Bytes of the largest disk: cluster numbers have 32 bits.
pub const MAX_DISK: u64 = (1 << 32) * CLUSTER as u64;

/// A disk in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Number of the disk within the archive, 1 to 255.
    pub id: u8,
    /// Name: `drive-scsi0`.
    pub name: String,
    /// Size in bytes, never 0.
    pub size: u64,
}

impl Device {
    /// Number of clusters; the last one may be incomplete on the disk, never in the archive.
    pub fn clusters(&self) -> u64 {
        self.size.div_ceil(CLUSTER as u64)
    }
}

/// An archive cannot be read, or one cannot be written like that.
#[derive(Debug, thiserror::Error)]
pub enum VmaError {
    /// The bytes are not those of a VMA archive.
    #[error("damaged at byte {offset} of the VMA stream: {damage}")]
    Damaged {
        /// Where, counted in uncompressed bytes.
        offset: u64,
        /// What is wrong there.
        damage: Damage,
    },
    /// The bytes cannot be had: reading or decompressing failed.
    #[error("reading at byte {offset} of the VMA stream failed: {source}")]
    Read {
        /// Where, counted in uncompressed bytes.
        offset: u64,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The format has no room for what was asked for.
    #[error("a VMA archive cannot hold {0}")]
    Unfit(String),
}

/// What is wrong with an archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It does not start like an archive.
    #[error("not a VMA archive, it starts with {0:02x?}")]
    HeaderMagic([u8; 4]),
    /// A version nobody knows.
    #[error("version {0} is not supported, only 1 is")]
    Version(u32),
    /// A number in the header points nowhere.
    #[error("header: {0}")]
    HeaderLayout(String),
    /// The header's MD5 is wrong.
    #[error("the header's checksum does not match")]
    HeaderChecksum,
    /// Something else where an extent should start.
    #[error("expected an extent, found {0:02x?}")]
    ExtentMagic([u8; 4]),
    /// An extent of another archive.
    #[error("the extent belongs to another archive (its UUID differs)")]
    ExtentUuid,
    /// The extent header's MD5 is wrong.
    #[error("the extent header's checksum does not match")]
    ExtentChecksum,
    /// The count of blocks and the masks disagree.
    #[error("the extent announces {announced} blocks, but lists {listed}")]
    BlockCount {
        /// By the count.
        announced: usize,
        /// By the masks.
        listed: usize,
    },
    /// A cluster of a disk that is not in the header.
    #[error("a cluster belongs to disk number {0}, which the header does not list")]
    UnknownDevice(u8),
    /// A cluster behind the end of its disk.
    #[error("cluster {cluster} lies behind the end of {device}, which has {clusters}")]
    OutOfRange {
        /// The disk.
        device: String,
        /// The cluster.
        cluster: u32,
        /// How many there are.
        clusters: u64,
    },
    /// A cluster that was there before.
    #[error("cluster {cluster} of {device} comes a second time")]
    Duplicate {
        /// The disk.
        device: String,
        /// The cluster.
        cluster: u32,
    },
    /// The archive ended too early.
    #[error(
        "{device} is incomplete: {missing} of {clusters} clusters are missing, the first is {first} (disk byte {byte})"
    )]
    Missing {
        /// The disk.
        device: String,
        /// How many are missing.
        missing: u64,
        /// How many there should be.
        clusters: u64,
        /// The first missing one.
        first: u64,
        /// The same as an offset on the disk.
        byte: u64,
    },
    /// Ends in the middle of something.
    #[error("the archive ends in the middle of {0}")]
    Truncated(&'static str),
    /// A frame's extents and the index of frames disagree.
    #[error("cluster {cluster} of disk number {device} is not where the index of frames has it")]
    Index {
        /// Number of the disk.
        device: u8,
        /// The cluster that is missing, or is where it should not be.
        cluster: u32,
    },
    /// More is incomplete at a time than is kept track of.
    #[error("the clusters are scattered over more than 32 TiB of incomplete disk areas")]
    TooScattered,
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

/// The `N` bytes from `at` on. Only for offsets the caller has checked; panics otherwise.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
