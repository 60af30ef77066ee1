//! NTFS: the boot sector, the table of all files (MFT) and what its records say of files and directories. Records and their
//! attributes are [`record`]'s business, compressed content is [`lznt1`]'s.
//!
//! Written from the documentation of the Linux-NTFS project and Microsoft's [MS-FSCC] and [MS-XCA]. The crate `ntfs` was
//! weighed: it does not know compressed files, and no table of files that is itself in too many pieces for one record.

mod lznt1;
mod record;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;

use super::FsError;
use super::bytes::{is_at, le16, le32, le64, u8_at, utf16};
use super::content::{Content, Run, Runs};
use super::files::{Entry, FileKind, FileSystem, LONGEST_LINK, MOST_ENTRIES, Metadata, Node, is_name};
use crate::image::Image;
use record::{Attribute, Record, fix_up};

/// Records that a file may have beside its first one.
const MOST_RECORDS: usize = 8192;
/// Bytes of the list of a file's attributes, and of a bitmap of a directory's blocks.
const LARGEST_LIST: u64 = 16 << 20;
/// The top directory.
const ROOT: Node = 5;
/// Files below this number are the file system's own.
const FIRST_OWN: u64 = 16;
/// A reference to a file: its number, and 16 bits that change with each file of that number.
const NUMBER: u64 = (1 << 48) - 1;

mod kind {
    pub const STANDARD: u32 = 0x10;
    pub const LIST: u32 = 0x20;
    pub const DATA: u32 = 0x80;
    pub const INDEX_ROOT: u32 = 0x90;
    pub const INDEX: u32 = 0xa0;
    pub const BITMAP: u32 = 0xb0;
    pub const REPARSE: u32 = 0xc0;
}

const REPARSE_SYMLINK: u32 = 0xa000_000c;
const REPARSE_MOUNT_POINT: u32 = 0xa000_0003;
const REPARSE_LINUX_SYMLINK: u32 = 0xa000_001d;

fn damaged(why: impl Into<String>) -> FsError {
    FsError::damaged("NTFS file system", why)
}

/// An open file system.
pub(super) struct Ntfs {
    image: Arc<dyn Image>,
    cluster: u64,
    record: u64,
    /// Where the table of all files lies.
    table: Runs,
    table_size: u64,
}

/// What a link or other special file says.
enum Reparse {
    Link(Vec<u8>),
    /// Its content is somewhere else, or in another form.
    Tag(u32),
}

impl Ntfs {
    pub(super) fn open(image: Arc<dyn Image>) -> Result<Self, FsError> {
        let mut boot = [0; 512];
        image.read_at(&mut boot, 0)?;
        let sector = u64::from(le16(&boot, 11));
        let sectors = match boot[13] {
            count @ 0..=0x80 => u64::from(count),
            // Larger ones are powers of two, negative.
            power => 1 << (256 - u32::from(power)).min(31),
        };
        let cluster = sector * sectors;
        let record = match boot[0x40].cast_signed() {
            count @ 1.. => cluster * count.unsigned_abs() as u64,
            power => 1 << u32::from(power.unsigned_abs()).min(31),
        };
        let sane = |size: u64, most: u64| size.is_power_of_two() && (512..=most).contains(&size);
        if !sane(cluster, 2 << 20) || !sane(record, 64 << 10) {
            return Err(damaged("its boot sector has impossible sizes"));
        }
        let mut fs = Self { image, cluster, record, table: Runs::default(), table_size: 0 };
        // The beginning of the table, or of its copy.
        let mut first = Err(damaged("its table of files is not to be found"));
        for at in [0x30, 0x38] {
            let Some(place) = le64(&boot, at).checked_mul(cluster) else { continue };
            first = fs.record_at(place, 0).map(|record| (place, record));
            if first.is_ok() {
                break;
            }
        }
        let (place, first) = first?;
        // The record itself may say of only a part of the table where it lies; the rest is in records of that part.
        fs.table_size = record * FIRST_OWN;
        fs.table.push(Run { at: 0, len: fs.table_size, disk: place }).map_err(damaged)?;
        (fs.table, fs.table_size) = fs.pieces(first.attributes.iter().filter(|a| a.is(kind::DATA, "")), true)?;
        let all = fs.attributes(0)?;
        (fs.table, fs.table_size) = fs.pieces(all.iter().filter(|a| a.is(kind::DATA, "")), false)?;
        Ok(fs)
    }

    /// A record by its place on the disk.
    fn record_at(&self, place: u64, number: u64) -> Result<Record, FsError> {
        let mut raw = vec![0; self.record as usize];
        self.image.read_at(&mut raw, place)?;
        Record::parse(raw, number)
    }

