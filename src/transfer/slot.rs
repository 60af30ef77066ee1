//! The buffers a group travels in, and how it becomes VMA extents in place.

use super::plan::Group;
use crate::archive::vma::{
    BLOCK, CLUSTER, CLUSTERS_PER_EXTENT, Cluster, EXTENT_HEADER, MAX_EXTENT, encode_extent, encode_zero_extent,
};

/// Bytes of the buffer a group needs at most: one extent with data and the zero extents behind it. Every run of zeros, of which
/// there is at most one more than data clusters, may begin an extent of its own.
pub(super) const RAW: usize = MAX_EXTENT + (65536 / CLUSTERS_PER_EXTENT + 2 + CLUSTERS_PER_EXTENT) * EXTENT_HEADER;

/// A pair of buffers that travels with a group from its reader to the writer. The number of pairs is what bounds the
/// memory, and because a reader takes one before it takes a group, the group that is next in line always has one.
#[derive(Default)]
pub(super) struct Slot {
    /// The data as read, then the extents.
    pub(super) raw: Vec<u8>,
    /// The compressed frame.
    pub(super) packed: Vec<u8>,
}

impl Slot {
    /// Bytes a slot can come to have, compressed or not.
    pub(super) fn bytes(compressed: bool) -> u64 {
        Self::bytes_of(RAW, compressed)
    }

    /// The same for a slot of `raw` bytes.
    pub(super) fn bytes_of(raw: usize, compressed: bool) -> u64 {
        let packed = if compressed { zstd::zstd_safe::compress_bound(raw) } else { 0 };
        (raw + packed) as u64
    }
}

/// Encodes a group whose data clusters lie in `raw` from [`EXTENT_HEADER`] on, one behind the other. Returns the bytes
/// of the extents and how many bytes of zeros were left out.
pub(super) fn encode(group: &Group, device: u8, uuid: &[u8; 16], raw: &mut [u8]) -> (usize, u64) {
    let cluster = |read| move |number: u64| Cluster { device, number: number as u32, read };
    let mut clusters: Vec<Cluster> = group.data().map(cluster(true)).collect();
    let mut zeros = group.zeros();
    let (mut len, mut zero_blocks) = (0, 0);
    if !clusters.is_empty() {
        // The rest of the first extent takes zero clusters; in order, as long as they are.
        let room = CLUSTERS_PER_EXTENT - clusters.len();
        clusters.extend(zeros.by_ref().take(room).map(cluster(false)));
        clusters.sort_by_key(|c| c.number);
        let encoded = encode_extent(raw, uuid, &clusters);
        (len, zero_blocks) = (encoded.len, encoded.zero_blocks as u64);
    }
    let mut next = zeros.next();
    while let Some(first) = next {
        // Zero extents take neighbouring clusters only; a gap starts the next one.
        let mut count = 1;
        next = zeros.next();
        while count < CLUSTERS_PER_EXTENT && next == Some(first + count as u64) {
            count += 1;
            next = zeros.next();
        }
        encode_zero_extent(&mut raw[len..], uuid, device, first as u32, count);
        len += EXTENT_HEADER;
        zero_blocks += (count * CLUSTER / BLOCK) as u64;
    }
    (len, zero_blocks * BLOCK as u64)
}
