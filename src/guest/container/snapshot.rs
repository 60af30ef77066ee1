//! Snapshots of a container's volumes by the commands of their storages, always of the name `vzdump`: btrfs, LVM-thin, ZFS, RBD.
//! Each is noted in the guest's record before it is made. One that is there already was left by an earlier run, and is removed
//! before a new one is made, as the original does.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::output;
use crate::config::Storage;
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
}

/// The snapshot of one volume, in the words of what makes and removes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "storage", rename_all = "kebab-case")]
pub enum StorageSnapshot {
    /// A read-only copy of a subvolume.
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
    /// A snapshot of an image, mapped by the kernel.
    Rbd {
        /// `pool/vm-200-disk-0`, with the namespace between if there is one.
        image: String,
        /// How the cluster is found.
        options: Vec<String>,
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
            "rbd" => {
                let name = id.volume.rsplit('/').next().unwrap_or_default();
                let mut image = storage.get("pool").unwrap_or("rbd").to_owned();
                storage.get("namespace").iter().for_each(|namespace| image += &format!("/{namespace}"));
                Some(Self::Rbd { image: format!("{image}/{name}"), options: rbd_options(storage) })
            }
            _ => None,
        })
    }

    /// Makes the snapshot.
    ///
    /// # Errors
    /// What the storage's command said.
    pub fn take(&self, host: &Host) -> Result<(), String> {
        match self {
            Self::Btrfs { subvolume, .. } => {
                let (from, to) = (host.path(subvolume), host.path(beside(subvolume)));
                run(host, "btrfs", &["-q", "subvolume", "snapshot", "-r", "--", &text(&from), &text(&to)])
            }
            Self::LvmThin { group, volume } => {
                let origin = format!("{group}/{volume}");
                run(host, "lvcreate", &["-n", &lvm_name(volume), "-pr", "-s", &origin])?;
                // Snapshots of thin volumes are not activated by themselves.
                run(host, "lvchange", &["-ay", "-K", &format!("{group}/{}", lvm_name(volume))])
            }
            Self::Zfs { dataset } => run(host, "zfs", &["snapshot", &format!("{dataset}@{NAME}")]),
            Self::Rbd { image, options } => {
                rbd(host, options, &["snap", "create", &format!("{image}@{NAME}")]).map(drop)
            }
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
                Mountable::Device(PathBuf::from(format!("/dev/{group}/{}", lvm_name(volume))))
            }
            Self::Zfs { dataset } => Mountable::Zfs(format!("{dataset}@{NAME}")),
            Self::Rbd { image, options } => {
                let device = rbd(host, options, &["map", "--read-only", &format!("{image}@{NAME}")])?;
                Mountable::Device(PathBuf::from(device.trim()))
            }
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
            Self::Rbd { image, options } => {
                let snapshot = format!("{image}@{NAME}");
                // Whether it is mapped only the attempt tells; if it still is, the removal fails and says so.
                rbd(host, options, &["unmap", &snapshot]).map(drop).unwrap_or_default();
                rbd(host, options, &["snap", "rm", &snapshot])?;
            }
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
            Self::Rbd { image, options } => {
                let listed = rbd(host, options, &["snap", "ls", "--format", "json", image])?;
                let listed: serde_json::Value = serde_json::from_str(&listed).map_err(|error| error.to_string())?;
                Ok(listed.as_array().into_iter().flatten().any(|snapshot| snapshot["name"] == NAME))
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
            Self::Rbd { image, .. } => write!(f, "snapshot '{NAME}' of {image}"),
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

fn rbd(host: &Host, options: &[String], args: &[&str]) -> Result<String, String> {
    let words: Vec<&str> = options.iter().map(String::as_str).chain(args.iter().copied()).collect();
    output(host, "rbd", &words)
}

/// How the node finds the cluster of a storage: its own, or another one by its monitors.
fn rbd_options(storage: &Storage) -> Vec<String> {
    let keyring = format!("/etc/pve/priv/ceph/{}.keyring", storage.id);
    let mut words = match storage.get("monhost") {
        Some(monitors) => {
            let monitors: Vec<&str> = monitors.split([' ', ',', ';']).filter(|word| !word.is_empty()).collect();
            vec!["-m".to_owned(), monitors.join(","), "--keyring".to_owned(), keyring]
        }
        None => vec!["-c".to_owned(), "/etc/pve/ceph.conf".to_owned()],
    };
    let user = storage.get("username").or(storage.get("monhost").map(|_| "admin"));
    user.iter().for_each(|user| words.extend(["-n".to_owned(), format!("client.{user}")]));
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StorageCfg;

    const STORAGES: &str = "dir: local\n\tpath /var/lib/vz\n\ncephfs: fs\n\tpath /mnt/fs\n\nlvm: thick\n\tvgname pve\n\n\
        lvmthin: thin\n\tvgname pve\n\tthinpool data\n\nzfspool: tank\n\tpool rpool/data\n\n\
        rbd: ceph\n\tpool one\n\tnamespace ns\n\tmonhost a b\n\nrbd: own\n\n lvmthin: bad\n";

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
        let Some(StorageSnapshot::Rbd { image, options }) = of("ceph:vm-200-disk-1") else { panic!() };
        assert_eq!(image, "one/ns/vm-200-disk-1");
        assert_eq!(options.join(" "), "-m a,b --keyring /etc/pve/priv/ceph/ceph.keyring -n client.admin");
        let Some(StorageSnapshot::Rbd { image, options }) = of("own:vm-200-disk-1") else { panic!() };
        assert_eq!((image.as_str(), options.join(" ").as_str()), ("rbd/vm-200-disk-1", "-c /etc/pve/ceph.conf"));
        let snapshot = StorageSnapshot::Btrfs { subvolume: "/a/vm-200-disk-0".into(), image: Some("disk.raw".into()) };
        assert_eq!(snapshot.open(&host).unwrap(), Mountable::Image("/a/vm-200-disk-0@vzdump/disk.raw".into()));
        let text = serde_json::to_string(&snapshot).unwrap();
        assert_eq!(serde_json::from_str::<StorageSnapshot>(&text).unwrap(), snapshot);
    }
}
