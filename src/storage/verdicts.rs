//! What verifications of the archives of a directory came to: one hidden file beside them, which no other program looks at.
//!
//! A verdict is of a file of a certain size and time of change; of any other file of that name it says nothing.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::host::files;

/// The file's name.
pub const VERDICTS: &str = ".vzkeep-verified.json";
/// A longer file is not ours.
const MAX_FILE: u64 = 64 << 20;

/// What one verification came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Bytes of the archive.
    pub size: u64,
    /// Its last change, nanoseconds since 1970.
    pub changed: i128,
    /// When it was verified, seconds since 1970.
    pub time: i64,
    /// What was looked at: `every-byte`, `compression` or `structure`.
    pub checked: String,
    /// What is damaged; nothing in a good archive.
    #[serde(default)]
    pub damage: Vec<String>,
}

impl Verdict {
    /// Whether it is about the file with this metadata.
    pub fn is_of(&self, meta: &Metadata) -> bool {
        (self.size, self.changed) == (meta.len(), changed(meta))
    }
}

/// The last change of a file, nanoseconds since 1970.
pub fn changed(meta: &Metadata) -> i128 {
    i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
}

/// The verdicts of a directory, by the archive's name; none when there is no file of them, or a damaged one: then they are to be
/// found out again.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn verdicts(dir: &Path) -> io::Result<BTreeMap<String, Verdict>> {
    let path = dir.join(VERDICTS);
    match path.metadata() {
        Ok(meta) if meta.is_file() && meta.len() <= MAX_FILE => {}
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => return Ok(BTreeMap::new()),
    }
    Ok(serde_json::from_slice(&std::fs::read(path)?).unwrap_or_default())
}

/// Writes down the verdict of the archive `name` in `dir`, and forgets those of archives that are gone.
///
/// # Errors
/// When the file cannot be replaced; the old one is untouched then.
pub fn record(dir: &Path, name: &str, verdict: Verdict) -> io::Result<()> {
    // Two runs may verify archives of one directory. A file system without locks is no reason not to write it down.
    let _lock = Flock::lock(File::open(dir)?, FlockArg::LockExclusive).ok();
    let mut all = verdicts(dir)?;
    all.insert(name.to_owned(), verdict);
    all.retain(|name, _| dir.join(name).symlink_metadata().is_ok());
    files::replace(&dir.join(VERDICTS), &serde_json::to_vec_pretty(&all)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_of_files_that_have_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(verdicts(dir).unwrap().is_empty());
        let of = |name: &str| {
            std::fs::write(dir.join(name), name).unwrap();
            let meta = dir.join(name).metadata().unwrap();
            let (size, changed) = (meta.len(), changed(&meta));
            Verdict { size, changed, time: 7, checked: "every-byte".into(), damage: vec!["x".into()] }
        };
        let (a, b) = (of("a"), of("b"));
        record(dir, "a", a.clone()).unwrap();
        std::fs::remove_file(dir.join("a")).unwrap();
        record(dir, "b", b.clone()).unwrap();
        assert_eq!(verdicts(dir).unwrap(), BTreeMap::from([("b".to_owned(), b.clone())]));
        assert!(b.is_of(&dir.join("b").metadata().unwrap()));
        std::fs::write(dir.join("b"), "longer").unwrap();
        assert!(!b.is_of(&dir.join("b").metadata().unwrap()));
        std::fs::write(dir.join(VERDICTS), "{half").unwrap();
        assert!(verdicts(dir).unwrap().is_empty());
    }
}
