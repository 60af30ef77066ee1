//! The index of a container: where each frame lies, and which clusters of which disk it holds.
//!
//! Layout, little endian. Body: `vzkeepIX`, version u32 = 2, bytes of an entry u32 = 20, UUID of the archive, count u64,
//! entries of compressed length u32, raw length u32, first cluster u32, (clusters << 8 | disk) u32, CRC32 of the compressed
//! bytes u32. Trailer, 32 bytes: length of the body u64, length of all frames u64, CRC32 of body and the trailer so far u32,
//! version u32, `vzkeepND`. The sum of a frame covers what zstd's and gzip's own checksums of the data leave out, so that no
//! bit of the file can change unnoticed; the index's own sum, which is over theirs, stands for the whole. Archives with
//! version 1 of the index, which had no sums, are read as the one stream they are. In `.zst` both are one skippable frame; in `.gz` the body is cut over empty members' extra fields and the trailer has
//! a member of its own. Either way the trailer lies at a fixed distance from the end of the file.

use std::io;

use super::{Container, MAX_FRAME, gzip};
use crate::archive::vma::MAX_HEADER;

const BODY_MAGIC: &[u8; 8] = b"vzkeepIX";
const TRAILER_MAGIC: &[u8; 8] = b"vzkeepND";
const VERSION: u32 = 2;
const HEAD: usize = 40;
const ENTRY: usize = 20;
const TRAILER: usize = 32;
/// One of the sixteen magic numbers of skippable zstd frames.
const SKIPPABLE: u32 = 0x184D_2A56;
/// Bytes of the longest body, read or written: 6 million frames, about 25 TiB of data. A longer one is left out.
const MAX_BODY: usize = 128 << 20;

/// In the place of the archive's UUID when it holds tar data, which has none.
pub const TAR_ID: [u8; 16] = *b"vzkeep tar files";
/// In the place of the disk: a part of the container that stock programs skip and that holds no data of the archive.
const TABLE: u8 = 255;

/// One frame of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Bytes in the container.
    pub packed: u32,
    /// Bytes of VMA or tar it holds.
    pub raw: u32,
    /// Number of the disk; 0 for a frame without clusters, such as the first one, which holds the VMA header.
    pub device: u8,
    /// The first cluster it holds.
    pub first: u32,
    /// How many it holds; all of the run from `first` on, below 2^24.
    pub clusters: u32,
    /// CRC32 of its bytes in the container.
    pub sum: u32,
}

impl Frame {
    /// A frame without clusters, `packed` as it is in the container: tar data, or the header of a VMA.
    pub fn of_data(packed: &[u8], raw: usize) -> Self {
        Self::of_clusters(packed, raw, 0, 0, 0)
    }

    /// A frame that holds `clusters` clusters of the disk with number `device`, from `first` on.
    pub fn of_clusters(packed: &[u8], raw: usize, device: u8, first: u32, clusters: u32) -> Self {
        let sum = crc32fast::hash(packed);
        Self { packed: packed.len() as u32, raw: raw as u32, device, first, clusters, sum }
    }

    /// Part of a table that stock programs skip, made by [`wrap`].
    pub fn of_table(packed: &[u8]) -> Self {
        Self::of_clusters(packed, 0, TABLE, 0, 0)
    }

    /// Whether these are the frame's bytes.
    ///
    /// # Errors
    /// When their checksum is another one.
    pub fn check(&self, packed: &[u8]) -> io::Result<()> {
        if crc32fast::hash(packed) == self.sum {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "its checksum does not match"))
    }

    /// Whether it is part of a table, and no data.
    pub fn is_table(&self) -> bool {
        self.raw == 0 && self.device == TABLE
    }
}

/// `payload` as a part of a container that stock programs skip; at most [`MAX_FRAME`] bytes.
pub fn wrap(container: Container, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + payload.len() / 1024 + 64);
    match container {
        Container::Zstd => {
            out.extend_from_slice(&SKIPPABLE.to_le_bytes());
            out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            out.extend_from_slice(payload);
        }
        Container::Gzip => payload.chunks(gzip::MAX_PAYLOAD).for_each(|part| gzip::add(&mut out, part)),
    }
    out
}

/// What [`wrap`] was given; `None` when `wrapped` is something else.
pub fn unwrap(container: Container, wrapped: &[u8]) -> Option<Vec<u8>> {
    match container {
        Container::Zstd => {
            let (head, payload) = wrapped.split_at_checked(8)?;
            (le32(head, 0) == SKIPPABLE && le32(head, 4) as usize == payload.len()).then(|| payload.to_vec())
        }
        Container::Gzip => {
            let (mut rest, mut payload) = (wrapped, Vec::new());
            while !rest.is_empty() {
                payload.extend_from_slice(gzip::take(&mut rest)?);
            }
            Some(payload)
        }
    }
}

