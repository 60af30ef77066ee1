//! The archive of a virtual machine as disks that can be read anywhere: every one is an [`Image`].
//!
//! An archive with an index of frames is read through it; any other one through a map of its clusters, which is made by going
//! through the extents' headers once, and if it is compressed through all of it. All disks of an archive share a bounded cache.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::bytes::PlainBytes;
use super::cache::{PieceCache, Weight};
use super::foreign::{FirstPass, Foreign};
use super::framed::Framed;
use super::seek;
use super::source::recognise;
use super::vma::{CLUSTER, ClusterMap, Device, EXTENT_HEADER, ExtentHead, Header, Place, VmaError, runs};
use super::{ArchiveCause, ArchiveError, Bytes, Indexed};
use crate::host::{Cancel, Host};
use crate::image::{Extent, ExtentKind, Image, ImageError};

/// Bytes of decompressed data that are kept.
const CACHE: usize = 64 << 20;
/// Bytes of extents' headers that are kept.
const HEADS: usize = 4 << 20;

/// An open archive; see the module.
pub struct VmaArchive {
    name: String,
    header: Header,
    store: Store,
    note: Option<String>,
}

enum Store {
    Framed(Arc<Framed>),
    Mapped(Mapped),
}

/// A VMA stream and where in it the clusters are.
struct Mapped {
    bytes: Box<dyn Bytes>,
    map: ClusterMap,
    uuid: [u8; 16],
    heads: PieceCache<ExtentHead>,
}

impl Weight for ExtentHead {
    fn weight(&self) -> usize {
        EXTENT_HEADER
    }
}

impl VmaArchive {
    /// Opens the archive at `path`, a regular file. Waits end when `cancel` is set.
    ///
    /// # Errors
    /// When it cannot be read, is no archive, or not a complete one.
    pub fn open(host: &Host, path: &Path, cancel: &Cancel) -> Result<Arc<Self>, ArchiveError> {
        Self::open_with(host, path, FirstPass::Read, cancel)
    }

    /// As [`VmaArchive::open`]; `first` says what to do when that takes reading all of it.
    ///
    /// # Errors
    /// As [`VmaArchive::open`]. That nothing can be kept is worth a note only.
    pub fn open_with(host: &Host, path: &Path, first: FirstPass, cancel: &Cancel) -> Result<Arc<Self>, ArchiveError> {
        let name = path.display().to_string();
        Self::of_file(host, path, name.clone(), first, cancel)
            .map(Arc::new)
            .map_err(|cause| ArchiveError { archive: name, cause })
    }

    fn of_file(
        host: &Host,
        path: &Path,
        name: String,
        first: FirstPass,
        cancel: &Cancel,
    ) -> Result<Self, ArchiveCause> {
        let file = File::open(path).map_err(ArchiveCause::Open)?;
        let meta = file.metadata().map_err(ArchiveCause::Open)?;
        if !meta.is_file() {
            return Err(ArchiveCause::Open(io::Error::other("only a regular file can be read at any place")));
        }
        let mut start = [0; 16];
        let got = file.read_at(&mut start, 0).map_err(ArchiveCause::Open)?;
        let method = recognise(&start[..got])?;
        let (indexed, note) = Indexed::find(&file, method, meta.len())?;
        if let Some((header, indexed)) = indexed {
            let store = Store::Framed(Framed::open(indexed, header.clone(), CACHE)?);
            return Ok(Self { name, header, store, note });
        }
        let (header, map, bytes, note): (_, _, Box<dyn Bytes>, _) = match seek::Method::recognise(&start[..got]) {
            None => {
                let bytes = PlainBytes::new(file).map_err(ArchiveCause::Open)?;
                let (header, map) = ClusterMap::scan(&bytes)?;
                (header, map, Box::new(bytes), note)
            }
            Some(method) => {
                let mut foreign = Foreign { host, path, file, method, first, cancel, note };
                let (header, map, bytes) = foreign.vma()?;
                (header, map, Box::new(bytes), foreign.note)
            }
        };
        let mapped = Mapped { bytes, map, uuid: header.uuid, heads: PieceCache::new(HEADS) };
        Ok(Self { name, header, store: Store::Mapped(mapped), note })
    }

