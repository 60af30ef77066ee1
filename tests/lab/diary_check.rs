//! Reads the diaries of a container's restored tree: is every entry intact, and is there one instant at which all volumes
//! were exactly so?
//!
//! The diarist writes entry n to the first volume, then to the second and so on, each durable before the next is begun. So
//! at any instant the volumes end with n or, from some volume on, with n - 1.

use super::diary::{self, SIZE};
use std::path::{Path, PathBuf};

/// The volumes are as they were at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instant {
    /// The last entry of each diary, in the order of writing.
    pub last: Vec<u64>,
    /// The number that the mark of a clean shutdown says, if there is one.
    pub clean: Option<u64>,
}

/// Why the volumes are not as they were at any instant.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// No diary has an entry.
    #[error("no entry in any diary")]
    Nothing,
    /// What stands there is not the entry that belongs there.
    #[error("{}: offset {offset}: not entry {wanted}, but {found:?}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Byte offset.
        offset: usize,
        /// The number that belongs there.
        wanted: u64,
        /// What is there.
        found: String,
    },
    /// Each diary is right by itself, but not at the same instant.
    #[error("the diaries end with entries {last:?}: no instant at which all of them did")]
    Apart {
        /// The last entries, in the order of writing.
        last: Vec<u64>,
    },
}

/// Reads the diaries that the tree below `root` lists.
///
/// # Errors
/// The first fault found.
pub fn check(root: &Path) -> Result<Instant, Fault> {
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    let list = text(&below(diary::LIST))?;
    let mut last = Vec::new();
    for (volume, path) in list.lines().enumerate() {
        last.push(check_one(&below(path), volume as u64)?);
    }
    if last.iter().all(|n| *n == 0) {
        return Err(Fault::Nothing);
    }
    let falling = last.windows(2).all(|pair| pair[0] >= pair[1]);
    if !falling || last.first().zip(last.last()).is_some_and(|(first, end)| first - end > 1) {
        return Err(Fault::Apart { last });
    }
    let clean = below(diary::CLEAN);
    let clean = if clean.exists() { text(&clean)?.trim().parse().ok() } else { None };
    Ok(Instant { last, clean })
}

/// Reads one diary to its end and says its last entry; 0 when it has none.
///
/// # Errors
/// When it cannot be read or an entry is wrong.
pub fn check_one(path: &Path, volume: u64) -> Result<u64, Fault> {
    let bytes = std::fs::read(path).map_err(|source| Fault::Io { path: path.to_owned(), source })?;
    let mut wanted = 0;
    for (at, entry) in bytes.chunks(SIZE).enumerate() {
        wanted = at as u64 + 1;
        if diary::number(entry, volume) != Some(wanted) {
            let found = String::from_utf8_lossy(&entry[..entry.len().min(24)]).into_owned();
            return Err(Fault::Damaged { path: path.to_owned(), offset: at * SIZE, wanted, found });
        }
    }
    Ok(wanted)
}

fn text(path: &Path) -> Result<String, Fault> {
    std::fs::read_to_string(path).map_err(|source| Fault::Io { path: path.to_owned(), source })
}