/// An index that was read and found to be consistent with its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// UUID of the archive it was made for.
    pub uuid: [u8; 16],
    entries: Vec<u8>,
}

/// An index is there, but cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// It is damaged or belongs to another file.
    #[error("the index at the end of the archive is damaged: {0}")]
    Damaged(&'static str),
    /// It cannot be read.
    #[error("reading the index at the end of the archive failed: {0}")]
    Read(#[from] io::Error),
}

impl Index {
    /// Looks for the index of a container of `size` bytes; `read_at` fills a buffer with its bytes from an offset on.
    /// `None` when it has none.
    ///
    /// # Errors
    /// When there is one, but it is damaged, or reading fails. The container can still be read as one stream.
    pub fn find(
        container: Container,
        size: u64,
        read_at: &mut dyn FnMut(&mut [u8], u64) -> io::Result<()>,
    ) -> Result<Option<Self>, IndexError> {
        let behind = if container == Container::Gzip { gzip::BEHIND } else { 0 };
        let Some(trailer_at) = size.checked_sub((TRAILER + behind) as u64) else { return Ok(None) };
        let mut trailer = [0; TRAILER];
        read_at(&mut trailer, trailer_at)?;
        let (len, frames) = (le64(&trailer, 0), le64(&trailer, 8));
        let len = usize::try_from(len).ok().filter(|len| (HEAD..=MAX_BODY).contains(len));
        // What lies between the frames and the end of the file is known to the byte.
        let wrapped = len.map_or(0, |len| wrapped_len(container, len));
        let fits = frames.checked_add(wrapped as u64) == Some(size);
        if &trailer[24..] != TRAILER_MAGIC {
            // Lengths that fit are no coincidence.
            return if fits { Err(IndexError::Damaged("its last mark is wrong")) } else { Ok(None) };
        }
        if le32(&trailer, 20) != VERSION {
            return Err(IndexError::Damaged("unknown version"));
        }
        let len = len.ok_or(IndexError::Damaged("impossible length"))?;
        if !fits {
            return Err(IndexError::Damaged("its length does not fit the file"));
        }
        let mut bytes = vec![0; wrapped];
        read_at(&mut bytes, frames)?;
        let body = match container {
            Container::Zstd => {
                if le32(&bytes, 0) != SKIPPABLE || le32(&bytes, 4) as usize != len + TRAILER {
                    return Err(IndexError::Damaged("no skippable frame around it"));
                }
                bytes.drain(..8);
                bytes.truncate(len);
                bytes
            }
            Container::Gzip => {
                let mut body = Vec::with_capacity(len);
                let mut rest = bytes.as_slice();
                while body.len() < len {
                    body.extend_from_slice(gzip::take(&mut rest).ok_or(IndexError::Damaged("no member around it"))?);
                }
                body
            }
        };
        Self::parse(&body, &trailer, len, frames).map(Some)
    }

    fn parse(body: &[u8], trailer: &[u8; TRAILER], len: usize, frames: u64) -> Result<Self, IndexError> {
        let damaged = |why| Err(IndexError::Damaged(why));
        if body.len() != len || crc(body, trailer) != le32(trailer, 16) {
            return damaged("its checksum does not match");
        }
        if &body[..8] != BODY_MAGIC || le32(body, 8) != VERSION || le32(body, 12) as usize != ENTRY {
            return damaged("unknown layout");
        }
        let entries = &body[HEAD..];
        if entries.is_empty()
            || !entries.len().is_multiple_of(ENTRY)
            || le64(body, 32) != (entries.len() / ENTRY) as u64
        {
            return damaged("wrong count of frames");
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&body[16..32]);
        let index = Self { uuid, entries: entries.to_vec() };
        let mut sum = 0;
        for (i, frame) in index.iter().enumerate() {
            let most = if i == 0 { MAX_HEADER } else { MAX_FRAME };
            if frame.packed == 0
                || (frame.raw == 0 && !frame.is_table())
                || frame.packed.max(frame.raw) as usize > most + most / 8 + 1024
            {
                return damaged("impossible length of a frame");
            }
            sum += u64::from(frame.packed);
        }
        if sum != frames {
            return damaged("the frames do not fill the file");
        }
        Ok(index)
    }

    /// Whether a container of `size` bytes ends like one with an index. Reads a few bytes only; whether the index can be used, only
    /// [`Index::find`] can tell.
    ///
    /// # Errors
    /// When reading fails.
    pub fn announced(
        container: Container,
        size: u64,
        read_at: &mut dyn FnMut(&mut [u8], u64) -> io::Result<()>,
    ) -> io::Result<bool> {
        let behind = if container == Container::Gzip { gzip::BEHIND } else { 0 };
        let Some(magic_at) = size.checked_sub((TRAILER_MAGIC.len() + behind) as u64) else { return Ok(false) };
        let mut magic = [0; TRAILER_MAGIC.len()];
        read_at(&mut magic, magic_at)?;
        Ok(&magic == TRAILER_MAGIC)
    }

    /// The bytes that stand for the index in a container: every one of them is known.
    pub fn encode(&self, container: Container) -> Vec<u8> {
        let frames = self.iter().map(|frame| u64::from(frame.packed)).sum();
        IndexBuilder { uuid: self.uuid, entries: self.entries.clone(), frames }.finish(container)
    }

    /// Number of frames, at least 1.
    pub fn len(&self) -> usize {
        self.entries.len() / ENTRY
    }

    /// Never: an archive has at least its header's frame.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Frame number `i`.
    pub fn frame(&self, i: usize) -> Option<Frame> {
        self.entries.get(i * ENTRY..(i + 1) * ENTRY).map(decode)
    }

    /// All frames, in the order of the container.
    pub fn iter(&self) -> impl Iterator<Item = Frame> + '_ {
        self.entries.chunks_exact(ENTRY).map(decode)
    }
}