    /// The archive's path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// UUID, time, configuration files and disks.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How its disks are read, in a few words.
    pub fn access(&self) -> &'static str {
        match &self.store {
            Store::Framed(_) => "by its index of frames",
            Store::Mapped(_) => "by a map of its clusters",
        }
    }

    /// Something worth a line in the log: why opening it took long.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// The disk called `name`: as the archive has it (`drive-scsi0`), or without `drive-`.
    pub fn disk(self: &Arc<Self>, name: &str) -> Option<Arc<dyn Image>> {
        let is_it = |device: &&Device| device.name == name || device.name.strip_prefix("drive-") == Some(name);
        // The whole name first, should one disk be called as another one is for short.
        let devices = &self.header.devices;
        let device = devices.iter().find(|device| device.name == name).or_else(|| devices.iter().find(is_it))?;
        Some(Arc::new(ArchivedDisk { archive: Arc::clone(self), device: device.clone() }))
    }

    /// All disks, in the order of their numbers.
    pub fn disks(self: &Arc<Self>) -> Vec<Arc<dyn Image>> {
        self.header.devices.iter().filter_map(|device| self.disk(&device.name)).collect()
    }

    /// Fills `buf` with a part of a cluster, from byte `from` of it on.
    fn read_cluster(&self, device: u8, cluster: u32, from: usize, buf: &mut [u8]) -> io::Result<()> {
        match &self.store {
            Store::Framed(framed) => match framed.piece(device, cluster)? {
                None => buf.fill(0),
                Some(piece) => {
                    let (mask, blocks) = piece.cluster(cluster);
                    spread(mask, from, buf, &mut |part, at| {
                        part.copy_from_slice(&blocks[at..at + part.len()]);
                        Ok(())
                    })?;
                }
            },
            Store::Mapped(mapped) => match mapped.map.place(device, cluster).ok_or(io::ErrorKind::InvalidInput)? {
                Place::Zero => buf.fill(0),
                Place::Extent(offset) => {
                    let head = mapped.head(offset)?;
                    let gone = || invalid(ArchiveCause::Changed { offset });
                    let (mask, at) = head.find(device, cluster).ok_or_else(gone)?;
                    let start = offset + at as u64;
                    let failed = |offset| move |source| io::Error::other(VmaError::Read { offset, source });
                    spread(mask, from, buf, &mut |part, at| {
                        let at = start + at as u64;
                        mapped.bytes.read_at(part, at).map_err(failed(at))
                    })?;
                }
            },
        }
        Ok(())
    }

    /// Runs of the clusters from `first` to `end`: the number behind the last one, and whether they are known to be zero.
    fn runs(&self, device: u8, first: u64, end: u64) -> io::Result<Vec<(u64, bool)>> {
        match &self.store {
            Store::Framed(framed) => framed.runs(device, first, end),
            Store::Mapped(mapped) => Ok(mapped.map.runs(device, first, end).collect()),
        }
    }
}

impl Mapped {
    /// The header of the extent at `offset`.
    fn head(&self, offset: u64) -> io::Result<Arc<ExtentHead>> {
        self.heads.get(offset, || {
            let mut head = [0; EXTENT_HEADER];
            self.bytes.read_at(&mut head, offset)?;
            ExtentHead::parse(&head, &self.uuid, offset).map_err(|e| invalid(e.into()))
        })
    }
}

fn invalid(cause: ArchiveCause) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, cause)
}

/// Fills `buf` with a part of a cluster, from byte `from` of it on: zeros for the blocks that `mask` leaves out, and what `read`
/// gives for neighbours among the others, from an offset within the stored ones on.
fn spread(
    mask: u16,
    from: usize,
    buf: &mut [u8],
    read: &mut dyn FnMut(&mut [u8], usize) -> io::Result<()>,
) -> io::Result<()> {
    let end = from + buf.len();
    for run in runs(mask) {
        let (start, end) = (run.range.start.max(from), run.range.end.min(end));
        if start >= end {
            continue;
        }
        let part = &mut buf[start - from..end - from];
        match run.stored {
            Some(at) => read(part, at + start - run.range.start)?,
            None => part.fill(0),
        }
    }
    Ok(())
}

/// A disk in an archive.
struct ArchivedDisk {
    archive: Arc<VmaArchive>,
    device: Device,
}

impl ArchivedDisk {
    fn failed(&self, op: &'static str, range: Range<u64>, source: io::Error) -> ImageError {
        let (offset, len) = (range.start, range.end - range.start);
        ImageError { image: self.device.name.clone(), op, offset, len, source }
    }
}

impl Image for ArchivedDisk {
    fn name(&self) -> &str {
        &self.device.name
    }

    fn size(&self) -> u64 {
        self.device.size
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        crate::image::check_range(&self.device.name, "block status", self.device.size, &range)?;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let size = CLUSTER as u64;
        let runs = self.archive.runs(self.device.id, range.start / size, range.end.div_ceil(size));
        let runs = runs.map_err(|e| self.failed("block status", range.clone(), e))?;
        let (mut extents, mut offset) = (Vec::new(), range.start);
        for (end, zero) in runs {
            let end = (end * size).min(range.end);
            let kind = if zero { ExtentKind::Zero } else { ExtentKind::Data };
            crate::image::push(&mut extents, Extent { offset, len: end - offset, kind });
            offset = end;
        }
        Ok(extents)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let end = offset.saturating_add(buf.len() as u64);
        crate::image::check_range(&self.device.name, "read", self.device.size, &(offset..end))?;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (cluster, from) = ((at / CLUSTER as u64) as u32, (at % CLUSTER as u64) as usize);
            let len = (CLUSTER - from).min(buf.len() - done);
            let read = self.archive.read_cluster(self.device.id, cluster, from, &mut buf[done..done + len]);
            read.map_err(|e| self.failed("read", at..end, e))?;
            done += len;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
