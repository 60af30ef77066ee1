//! Where a running guest's overwritten blocks go during its backup: images on the storage the administrator named
//! (`--fleecing`), or sparse files in the temporary directory.

use std::path::{Path, PathBuf};

use super::commands::make;
use super::held::{Held, HeldError};
use super::record::Intent;
use super::vm::{Vm, VmDisk};
use crate::host::Host;
use crate::qemu::{DiskSpec, Fleecing, FleecingFormat};
use crate::storage::{VolumeError, Volumes};

/// The original's default for images on file storages; block storages get raw ones.
const FILE_FORMAT: &str = "qcow2";

/// Fleecing space cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FleecingError {
    /// The storage cannot be used or made no volume.
    #[error("cannot allocate a fleecing image on storage '{storage}': {source}")]
    Volume {
        /// The storage.
        storage: String,
        /// The cause.
        #[source]
        source: VolumeError,
    },
    /// `pvesm alloc` failed.
    #[error("cannot allocate fleecing image '{volid}': {reason}")]
    Alloc {
        /// The volume.
        volid: String,
        /// What the command said.
        reason: String,
    },
    /// `--fleecing enabled=1` without a storage.
    #[error("fleecing is enabled, but no storage is given: use 'fleecing enabled=1,storage=<id>'")]
    NoStorage,
    /// The temporary directory cannot be used.
    #[error("cannot use '{path}' for fleecing images: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The record could not be kept.
    #[error(transparent)]
    Held(#[from] HeldError),
}

/// Volumes allocated for one run. They are noted in the guest's record, so that they go whatever happens.
#[derive(Debug, Default)]
pub struct FleecingVolumes {
    volumes: Vec<(String, String)>,
}

impl FleecingVolumes {
    /// Allocates an image for every disk of `vm` that is worth one on `storage`, as `vm-<vmid>-fleece-<n>`; `size` tells a disk's
    /// size in bytes.
    ///
    /// # Errors
    /// When one cannot be made; those made before are in the record.
    pub fn allocate(
        volumes: &Volumes,
        host: &Host,
        storage: &str,
        vm: &Vm,
        held: &mut Held,
        size: impl Fn(&VmDisk) -> u64,
    ) -> Result<Self, FleecingError> {
        let wrong = |source| FleecingError::Volume { storage: storage.to_owned(), source };
        let on_files = volumes.storage(storage).map_err(wrong)?.has_image_files();
        let mut made = Self::default();
        // An EFI variable store is too small to be worth a volume.
        for (number, disk) in vm.disks.iter().filter(|d| d.is_in_qemu() && !d.is_efi()).enumerate() {
            let name = format!("vm-{}-fleece-{number}", vm.vmid);
            let (file, volid) = if on_files {
                let file = format!("{name}.{FILE_FORMAT}");
                (file.clone(), format!("{storage}:{}/{file}", vm.vmid))
            } else {
                (name.clone(), format!("{storage}:{name}"))
            };
            held.note(&Intent::Volume { volid: volid.clone(), in_qemu: true })?;
            alloc(host, storage, vm.vmid, &file, &volid, if on_files { FILE_FORMAT } else { "raw" }, size(disk))?;
            made.volumes.push((disk.device(), volid));
        }
        Ok(made)
    }

    /// Device and volume of each, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.volumes.iter().map(|(device, volid)| (device.as_str(), volid.as_str()))
    }

    /// The disks of `vm` that QEMU has, each with its place for old blocks: its volume, else a file in `dir`.
    ///
    /// # Errors
    /// When a volume has no path.
    pub fn specs(&self, volumes: &Volumes, vm: &Vm, dir: &Path) -> Result<Vec<DiskSpec>, VolumeError> {
        let in_qemu = vm.disks.iter().filter(|d| d.is_in_qemu());
        in_qemu
            .map(|disk| {
                let device = disk.device();
                let fleecing = match self.iter().find(|(d, _)| *d == device) {
                    Some((_, volid)) => {
                        let format =
                            if volid.ends_with(FILE_FORMAT) { FleecingFormat::Qcow2 } else { FleecingFormat::Raw };
                        Fleecing::Image { path: volumes.path(volid)?, format }
                    }
                    None => Fleecing::Directory(dir.to_owned()),
                };
                Ok(DiskSpec { device, fleecing })
            })
            .collect()
    }
}

/// The directory for fleecing files: `tmpdir`, else the node's `/var/tmp`, which is on disk where `/tmp` may be memory.
///
/// # Errors
/// When it cannot be made.
pub fn directory(host: &Host, tmpdir: Option<&Path>) -> Result<PathBuf, FleecingError> {
    let path = tmpdir.map_or_else(|| host.path("/var/tmp"), Path::to_owned);
    std::fs::create_dir_all(&path).map_err(|source| FleecingError::Directory { path: path.clone(), source })?;
    Ok(path)
}

fn alloc(
    host: &Host,
    storage: &str,
    vmid: u32,
    file: &str,
    volid: &str,
    format: &str,
    size: u64,
) -> Result<(), FleecingError> {
    let failed = |reason| FleecingError::Alloc { volid: volid.to_owned(), reason };
    let kib = size.div_ceil(1024).to_string();
    let mut command = host.command("pvesm");
    command.args(["alloc", storage, &vmid.to_string(), file, &kib, "--format", format]);
    make(host, vmid, None, &mut command).map(drop).map_err(failed)
}