/// Collects the index while the frames are written; 20 bytes of memory per frame.
#[derive(Debug)]
pub struct IndexBuilder {
    uuid: [u8; 16],
    entries: Vec<u8>,
    frames: u64,
}

impl IndexBuilder {
    /// For the archive `uuid`.
    pub fn new(uuid: [u8; 16]) -> Self {
        Self { uuid, entries: Vec::new(), frames: 0 }
    }

    /// Notes the next frame of the container.
    pub fn push(&mut self, frame: Frame) {
        self.frames += u64::from(frame.packed);
        if self.entries.len() + HEAD + ENTRY > MAX_BODY {
            return;
        }
        self.entries.extend_from_slice(&frame.packed.to_le_bytes());
        self.entries.extend_from_slice(&frame.raw.to_le_bytes());
        self.entries.extend_from_slice(&frame.first.to_le_bytes());
        self.entries.extend_from_slice(&(frame.clusters << 8 | u32::from(frame.device)).to_le_bytes());
        self.entries.extend_from_slice(&frame.sum.to_le_bytes());
    }

    /// The bytes to append to the container; none when there are more frames than an index may have.
    pub fn finish(self, container: Container) -> Vec<u8> {
        if self.entries.len() + HEAD + ENTRY > MAX_BODY {
            return Vec::new();
        }
        let mut body = Vec::with_capacity(8 + HEAD + self.entries.len() + TRAILER);
        if container == Container::Zstd {
            body.extend_from_slice(&SKIPPABLE.to_le_bytes());
            body.extend_from_slice(&((HEAD + self.entries.len() + TRAILER) as u32).to_le_bytes());
        }
        let start = body.len();
        body.extend_from_slice(BODY_MAGIC);
        body.extend_from_slice(&VERSION.to_le_bytes());
        body.extend_from_slice(&(ENTRY as u32).to_le_bytes());
        body.extend_from_slice(&self.uuid);
        body.extend_from_slice(&((self.entries.len() / ENTRY) as u64).to_le_bytes());
        body.extend_from_slice(&self.entries);
        let mut trailer = [0; TRAILER];
        trailer[..8].copy_from_slice(&((body.len() - start) as u64).to_le_bytes());
        trailer[8..16].copy_from_slice(&self.frames.to_le_bytes());
        let sum = crc(&body[start..], &trailer);
        trailer[16..20].copy_from_slice(&sum.to_le_bytes());
        trailer[20..24].copy_from_slice(&VERSION.to_le_bytes());
        trailer[24..].copy_from_slice(TRAILER_MAGIC);
        match container {
            Container::Zstd => {
                body.extend_from_slice(&trailer);
                body
            }
            Container::Gzip => {
                let mut out = Vec::with_capacity(body.len() + body.len() / 1024 + 1024);
                body.chunks(gzip::MAX_PAYLOAD).for_each(|part| gzip::add(&mut out, part));
                gzip::add(&mut out, &trailer);
                out
            }
        }
    }
}

/// Bytes between the frames and the end of the file when the body has `len`.
fn wrapped_len(container: Container, len: usize) -> usize {
    match container {
        Container::Zstd => 8 + len + TRAILER,
        Container::Gzip => len + TRAILER + gzip::OVERHEAD + len.div_ceil(gzip::MAX_PAYLOAD) * gzip::OVERHEAD,
    }
}

/// Of the body and of the two lengths in the trailer.
fn crc(body: &[u8], trailer: &[u8; TRAILER]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(body);
    sum.update(&trailer[..16]);
    sum.finalize()
}

fn decode(entry: &[u8]) -> Frame {
    let last = le32(entry, 12);
    Frame {
        packed: le32(entry, 0),
        raw: le32(entry, 4),
        first: le32(entry, 8),
        device: last as u8,
        clusters: last >> 8,
        sum: le32(entry, 16),
    }
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}
