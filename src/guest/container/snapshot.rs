//! Snapshots of a container's volumes by the commands of their storages, always of the name `vzdump`: btrfs, LVM-thin, ZFS.
//! Each is noted in the guest's record before it is made. One that is there already was left by an earlier run, and is removed
//! before a new one is made, as the original does.
//!
//! Snapshots of images and block devices can be written: a file system that was in use has to work off its journal before it
//! shows its instant. RBD's cannot, so containers on RBD are copied instead.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{COMMAND, output};
use crate::guest::commands::make;
use crate::guest::recover::Step;
use crate::host::Host;
use crate::storage::{VolId, VolumeError, Volumes};

/// The name of our snapshots, which is the original's.
pub const NAME: &str = "vzdump";

/// A snapshot could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A volume cannot be found.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A storage's settings lack something.
    #[error("storage '{storage}' has no '{setting}'")]
    Setting {
        /// The storage.
        storage: String,
        /// What storage.cfg does not say.
        setting: &'static str,
    },
    /// A command of the storage failed; its sentence.
    #[error("cannot make a snapshot of volume '{volid}': {reason}")]
    Command {
        /// The volume.
        volid: String,
        /// Why not.
        reason: String,
    },
    /// The volume or its snapshot is there, but cannot be read on this node.
    #[error("cannot switch on volume '{volid}': {reason}")]
    SwitchOn {
        /// The volume.
        volid: String,
        /// Why not.
        reason: String,
    },
}

/// The snapshot of one volume, in the words of what makes and removes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "storage", rename_all = "kebab-case")]
pub enum StorageSnapshot {
    /// A copy of a subvolume.
    Btrfs {
        /// The subvolume, as a path of the node.
        subvolume: PathBuf,
        /// The image in it; none if the subvolume is the tree.
        image: Option<PathBuf>,
    },
    /// A thin volume with the same origin.
    LvmThin {
        /// The volume group.
        group: String,
        /// The logical volume.
        volume: String,
    },
    /// A snapshot of a dataset.
    Zfs {
        /// `rpool/data/subvol-200-disk-0`
        dataset: String,
    },
}

/// What of a snapshot can be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mountable {
    /// A directory.
    Directory(PathBuf),
    /// An image in a file.
    Image(PathBuf),
    /// A block device.
    Device(PathBuf),
    /// A snapshot of a dataset.
    Zfs(String),
}

impl StorageSnapshot {
    /// How volume `volid` is snapshotted; `None` if its storage cannot.
    ///
    /// # Errors
    /// When the storage cannot be used.
    pub fn of(host: &Host, volumes: &Volumes, volid: &str) -> Result<Option<Self>, SnapshotError> {
        let id: VolId = volid.parse().map_err(VolumeError::from)?;
        let storage = volumes.storage(&id.storage)?;
        let setting = |name: &'static str| {
            let value = storage.get(name).map(str::to_owned);
            value.ok_or_else(|| SnapshotError::Setting { storage: storage.id.clone(), setting: name })
        };
        Ok(match storage.kind.as_str() {
            "btrfs" => {
                let path = volumes.path(volid)?;
                // Recorded as the node's own path: the record may be read by another run.
                let path = path.strip_prefix(host.root()).map_or(path.clone(), |rest| Path::new("/").join(rest));
                let is_image = path.file_name().is_some_and(|name| name == "disk.raw");
                let subvolume = if is_image { path.parent().unwrap_or(&path).to_owned() } else { path };
                Some(Self::Btrfs { subvolume, image: is_image.then(|| "disk.raw".into()) })
            }
            "lvmthin" => Some(Self::LvmThin { group: setting("vgname")?, volume: id.volume }),
            // A linked clone names its base first.
            "zfspool" => {
                let name = id.volume.rsplit('/').next().unwrap_or_default();
                Some(Self::Zfs { dataset: format!("{}/{name}", setting("pool")?) })
            }
            _ => None,
        })
    }

    /// Makes the snapshot, which is noted for guest `vmid`.
    ///
    /// # Errors
    /// What the storage's command said.
    pub fn take(&self, host: &Host, vmid: u32) -> Result<(), String> {
        let run =
            |program: &str, args: &[&str]| make(host, vmid, Some(COMMAND), host.command(program).args(args)).map(drop);
        match self {
            Self::Btrfs { subvolume, image } => {
                let (from, to) = (host.path(subvolume), host.path(beside(subvolume)));
                let read_only: &[&str] = if image.is_some() { &[] } else { &["-r"] };
                let (from, to) = (text(&from), text(&to));
                let words = [&["-q", "subvolume", "snapshot"], read_only, &["--", &from, &to]].concat();
                run("btrfs", &words)
            }
            Self::LvmThin { group, volume } => {
                let origin = format!("{group}/{volume}");
                run("lvcreate", &["-n", &lvm_name(volume), "-s", &origin])
            }
            Self::Zfs { dataset } => run("zfs", &["snapshot", &format!("{dataset}@{NAME}")]),
        }
    }

    /// What of it can be mounted now.
    ///
    /// # Errors
    /// What the storage's command said.
    pub fn open(&self, host: &Host) -> Result<Mountable, String> {
        Ok(match self {
            Self::Btrfs { subvolume, image: None } => Mountable::Directory(host.path(beside(subvolume))),
            Self::Btrfs { subvolume, image: Some(image) } => Mountable::Image(host.path(beside(subvolume)).join(image)),
            Self::LvmThin { group, volume } => {
                let name = format!("{group}/{}", lvm_name(volume));
                // Snapshots of thin volumes are not activated by themselves. Not done when they are taken: the container
                // stands still then.
                output(host, "lvchange", &["-ay", "-K", &name])?;
                Mountable::Device(host.path(format!("/dev/{name}")))
            }
            Self::Zfs { dataset } => Mountable::Zfs(format!("{dataset}@{NAME}")),
        })
    }

    /// Removes it; one that is gone already, or never came into being, is fine.
    ///
    /// # Errors
    /// What the storage's command said.
    pub fn remove(&self, host: &Host) -> Step {
        if !self.exists(host)? {
            return Ok(None);
        }
        match self {
            Self::Btrfs { subvolume, .. } => {
                run(host, "btrfs", &["-q", "subvolume", "delete", "--", &text(&host.path(beside(subvolume)))])?;
            }
            Self::LvmThin { group, volume } => {
                run(host, "lvremove", &["-f", &format!("{group}/{}", lvm_name(volume))])?
            }
            Self::Zfs { dataset } => run(host, "zfs", &["destroy", &format!("{dataset}@{NAME}")])?,
        }
        Ok(Some(format!("removed {self}")))
    }

    /// Whether there is a snapshot of this name.
    ///
    /// # Errors
    /// When nobody can say.
    pub fn exists(&self, host: &Host) -> Result<bool, String> {
        let lists = |text: String, name: &str| text.lines().any(|line| line.trim() == name);
        match self {
            Self::Btrfs { subvolume, .. } => {
                let path = host.path(beside(subvolume));
                path.try_exists().map_err(|error| format!("looking at '{}' failed: {error}", path.display()))
            }
            Self::LvmThin { group, volume } => {
                let names = output(host, "lvs", &["--noheadings", "-o", "lv_name", group])?;
                Ok(lists(names, &lvm_name(volume)))
            }
            Self::Zfs { dataset } => {
                let names = output(host, "zfs", &["list", "-H", "-t", "snapshot", "-o", "name", "-d", "1", dataset])?;
                Ok(lists(names, &format!("{dataset}@{NAME}")))
            }
        }
    }
}

