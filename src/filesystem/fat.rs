//! FAT12, FAT16 and FAT32, with long names. A file is known by the place of its entry in a directory.
//!
//! Written from Microsoft's description of the format. The crate `fatfs` was weighed: its last release is of 2023, and it
//! wants to write.

use std::sync::Arc;

use super::FsError;
use super::bytes::{le16, le32, u8_at, utf16};
use super::content::{Content, Run, Runs};
use super::files::{Entry, FileKind, FileSystem, MOST_ENTRIES, Metadata, Node, is_name};
use crate::image::Image;

/// Bytes of an entry.
const ENTRY: usize = 32;
/// Bytes of the largest directory, as the format has it.
const LARGEST_DIRECTORY: u64 = (1 << 16) * ENTRY as u64;

const LONG_NAME: u8 = 0x0f;
const LABEL: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
const READ_ONLY: u8 = 0x01;

/// The second half of code page 437, in which short names are unless told otherwise.
const CODE_PAGE: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

fn damaged(why: impl Into<String>) -> FsError {
    FsError::damaged("FAT file system", why)
}

/// An open file system.
pub(super) struct Fat {
    image: Arc<dyn Image>,
    /// Bits of an entry of the table.
    bits: u32,
    /// Where the table begins, and how many clusters it has room for.
    table: u64,
    clusters: u64,
    cluster: u64,
    /// Where the first cluster, number 2, begins.
    data: u64,
    /// Where the top directory of FAT12 and FAT16 is, and its bytes.
    root_area: (u64, u64),
    root_cluster: u64,
}

impl Fat {
    pub(super) fn open(image: Arc<dyn Image>) -> Result<Self, FsError> {
        let mut boot = [0; 512];
        image.read_at(&mut boot, 0)?;
        let sector = u64::from(le16(&boot, 11));
        let or_wide = |short: usize, wide: usize| match le16(&boot, short) {
            0 => u64::from(le32(&boot, wide)),
            short => short.into(),
        };
        let table_sectors = or_wide(22, 36);
        let sectors = or_wide(19, 32);
        let reserved = u64::from(le16(&boot, 14));
        let root_bytes = u64::from(le16(&boot, 17)) * ENTRY as u64;
        let table_end = reserved + u64::from(boot[16]) * table_sectors;
        let data = table_end + root_bytes.div_ceil(sector.max(1));
        let per_cluster = u64::from(boot[13]);
        if sector < 512 || per_cluster == 0 || sectors <= data {
            return Err(damaged("its boot sector has impossible sizes"));
        }
        let clusters = (sectors - data) / per_cluster;
        let bits = match clusters {
            _ if le16(&boot, 22) == 0 => 32,
            0..4085 => 12,
            _ => 16,
        };
        let room = table_sectors * sector * 8 / u64::from(bits);
        Ok(Self {
            image,
            bits,
            table: reserved * sector,
            clusters: clusters.min(room.saturating_sub(2)),
            cluster: per_cluster * sector,
            data: data * sector,
            root_area: (table_end * sector, root_bytes),
            root_cluster: le32(&boot, 44).into(),
        })
    }

    /// The cluster behind `cluster`; none at the end of a chain.
    fn next(&self, cluster: u64) -> Result<Option<u64>, FsError> {
        let (bits, mut raw) = (u64::from(self.bits), [0; 4]);
        let len = if bits == 32 { 4 } else { 2 };
        self.image.read_at(&mut raw[..len], self.table + cluster * bits / 8)?;
        let value = match bits {
            12 if cluster % 2 == 1 => le32(&raw, 0) >> 4,
            12 => le32(&raw, 0) & 0xfff,
            16 => le32(&raw, 0),
            _ => le32(&raw, 0) & 0x0fff_ffff,
        };
        let last = (1_u64 << bits.min(28)) - 8;
        match u64::from(value) {
            value if value >= last => Ok(None),
            value if self.is_cluster(value) => Ok(Some(value)),
            value => {
                Err(damaged(format!("cluster {value} follows cluster {cluster}, but there is none of that number")))
            }
        }
    }

    fn is_cluster(&self, number: u64) -> bool {
        (2..self.clusters + 2).contains(&number)
    }

