//! The partitions of a disk: GPT, with its backup when the primary one is damaged, and MBR with logical partitions.
//!
//! A disk without a table has none; a file system may then begin at its first byte. A table that contradicts itself or the
//! disk is used as far as it makes sense, and what does not is said.

mod gpt;
mod mbr;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::FsError;
use super::probe::{self, Found};
use crate::image::{Image, Slice};

/// Most partitions that are looked at.
const MOST: usize = 1024;

/// A partition of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number, as in `/dev/sda1`.
    pub number: u32,
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes, never 0.
    pub len: u64,
    /// What it is for, by the table: a GUID in lower case (GPT) or `0x83` (MBR).
    pub kind: String,
    /// Its name; only GPT has names.
    pub name: String,
}

impl Partition {
    /// The partition of `disk` as an image, `<disk>/p<number>` in messages.
    ///
    /// # Errors
    /// When it does not lie on the disk.
    pub fn open(&self, disk: &Arc<dyn Image>) -> Result<Arc<dyn Image>, FsError> {
        let name = format!("{}/p{}", disk.name(), self.number);
        let end = self.start.saturating_add(self.len);
        if end > disk.size() {
            let (number, size) = (self.number, disk.size());
            let why = format!("partition {number} ends at byte {end}, but the disk has {size} bytes");
            return Err(FsError::damaged("partition table", why));
        }
        Ok(Arc::new(Slice::new(disk.clone(), self.start..end, &name)?))
    }
}

/// The partition table of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// `gpt` or `mbr`.
    pub scheme: &'static str,
    /// In the order of their numbers.
    pub partitions: Vec<Partition>,
    /// What is wrong with the table, a sentence each; the partitions are what could be made of it.
    pub notes: Vec<String>,
}

/// The partitions of a disk, in the order of their numbers; none when there is no table.
///
/// # Errors
/// As [`partition_table`].
pub fn partitions(disk: &Arc<dyn Image>) -> Result<Vec<Partition>, FsError> {
    Ok(partition_table(disk)?.map(|table| table.partitions).unwrap_or_default())
}

/// The partition table of a disk; none when there is none.
///
/// # Errors
/// When the disk cannot be read, or there is a table and neither it nor its backup makes sense.
pub fn partition_table(disk: &Arc<dyn Image>) -> Result<Option<Table>, FsError> {
    let head = read(disk, 0, 512)?;
    let boot = mbr::Boot::parse(&head);
    let boot = boot.filter(|boot| boot.protective() || !probe::is_boot_sector(&head));
    let table = match boot {
        Some(boot) if boot.protective() => match gpt::table(disk)? {
            Some(table) => Some(table),
            None => {
                let why = "there is neither a good primary GPT nor a good backup of it".to_owned();
                return Err(FsError::damaged("partition table", why));
            }
        },
        Some(boot) if boot.used().next().is_some() => Some(mbr::table(disk, &boot)?),
        // A file system from the first byte on, and what it has not overwritten of a table; or a destroyed first sector.
        _ if !matches!(probe::probe(disk)?, Found::Unknown) => None,
        _ => gpt::table(disk)?,
    };
    Ok(table.map(|mut table| {
        complain(&mut table, disk.size());
        table
    }))
}

/// Says what is wrong with the places of partitions.
fn complain(table: &mut Table, size: u64) {
    let end = |p: &Partition| p.start.saturating_add(p.len);
    for partition in &table.partitions {
        if end(partition) > size {
            let (number, end) = (partition.number, end(partition));
            table.notes.push(format!("partition {number} ends at byte {end}, but the disk has {size} bytes"));
        }
    }
    let mut sorted: Vec<_> = table.partitions.iter().collect();
    sorted.sort_by_key(|p| p.start);
    for pair in sorted.windows(2) {
        if end(pair[0]) > pair[1].start {
            table.notes.push(format!("partitions {} and {} overlap", pair[0].number, pair[1].number));
        }
    }
}

/// Bytes of the disk; less at its end.
fn read(disk: &Arc<dyn Image>, offset: u64, len: usize) -> Result<Vec<u8>, FsError> {
    let left = disk.size().saturating_sub(offset);
    let mut bytes = vec![0; usize::try_from(left).unwrap_or(len).min(len)];
    if !bytes.is_empty() {
        disk.read_at(&mut bytes, offset)?;
    }
    Ok(bytes)
}

/// Does with any bytes what is done with a disk. For fuzzing.
pub(super) fn rehearse(bytes: &[u8]) {
    let disk: Arc<dyn Image> = Arc::new(crate::image::MemImage::new("disk", bytes.to_vec()));
    // Of a GPT the entries as well, as if its checksums were good.
    let unchecked = gpt::parse(bytes, 128, 512);
    for mut table in partition_table(&disk).ok().flatten().into_iter().chain([unchecked]) {
        complain(&mut table, disk.size());
        assert!(table.partitions.len() <= MOST);
        for partition in &table.partitions {
            assert!(partition.len > 0);
            if let Ok(part) = partition.open(&disk) {
                assert_eq!(part.size(), partition.len);
            }
        }
    }
}
