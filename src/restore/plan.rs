//! What a restore is going to do: which volumes on which storage, what the config will say, what becomes of the guest that
//! is there already. Pure: text and lists in, a plan or a reason against it out.

use super::seat::running;
use crate::config::{Disk, Fresh, GuestConfig, Rewrite, Section, StorageCfg, map_lines, rewrite_for_restore};
use crate::guest::conffile::Kind;
use std::collections::BTreeMap;

#[cfg(test)]
mod tests;

/// Name of the config in an archive.
pub const CONFIG_BLOB: &str = "qemu-server.conf";
/// Name of the firewall rules in an archive.
pub const FIREWALL_BLOB: &str = "qemu-server.fw";
/// The device that holds a RAM state; nothing in a backup has use for it.
const VMSTATE: &str = "vmstate";
/// Where disks go that were on no storage.
const DEFAULT_STORAGE: &str = "local";

/// A disk in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its number in the archive.
    pub id: u8,
    /// `drive-scsi0`
    pub name: String,
    /// Size in bytes.
    pub size: u64,
}

/// What the command line asks for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The guest to be.
    pub vmid: u32,
    /// Where all disks go; by default where each came from.
    pub storage: Option<String>,
    /// Overwrite an existing guest.
    pub force: bool,
    /// New MAC addresses and ids.
    pub unique: bool,
    /// How MAC addresses of this cluster begin; empty for the default.
    pub mac_prefix: String,
}

/// A guest that has the id already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Existing {
    /// Its node.
    pub node: String,
    /// What it is.
    pub kind: Kind,
    /// Whether it runs.
    pub running: bool,
    /// Its config.
    pub config: Vec<u8>,
}

/// One disk to be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlan {
    /// Its key in the config: `scsi0`.
    pub key: String,
    /// The disk in the archive.
    pub device: Device,
    /// The storage it goes to.
    pub storage: String,
    /// `raw`, `qcow2`, `vmdk`.
    pub format: String,
    /// Whether volumes of the storage are files below a directory, named with the format at the end.
    pub in_directory: bool,
    /// Whether a new volume there reads as zeros.
    pub starts_zeroed: bool,
}

/// What a restore is going to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The guest.
    pub vmid: u32,
    /// Whether a guest of this id is overwritten.
    pub overwrite: bool,
    /// The disks, in the order in which their volumes are made.
    pub disks: Vec<DiskPlan>,
    /// Firewall rules for the guest.
    pub firewall: Option<Vec<u8>>,
    /// Volumes of the overwritten guest that go once the restore is complete.
    pub replaced: Vec<String>,
    /// Volumes of the overwritten guest that stay, unused.
    pub kept: Vec<String>,
    /// Whether the guest is to be a template again.
    pub template: bool,
    /// What people should know.
    pub warnings: Vec<String>,
    blob: Vec<u8>,
    rewrite: Rewrite,
}

/// Why there will be no restore.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The id is taken.
    #[error("unable to restore {wanted} {vmid} - {kind} {vmid} already exists on node '{node}'")]
    Exists {
        /// What was to be restored.
        wanted: Kind,
        /// The id.
        vmid: u32,
        /// What has it.
        kind: Kind,
        /// Where.
        node: String,
    },
    /// Two map lines speak of one disk.
    #[error("the archive's config maps disk '{0}' twice: one of them would be lost")]
    Twice(String),
    /// The guest to be overwritten runs.
    #[error("unable to restore {0} {1} - {words}", words = running(*.0))]
    Running(Kind, u32),
    /// The guest to be overwritten is locked.
    #[error("unable to restore {0} {1} - {0} is locked ({2})")]
    Locked(Kind, u32, String),
    /// The guest to be overwritten is protected.
    #[error("unable to restore {0} {1} - protection mode enabled")]
    Protected(Kind, u32),
    /// Overwriting a template would take the disks of its clones away.
    #[error("unable to restore {0} {1} - it is a template, whose disks clones may depend on; remove it first")]
    Template(Kind, u32),
    /// The archive has no config.
    #[error("the archive has no '{CONFIG_BLOB}': it holds no virtual machine")]
    NoConfig,
    /// The archive does not hold what its config says.
    #[error("the archive is damaged or incomplete: its configuration names the disk '{0}', which it does not hold")]
    NoDevice(String),
    /// A disk of the archive that no line of the config belongs to.
    #[error("the archive holds a disk '{0}' that its configuration does not know; it would be lost")]
    Stray(String),
    /// A storage cannot be used.
    #[error("{0}")]
    Storage(String),
}

