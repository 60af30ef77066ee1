//! The volumes a restore writes to: which names are free, making one, and where it lies.

use crate::guest::commands::{make, output};
use crate::host::Host;
use crate::restore::plan::DiskPlan;
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;

/// Makes volumes.
pub trait Volumes {
    /// The numbers `n` of the volumes `vm-<vmid>-disk-<n>` that the storage of `disk` has, whatever their format.
    ///
    /// # Errors
    /// When the storage cannot be asked.
    fn taken(&self, disk: &DiskPlan, vmid: u32) -> Result<BTreeSet<u32>, String>;

    /// Makes the volume `volid`, which does not exist, with the size and format of `disk`.
    ///
    /// # Errors
    /// What the storage said.
    fn alloc(&self, volid: &str, disk: &DiskPlan, vmid: u32) -> Result<(), String>;

    /// Where a volume lies, as it is printed: a path of the node.
    ///
    /// # Errors
    /// What the storage said.
    fn path(&self, volid: &str) -> Result<PathBuf, String>;
}

/// The volume's name on its storage and its id.
pub fn volume_name(disk: &DiskPlan, vmid: u32, number: u32) -> (String, String) {
    let DiskPlan { storage, format, .. } = disk;
    let kind = if format == "subvol" { "subvol" } else { "vm" };
    if disk.in_directory {
        let name = format!("{kind}-{vmid}-disk-{number}.{format}");
        (name.clone(), format!("{storage}:{vmid}/{name}"))
    } else {
        let name = format!("{kind}-{vmid}-disk-{number}");
        (name.clone(), format!("{storage}:{name}"))
    }
}

/// The number in a volume's name: `vm-300-disk-1.raw` -> 1.
pub fn disk_number(name: &str, vmid: u32) -> Option<u32> {
    let rest = ["vm", "base", "subvol", "basevol"]
        .iter()
        .find_map(|kind| name.strip_prefix(&format!("{kind}-{vmid}-disk-")))?;
    rest.split('.').next()?.parse().ok()
}

/// [`Volumes`] by `pvesm`.
pub struct NodeVolumes<'a> {
    /// The node.
    pub host: &'a Host,
    /// The directory of images of a storage that has one: `/var/lib/vz/images`.
    pub image_dir: &'a dyn Fn(&str) -> Option<PathBuf>,
}

impl Volumes for NodeVolumes<'_> {
    fn taken(&self, disk: &DiskPlan, vmid: u32) -> Result<BTreeSet<u32>, String> {
        let names: Vec<String> = match (self.image_dir)(&disk.storage) {
            Some(dir) => {
                let dir = dir.join(vmid.to_string());
                match std::fs::read_dir(self.host.path(&dir)) {
                    Ok(entries) => entries
                        .map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()))
                        .collect::<io::Result<_>>()
                        .map_err(|e| format!("reading '{}' failed: {e}", dir.display()))?,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
                    Err(e) => return Err(format!("reading '{}' failed: {e}", dir.display())),
                }
            }
            None => {
                let list = output(self.host, "pvesm", &["list", &disk.storage, "--vmid", &vmid.to_string()])?;
                let volids = list.lines().filter_map(|l| l.split_whitespace().next());
                volids.filter_map(|v| Some(v.split_once(':')?.1.rsplit('/').next()?.to_owned())).collect()
            }
        };
        Ok(names.iter().filter_map(|n| disk_number(n, vmid)).collect())
    }

    fn alloc(&self, volid: &str, disk: &DiskPlan, vmid: u32) -> Result<(), String> {
        let name = volid.rsplit([':', '/']).next().unwrap_or(volid);
        let (id, kib) = (vmid.to_string(), disk.device.size.div_ceil(1024).to_string());
        let mut pvesm = self.host.command("pvesm");
        pvesm.args(["alloc", &disk.storage, &id, name, &kib, "--format", &disk.format]);
        let said = make(self.host, vmid, None, &mut pvesm)?;
        if !said.contains(volid) {
            return Err(format!("pvesm made another volume than '{volid}': {}", said.trim()));
        }
        if disk.in_directory && disk.format == "raw" {
            self.cut(volid, disk.device.size)?;
        }
        Ok(())
    }

    fn path(&self, volid: &str) -> Result<PathBuf, String> {
        let said = output(self.host, "pvesm", &["path", volid])?;
        let path = PathBuf::from(said.trim());
        // What is printed and stored are paths of the node, without the root prefix.
        let shown = path.strip_prefix(self.host.root()).map(|rest| PathBuf::from("/").join(rest));
        Ok(shown.unwrap_or(path))
    }
}

impl NodeVolumes<'_> {
    /// `pvesm` counts in KiB; a raw file can be as long as the disk was to the byte.
    fn cut(&self, volid: &str, size: u64) -> Result<(), String> {
        let path = self.host.path(self.path(volid)?);
        let file = OpenOptions::new().write(true).open(&path);
        let cut = file.and_then(|file| {
            let meta = file.metadata()?;
            if meta.is_file() && meta.len() > size { file.set_len(size) } else { Ok(()) }
        });
        cut.map_err(|e| format!("setting the size of '{}' to {size} bytes failed: {e}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::plan::Device;

    #[test]
    fn names_and_numbers() {
        let mut disk = DiskPlan {
            key: "scsi0".into(),
            device: Device { id: 1, name: "drive-scsi0".into(), size: 512 },
            storage: "local".into(),
            format: "qcow2".into(),
            in_directory: true,
            starts_zeroed: true,
        };
        assert_eq!(volume_name(&disk, 300, 1).1, "local:300/vm-300-disk-1.qcow2");
        disk.in_directory = false;
        assert_eq!(volume_name(&disk, 300, 1), ("vm-300-disk-1".into(), "local:vm-300-disk-1".into()));
        disk.format = "subvol".into();
        assert_eq!(volume_name(&disk, 300, 2), ("subvol-300-disk-2".into(), "local:subvol-300-disk-2".into()));
        assert_eq!(disk_number("subvol-300-disk-4.subvol", 300), Some(4));
        assert_eq!(disk_number("vm-300-disk-7.raw", 300), Some(7));
        assert_eq!(disk_number("base-300-disk-2", 300), Some(2));
        assert_eq!(disk_number("vm-300-cloudinit.raw", 300), None);
        assert_eq!(disk_number("vm-30-disk-2", 300), None);
    }
}
