//! Reading an archive: extents one by one from a stream, and the check that every cluster comes exactly once.

use std::io::{self, Read};
use std::ops::Range;

use super::seen::{Added, Seen};
use super::{BLOCK, Damage, Device, EXTENT_HEADER, ExtentHead, Header, Piece, VmaError, array};

/// Incomplete areas that are kept track of at a time, all disks together; 4 KiB of memory each.
const MAX_AREAS: i64 = 16384;

/// Reads extents from a stream.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    header: Header,
    offset: u64,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// As [`Header::read`].
    pub fn new(mut input: R) -> Result<Self, VmaError> {
        let (header, offset) = Header::read(&mut input)?;
        Ok(Self { input, header, offset })
    }

    /// What the header says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes of the VMA stream read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads the next extent into `buf`, header and blocks, and returns its parsed header; `None` at the end of the
    /// stream. Whether its clusters are plausible is [`Checker`]'s part.
    ///
    /// # Errors
    /// When the stream fails or is not a VMA archive.
    pub fn next_extent(&mut self, buf: &mut Vec<u8>) -> Result<Option<ExtentHead>, VmaError> {
        buf.resize(EXTENT_HEADER, 0);
        let start = self.offset;
        match fill(&mut self.input, buf) {
            Ok(0) => return Ok(None),
            Ok(EXTENT_HEADER) => {}
            // Says what is there, when it is not even the start of an extent.
            Ok(n) if n >= 4 && &buf[..4] != b"VMAE" => {
                return Err(self.damaged(start, Damage::ExtentMagic(array(buf, 0))));
            }
            Ok(n) => return Err(self.damaged(start + n as u64, Damage::Truncated("an extent's header"))),
            Err(source) => return Err(VmaError::Read { offset: start, source }),
        }
        let head = ExtentHead::parse(&array(buf, 0), &self.header.uuid, start)?;
        let blocks = start + EXTENT_HEADER as u64;
        buf.resize(head.len(), 0);
        match fill(&mut self.input, &mut buf[EXTENT_HEADER..]) {
            Ok(n) if n == head.blocks * BLOCK => {}
            Ok(n) => return Err(self.damaged(blocks + n as u64, Damage::Truncated("an extent's data"))),
            Err(source) => return Err(VmaError::Read { offset: blocks, source }),
        }
        self.offset = start + head.len() as u64;
        Ok(Some(head))
    }

    fn damaged(&self, offset: u64, damage: Damage) -> VmaError {
        VmaError::Damaged { offset, damage }
    }
}

/// Reads until `buf` is full or the stream ends. Returns the bytes read.
fn fill(input: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buf.len() {
        match input.read(&mut buf[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}

/// Watches that every cluster of every disk comes exactly once. Extents may be shown in any order.
#[derive(Debug)]
pub struct Checker {
    /// By disk number.
    disks: Vec<Option<(Device, Seen)>>,
    areas: i64,
}

impl Checker {
    /// For an archive with this header; nothing seen yet.
    pub fn new(header: &Header) -> Self {
        let mut disks: Vec<_> = (0..256).map(|_| None).collect();
        for device in &header.devices {
            disks[usize::from(device.id)] = Some((device.clone(), Seen::default()));
        }
        Self { disks, areas: 0 }
    }

    /// Takes note of the clusters of an extent found at `offset`.
    ///
    /// # Errors
    /// When one of them belongs to no disk, lies behind its disk's end or came before.
    pub fn extent(&mut self, head: &ExtentHead, offset: u64) -> Result<(), VmaError> {
        let damaged = |damage| VmaError::Damaged { offset, damage };
        head.pieces.iter().try_for_each(|piece| self.piece(*piece).map_err(damaged))
    }

    /// The same for one cluster.
    ///
    /// # Errors
    /// As [`Checker::extent`].
    pub fn piece(&mut self, piece: Piece) -> Result<(), Damage> {
        let Some((device, seen)) = &mut self.disks[usize::from(piece.device)] else {
            return Err(Damage::UnknownDevice(piece.device));
        };
        let (clusters, cluster) = (device.clusters(), piece.number);
        if u64::from(cluster) >= clusters {
            return Err(Damage::OutOfRange { device: device.name.clone(), cluster, clusters });
        }
        match seen.insert(cluster) {
            Added::New(grown) => self.areas += grown,
            Added::Duplicate => return Err(Damage::Duplicate { device: device.name.clone(), cluster }),
        }
        if self.areas > MAX_AREAS { Err(Damage::TooScattered) } else { Ok(()) }
    }

    /// The clusters that were not seen, by disk and place.
    pub fn missing(&self) -> impl Iterator<Item = (Device, Range<u64>)> + '_ {
        let disks = self.disks.iter().flatten();
        disks.flat_map(|(device, seen)| seen.missing(device.clusters()).map(|run| (device.clone(), run)))
    }

    /// The stream ended at `offset`: is everything there?
    ///
    /// # Errors
    /// When clusters are missing.
    pub fn finish(&self, offset: u64) -> Result<(), VmaError> {
        for (device, seen) in self.disks.iter().flatten() {
            let clusters = device.clusters();
            if seen.count() < clusters {
                let first = seen.first_missing();
                let damage = Damage::Missing {
                    device: device.name.clone(),
                    missing: clusters - seen.count(),
                    clusters,
                    first,
                    byte: first * super::CLUSTER as u64,
                };
                return Err(VmaError::Damaged { offset, damage });
            }
        }
        Ok(())
    }
}