/// Whether the guest that has the id already may be overwritten by one of kind `wanted`.
///
/// # Errors
/// Why not.
pub fn check_existing(
    wanted: Kind,
    vmid: u32,
    force: bool,
    node: &str,
    existing: Option<&Existing>,
) -> Result<(), Refusal> {
    let Some(guest) = existing else { return Ok(()) };
    if !force || guest.kind != wanted || guest.node != node {
        return Err(Refusal::Exists { wanted, vmid, kind: guest.kind, node: guest.node.clone() });
    }
    let config = GuestConfig::parse(&guest.config);
    if let Some(lock) = config.lock() {
        return Err(Refusal::Locked(wanted, vmid, lock));
    }
    if guest.running {
        return Err(Refusal::Running(wanted, vmid));
    }
    if config.get("protection").is_some_and(|v| v != "0") {
        return Err(Refusal::Protected(wanted, vmid));
    }
    if config.is_template() {
        return Err(Refusal::Template(wanted, vmid));
    }
    Ok(())
}

/// Plans the restore of an archive with these blobs and devices.
///
/// # Errors
/// Why it must not or cannot be done.
pub fn plan(
    configs: &[(String, Vec<u8>)],
    devices: &[Device],
    options: &Options,
    storages: &StorageCfg,
    node: &str,
    existing: Option<&Existing>,
) -> Result<Plan, Refusal> {
    check_existing(Kind::Vm, options.vmid, options.force, node, existing)?;
    let find = |name: &str| configs.iter().find(|(n, _)| n == name).map(|(_, data)| data.clone());
    let blob = find(CONFIG_BLOB).ok_or(Refusal::NoConfig)?;
    let mut warnings = Vec::new();
    let mut disks = Vec::new();
    let maps = map_lines(&blob);
    for (index, map) in maps.iter().enumerate() {
        if maps[..index].iter().any(|other| other.device == map.device || other.key == map.key) {
            return Err(Refusal::Twice(map.key.clone()));
        }
        let device =
            devices.iter().find(|d| d.name == map.device).ok_or_else(|| Refusal::NoDevice(map.device.clone()))?;
        disks.push(place(&map.key, device, &map.storage, &map.format, options, storages, node)?);
    }
    let config = GuestConfig::parse(&blob);
    let lines = main_disks(&config);
    for device in devices.iter().filter(|d| maps.iter().all(|m| m.device != d.name)) {
        let key = device.name.strip_prefix("drive-").unwrap_or(&device.name);
        if device.name == VMSTATE || key == VMSTATE {
            warnings.push(format!("the RAM state '{}' in the archive is not restored", device.name));
            continue;
        }
        // An archive of another program: what has the key of a disk is that disk.
        let line = lines.iter().find(|d| d.key == key).ok_or_else(|| Refusal::Stray(device.name.clone()))?;
        let storage = line.storage().unwrap_or_default();
        disks.push(place(key, device, storage, line.format().unwrap_or_default(), options, storages, node)?);
    }
    disks.sort_by_key(|d| d.device.id);
    let rewrite = Rewrite { volumes: BTreeMap::new(), unique: options.unique, mac_prefix: options.mac_prefix.clone() };
    let mut plan = Plan {
        vmid: options.vmid,
        overwrite: existing.is_some(),
        disks,
        firewall: find(FIREWALL_BLOB),
        replaced: Vec::new(),
        kept: Vec::new(),
        template: config.is_template(),
        warnings,
        blob,
        rewrite,
    };
    if let Some(guest) = existing {
        plan.sort_out(&GuestConfig::parse(&guest.config));
    }
    Ok(plan)
}

impl Plan {
    /// What becomes of the volumes of the guest that is overwritten: those of the disks restored go, as do states of
    /// snapshots; others stay, as unused ones.
    fn sort_out(&mut self, old: &GuestConfig) {
        let restored = |key: &str| self.disks.iter().any(|d| d.key == key);
        let (mut replaced, mut kept) = (Vec::new(), Vec::new());
        for disk in main_disks(old) {
            if disk.is_cdrom() || owner(&disk.volid) != Some(self.vmid) {
                continue;
            }
            if restored(&disk.key) { replaced.push(disk.volid) } else { kept.push(disk.volid) }
        }
        let mut sections = vec![Section::Main];
        sections.extend(old.snapshots().into_iter().map(Section::Snapshot));
        for (at, section) in sections.iter().enumerate() {
            for (key, value) in old.properties(section) {
                if key == "vmstate" && owner(&value) == Some(self.vmid) {
                    replaced.push(value);
                } else if at == 0 && key.starts_with("unused") && owner(&value) == Some(self.vmid) {
                    kept.push(value);
                }
            }
        }
        if sections.len() > 1 {
            self.warnings.push(format!("the snapshots of VM {} are lost with its old configuration", self.vmid));
        }
        (self.replaced, self.kept) = (replaced, kept);
    }

