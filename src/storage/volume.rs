//! Volumes: their paths, new ones, and their removal. On storages that are plain directories all of that is done here; for
//! the others `pvesm` is asked.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::volid::{VolId, VolIdError, next_disk_name};
use crate::config::{Storage, StorageCfg, StorageError};
use crate::host::Host;
use crate::schema::{Vmid, parse_bool};

/// The storages of the node.
#[derive(Debug, Clone)]
pub struct Volumes {
    host: Host,
    cfg: StorageCfg,
}

/// Why a volume could not be found, made or removed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The storage cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The name cannot be used.
    #[error(transparent)]
    Name(#[from] VolIdError),
    /// The storage's mount is missing: writing would fill the file system below it.
    #[error(
        "unable to activate storage '{storage}' - directory is expected to be a mount point but is not mounted: '{path}'"
    )]
    NotMounted {
        /// The storage.
        storage: String,
        /// The node's path that should be a mount point.
        path: PathBuf,
    },
    /// An operation on a file failed.
    #[error("{operation} '{path}' failed: {source}")]
    File {
        /// What was done.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A command could not be run or failed.
    #[error("command '{command}' failed: {reason}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status and what it said.
        reason: String,
    },
    /// A directory storage has only these formats.
    #[error("format '{0}' cannot be used for a new image, only raw, qcow2 or vmdk")]
    Format(String),
}

/// A volume that was just made. Unless [`kept`](Self::keep), it is removed when dropped.
#[derive(Debug)]
pub struct NewVolume {
    volumes: Volumes,
    volid: VolId,
    path: PathBuf,
    keep: bool,
}

impl NewVolume {
    /// Its id.
    pub fn volid(&self) -> &VolId {
        &self.volid
    }

    /// Where it really lies (below our root prefix).
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// It is wanted: it stays.
    pub fn keep(mut self) -> VolId {
        self.keep = true;
        self.volid.clone()
    }

    /// Removes it now, and says whether that worked.
    ///
    /// # Errors
    /// As [`Volumes::free`].
    pub fn discard(mut self) -> Result<(), VolumeError> {
        self.keep = true;
        self.volumes.free(&self.volid)
    }
}

impl Drop for NewVolume {
    fn drop(&mut self) {
        if !self.keep {
            // Nobody is left to be told; who cares calls discard().
            self.volumes.free(&self.volid).unwrap_or_default();
        }
    }
}

impl Volumes {
    /// The storages of `cfg` on `host`.
    pub fn new(host: Host, cfg: StorageCfg) -> Self {
        Self { host, cfg }
    }

