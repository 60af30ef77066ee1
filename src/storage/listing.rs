//! The archives in a dump directory.

use std::io;
use std::path::Path;

use jiff::tz::TimeZone;

use super::{ArchiveName, Backup};

/// An archive that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: ArchiveName,
    /// Bytes of the file; 0 from [`entries`].
    pub size: u64,
    /// Whether it is protected.
    pub protected: bool,
    /// When it was made, by its name, seconds since 1970.
    pub ctime: i64,
}

impl Entry {
    /// What retention needs to know of it.
    pub fn backup(&self) -> Backup {
        Backup { ctime: self.ctime, protected: self.protected }
    }
}

/// The archives among the names of a directory, oldest first; everything else is passed over.
pub fn entries<'a>(names: impl IntoIterator<Item = &'a str>, zone: &TimeZone) -> Vec<Entry> {
    let names: std::collections::BTreeSet<&str> = names.into_iter().collect();
    let entry = |text: &str| {
        let name = ArchiveName::parse(text)?;
        let protected = names.contains(format!("{text}.protected").as_str());
        let ctime = name.timestamp(zone)?.as_second();
        Some(Entry { name, size: 0, protected, ctime })
    };
    let mut found: Vec<_> = names.iter().filter_map(|text| entry(text)).collect();
    found.sort_by_key(|entry| entry.ctime);
    found
}

/// The archives in `dir`, oldest first.
///
/// # Errors
/// When the directory or a file in it cannot be looked at; a file that vanishes meanwhile is passed over.
pub fn list(dir: &Path, zone: &TimeZone) -> io::Result<Vec<Entry>> {
    let mut names = Vec::new();
    for file in std::fs::read_dir(dir)? {
        // Our names are ASCII: another one is not an archive.
        names.extend(file?.file_name().into_string());
    }
    let mut found = entries(names.iter().map(String::as_str), zone);
    let mut sized = Vec::with_capacity(found.len());
    for mut entry in found.drain(..) {
        match std::fs::metadata(entry.name.path(dir)) {
            Ok(meta) => {
                entry.size = meta.len();
                sized.push(entry);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sized)
}