    /// The config of the restored guest, given the volume made for each disk, by key. Adds to the warnings.
    pub fn config(&mut self, volumes: &BTreeMap<String, String>, fresh: &mut Fresh<'_>) -> Vec<u8> {
        let mut rewrite = self.rewrite.clone();
        rewrite.volumes = volumes.clone();
        for disk in main_disks(&GuestConfig::parse(&self.blob)) {
            if disk.is_cloudinit() {
                // Made anew at the next start, under the name the config has.
                rewrite.volumes.insert(disk.key.clone(), cloudinit_volume(&disk.volid, self.vmid));
            }
        }
        let text = rewrite_for_restore(&self.blob, &rewrite, fresh);
        let mut out = Vec::with_capacity(text.len());
        for line in text.split_inclusive(|b| *b == b'\n') {
            let shown = String::from_utf8_lossy(line);
            let disk = main_disks(&GuestConfig::parse(line)).pop();
            let foreign = disk.filter(|d| {
                !d.is_cdrom() && !volumes.contains_key(&d.key) && owner(&d.volid).is_some_and(|o| o != self.vmid)
            });
            if let Some(disk) = foreign {
                self.warnings.push(format!(
                    "'{}' is not in the archive, and '{}' belongs to another guest: the line is commented out",
                    disk.key, disk.volid
                ));
                out.push(b'#');
            } else if shown.starts_with("template:") {
                continue;
            }
            out.extend_from_slice(line);
        }
        let named: Vec<String> = main_disks(&GuestConfig::parse(&out)).into_iter().map(|d| d.volid).collect();
        let unused = self.kept.iter().filter(|v| !named.contains(v));
        for (number, volid) in unused.enumerate() {
            out.extend_from_slice(format!("unused{number}: {volid}\n").as_bytes());
        }
        out
    }
}

/// Where one disk goes, and in which format.
fn place(
    key: &str,
    device: &Device,
    from: &str,
    format: &str,
    options: &Options,
    storages: &StorageCfg,
    node: &str,
) -> Result<DiskPlan, Refusal> {
    let from = if from.is_empty() { DEFAULT_STORAGE } else { from };
    let id = options.storage.as_deref().unwrap_or(from);
    let storage = storages.usable(id, node).map_err(|e| Refusal::Storage(e.to_string()))?;
    if !storage.content().iter().any(|c| c == "images") {
        return Err(Refusal::Storage(format!("Content type 'images' is not available on storage '{id}'")));
    }
    let in_directory = storage.path().is_some();
    let any_format = storage.has_image_files();
    let format = if any_format && matches!(format, "qcow2" | "vmdk") { format } else { "raw" };
    Ok(DiskPlan {
        key: key.to_owned(),
        device: device.clone(),
        storage: id.to_owned(),
        format: format.to_owned(),
        in_directory,
        // Everything else hands out blocks as they were left by their last owner.
        starts_zeroed: in_directory || matches!(storage.kind.as_str(), "lvmthin" | "zfspool" | "zfs" | "rbd"),
    })
}

/// The guest a volume belongs to, by its name: `local:100/vm-100-disk-0.raw` -> 100.
pub fn owner(volid: &str) -> Option<u32> {
    let name = volid.split_once(':')?.1.rsplit('/').next()?;
    let rest = ["vm-", "base-", "subvol-"].iter().find_map(|p| name.strip_prefix(p))?;
    rest.split('-').next()?.parse().ok()
}

fn main_disks(config: &GuestConfig) -> Vec<Disk> {
    crate::config::disks(config)
}

fn cloudinit_volume(volid: &str, vmid: u32) -> String {
    let Some(old) = owner(volid) else { return volid.to_owned() };
    volid
        .replace(&format!(":{old}/"), &format!(":{vmid}/"))
        .replace(&format!("vm-{old}-cloudinit"), &format!("vm-{vmid}-cloudinit"))
}