    fn record(&self, number: u64) -> Result<Record, FsError> {
        let at = number.checked_mul(self.record).filter(|at| *at < self.table_size);
        let at = at.ok_or_else(|| damaged(format!("there is no record {number}")))?;
        let mut raw = vec![0; self.record as usize];
        self.table.read(&*self.image, &mut raw, at)?;
        Record::parse(raw, number)
    }

    /// All attributes of a file, those in other records as well.
    fn attributes(&self, number: u64) -> Result<Vec<Attribute>, FsError> {
        let record = self.record(number)?;
        if !record.in_use || record.base != 0 {
            return Err(damaged(format!("record {number} is that of no file")));
        }
        let Some(list) = record.attributes.iter().find(|a| a.is(kind::LIST, "")) else {
            return Ok(record.attributes);
        };
        let list = self.small(std::iter::once(list), LARGEST_LIST)?;
        let (mut others, mut at) = (HashSet::new(), 0);
        while at + 26 <= list.len() {
            let len = usize::from(le16(&list, at + 4));
            if len < 26 {
                return Err(damaged(format!("the list of attributes of file {number} makes no sense")));
            }
            others.insert(le64(&list, at + 16) & NUMBER);
            at += len;
        }
        others.remove(&number);
        if others.len() > MOST_RECORDS {
            return Err(damaged(format!("file {number} has {} records", others.len())));
        }
        let mut all = record.attributes;
        for other in others {
            let record = self.record(other)?;
            if record.base != number {
                return Err(damaged(format!("record {other} does not belong to file {number}")));
            }
            all.extend(record.attributes);
        }
        Ok(all)
    }

