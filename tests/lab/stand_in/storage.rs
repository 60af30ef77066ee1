//! Directory, btrfs, LVM and LVM-thin storages of `storage.cfg` and the volumes in them.

use super::Machine;
use super::lvm::Group;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A volume in a storage.
#[derive(Debug, Clone)]
pub struct Volume {
    /// `local:100/vm-100-disk-0.qcow2`
    pub volid: String,
    /// Where it lies, root prefix included.
    pub path: PathBuf,
    /// `raw`, `qcow2`, `subvol`, or the ending of what is no image.
    pub format: String,
    /// Whether it lies in a btrfs storage, where every volume is a subvolume.
    pub btrfs: bool,
    /// The volume group it is in.
    pub group: Option<Group>,
}

/// The storages of the node: names and paths.
#[derive(Debug, Clone)]
pub struct Storages {
    dirs: Vec<(String, PathBuf, bool)>,
    groups: Vec<Group>,
}

impl Storages {
    /// Reads `/etc/pve/storage.cfg`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load(machine: &Machine) -> Result<Self> {
        let text =
            std::fs::read_to_string(machine.path("/etc/pve/storage.cfg")).context("storage.cfg cannot be read")?;
        let mut dirs: Vec<(String, PathBuf, bool)> = Vec::new();
        let mut groups: Vec<Group> = Vec::new();
        for line in text.lines() {
            let setting = |name: &str| line.trim().strip_prefix(name)?.strip_prefix(' ').map(str::to_owned);
            if let Some((kind @ ("dir" | "btrfs"), name)) = line.split_once(':') {
                dirs.push((name.trim().to_owned(), PathBuf::new(), kind == "btrfs"));
            } else if let Some(("lvm" | "lvmthin", name)) = line.split_once(':') {
                groups.push(Group { storage: name.trim().to_owned(), ..Group::default() });
            } else if let (Some(group), Some(last)) = (setting("vgname"), groups.last_mut()) {
                last.group = group;
            } else if let (Some(pool), Some(last)) = (setting("thinpool"), groups.last_mut()) {
                last.pool = Some(pool);
            } else if let (Some(path), Some(last)) = (line.trim().strip_prefix("path "), dirs.last_mut()) {
                last.1 = machine.path(path.trim());
            }
        }
        Ok(Self { dirs, groups })
    }

    /// The directory of storage `name`.
    ///
    /// # Errors
    /// When there is no such storage.
    pub fn dir(&self, name: &str) -> Result<&Path> {
        self.find(name).map(|(dir, _)| dir)
    }

    /// The directories of all storages.
    pub fn all(&self) -> impl Iterator<Item = &Path> {
        self.dirs.iter().map(|(_, dir, _)| dir.as_path())
    }

    /// The volume group of storage `name`, if it is one.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.storage == name)
    }

    /// The volume groups of all storages.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    fn find(&self, name: &str) -> Result<(&Path, bool)> {
        let found = self.dirs.iter().find(|(known, _, _)| known == name);
        found.map(|(_, dir, btrfs)| (dir.as_path(), *btrfs)).with_context(|| format!("storage '{name}' does not exist"))
    }

    /// What a volume identifier means, whether or not the file exists.
    ///
    /// # Errors
    /// When it is no identifier or the storage is unknown.
    pub fn volume(&self, volid: &str) -> Result<Volume> {
        let (storage, name) = volid.split_once(':').with_context(|| format!("unable to parse volume ID '{volid}'"))?;
        if let Some(group) = self.group(storage) {
            anyhow::ensure!(!name.contains('/'), "unable to parse lvm volume name '{name}'");
            return Ok(group.volume(name));
        }
        let (dir, btrfs) = self.find(storage)?;
        let path = match name.split_once('/') {
            Some(("backup", file)) => dir.join("dump").join(file),
            Some(("iso", file)) => dir.join("template/iso").join(file),
            Some((vmid, file)) if vmid.parse::<u32>().is_ok() && !file.contains('/') => {
                let images = dir.join("images").join(vmid);
                match file.strip_suffix(".raw").filter(|_| btrfs) {
                    Some(stem) => images.join(stem).join("disk.raw"),
                    None => images.join(file),
                }
            }
            _ => bail!("unable to parse directory volume name '{name}'"),
        };
        let format = path.extension().and_then(|e| e.to_str()).unwrap_or("raw").to_owned();
        Ok(Volume { volid: volid.to_owned(), path, format, btrfs, group: None })
    }

    /// Makes a new volume of `bytes` bytes; with an empty name the next free `vm-<vmid>-disk-<n>`, or `subvol-...`.
    ///
    /// # Errors
    /// When it exists already or cannot be made.
    pub fn alloc(&self, storage: &str, vmid: u32, name: &str, bytes: u64, format: &str) -> Result<Volume> {
        if let Some(group) = self.group(storage) {
            let name = if name.is_empty() { group.free_name(vmid)? } else { name.to_owned() };
            group.create(&name, bytes)?;
            return Ok(group.volume(&name));
        }
        let images = self.dir(storage)?.join("images").join(vmid.to_string());
        std::fs::create_dir_all(&images)?;
        let name = if name.is_empty() {
            let names: Vec<String> =
                std::fs::read_dir(&images)?.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
            let taken = |n: &u32| {
                let stem = format!("-{vmid}-disk-{n}");
                names.iter().any(|name| name.split('.').next().is_some_and(|name| name.ends_with(&stem)))
            };
            let free = (0..).find(|n| !taken(n)).unwrap_or_default();
            let kind = if format == "subvol" { "subvol" } else { "vm" };
            format!("{kind}-{vmid}-disk-{free}.{format}")
        } else {
            name.to_owned()
        };
        let volume = self.volume(&format!("{storage}:{vmid}/{name}"))?;
        if volume.path.exists() {
            bail!("disk image '{}' already exists", volume.path.display());
        }
        create_volume(&volume, bytes)?;
        Ok(volume)
    }
}

