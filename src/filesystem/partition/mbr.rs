//! The partition table in the first sector of a disk: four primary partitions, one of which may hold a chain of logical
//! ones, numbered from 5 on.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Partition, Table, read};
use crate::filesystem::FsError;
use crate::filesystem::bytes::{is_at, le32};
use crate::filesystem::probe::{self, Found};
use crate::image::{Image, Slice};

/// Logical partitions that are followed.
const MOST_LOGICAL: u32 = 128;

/// What is there instead of partitions on a disk with a GPT.
const PROTECTIVE: u8 = 0xee;

#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    kind: u8,
    first: u64,
    sectors: u64,
}

impl Entry {
    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

/// The four entries of a boot sector.
#[derive(Debug, Clone, Copy)]
pub(super) struct Boot([Entry; 4]);

impl Boot {
    /// None when the sector is no table: no mark at its end, or flags that no table has.
    pub(super) fn parse(sector: &[u8]) -> Option<Self> {
        if !is_at(sector, 510, &[0x55, 0xaa]) {
            return None;
        }
        let entry = |number: usize| {
            let entry = &sector[446 + 16 * number..462 + 16 * number];
            let found = Entry { kind: entry[4], first: le32(entry, 8).into(), sectors: le32(entry, 12).into() };
            // Anything but "active" or not is code.
            (entry[0] & 0x7f == 0).then_some(found)
        };
        Some(Self([entry(0)?, entry(1)?, entry(2)?, entry(3)?]))
    }

    /// Whether it says that there is a GPT.
    pub(super) fn protective(&self) -> bool {
        self.0.iter().any(|entry| entry.kind == PROTECTIVE)
    }

    /// What is there, with its number.
    pub(super) fn used(&self) -> impl Iterator<Item = (u32, Entry)> {
        (1..).zip(self.0).filter(|(_, entry)| entry.kind != 0 && entry.sectors != 0)
    }
}

/// The table that begins with this boot sector.
pub(super) fn table(disk: &Arc<dyn Image>, boot: &Boot) -> Result<Table, FsError> {
    let sector = sector_size(disk, boot)?;
    let mut table = Table { scheme: "mbr", partitions: Vec::new(), notes: Vec::new() };
    let mut extended = None;
    for (number, entry) in boot.used() {
        if entry.is_extended() {
            if extended.replace(entry.first).is_some() {
                table.notes.push("only the last of several extended partitions is looked at".to_owned());
            }
        } else {
            table.partitions.push(partition(number, entry, 0, sector));
        }
    }
    if let Some(first) = extended {
        logical(disk, first, sector, &mut table)?;
    }
    Ok(table)
}

/// Follows the chain of sectors that each hold one logical partition and the place of the next sector.
fn logical(disk: &Arc<dyn Image>, first: u64, sector: u64, table: &mut Table) -> Result<(), FsError> {
    let (mut at, mut number, mut seen) = (first, 5, HashSet::new());
    loop {
        if !seen.insert(at) || number >= 5 + MOST_LOGICAL {
            table.notes.push("the chain of logical partitions has no end".to_owned());
            return Ok(());
        }
        let bytes = read(disk, at * sector, 512)?;
        let Some(boot) = Boot::parse(&bytes) else {
            table.notes.push(format!("the chain of logical partitions breaks off at sector {at}"));
            return Ok(());
        };
        let mut next = None;
        for (_, entry) in boot.used() {
            if entry.is_extended() {
                next.get_or_insert(first + entry.first);
            } else {
                table.partitions.push(partition(number, entry, at, sector));
                number += 1;
            }
        }
        let Some(next) = next else { return Ok(()) };
        at = next;
    }
}

// Sectors have 32 bits each, of which at most three are added up: nothing overflows.
fn partition(number: u32, entry: Entry, base: u64, sector: u64) -> Partition {
    let (start, len) = ((base + entry.first) * sector, entry.sectors * sector);
    Partition { number, start, len, kind: format!("0x{:02x}", entry.kind), name: String::new() }
}

/// An MBR does not say how large sectors are: it is what makes sense of the places.
fn sector_size(disk: &Arc<dyn Image>, boot: &Boot) -> Result<u64, FsError> {
    let makes_sense = |sector: u64| -> Result<bool, FsError> {
        for (_, entry) in boot.used() {
            let (start, end) = (entry.first * sector, (entry.first + entry.sectors) * sector);
            if end > disk.size() {
                continue;
            }
            if entry.is_extended() {
                if Boot::parse(&read(disk, start, 512)?).is_some() {
                    return Ok(true);
                }
                continue;
            }
            let part: Arc<dyn Image> = Arc::new(Slice::new(disk.clone(), start..end, disk.name())?);
            if !matches!(probe::probe(&part)?, Found::Unknown) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    Ok(if !makes_sense(512)? && makes_sense(4096)? { 4096 } else { 512 })
}