    /// The pieces of an attribute that does not stand in its record, and its size; it may be in parts.
    fn pieces<'a>(&self, parts: impl Iterator<Item = &'a Attribute>, partly: bool) -> Result<(Runs, u64), FsError> {
        let mut parts: Vec<_> = parts.filter_map(|attribute| Some((attribute, attribute.outside.as_ref()?))).collect();
        parts.sort_by_key(|(_, outside)| outside.first);
        let Some((_, head)) = parts.first() else { return Err(damaged("the place of a content is not there")) };
        let (size, valid) = (head.size, head.valid);
        let (mut runs, mut next) = (Runs::default(), 0);
        for (attribute, outside) in &parts {
            if outside.first != next {
                return Err(damaged("a part of the places of a content is not there"));
            }
            next = self.runs(attribute.runs(), next, valid, &mut runs)?;
        }
        if !partly && next.saturating_mul(self.cluster) < size {
            return Err(damaged("a part of the places of a content is not there"));
        }
        Ok((runs, if partly { size.min(next.saturating_mul(self.cluster)) } else { size }))
    }

    /// Unpacks a list of pieces, which begins at cluster `vcn` of the file; returns where it ends. Behind `valid` bytes nothing
    /// was ever written.
    fn runs(&self, list: &[u8], mut vcn: u64, valid: u64, runs: &mut Runs) -> Result<u64, FsError> {
        let wrong = || damaged("the places of a content make no sense");
        let number = |bytes: &[u8]| {
            let mut wide = [0; 8];
            wide[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(wide)
        };
        let (mut at, mut place) = (0, 0_i64);
        while let Some(head) = list.get(at).filter(|head| **head != 0) {
            let (len_bytes, place_bytes) = (usize::from(head & 15), usize::from(head >> 4));
            let fields = list.get(at + 1..at + 1 + len_bytes + place_bytes).ok_or_else(wrong)?;
            if len_bytes == 0 || len_bytes > 8 || place_bytes > 8 {
                return Err(wrong());
            }
            at += 1 + len_bytes + place_bytes;
            let count = number(&fields[..len_bytes]);
            let bytes = |clusters: u64| clusters.checked_mul(self.cluster).filter(|b| *b < 1 << 62).ok_or_else(wrong);
            let (start, len) = (bytes(vcn)?, bytes(count)?);
            if place_bytes > 0 {
                let shift = 64 - 8 * place_bytes as u32;
                let step = (number(&fields[len_bytes..]) << shift).cast_signed() >> shift;
                place = place.checked_add(step).filter(|place| *place >= 0).ok_or_else(wrong)?;
                let disk = bytes(place.unsigned_abs())?;
                let len = len.min(valid.saturating_sub(start));
                if len > 0 {
                    runs.push(Run { at: start, len, disk }).map_err(damaged)?;
                }
            }
            vcn = vcn.checked_add(count).ok_or_else(wrong)?;
        }
        Ok(vcn)
    }

    /// The content of an attribute.
    fn content<'a>(&self, parts: impl Iterator<Item = &'a Attribute> + Clone) -> Result<Content, FsError> {
        let Some(head) = parts.clone().find(|a| a.outside.as_ref().is_none_or(|outside| outside.first == 0)) else {
            return Err(damaged("the beginning of a content is not there"));
        };
        if head.is_encrypted() {
            return Err(FsError::Unsupported("is encrypted by the file system of the guest (EFS)".to_owned()));
        }
        let Some(outside) = &head.outside else {
            return Ok(Content::bytes(self.image.clone(), head.value().to_vec()));
        };
        if head.is_compressed() && outside.unit > 0 {
            let unit = self.cluster << outside.unit.min(16);
            if unit > 4 << 20 {
                return Err(damaged(format!("a file is compressed in units of {unit} bytes")));
            }
            // What is stored of a unit may end behind what was written of it, and what it holds there is not the file's.
            let valid = outside.valid;
            let whole = parts.map(|part| {
                let mut part = part.clone();
                part.outside.iter_mut().for_each(|outside| outside.valid = u64::MAX);
                part
            });
            let whole: Vec<_> = whole.collect();
            let (runs, size) = self.pieces(whole.iter(), false)?;
            return Ok(Content::packed(self.image.clone(), (size, valid), runs, unit, lznt1::unpack));
        }
        let (runs, size) = self.pieces(parts, false)?;
        Ok(Content::runs(self.image.clone(), size, runs))
    }

    /// All bytes of an attribute of at most `most` bytes.
    fn small<'a>(&self, parts: impl Iterator<Item = &'a Attribute> + Clone, most: u64) -> Result<Vec<u8>, FsError> {
        let content = self.content(parts)?;
        if content.size() > most {
            return Err(damaged(format!("something small has {} bytes", content.size())));
        }
        let mut bytes = vec![0; content.size() as usize];
        content.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn reparse(&self, attributes: &[Attribute]) -> Result<Option<Reparse>, FsError> {
        let mut parts = attributes.iter().filter(|a| a.is(kind::REPARSE, "")).peekable();
        if parts.peek().is_none() {
            return Ok(None);
        }
        let point = self.small(attributes.iter().filter(|a| a.is(kind::REPARSE, "")), LONGEST_LINK)?;
        let tag = le32(&point, 0);
        let text = |header: usize| {
            let (from, len) = (usize::from(le16(&point, 8)), usize::from(le16(&point, 10)));
            let units = (0..len / 2).map(|unit| le16(&point, 8 + header + from + 2 * unit));
            Reparse::Link(as_path(utf16(units)))
        };
        Ok(Some(match tag {
            REPARSE_SYMLINK => text(12),
            REPARSE_MOUNT_POINT => text(8),
            REPARSE_LINUX_SYMLINK => Reparse::Link(point.get(12..).unwrap_or_default().to_vec()),
            tag => Reparse::Tag(tag),
        }))
    }

    /// The names in a block of a directory, from the header of its list of entries on.
    fn names(&self, list: &[u8], found: &mut Vec<Entry>) -> Result<(), FsError> {
        let wrong = || damaged("a directory has entries that make no sense");
        let mut at = le32(list, 0) as usize;
        let end = (le32(list, 4) as usize).min(list.len());
        loop {
            let entry = list.get(at..end).filter(|entry| entry.len() >= 16).ok_or_else(wrong)?;
            let (len, key_len) = (usize::from(le16(entry, 8)), usize::from(le16(entry, 10)));
            if le16(entry, 12) & 2 != 0 {
                return Ok(());
            }
            let key =
                entry.get(16..16 + key_len).filter(|key| len >= 16 + key_len && key.len() >= 66).ok_or_else(wrong)?;
            let node = le64(entry, 0) & NUMBER;
            let units = usize::from(u8_at(key, 64));
            let units = key.get(66..66 + 2 * units).ok_or_else(wrong)?;
            at += len;
            // Names for DOS stand beside the real ones; what is the file system's own is no file of anybody.
            if u8_at(key, 65) == 2 || node < FIRST_OWN {
                continue;
            }
            let name = utf16(units.chunks_exact(2).map(|unit| le16(unit, 0)));
            if !is_name(&name) || found.len() == MOST_ENTRIES {
                return Err(wrong());
            }
            found.push(Entry { name, node });
        }
    }
}