/// Makes a volume where its identifier says.
///
/// # Errors
/// As [`create_image`], and when `btrfs` fails.
pub fn create_volume(volume: &Volume, bytes: u64) -> Result<()> {
    if let Some(group) = &volume.group {
        return group.create(name_of(volume), bytes);
    }
    let parent = volume.path.parent().context("volume in no directory")?;
    match (volume.btrfs, volume.format.as_str()) {
        (true, "subvol") => {
            std::fs::create_dir_all(parent)?;
            btrfs(&["subvolume", "create"], &volume.path)?;
        }
        (true, "raw") => {
            std::fs::create_dir_all(parent.parent().context("volume in no directory")?)?;
            btrfs(&["subvolume", "create"], parent)?;
        }
        (false, "subvol") => std::fs::create_dir_all(&volume.path)?,
        _ => std::fs::create_dir_all(parent)?,
    }
    if volume.format == "subvol" { Ok(()) } else { create_image(&volume.path, &volume.format, bytes) }
}

/// Removes a volume and everything in it.
///
/// # Errors
/// When it is not there or `btrfs` fails.
pub fn free_volume(volume: &Volume) -> Result<()> {
    if let Some(group) = &volume.group {
        return group.remove(name_of(volume));
    }
    let missing = || format!("disk image '{}' does not exist", volume.path.display());
    match (volume.btrfs, volume.format.as_str()) {
        (true, "subvol") => btrfs(&["subvolume", "delete"], &volume.path),
        (true, "raw") => btrfs(&["subvolume", "delete"], volume.path.parent().context("image in no directory")?),
        (false, "subvol") => std::fs::remove_dir_all(&volume.path).with_context(missing),
        _ => std::fs::remove_file(&volume.path).with_context(missing),
    }
}

fn name_of(volume: &Volume) -> &str {
    volume.volid.rsplit(':').next().unwrap_or_default()
}

fn btrfs(words: &[&str], path: &Path) -> Result<()> {
    let done = Command::new("btrfs").args(words).arg(path).output().context("btrfs cannot be started")?;
    let said = String::from_utf8_lossy(&done.stderr);
    anyhow::ensure!(done.status.success(), "btrfs {} {}: {said}", words.join(" "), path.display());
    Ok(())
}

/// Makes an image as PVE does: sparse raw, qcow2 with its metadata allocated.
///
/// # Errors
/// When the format is unknown or the image cannot be made.
pub fn create_image(path: &Path, format: &str, bytes: u64) -> Result<()> {
    match format {
        "raw" => std::fs::File::create_new(path)
            .and_then(|file| file.set_len(bytes))
            .with_context(|| format!("unable to create image '{}'", path.display())),
        "qcow2" => {
            let done = Command::new("qemu-img")
                .args(["create", "-q", "-o", "preallocation=metadata", "-f", "qcow2"])
                .arg(path)
                .arg(bytes.to_string())
                .output()
                .context("qemu-img cannot be started")?;
            let said = String::from_utf8_lossy(&done.stderr);
            anyhow::ensure!(done.status.success(), "unable to create image '{}': {said}", path.display());
            Ok(())
        }
        other => bail!("unknown image format '{other}': raw or qcow2"),
    }
}
