//! Names of archives: `vzdump-qemu-100-2026_11_22-09_14_25.vma.zst` and the files beside it; also archives that somebody
//! gave another name: these are listed and restored, and retention never touches them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use regex::Regex;

use crate::schema::Vmid;

static NAME: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"^vzdump-(qemu|lxc|openvz)-([1-9][0-9]{2,8})-([0-9]{4})_([0-9]{2})_([0-9]{2})-([0-9]{2})_([0-9]{2})_([0-9]{2})\.(tgz|(?:tar|vma)(?:\.(?:gz|lzo|zst|bz2))?)$",
    )
    .expect("the pattern is constant and tested")
});

/// Any archive's name: what stands between the kind of guest and the extension is free.
static RENAMED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^vzdump-(qemu|lxc|openvz)-[^/\n]+\.(tgz|(tar|vma)(?:\.(gz|lzo|zst|bz2))?)$")
        .expect("the pattern is constant and tested")
});

/// What kind of guest an archive holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GuestKind {
    /// A virtual machine.
    Qemu,
    /// A container.
    Lxc,
    /// A container of the kind before that.
    Openvz,
}

impl GuestKind {
    /// As names have it: `qemu`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Lxc => "lxc",
            Self::Openvz => "openvz",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [Self::Qemu, Self::Lxc, Self::Openvz].into_iter().find(|kind| kind.as_str() == word)
    }
}

impl fmt::Display for GuestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The parts of an archive's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveName {
    /// VM or container.
    pub kind: GuestKind,
    /// The guest.
    pub vmid: Vmid,
    /// When the backup began, local time of the node, whole seconds.
    pub time: DateTime,
    /// `vma`, `vma.zst`, `tar.gz`, ...
    pub extension: String,
}

impl ArchiveName {
    /// A name for a backup that begins at `now`. If `taken` says that there is already something with the same name
    /// (without extension), the next second that is free is used: no backup ever replaces another one.
    pub fn fresh(kind: GuestKind, vmid: Vmid, now: DateTime, extension: &str, taken: impl Fn(&str) -> bool) -> Self {
        let time = now.with().subsec_nanosecond(0).build().unwrap_or(now);
        let mut name = Self { kind, vmid, time, extension: extension.to_owned() };
        while taken(&name.base()) {
            match name.time.checked_add(1.second()) {
                Ok(next) => name.time = next,
                Err(_) => break,
            }
        }
        name
    }

    /// Reads a file name (no path). `None` for anything that is not exactly an archive's name.
    pub fn parse(name: &str) -> Option<Self> {
        let parts = NAME.captures(name)?;
        let number = |i: usize| parts[i].parse::<i16>().ok();
        let small = |i: usize| parts[i].parse::<i8>().ok();
        let time = DateTime::new(number(3)?, small(4)?, small(5)?, small(6)?, small(7)?, small(8)?, 0).ok()?;
        Some(Self {
            kind: GuestKind::parse(&parts[1])?,
            vmid: parts[2].parse().ok()?,
            time,
            extension: parts[9].to_owned(),
        })
    }

    /// The name without extension.
    pub fn base(&self) -> String {
        let t = self.time;
        format!(
            "vzdump-{}-{}-{:04}_{:02}_{:02}-{:02}_{:02}_{:02}",
            self.kind,
            self.vmid,
            t.year(),
            t.month(),
            t.day(),
            t.hour(),
            t.minute(),
            t.second()
        )
    }

    /// The archive in `dir`.
    pub fn path(&self, dir: &Path) -> PathBuf {
        dir.join(self.to_string())
    }

    /// What it is called while it is written: the last extension replaced by `.dat`.
    pub fn draft(&self, dir: &Path) -> PathBuf {
        self.path(dir).with_extension("dat")
    }

    /// The guest's log.
    pub fn log(&self, dir: &Path) -> PathBuf {
        dir.join(self.base() + ".log")
    }

    /// The temporary directory of the backup.
    pub fn tmp(&self, dir: &Path) -> PathBuf {
        dir.join(self.base() + ".tmp")
    }

    /// The notes.
    pub fn notes(&self, dir: &Path) -> PathBuf {
        dir.join(notes_name(&self.to_string()))
    }

    /// The file whose existence protects the archive.
    pub fn protected(&self, dir: &Path) -> PathBuf {
        dir.join(protected_name(&self.to_string()))
    }

    /// The moment in time zone `zone`. A local time that a change of the clock skips or repeats is read as PVE does: as
    /// the C library's mktime, which here means the first of two, and the time after the gap.
    pub fn timestamp(&self, zone: &TimeZone) -> Option<Timestamp> {
        zone.to_ambiguous_zoned(self.time).compatible().ok().map(|zoned| zoned.timestamp())
    }
}

/// What the file at the end of an archive's path tells by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveInfo {
    /// The file's name.
    pub file: String,
    /// VM or container.
    pub kind: GuestKind,
    /// `vma` or `tar`.
    pub format: &'static str,
    /// `gz`, `lzo`, `zst` or `bz2`; none for a plain archive.
    pub compression: Option<&'static str>,
    /// The parts of a name that vzdump gave; none if the archive was renamed.
    pub standard: Option<ArchiveName>,
}

impl ArchiveInfo {
    /// Reads a file name (no path). `None` for anything that is no archive's name.
    pub fn parse(file: &str) -> Option<Self> {
        let parts = RENAMED.captures(file)?;
        let compression = match parts.get(4).map(|part| part.as_str()) {
            Some("lzo") => Some("lzo"),
            Some("zst") => Some("zst"),
            Some("bz2") => Some("bz2"),
            Some(_) => Some("gz"),
            None if &parts[2] == "tgz" => Some("gz"),
            None => None,
        };
        Some(Self {
            file: file.to_owned(),
            kind: GuestKind::parse(&parts[1])?,
            format: if parts.get(3).is_some_and(|part| part.as_str() == "vma") { "vma" } else { "tar" },
            compression,
            standard: ArchiveName::parse(file),
        })
    }

    /// The guest it is of; of a renamed archive the first number in its name that can be a guest's.
    pub fn vmid(&self) -> Option<Vmid> {
        let renamed = || {
            let words: Vec<&str> = self.file.split('-').collect();
            // The last word ends in the extension.
            words.get(2..words.len() - 1)?.iter().find_map(|word| word.parse().ok())
        };
        self.standard.as_ref().map(|name| name.vmid).or_else(renamed)
    }

    /// The name of its notes.
    pub fn notes(&self) -> String {
        notes_name(&self.file)
    }

    /// The name of the file whose existence protects it.
    pub fn protected(&self) -> String {
        protected_name(&self.file)
    }
}

fn notes_name(archive: &str) -> String {
    format!("{archive}.notes")
}

fn protected_name(archive: &str) -> String {
    format!("{archive}.protected")
}

impl fmt::Display for ArchiveName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.base(), self.extension)
    }
}