impl FileSystem for Ntfs {
    fn kind(&self) -> &'static str {
        "NTFS"
    }

    fn root(&self) -> Node {
        ROOT
    }

    fn ignores_case(&self) -> bool {
        true
    }

    fn metadata(&self, node: Node) -> Result<Metadata, FsError> {
        let record = self.record(node)?;
        let attributes = self.attributes(node)?;
        let standard = attributes.iter().find(|a| a.is(kind::STANDARD, "")).map(Attribute::value).unwrap_or_default();
        let is_link = matches!(self.reparse(&attributes)?, Some(Reparse::Link(_)));
        let (kind, size) = match () {
            () if is_link => (FileKind::Symlink, 0),
            () if record.is_directory => (FileKind::Directory, 0),
            () => {
                let mut data = attributes.iter().filter(|a| a.is(kind::DATA, ""));
                let size = data.find_map(|a| match &a.outside {
                    None => Some(a.value().len() as u64),
                    Some(outside) => (outside.first == 0).then_some(outside.size),
                });
                (FileKind::File, size.unwrap_or(0))
            }
        };
        let mode = match kind {
            FileKind::File if le32(standard, 0x20) & 1 != 0 => 0o444,
            FileKind::File => 0o644,
            _ => 0o755,
        };
        Ok(Metadata { kind, size, mode, uid: 0, gid: 0, modified: time(le64(standard, 8)), links: record.links })
    }

    fn read_dir(&self, node: Node) -> Result<Vec<Entry>, FsError> {
        let attributes = self.attributes(node)?;
        let all = |kind| attributes.iter().filter(move |a: &&Attribute| a.is(kind, "$I30"));
        let root = all(kind::INDEX_ROOT).next().ok_or_else(|| damaged(format!("file {node} is no directory")))?;
        let mut found = Vec::new();
        self.names(root.value().get(16..).unwrap_or_default(), &mut found)?;
        if all(kind::INDEX).next().is_none() {
            return Ok(found);
        }
        // The rest lies in blocks, of which a bitmap says which are in use: no need to go down the tree.
        let block = u64::from(le32(root.value(), 8));
        if !block.is_power_of_two() || !(512..=64 << 10).contains(&block) {
            return Err(damaged(format!("directory {node} has blocks of {block} bytes")));
        }
        let bitmap = self.small(all(kind::BITMAP), LARGEST_LIST)?;
        let (runs, size) = self.pieces(all(kind::INDEX), false)?;
        let mut raw = vec![0; block as usize];
        let mut left = self.image.size() / block;
        for number in 0..(size / block).min(bitmap.len() as u64 * 8) {
            if bitmap[(number / 8) as usize] >> (number % 8) & 1 == 0 {
                continue;
            }
            // The same place over and over would be a directory without end.
            left = left
                .checked_sub(1)
                .ok_or_else(|| damaged(format!("directory {node} has more blocks than there are on its disk")))?;
            runs.read(&*self.image, &mut raw, number * block)?;
            if !is_at(&raw, 0, b"INDX") || !fix_up(&mut raw) {
                return Err(damaged(format!("block {number} of directory {node} makes no sense")));
            }
            self.names(&raw[24..], &mut found)?;
        }
        Ok(found)
    }

    fn read_link(&self, node: Node) -> Result<Vec<u8>, FsError> {
        match self.reparse(&self.attributes(node)?)? {
            Some(Reparse::Link(target)) => Ok(target),
            _ => Err(damaged(format!("file {node} is no symbolic link"))),
        }
    }

    fn open(&self, node: Node) -> Result<Content, FsError> {
        let attributes = self.attributes(node)?;
        match self.reparse(&attributes)? {
            Some(Reparse::Link(_)) => return Err(damaged("a symbolic link is used as a file")),
            Some(Reparse::Tag(tag)) => {
                let what = match tag {
                    0x8000_0017 => "is compressed by Windows (CompactOS), which is not read here",
                    0x8000_0013 => "was deduplicated by Windows; its content is in a store that is not read here",
                    _ => "has a reparse point: its content is somewhere else or in a form that is not read here",
                };
                return Err(FsError::Unsupported(format!("{what} (tag 0x{tag:08x})")));
            }
            None => {}
        }
        if self.record(node)?.is_directory {
            return Err(damaged("a directory is used as a file"));
        }
        let data = attributes.iter().filter(|a| a.is(kind::DATA, ""));
        if data.clone().next().is_none() {
            return Ok(Content::bytes(self.image.clone(), Vec::new()));
        }
        self.content(data)
    }
}

/// A target as Windows writes it, as a path: `\??\C:\Users` leads to `/Users`.
fn as_path(target: Vec<u8>) -> Vec<u8> {
    let rest = target.strip_prefix(br"\??\").unwrap_or(&target);
    let rest = match rest {
        [drive, b':', rest @ ..] if drive.is_ascii_alphabetic() => rest,
        rest => rest,
    };
    rest.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect()
}

/// Seconds and nanoseconds since 1970 of a count of 100 ns since 1601.
fn time(ticks: u64) -> (i64, u32) {
    let (seconds, rest) = (ticks / 10_000_000, ticks % 10_000_000);
    (seconds.cast_signed() - 11_644_473_600, rest as u32 * 100)
}
