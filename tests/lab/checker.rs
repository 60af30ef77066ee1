//! The checker: given the restored disks of a guest in which the witness wrote, is every record intact, and is there one
//! instant at which all of the disks were exactly so?
//!
//! The witness writes record n to disk 0, then to disk 1 and so on, each durable before the next is begun. So at any instant
//! there is a number n and a disk k such that the disks before k end with record n and the others with n - 1, and every
//! slot of a disk holds the last record up to that end which belongs there.

use super::record::{Block, Record, SIZE, expected};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The disks are as they were at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Intact records found on all disks together.
    pub records: u64,
    /// The last record on each disk, in the order in which they are written.
    pub heads: Vec<u64>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records intact, one instant: the disks end with {:?}", self.records, self.heads)
    }
}

/// Why the disks are not as they were at any instant.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The disk.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Not one record on any disk.
    #[error("no record on any disk")]
    Nothing,
    /// What lies in a slot is no record.
    #[error("{}: offset {offset}: the block is torn or no record", path.display())]
    Damaged {
        /// The disk.
        path: PathBuf,
        /// Byte offset.
        offset: u64,
    },
    /// Something was written between the slots, where the witness never writes.
    #[error("{}: offset {offset}: data where the witness never wrote", path.display())]
    Foreign {
        /// The disk.
        path: PathBuf,
        /// Byte offset.
        offset: u64,
    },
    /// A slot holds an older record than all the others say.
    #[error("{}: offset {offset}: stale: record {found}, but at record {head} it must hold {wanted}", path.display())]
    Stale {
        /// The disk.
        path: PathBuf,
        /// Byte offset.
        offset: u64,
        /// What is there; 0 when nothing is.
        found: u64,
        /// What must be there.
        wanted: u64,
        /// The last record of the disk.
        head: u64,
    },
    /// A slot holds a newer record than all the others say.
    #[error("{}: offset {offset}: too new: record {found}, but at record {head} it must hold {wanted}", path.display())]
    TooNew {
        /// The disk.
        path: PathBuf,
        /// Byte offset.
        offset: u64,
        /// What is there.
        found: u64,
        /// What must be there; 0 when nothing.
        wanted: u64,
        /// The last record of the disk.
        head: u64,
    },
    /// Two disks claim the same place in the order of writing, or a record lies in the wrong place.
    #[error("{}: offset {offset}: record {found} of disk {disk} does not belong here", path.display())]
    Misplaced {
        /// The disk.
        path: PathBuf,
        /// Byte offset.
        offset: u64,
        /// What is there.
        found: u64,
        /// The disk it says it belongs to.
        disk: u64,
    },
    /// Each disk is right by itself, but not at the same instant.
    #[error("the disks end with records {heads:?}: no instant at which all of them were so")]
    Apart {
        /// The last record on each disk, in the order of writing.
        heads: Vec<u64>,
    },
}

struct Disk {
    path: PathBuf,
    /// `None` while nothing was written to it yet.
    index: Option<u64>,
    head: u64,
    records: u64,
}

/// Checks the raw files `disks`, in any order. Disks of the guest may be missing (excluded from the backup); order and
/// instant of the rest must still be right.
///
/// # Errors
/// The first fault found.
pub fn check<P: AsRef<Path>>(disks: &[P]) -> Result<Verdict, Fault> {
    let mut found = Vec::new();
    for path in disks {
        found.push(check_disk(path.as_ref())?);
    }
    if found.iter().all(|disk| disk.head == 0) {
        return Err(Fault::Nothing);
    }
    // A disk that has nothing yet comes after those that have the first record.
    found.sort_by_key(|disk| disk.index.unwrap_or(u64::MAX));
    for pair in found.windows(2) {
        if pair[0].index.is_some() && pair[0].index == pair[1].index {
            let (path, disk) = (pair[1].path.clone(), pair[1].index.unwrap_or_default());
            return Err(Fault::Misplaced { path, offset: 0, found: pair[1].head, disk });
        }
    }
    let heads: Vec<u64> = found.iter().map(|disk| disk.head).collect();
    let falling = heads.windows(2).all(|pair| pair[0] >= pair[1]);
    if !falling || heads.first().zip(heads.last()).is_some_and(|(first, last)| first - last > 1) {
        return Err(Fault::Apart { heads });
    }
    Ok(Verdict { records: found.iter().map(|disk| disk.records).sum(), heads })
}

fn check_disk(path: &Path) -> Result<Disk, Fault> {
    let io = |source| Fault::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let blocks = file.metadata().map_err(io)?.len() / SIZE as u64;
    let mut intact: Vec<(u64, Record)> = Vec::new();
    let mut odd = Vec::new();
    let mut buf = vec![0; SIZE];
    for block in 0..blocks {
        let offset = block * SIZE as u64;
        file.read_exact_at(&mut buf, offset).map_err(io)?;
        match Record::read(&buf) {
            Block::Empty => {}
            Block::Intact(record) => intact.push((offset, record)),
            Block::Damaged => odd.push(offset),
        }
    }
    let path = path.to_owned();
    let Some((_, like)) = intact.first().copied() else {
        return match odd.first() {
            Some(&offset) => Err(Fault::Damaged { path, offset }),
            None => Ok(Disk { path, index: None, head: 0, records: 0 }),
        };
    };
    if let Some(&offset) = odd.first() {
        let slotted = offset % like.stride == 0 && offset / like.stride < like.slots;
        return Err(if slotted { Fault::Damaged { path, offset } } else { Fault::Foreign { path, offset } });
    }
    let mut slots = vec![0; usize::try_from(like.slots).unwrap_or_default()];
    for (offset, record) in &intact {
        let same = (record.disk, record.slots, record.stride) == (like.disk, like.slots, like.stride);
        let slot = usize::try_from(record.n % record.slots).unwrap_or_default();
        match slots.get_mut(slot) {
            Some(n) if same && record.offset() == *offset => *n = record.n,
            _ => return Err(Fault::Misplaced { path, offset: *offset, found: record.n, disk: record.disk }),
        }
    }
    let (head, wrong) = best_head(&slots);
    if let Some(slot) = wrong {
        let found = slots.get(slot).copied().unwrap_or_default();
        let wanted = expected(slot as u64, like.slots, head).unwrap_or_default();
        let offset = slot as u64 * like.stride;
        return Err(if found < wanted {
            Fault::Stale { path, offset, found, wanted, head }
        } else {
            Fault::TooNew { path, offset, found, wanted, head }
        });
    }
    Ok(Disk { path, index: Some(like.disk), head, records: intact.len() as u64 })
}

/// The end of the disk that explains most of its slots, and the first slot that it does not explain. Any slot left
/// unexplained makes the disk wrong; choosing the best end only serves the message.
fn best_head(slots: &[u64]) -> (u64, Option<usize>) {
    let mut candidates: Vec<u64> = slots.iter().copied().filter(|n| *n > 0).collect();
    candidates.sort_unstable();
    let count = slots.len() as u64;
    let wrong = |head: u64| {
        slots.iter().enumerate().filter(move |(slot, n)| expected(*slot as u64, count, head).unwrap_or_default() != **n)
    };
    let best = candidates.iter().rev().take(64).min_by_key(|head| wrong(**head).count()).copied().unwrap_or_default();
    (best, wrong(best).next().map(|(slot, _)| slot))
}