/// `snapshot 'vzdump' of rpool/data/subvol-200-disk-0`
impl std::fmt::Display for StorageSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Btrfs { subvolume, .. } => write!(f, "snapshot '{NAME}' of '{}'", subvolume.display()),
            Self::LvmThin { group, volume } => write!(f, "snapshot '{NAME}' of {group}/{volume}"),
            Self::Zfs { dataset } => write!(f, "snapshot '{NAME}' of {dataset}"),
        }
    }
}

/// Where the node keeps snapshots of a subvolume.
fn beside(subvolume: &Path) -> PathBuf {
    let mut path = subvolume.as_os_str().to_owned();
    path.push(format!("@{NAME}"));
    path.into()
}

/// The node's name for a snapshot of a logical volume.
fn lvm_name(volume: &str) -> String {
    format!("snap_{volume}_{NAME}")
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn run(host: &Host, program: &str, args: &[&str]) -> Result<(), String> {
    output(host, program, args).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StorageCfg;

    const STORAGES: &str = "dir: local\n\tpath /var/lib/vz\n\ncephfs: fs\n\tpath /mnt/fs\n\nlvm: thick\n\tvgname pve\n\n\
        lvmthin: thin\n\tvgname pve\n\tthinpool data\n\nzfspool: tank\n\tpool rpool/data\n\n\
        rbd: own\n";

    #[test]
    fn who_can_and_how_it_is_called() {
        let host = Host::with_root("/".into());
        let volumes = Volumes::new(host.clone(), StorageCfg::parse(STORAGES));
        let of = |volid: &str| StorageSnapshot::of(&host, &volumes, volid).unwrap();
        assert_eq!((of("local:200/vm-200-disk-0.raw"), of("thick:vm-200-disk-0")), (None, None));
        assert_eq!(of("thin:vm-200-disk-0").unwrap().to_string(), "snapshot 'vzdump' of pve/vm-200-disk-0");
        assert_eq!(
            of("tank:basevol-1-disk-0/subvol-200-disk-0").unwrap().to_string(),
            "snapshot 'vzdump' of rpool/data/subvol-200-disk-0"
        );
        assert_eq!(of("own:vm-200-disk-1"), None);
        let snapshot = StorageSnapshot::Btrfs { subvolume: "/a/vm-200-disk-0".into(), image: Some("disk.raw".into()) };
        assert_eq!(snapshot.open(&host).unwrap(), Mountable::Image("/a/vm-200-disk-0@vzdump/disk.raw".into()));
        let text = serde_json::to_string(&snapshot).unwrap();
        assert_eq!(serde_json::from_str::<StorageSnapshot>(&text).unwrap(), snapshot);
    }
}