    /// The pieces of a chain, as far as `size` bytes; a shorter chain is an error unless it is a directory's.
    fn chain(&self, first: u64, size: u64, is_directory: bool) -> Result<(Runs, u64), FsError> {
        let (mut runs, mut at, mut cluster) = (Runs::default(), 0, Some(first));
        while at < size {
            let Some(number) = cluster else {
                if is_directory {
                    break;
                }
                return Err(damaged(format!("a file of {size} bytes ends after {at} of them")));
            };
            if !self.is_cluster(number) {
                return Err(damaged(format!("a file begins in cluster {number}, but there is none of that number")));
            }
            // A chain that is longer than there are clusters goes in circles.
            if at / self.cluster > self.clusters {
                return Err(damaged("a chain of clusters leads back to itself"));
            }
            let run = Run { at, len: self.cluster, disk: self.data + (number - 2) * self.cluster };
            runs.push(run).map_err(damaged)?;
            at += self.cluster;
            cluster = if at < size { self.next(number)? } else { None };
        }
        Ok((runs, at.min(size)))
    }

    /// The entry that is called `node`.
    fn entry(&self, node: Node) -> Result<[u8; ENTRY], FsError> {
        let mut raw = [0; ENTRY];
        self.image.read_at(&mut raw, node)?;
        Ok(raw)
    }

    fn first_cluster(&self, entry: &[u8]) -> u64 {
        let high = if self.bits == 32 { u64::from(le16(entry, 20)) << 16 } else { 0 };
        high | u64::from(le16(entry, 26))
    }

    /// Where the entries of a directory lie.
    fn directory(&self, node: Node) -> Result<(Runs, u64), FsError> {
        let first = match node {
            0 if self.bits != 32 => {
                let (disk, len) = self.root_area;
                let mut runs = Runs::default();
                runs.push(Run { at: 0, len, disk }).map_err(damaged)?;
                return Ok((runs, len));
            }
            0 => self.root_cluster,
            _ => {
                let entry = self.entry(node)?;
                if entry[11] & DIRECTORY == 0 {
                    return Err(damaged("something that is no directory is used as one"));
                }
                self.first_cluster(&entry)
            }
        };
        self.chain(first, LARGEST_DIRECTORY, true)
    }
}

impl FileSystem for Fat {
    fn kind(&self) -> &'static str {
        match self.bits {
            12 => "FAT12",
            16 => "FAT16",
            _ => "FAT32",
        }
    }

    // Where no entry can be.
    fn root(&self) -> Node {
        0
    }

    fn ignores_case(&self) -> bool {
        true
    }

    fn metadata(&self, node: Node) -> Result<Metadata, FsError> {
        let of = |kind, size, mode, modified| Metadata { kind, size, mode, uid: 0, gid: 0, modified, links: 1 };
        if node == 0 {
            return Ok(of(FileKind::Directory, 0, 0o755, (0, 0)));
        }
        let entry = self.entry(node)?;
        let modified = (time(le16(&entry, 24), le16(&entry, 22)), 0);
        let write = if entry[11] & READ_ONLY == 0 { 0o200 } else { 0 };
        Ok(match entry[11] & DIRECTORY {
            0 => of(FileKind::File, le32(&entry, 28).into(), 0o444 | write, modified),
            _ => of(FileKind::Directory, 0, 0o755, modified),
        })
    }

    fn read_dir(&self, node: Node) -> Result<Vec<Entry>, FsError> {
        let (runs, len) = self.directory(node)?;
        let (mut found, mut long) = (Vec::new(), LongName::default());
        let mut raw = vec![0; self.cluster.min(64 << 10) as usize];
        let mut at = 0;
        while at < len {
            let part = raw.len().min((len - at) as usize);
            runs.read(&*self.image, &mut raw[..part], at)?;
            for (number, entry) in (0..).zip(raw[..part].chunks_exact(ENTRY)) {
                match (entry[0], entry[11]) {
                    (0, _) => return Ok(found),
                    (0xe5, _) => long = LongName::default(),
                    (_, attributes) if attributes & 0x3f == LONG_NAME => long.push(entry),
                    (_, attributes) if attributes & LABEL != 0 => long = LongName::default(),
                    (b'.', _) if entry[1..11].iter().all(|byte| matches!(byte, b' ' | b'.')) => {}
                    _ => {
                        let name = std::mem::take(&mut long).finish(entry).unwrap_or_else(|| short_name(entry));
                        let place = runs.place(at + number * ENTRY as u64);
                        let (place, _) = place.ok_or_else(|| damaged("a directory has a hole"))?;
                        if !is_name(&name) || found.len() == MOST_ENTRIES {
                            return Err(damaged("a directory has a name that cannot be one"));
                        }
                        found.push(Entry { name, node: place });
                    }
                }
            }
            at += part as u64;
        }
        Ok(found)
    }

    fn read_link(&self, _node: Node) -> Result<Vec<u8>, FsError> {
        Err(damaged("it has no symbolic links"))
    }

    fn open(&self, node: Node) -> Result<Content, FsError> {
        let entry = self.entry(node)?;
        if node == 0 || entry[11] & DIRECTORY != 0 {
            return Err(damaged("a directory is used as a file"));
        }
        let size = u64::from(le32(&entry, 28));
        let (runs, _) = self.chain(self.first_cluster(&entry), size, false)?;
        Ok(Content::runs(self.image.clone(), size, runs))
    }
}

