//! Fleecing images: where QEMU puts the old content of blocks that the guest overwrites during a backup.
//!
//! Either the caller brings an image that a storage allocated, or we make a sparse file. Ours loses its name as soon
//! as QEMU has it open, so that neither our end nor QEMU's can leave it on disk.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::QemuError;
use super::names::Names;

/// Format of a fleecing image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FleecingFormat {
    /// A plain file or block device.
    Raw,
    /// A qcow2 image.
    Qcow2,
}

impl FleecingFormat {
    fn driver(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// Where a disk's fleecing image comes from.
#[derive(Debug, Clone)]
pub enum Fleecing {
    /// A ready-made empty image at least as large as the disk. It stays where it is; removing it is the caller's.
    Image {
        /// File or block device.
        path: PathBuf,
        /// Its format.
        format: FleecingFormat,
    },
    /// A directory in which a sparse file is made and unlinked at once.
    Directory(PathBuf),
}

/// A fleecing image on our side, while a session lasts.
#[derive(Debug)]
pub(super) struct Fleece {
    path: PathBuf,
    format: FleecingFormat,
    /// The file is open in QEMU alone: closing one on a storage that hangs would hang us, even a child between fork and
    /// exec.
    block_device: bool,
    ours: bool,
}

impl Fleece {
    /// Makes the file, or opens the ready-made image to see that it is there.
    pub(super) fn prepare(what: &Fleecing, vmid: u32, device: &str, size: u64) -> Result<Self, QemuError> {
        let failed = |path: &Path, op: &'static str, source: io::Error| QemuError::Fleecing {
            vmid,
            path: path.into(),
            device: device.into(),
            op,
            source,
        };
        match what {
            Fleecing::Image { path, format } => {
                let path = absolute(path);
                let kind = std::fs::metadata(&path).map_err(|e| failed(&path, "open", e))?.file_type();
                Ok(Self { path, format: *format, block_device: kind.is_block_device(), ours: false })
            }
            Fleecing::Directory(dir) => {
                let safe: String = device.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
                let path = absolute(dir).join(format!("vzkeep-{vmid}-{safe}-{}.raw", uuid::Uuid::new_v4().simple()));
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&path)
                    .map_err(|e| failed(&path, "create", e))?;
                let fleece = Self { path, format: FleecingFormat::Raw, block_device: false, ours: true };
                file.set_len(size).map_err(|e| failed(&fleece.path, "resize", e))?;
                Ok(fleece)
            }
        }
    }

    /// Arguments of `blockdev-add`.
    pub(super) fn node(&self, names: &Names) -> Value {
        json!({
            "driver": self.format.driver(),
            "node-name": names.fleece,
            "discard": "unmap",
            "file": {
                "driver": if self.block_device { "host_device" } else { "file" },
                "node-name": names.file,
                "filename": self.path,
                "discard": "unmap",
            },
        })
    }

    /// Removes our file's name. QEMU keeps the file open; its space is freed with the node.
    pub(super) fn unlink(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.ours) {
            std::fs::remove_file(&self.path)?;
        }
        Ok(())
    }

    /// Leaves the file behind, as a KILL at this instant would.
    #[cfg(test)]
    pub(super) fn abandon(&mut self) {
        self.ours = false;
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes free on the file system that holds the image; none for block devices, where we cannot know, and for a
    /// storage that does not answer.
    pub(super) fn free(&self) -> Option<u64> {
        if self.block_device {
            return None;
        }
        let directory = self.path.parent()?.to_owned();
        let (sender, receiver) = crossbeam_channel::bounded(1);
        std::thread::spawn(move || {
            let free = nix::sys::statvfs::statvfs(&directory).map(|fs| fs.blocks_available() * fs.fragment_size());
            let _ = sender.send(free.ok());
        });
        receiver.recv_timeout(Duration::from_secs(2)).ok().flatten()
    }
}

impl Drop for Fleece {
    fn drop(&mut self) {
        // Nothing to be done about a file that cannot be removed; `remove_stale_files` finds it next time.
        let _ = self.unlink();
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.into())
}

/// Removes fleecing files and NBD sockets of this guest that a killed run left in `dir`. Only for a caller who knows that
/// no backup of the guest is running; a session does it when it starts. Returns what was removed.
///
/// # Errors
/// When the directory cannot be listed or a file cannot be removed.
pub fn remove_stale_files(dir: &Path, vmid: u32) -> io::Result<Vec<PathBuf>> {
    let prefix = format!("vzkeep-{vmid}-");
    let mut removed = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours =
            name.to_str().is_some_and(|n| n.starts_with(&prefix) && (n.ends_with(".raw") || n.ends_with(".nbd")));
        if ours && !entry.file_type()?.is_dir() {
            std::fs::remove_file(entry.path())?;
            removed.push(entry.path());
        }
    }
    Ok(removed)
}
