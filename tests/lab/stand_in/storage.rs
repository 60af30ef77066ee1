//! Directory storages of `storage.cfg` and the images in them.

use super::Machine;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A volume in a directory storage.
#[derive(Debug, Clone)]
pub struct Volume {
    /// `local:100/vm-100-disk-0.qcow2`
    pub volid: String,
    /// Where it lies, root prefix included.
    pub path: PathBuf,
    /// `raw`, `qcow2`, or the ending of what is no image.
    pub format: String,
}

/// The storages of the node: names and paths.
#[derive(Debug, Clone)]
pub struct Storages {
    dirs: Vec<(String, PathBuf)>,
}

impl Storages {
    /// Reads `/etc/pve/storage.cfg`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load(machine: &Machine) -> Result<Self> {
        let text =
            std::fs::read_to_string(machine.path("/etc/pve/storage.cfg")).context("storage.cfg cannot be read")?;
        let mut dirs: Vec<(String, PathBuf)> = Vec::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("dir:") {
                dirs.push((name.trim().to_owned(), PathBuf::new()));
            } else if let (Some(path), Some(last)) = (line.trim().strip_prefix("path "), dirs.last_mut()) {
                last.1 = machine.path(path.trim());
            }
        }
        Ok(Self { dirs })
    }

    /// The directory of storage `name`.
    ///
    /// # Errors
    /// When there is no such storage.
    pub fn dir(&self, name: &str) -> Result<&Path> {
        let found = self.dirs.iter().find(|(known, _)| known == name);
        found.map(|(_, dir)| dir.as_path()).with_context(|| format!("storage '{name}' does not exist"))
    }

    /// What a volume identifier means, whether or not the file exists.
    ///
    /// # Errors
    /// When it is no identifier or the storage is unknown.
    pub fn volume(&self, volid: &str) -> Result<Volume> {
        let (storage, name) = volid.split_once(':').with_context(|| format!("unable to parse volume ID '{volid}'"))?;
        let dir = self.dir(storage)?;
        let path = match name.split_once('/') {
            Some(("backup", file)) => dir.join("dump").join(file),
            Some(("iso", file)) => dir.join("template/iso").join(file),
            Some((vmid, file)) if vmid.parse::<u32>().is_ok() && !file.contains('/') => {
                dir.join("images").join(vmid).join(file)
            }
            _ => bail!("unable to parse directory volume name '{name}'"),
        };
        let format = path.extension().and_then(|e| e.to_str()).unwrap_or("raw").to_owned();
        Ok(Volume { volid: volid.to_owned(), path, format })
    }

    /// Makes a new volume of `bytes` bytes; with an empty name the next free `vm-<vmid>-disk-<n>`.
    ///
    /// # Errors
    /// When it exists already or cannot be made.
    pub fn alloc(&self, storage: &str, vmid: u32, name: &str, bytes: u64, format: &str) -> Result<Volume> {
        let images = self.dir(storage)?.join("images").join(vmid.to_string());
        std::fs::create_dir_all(&images)?;
        let name = if name.is_empty() {
            let taken =
                |n: &u32| ["raw", "qcow2"].iter().any(|f| images.join(format!("vm-{vmid}-disk-{n}.{f}")).exists());
            let free = (0..).find(|n| !taken(n)).unwrap_or_default();
            format!("vm-{vmid}-disk-{free}.{format}")
        } else {
            name.to_owned()
        };
        let volume = self.volume(&format!("{storage}:{vmid}/{name}"))?;
        if volume.path.exists() {
            bail!("disk image '{}' already exists", volume.path.display());
        }
        create_image(&volume.path, format, bytes)?;
        Ok(volume)
    }
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
