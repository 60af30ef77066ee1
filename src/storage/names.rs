//! Names of archives: `vzdump-qemu-100-2026_11_22-09_14_25.vma.zst` and the files beside it.

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
        r"^vzdump-(qemu|lxc)-([1-9][0-9]{2,8})-([0-9]{4})_([0-9]{2})_([0-9]{2})-([0-9]{2})_([0-9]{2})_([0-9]{2})\.(tgz|(?:tar|vma)(?:\.(?:gz|lzo|zst))?)$",
    )
    .expect("the pattern is constant and tested")
});

/// What kind of guest an archive holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GuestKind {
    /// A virtual machine.
    Qemu,
    /// A container.
    Lxc,
}

impl GuestKind {
    /// `qemu` or `lxc`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Lxc => "lxc",
        }
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
            kind: if &parts[1] == "qemu" { GuestKind::Qemu } else { GuestKind::Lxc },
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
        dir.join(format!("{self}.notes"))
    }

    /// The file whose existence protects the archive.
    pub fn protected(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{self}.protected"))
    }

    /// The moment in time zone `zone`. A local time that a change of the clock skips or repeats is read as PVE does: as
    /// the C library's mktime, which here means the first of two, and the time after the gap.
    pub fn timestamp(&self, zone: &TimeZone) -> Option<Timestamp> {
        zone.to_ambiguous_zoned(self.time).compatible().ok().map(|zoned| zoned.timestamp())
    }
}

impl fmt::Display for ArchiveName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.base(), self.extension)
    }
}
