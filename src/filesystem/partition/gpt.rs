//! GUID partition tables (UEFI specification, chapter 5): a header and an array of entries, both with checksums, once
//! behind the first sector and once at the end of the disk.

use std::sync::Arc;

use super::{MOST, Partition, Table, read};
use crate::filesystem::FsError;
use crate::filesystem::bytes::{is_at, le16, le32, le64, utf16};
use crate::image::Image;

/// Sizes of sectors that disks have.
const SECTORS: [u64; 2] = [512, 4096];
/// Bytes of entries that are read at most; usual are 16 KiB.
const MOST_ENTRIES: u64 = 1 << 20;

/// The table of the disk, the primary one or its backup; none without a good one.
pub(super) fn table(disk: &Arc<dyn Image>) -> Result<Option<Table>, FsError> {
    let mut wrong = Vec::new();
    let mut header_lost = None;
    for sector in SECTORS {
        match at(disk, sector, 1)? {
            Ok(table) => return Ok(Some(table)),
            Err(Some((why, backup))) => {
                wrong.push(why);
                header_lost = Some((sector, backup));
            }
            Err(None) => {}
        }
    }
    let mut places: Vec<(u64, u64)> = SECTORS.iter().map(|s| (*s, (disk.size() / s).saturating_sub(1))).collect();
    places.extend(header_lost);
    for (sector, lba) in places.into_iter().filter(|(_, lba)| *lba > 1) {
        if let Ok(mut table) = at(disk, sector, lba)? {
            let why = wrong.pop().unwrap_or_else(|| "it is not there".to_owned());
            table.notes.push(format!("the primary GPT is damaged ({why}); its backup at the end of the disk is used"));
            return Ok(Some(table));
        }
    }
    Ok(None)
}

/// A table, or, when there is something like one, what is wrong with it and where the other one should be.
type Attempt = Result<Table, Option<(String, u64)>>;

fn at(disk: &Arc<dyn Image>, sector: u64, lba: u64) -> Result<Attempt, FsError> {
    let Some(offset) = lba.checked_mul(sector) else { return Ok(Err(None)) };
    let header = read(disk, offset, sector as usize)?;
    if header.len() < sector as usize || !is_at(&header, 0, b"EFI PART") {
        return Ok(Err(None));
    }
    let header_size = le32(&header, 12) as usize;
    let other = le64(&header, 32);
    let bad = |why: &str| Ok(Err(Some((why.to_owned(), 0))));
    if !(92..=header.len()).contains(&header_size) {
        return bad("its header has an impossible size");
    }
    let mut sum = header[..header_size].to_vec();
    sum[16..20].fill(0);
    if crc32fast::hash(&sum) != le32(&header, 16) {
        return bad("the checksum of its header is wrong");
    }
    // From here on the header is what somebody wrote.
    let bad = |why: String| Ok(Err(Some((why, other))));
    if le64(&header, 24) != lba {
        return bad(format!("its header says that it stands in sector {}", le64(&header, 24)));
    }
    let (array, count, size) = (le64(&header, 72), u64::from(le32(&header, 80)), u64::from(le32(&header, 84)));
    let bytes = count * size;
    if size < 128 || !size.is_power_of_two() || bytes > MOST_ENTRIES {
        return bad(format!("it has {count} entries of {size} bytes"));
    }
    let Some(array) = array.checked_mul(sector) else {
        return bad("its entries lie outside of the disk".to_owned());
    };
    let entries = read(disk, array, bytes as usize)?;
    if (entries.len() as u64) < bytes {
        return bad("its entries lie outside of the disk".to_owned());
    }
    if crc32fast::hash(&entries) != le32(&header, 88) {
        return bad("the checksum of its entries is wrong".to_owned());
    }
    Ok(Ok(parse(&entries, size as usize, sector)))
}

pub(super) fn parse(entries: &[u8], size: usize, sector: u64) -> Table {
    let mut table = Table { scheme: "gpt", partitions: Vec::new(), notes: Vec::new() };
    for (number, entry) in (1..).zip(entries.chunks_exact(size)) {
        if entry[..16] == [0; 16] {
            continue;
        }
        if table.partitions.len() == MOST {
            table.notes.push(format!("only the first {MOST} partitions are looked at"));
            break;
        }
        let (first, last) = (le64(entry, 32), le64(entry, 40));
        let place = last.checked_sub(first).and_then(|sectors| sectors.checked_add(1));
        let place = place.and_then(|sectors| Some((first.checked_mul(sector)?, sectors.checked_mul(sector)?)));
        let Some((start, len)) = place else {
            table.notes.push(format!("partition {number} is left out: it goes from sector {first} to {last}"));
            continue;
        };
        let name = (56..128).step_by(2).map(|at| le16(entry, at)).take_while(|unit| *unit != 0);
        let name = String::from_utf8_lossy(&utf16(name)).into_owned();
        table.partitions.push(Partition { number, start, len, kind: guid(entry), name });
    }
    table
}

/// The first three parts of a GUID are little endian.
fn guid(bytes: &[u8]) -> String {
    let tail: String = bytes[8..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let (a, b, c) = (le32(bytes, 0), le16(bytes, 4), le16(bytes, 6));
    format!("{a:08x}-{b:04x}-{c:04x}-{}-{}", &tail[..4], &tail[4..])
}