/// The parts of a long name, which stand before the short one, the last part first.
#[derive(Default)]
struct LongName {
    units: Vec<u16>,
    next: u8,
    sum: u8,
}

impl LongName {
    fn push(&mut self, entry: &[u8]) {
        let (number, sum) = (entry[0] & 0x3f, entry[13]);
        let is_first = entry[0] & 0x40 != 0;
        if !(1..=20).contains(&number) || (!is_first && (number != self.next || sum != self.sum)) {
            *self = Self::default();
            return;
        }
        if is_first {
            *self = Self { units: Vec::new(), next: number, sum };
        }
        let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
        let part: Vec<u16> = places.map(|at| le16(entry, at)).collect();
        self.units.splice(0..0, part);
        self.next = number - 1;
    }

    /// The name, if all of it was there and it belongs to this short one.
    fn finish(self, entry: &[u8]) -> Option<Vec<u8>> {
        let sum = entry[..11].iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        if self.units.is_empty() || self.next != 0 || sum != self.sum {
            return None;
        }
        Some(utf16(self.units.into_iter().take_while(|unit| *unit != 0)))
    }
}

/// Eight letters and three; Windows NT notes when all of a part are small.
fn short_name(entry: &[u8]) -> Vec<u8> {
    let part = |bytes: &[u8], small: bool| -> String {
        let letters = bytes.iter().map(|byte| match byte {
            0x80.. => CODE_PAGE.chars().nth(usize::from(byte - 0x80)).unwrap_or('_'),
            byte if small => byte.to_ascii_lowercase().into(),
            byte => (*byte).into(),
        });
        letters.collect::<String>().trim_end_matches(' ').to_owned()
    };
    let mut first = [0; 8];
    first.copy_from_slice(&entry[..8]);
    // What would mean that it was removed.
    if first[0] == 0x05 {
        first[0] = 0xe5;
    }
    let flags = u8_at(entry, 12);
    let (name, ending) = (part(&first, flags & 0x08 != 0), part(&entry[8..11], flags & 0x10 != 0));
    if ending.is_empty() { name.into_bytes() } else { format!("{name}.{ending}").into_bytes() }
}

/// Seconds since 1970, taken as UTC: where the clock stood is not written down.
fn time(date: u16, time: u16) -> i64 {
    let (year, month, day) = (i64::from(date >> 9) + 1980, i64::from(date >> 5 & 15), i64::from(date & 31));
    // Days since 1970 of the proleptic Gregorian calendar, with years that begin in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day.max(1) - 1 - 719_468;
    let seconds = i64::from(time >> 11) * 3600 + i64::from(time >> 5 & 63) * 60 + i64::from(time & 31) * 2;
    days * 86400 + seconds
}

#[cfg(test)]
mod tests {
    #[test]
    fn times() {
        // `date -ud '2026-11-22 23:58:06' +%s`
        assert_eq!(super::time((46 << 9) | (11 << 5) | 22, (23 << 11) | (58 << 5) | 3), 1_795_391_886);
        assert_eq!(super::time((1 << 5) | 1, 0), 315_532_800);
        assert_eq!(super::time((20 << 9) | (2 << 5) | 29, 0), 951_782_400);
    }
}
