//! The disks of a VM: which there are, which are backed up and why not.

use std::fmt;

use super::guest::pairs;
use super::{GuestConfig, Section};
use crate::schema::parse_bool;
use crate::schema::size::{parse_size, print_size};

/// The keys of disks, in the order in which they are listed.
const BUSES: [(&str, u32); 6] =
    [("ide", 4), ("scsi", 31), ("virtio", 16), ("sata", 6), ("efidisk", 1), ("tpmstate", 1)];

/// A disk line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// `scsi0`, `efidisk0`, ...
    pub key: String,
    /// `local:100/vm-100-disk-0.qcow2`, an absolute path, `none` or `cdrom`.
    pub volid: String,
    /// The other settings, in the order of the line.
    pub options: Vec<(String, String)>,
}

impl Disk {
    /// Reads the value of the line `key`.
    pub fn parse(key: &str, value: &str) -> Option<Self> {
        let mut options = pairs(value, "file");
        let at = options.iter().position(|(key, _)| key == "file" || key == "volume")?;
        let (_, volid) = options.remove(at);
        Some(Self { key: key.to_owned(), volid, options })
    }

    /// A setting: `size`, `media`, `iothread`, ...
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether it is a CD-ROM drive (also the one of cloud-init).
    pub fn is_cdrom(&self) -> bool {
        self.option("media") == Some("cdrom") || matches!(self.volid.as_str(), "none" | "cdrom")
    }

    /// Whether it is the drive with cloud-init's settings, which is made anew from the configuration.
    pub fn is_cloudinit(&self) -> bool {
        self.is_cdrom() && self.volid.contains("cloudinit")
    }

    /// Whether the line itself lets it be backed up: all but `backup=0`.
    pub fn wants_backup(&self) -> bool {
        self.option("backup").and_then(parse_bool) != Some(false)
    }

    /// The size in bytes that the line notes.
    pub fn size(&self) -> Option<u64> {
        parse_size(self.option("size")?)
    }

    /// The storage's name.
    pub fn storage(&self) -> Option<&str> {
        self.volid.split_once(':').map(|(storage, _)| storage).filter(|storage| !storage.contains('/'))
    }

    /// The image's format: of the line, else of the file name.
    pub fn format(&self) -> Option<&str> {
        let extension = || self.volid.rsplit_once('.').map(|(_, extension)| extension);
        self.option("format").or_else(extension).filter(|format| matches!(*format, "raw" | "qcow2" | "vmdk"))
    }

    /// Its name in the archive and in QEMU: `drive-scsi0`, `drive-tpmstate0-backup`.
    pub fn device(&self) -> String {
        let suffix = if self.key.starts_with("tpmstate") { "-backup" } else { "" };
        format!("drive-{}{suffix}", self.key)
    }
}

/// The value of the line again.
impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.volid)?;
        self.options.iter().try_for_each(|(key, value)| write!(f, ",{key}={value}"))
    }
}

/// All disks that hold now, CD-ROM drives included: ide, scsi, virtio, sata, EFI, TPM, each by number.
pub fn disks(config: &GuestConfig) -> Vec<Disk> {
    let properties = config.properties(&Section::Main);
    let keys = BUSES.iter().flat_map(|(bus, count)| (0..*count).map(move |number| format!("{bus}{number}")));
    keys.filter_map(|key| {
        let (_, value) = properties.iter().rev().find(|(k, _)| *k == key)?;
        Disk::parse(&key, value)
    })
    .collect()
}

/// A disk that could be backed up, and whether it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupVolume {
    /// The disk.
    pub disk: Disk,
    /// Why it is left out; `None` if it is backed up.
    pub excluded: Option<&'static str>,
}

/// The log's line about it: `include disk 'scsi0' 'local:100/vm-100-disk-0.qcow2' 1G`.
impl fmt::Display for BackupVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Disk { key, volid, .. } = &self.disk;
        match (self.excluded, self.disk.size()) {
            (Some(reason), _) => write!(f, "exclude disk '{key}' '{volid}' ({reason})"),
            (None, Some(size)) => write!(f, "include disk '{key}' '{volid}' {}", print_size(size)),
            (None, None) => write!(f, "include disk '{key}' '{volid}'"),
        }
    }
}

/// All disks but CD-ROM drives, in the order the log lists them, with the reason where one is left out.
pub fn backup_volumes(config: &GuestConfig) -> Vec<BackupVolume> {
    let ovmf = config.get("bios").as_deref() == Some("ovmf");
    let volume = |disk: Disk| {
        let excluded = if disk.key.starts_with("efidisk") && !ovmf {
            // The letters are the original's.
            Some("efidisk but no OMVF BIOS")
        } else {
            (!disk.wants_backup()).then_some("backup=no")
        };
        BackupVolume { disk, excluded }
    };
    disks(config).into_iter().filter(|disk| !disk.is_cdrom()).map(volume).collect()
}

/// The disks that are backed up, in the order they have in the archive: sorted by key.
pub fn archive_order(volumes: &[BackupVolume]) -> Vec<&Disk> {
    let mut included: Vec<_> = volumes.iter().filter(|v| v.excluded.is_none()).map(|v| &v.disk).collect();
    included.sort_by(|a, b| a.key.cmp(&b.key));
    included
}