    /// The storages that `storage.cfg` lists.
    ///
    /// # Errors
    /// When the file exists and cannot be read.
    pub fn load(host: &Host) -> Result<Self, VolumeError> {
        let path = host.path(StorageCfg::PATH);
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(source) if source.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(VolumeError::File { operation: "reading", path, source }),
        };
        Ok(Self::new(host.clone(), StorageCfg::parse(&text)))
    }

    /// The storage configuration.
    pub fn cfg(&self) -> &StorageCfg {
        &self.cfg
    }

    /// The storage named `id`, enabled on this node and, if it must be, mounted.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn storage(&self, id: &str) -> Result<&Storage, VolumeError> {
        let storage = self.cfg.usable(id, self.host.node())?;
        if let Some(path) = storage.mount_point()
            && !is_mount_point(&self.host.path(&path))
        {
            return Err(VolumeError::NotMounted { storage: id.to_owned(), path });
        }
        Ok(storage)
    }

    /// Where a volume really lies (below our root prefix). An absolute path stands for itself.
    ///
    /// # Errors
    /// When the storage cannot be used or the name means nothing there.
    pub fn path(&self, volume: &str) -> Result<PathBuf, VolumeError> {
        if volume.starts_with('/') {
            return Ok(self.host.path(volume));
        }
        let volid: VolId = volume.parse()?;
        let storage = self.storage(&volid.storage)?;
        if storage.has_image_files() || (storage.path().is_some() && volid.volume.starts_with("backup/")) {
            return Ok(self.host.path(volid.path_on(storage)?.path));
        }
        Ok(PathBuf::from(run(self.host.command("pvesm").args(["path", volume]))?.trim()))
    }

    /// Makes a volume of `size` bytes (rounded up to 512; to KiB by `pvesm`) for a guest's disk. It reads as zeros.
    ///
    /// # Errors
    /// When the storage cannot be used or the volume cannot be made; nothing is left then.
    pub fn alloc(&self, storage: &str, vmid: Vmid, format: &str, size: u64) -> Result<NewVolume, VolumeError> {
        let found = self.storage(storage)?;
        let volid = if found.has_image_files() {
            self.alloc_file(found, vmid, format, size)?
        } else {
            let (kib, vmid) = (size.div_ceil(1024).to_string(), vmid.to_string());
            let said = run(self.host.command("pvesm").args(["alloc", storage, &vmid, "", &kib, "--format", format]))?;
            // successfully created 'local-lvm:vm-300-disk-0'
            let name = said.rsplit('\'').nth(1).unwrap_or_default();
            name.parse()?
        };
        let mut made = NewVolume { volumes: self.clone(), volid, path: PathBuf::new(), keep: false };
        made.path = self.path(&made.volid.to_string())?;
        Ok(made)
    }

    fn alloc_file(&self, storage: &Storage, vmid: Vmid, format: &str, size: u64) -> Result<VolId, VolumeError> {
        if !matches!(format, "raw" | "qcow2" | "vmdk") {
            return Err(VolumeError::Format(format.to_owned()));
        }
        let images = storage.content_dir("images").ok_or_else(|| VolIdError::NoPath(storage.id.clone()))?;
        let dir = self.host.path(images).join(vmid.to_string());
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| VolumeError::File { operation, path, source }
        };
        fs::create_dir_all(&dir).map_err(failed("creating directory", &dir))?;
        loop {
            let mut names = Vec::new();
            for file in fs::read_dir(&dir).map_err(failed("listing", &dir))? {
                names.push(file.map_err(failed("listing", &dir))?.file_name().to_string_lossy().into_owned());
            }
            let name = next_disk_name(vmid, format, names.iter().map(String::as_str));
            let path = dir.join(&name);
            // Creating the file takes the name: two allocations at once never share one.
            let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => file,
                Err(source) if source.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(source) => return Err(failed("creating", &path)(source)),
            };
            let size = size.div_ceil(512) * 512;
            let made = if format == "raw" {
                file.set_len(size).map_err(failed("resizing", &path))
            } else {
                self.create_image(storage, &path, format, size)
            };
            if let Err(error) = made {
                fs::remove_file(&path).map_err(failed("removing", &path))?;
                return Err(error);
            }
            return Ok(VolId { storage: storage.id.clone(), volume: format!("{vmid}/{name}") });
        }
    }

    fn create_image(&self, storage: &Storage, path: &Path, format: &str, size: u64) -> Result<(), VolumeError> {
        let mut command = self.host.command("qemu-img");
        command.args(["create", "-q", "-f", format]);
        // As PVE: metadata is allocated beforehand unless the storage says otherwise.
        if format == "qcow2" && storage.get("preallocation").unwrap_or("metadata") != "off" {
            command.args(["-o", "preallocation=metadata"]);
        }
        run(command.arg(path).arg(size.to_string())).map(drop)
    }

    /// Removes a volume; one that is gone already is fine.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn free(&self, volid: &VolId) -> Result<(), VolumeError> {
        let storage = self.storage(&volid.storage)?;
        if !storage.has_image_files() {
            return run(self.host.command("pvesm").args(["free", &volid.to_string()])).map(drop);
        }
        let path = self.host.path(volid.path_on(storage)?.path);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(VolumeError::File { operation: "removing", path, source });
            }
            _ => {}
        }
        // The guest's own directory goes with its last image; it stays while something else lies in it.
        if let Some(dir) =
            path.parent().filter(|dir| dir.file_name().is_some_and(|n| n.to_string_lossy().parse::<Vmid>().is_ok()))
        {
            fs::remove_dir(dir).unwrap_or_default();
        }
        Ok(())
    }

    /// The format new images get on a storage when nothing else is asked for.
    pub fn default_format(&self, storage: &str) -> &'static str {
        match self.cfg.get(storage) {
            Some(found) if found.get("format") == Some("qcow2") => "qcow2",
            Some(found) if found.get("snapshot-as-volume-chain").and_then(parse_bool) == Some(true) => "qcow2",
            _ => "raw",
        }
    }

    /// The format a disk of `format` gets on a storage: the same where it can be, else raw.
    pub fn usable_format(&self, storage: &str, format: &str) -> &'static str {
        match (self.cfg.get(storage).is_some_and(Storage::has_image_files), format) {
            (true, "qcow2") => "qcow2",
            (true, "vmdk") => "vmdk",
            (true, "") => self.default_format(storage),
            _ => "raw",
        }
    }
}

/// Runs a command; its standard output, or what it complained about.
fn run(command: &mut Command) -> Result<String, VolumeError> {
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let line = words.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let failed = |reason| VolumeError::Command { command: line.clone(), reason };
    let out = command.stdin(std::process::Stdio::null()).output().map_err(|error| failed(error.to_string()))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    let code = out.status.code().map_or_else(|| out.status.to_string(), |code| format!("exit code {code}"));
    Err(failed(if said.trim().is_empty() { code } else { format!("{code}: {}", said.trim()) }))
}

/// A directory on another device than its parent, or the root.
fn is_mount_point(path: &Path) -> bool {
    match (fs::metadata(path), fs::metadata(path.join(".."))) {
        (Ok(here), Ok(above)) => here.dev() != above.dev() || here.ino() == above.ino(),
        _ => false,
    }
}
