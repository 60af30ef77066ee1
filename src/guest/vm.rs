//! What of a VM is backed up: its config, its disks, and each disk opened as an [`Image`] at one instant: the disks of a
//! stopped guest directly, those of a running one through a point-in-time session in its QEMU.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{BackupVolume, Disk, GuestConfig, archive_order, backup_volumes, config_blob};
use crate::host::Host;
use crate::image::{Image, ImageError, MemImage, NbdImage, open_image};
use crate::qemu::{Export, Session};
use crate::storage::{VolumeError, Volumes};
use crate::transfer::BackupDisk;

/// A disk that goes into the archive, and where its image lies.
#[derive(Debug, Clone)]
pub struct VmDisk {
    /// Its line in the config.
    pub disk: Disk,
    /// File or block device.
    pub path: PathBuf,
    /// `raw`, `qcow2` ...
    pub format: String,
}

impl VmDisk {
    /// Its name in the archive and in QEMU: `drive-scsi0`.
    pub fn device(&self) -> String {
        self.disk.device()
    }

    /// Whether QEMU has it as a block node: the TPM's state belongs to another process.
    pub fn is_in_qemu(&self) -> bool {
        !self.disk.key.starts_with("tpmstate")
    }

    /// Whether it is the few KiB of an EFI variable store.
    pub fn is_efi(&self) -> bool {
        self.disk.key.starts_with("efidisk")
    }
}

/// A VM as its config describes it.
#[derive(Debug, Clone)]
pub struct Vm {
    /// Its number.
    pub vmid: u32,
    /// Its config file.
    pub config: GuestConfig,
    /// All its disks, in the order they are listed, with the reason where one is left out.
    pub volumes: Vec<BackupVolume>,
    /// The disks that go into the archive, in its order.
    pub disks: Vec<VmDisk>,
}

/// A disk's image cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// Its file is not there.
    #[error("volume '{0}' does not exist")]
    NoVolume(String),
    /// Its storage cannot be used.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl Vm {
    /// The volumes that `config` names, nothing looked up yet.
    pub fn new(vmid: u32, config: GuestConfig) -> Self {
        let volumes = backup_volumes(&config);
        Self { vmid, config, volumes, disks: Vec::new() }
    }

    /// Finds the images of the disks that are backed up.
    ///
    /// # Errors
    /// When one is missing.
    pub fn find_disks(&mut self, volumes: &Volumes) -> Result<(), VmError> {
        let mut found = Vec::new();
        for disk in archive_order(&self.volumes) {
            let path = volumes.path(&disk.volid)?;
            if !path.exists() {
                return Err(VmError::NoVolume(disk.volid.clone()));
            }
            // Never probed: a guest can write any image header into its raw disk.
            let format = disk.format().unwrap_or("raw").to_owned();
            found.push(VmDisk { disk: disk.clone(), path, format });
        }
        self.disks = found;
        Ok(())
    }

    /// The config as the archive holds it.
    pub fn config_blob(&self) -> Vec<u8> {
        config_blob(&self.config, &self.volumes, |volume| {
            let disk = self.disks.iter().find(|d| d.disk.key == volume.disk.key);
            disk.map(|d| d.format.clone()).unwrap_or_default()
        })
    }

    /// The disks of the stopped VM, read where they lie.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn open_stopped(&self, host: &Host) -> Result<Vec<BackupDisk>, ImageError> {
        self.disks
            .iter()
            .map(|d| Ok(BackupDisk { name: d.device(), image: open_image(host, &d.path, &d.format, &d.device())? }))
            .collect()
    }

    /// The disks of the running VM, read through `session`; those that QEMU does not have from `beside`, by device.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn open_running(
        &self,
        session: &Option<Session>,
        beside: &[(String, Arc<MemImage>)],
    ) -> Result<Vec<BackupDisk>, ImageError> {
        let session = session.as_ref();
        let exports = session.map(Session::exports).unwrap_or_default();
        let mut disks = Vec::new();
        for disk in &self.disks {
            let name = disk.device();
            let export = session.zip(exports.iter().find(|e| e.device == name));
            let image: Arc<dyn Image> = match (export, beside.iter().find(|(device, _)| *device == name)) {
                (Some((session, export)), _) => Arc::new(connect(session, export)?),
                (None, Some((_, copy))) => Arc::clone(copy) as Arc<dyn Image>,
                // Every disk is either in QEMU, and then the session has it, or beside it.
                (None, None) => unreachable!("{name} is neither in the session nor beside it"),
            };
            disks.push(BackupDisk { name, image });
        }
        Ok(disks)
    }
}

fn connect(session: &Session, export: &Export) -> Result<NbdImage, ImageError> {
    let image = NbdImage::connect(session.socket(), &export.name, &export.device)?;
    Ok(image.discard_after_read(export.discards))
}
