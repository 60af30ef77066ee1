//! Volumes of a container that is off are not always there: those of LVM may be switched off, those of RBD are mapped only while
//! somebody uses them. They are switched on for the archive and off again after it, and only those that were off: the node is left
//! as it was found. Each is noted in the guest's record before.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::snapshot::SnapshotError;
use super::{COMMAND, output};
use crate::config::Storage;
use crate::guest::commands::make;
use crate::guest::recover::Step;
use crate::host::Host;
use crate::storage::{VolId, VolumeError, Volumes};

/// How long a `tar` that was killed, or udev, may keep a volume open that is to be switched off.
const LETTING_GO: Duration = Duration::from_secs(5);
/// How often we try.
const TICK: Duration = Duration::from_millis(300);

/// A volume that is switched on for a backup only, in the words of what does it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "storage", rename_all = "kebab-case")]
pub enum Activation {
    /// A logical volume.
    Lvm {
        /// The volume group.
        group: String,
        /// The logical volume.
        volume: String,
    },
    /// An image of Ceph.
    Rbd {
        /// How `rbd` reaches the cluster.
        connection: Vec<String>,
        /// Its pool.
        pool: String,
        /// Its name space; empty for none.
        namespace: String,
        /// Its name.
        image: String,
    },
}

impl Activation {
    /// How volume `volid` is switched on and off; `None` where its storage does not need that.
    ///
    /// # Errors
    /// When the storage cannot be used.
    pub fn of(host: &Host, volumes: &Volumes, volid: &str) -> Result<Option<Self>, SnapshotError> {
        let id: VolId = volid.parse().map_err(VolumeError::from)?;
        let storage = volumes.storage(&id.storage)?;
        // A linked clone names its base first.
        let name = id.volume.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(match storage.kind.as_str() {
            "lvm" | "lvmthin" => {
                let group = storage.get("vgname").map(str::to_owned);
                let group =
                    group.ok_or_else(|| SnapshotError::Setting { storage: storage.id.clone(), setting: "vgname" })?;
                Some(Self::Lvm { group, volume: name })
            }
            "rbd" => Some(Self::Rbd {
                connection: connection(host, storage),
                pool: storage.get("pool").unwrap_or("rbd").to_owned(),
                namespace: storage.get("namespace").unwrap_or_default().to_owned(),
                image: name,
            }),
            _ => None,
        })
    }

    /// The block device, if it is switched on.
    ///
    /// # Errors
    /// When nobody can say.
    pub fn device(&self, host: &Host, volumes: &Volumes, volid: &str) -> Result<Option<PathBuf>, String> {
        match self {
            Self::Lvm { group, volume } => {
                Ok(self.is_active(host)?.then(|| host.path(format!("/dev/{group}/{volume}"))))
            }
            // Not by the list of what is mapped: an image of another cluster may have the same name.
            Self::Rbd { .. } => {
                let path = volumes.path(volid).map_err(|error| error.to_string())?;
                Ok(path.is_absolute().then(|| host.path(path)).filter(|path| path.exists()))
            }
        }
    }

    /// Whether a logical volume is switched on.
    fn is_active(&self, host: &Host) -> Result<bool, String> {
        let Self::Lvm { group, volume } = self else { return Ok(false) };
        let state = output(host, "lvs", &["--noheadings", "-o", "lv_active", &format!("{group}/{volume}")])?;
        // `active`, or on a cluster who it is active for.
        Ok(!state.trim().is_empty())
    }

    /// Switches it on for a run on guest `vmid`; where it is then.
    ///
    /// # Errors
    /// What the storage's command said.
    pub fn switch_on(&self, host: &Host, vmid: u32) -> Result<PathBuf, String> {
        let run = |program: &str, args: &[&str]| make(host, vmid, Some(COMMAND), host.command(program).args(args));
        match self {
            Self::Lvm { group, volume } => {
                let name = format!("{group}/{volume}");
                run("lvchange", &["-ay", "-K", &name])?;
                Ok(host.path(format!("/dev/{name}")))
            }
            Self::Rbd { connection, pool, namespace, image } => {
                let mut words: Vec<&str> = connection.iter().map(String::as_str).collect();
                words.extend(["-p", pool]);
                if !namespace.is_empty() {
                    words.extend(["--namespace", namespace]);
                }
                words.extend(["device", "map", image]);
                let said = run("rbd", &words)?;
                let device = said.lines().map(str::trim).find(|line| line.starts_with("/dev/"));
                device
                    .map(|device| host.path(device))
                    .ok_or_else(|| format!("'rbd device map {image}' named no device: {said}"))
            }
        }
    }

    /// Switches it off. One that is off already is fine. `device` is what [`Self::switch_on`] answered; a run that was killed could
    /// not say, and what somebody else has opened since stays on.
    ///
    /// # Errors
    /// What the storage's command said.
    pub fn switch_off(&self, host: &Host, device: Option<&Path>) -> Step {
        let mut done = None;
        match self {
            Self::Lvm { group, volume } => {
                if self.is_active(host)?
                    && unless_in_use(device, || output(host, "lvchange", &["-an", &format!("{group}/{volume}")]))?
                {
                    done = Some(format!("switched off {self}"));
                }
            }
            Self::Rbd { connection, pool, namespace, image } => {
                let mut words: Vec<&str> = connection.iter().map(String::as_str).collect();
                words.push("device");
                let unused = match device {
                    Some(device) => vec![node_path(host, device)],
                    None => {
                        let said = output(host, "rbd", &[&words[..], &["list", "--format", "json"]].concat())?;
                        mapped(&said, [pool, namespace, image])?
                    }
                };
                for unused in unused {
                    if unless_in_use(device, || output(host, "rbd", &[&words[..], &["unmap", &unused]].concat()))? {
                        done = Some(format!("unmapped {self}"));
                    }
                }
            }
        }
        Ok(done)
    }
}

/// Runs what switches a volume off until nobody who is about to end has it open any more. When somebody keeps it, that is an error
/// for the run that switched on `device`, whose guest nobody else can have started; else the answer is false.
fn unless_in_use(device: Option<&Path>, switch_off: impl Fn() -> Result<String, String>) -> Result<bool, String> {
    let give_up = Instant::now() + LETTING_GO;
    let is_in_use = |why: &str| ["in use", "used by another device", "busy"].iter().any(|words| why.contains(words));
    loop {
        match switch_off() {
            Ok(_) => return Ok(true),
            Err(why) if is_in_use(&why) && Instant::now() < give_up => std::thread::sleep(TICK),
            // The container was started meanwhile, and it is its volume.
            Err(why) if is_in_use(&why) && device.is_none() => return Ok(false),
            Err(why) => return Err(why),
        }
    }
}

/// `volume pve/vm-200-disk-0`
impl std::fmt::Display for Activation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lvm { group, volume } => write!(f, "volume {group}/{volume}"),
            Self::Rbd { pool, namespace, image, .. } if namespace.is_empty() => write!(f, "image {pool}/{image}"),
            Self::Rbd { pool, namespace, image, .. } => write!(f, "image {pool}/{namespace}/{image}"),
        }
    }
}

/// The words with which a node's `rbd` reaches the cluster of `storage`.
fn connection(host: &Host, storage: &Storage) -> Vec<String> {
    let private = |end: &str| PathBuf::from(format!("/etc/pve/priv/ceph/{}.{end}", storage.id));
    let (conf, keyring) = (private("conf"), private("keyring"));
    let mut words = Vec::new();
    let mut add = |name: &str, value: String| words.extend([name.to_owned(), value]);
    match storage.get("monhost") {
        Some(monitors) => {
            let split = |c: char| c.is_whitespace() || c == ',' || c == ';';
            add("-m", monitors.split(split).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(","));
            if host.path(&conf).exists() {
                add("-c", text(host, &conf));
            }
        }
        // The cluster is the node's own.
        None => add("-c", text(host, Path::new("/etc/pve/ceph.conf"))),
    }
    add("-n", format!("client.{}", storage.get("username").unwrap_or("admin")));
    if host.path(&keyring).exists() {
        add("--keyring", text(host, &keyring));
    }
    words
}

fn text(host: &Host, path: &Path) -> String {
    host.path(path).display().to_string()
}

fn node_path(host: &Host, path: &Path) -> String {
    let inner = path.strip_prefix(host.root()).map(|rest| Path::new("/").join(rest));
    inner.unwrap_or_else(|_| path.to_owned()).display().to_string()
}

/// The devices of an image (not of its snapshots) in what `rbd device list` says: a list, or in older versions an object.
fn mapped(said: &str, wanted: [&str; 3]) -> Result<Vec<String>, String> {
    let list: Value = serde_json::from_str(said).map_err(|e| format!("'rbd device list': {e}: {said}"))?;
    let is = |entry: &&Value| {
        let says = |key: &str| entry[key].as_str().unwrap_or_default();
        [says("pool"), says("namespace"), says("name")] == wanted && ["", "-"].contains(&says("snap"))
    };
    let entries: Vec<&Value> = match &list {
        Value::Object(entries) => entries.values().collect(),
        other => other.as_array().into_iter().flatten().collect(),
    };
    Ok(entries.into_iter().filter(is).filter_map(|entry| entry["device"].as_str().map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StorageCfg;

    const STORAGES: &str = "dir: local\n\tpath /var/lib/vz\n\nlvm: thick\n\tvgname pve\n\nlvmthin: thin\n\tvgname pve\n\
        \tthinpool data\n\nrbd: own\n\nrbd: far\n\tpool p\n\tnamespace n\n\tmonhost 10.0.0.1 10.0.0.2;10.0.0.3\n\tusername u\n";

    #[test]
    fn who_is_switched_on_and_how() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::with_root(dir.path().to_owned());
        std::fs::create_dir_all(host.path("/etc/pve/priv/ceph")).unwrap();
        std::fs::write(host.path("/etc/pve/priv/ceph/far.keyring"), "").unwrap();
        let volumes = Volumes::new(host.clone(), StorageCfg::parse(STORAGES));
        let of = |volid: &str| Activation::of(&host, &volumes, volid).unwrap();
        assert_eq!(of("local:200/vm-200-disk-0.raw"), None);
        for volid in ["thin:base-9-disk-0/vm-200-disk-1", "thick:vm-200-disk-1"] {
            assert_eq!(of(volid).unwrap().to_string(), "volume pve/vm-200-disk-1");
        }
        assert_eq!(of("own:vm-200-disk-1").unwrap().to_string(), "image rbd/vm-200-disk-1");
        let Some(Activation::Rbd { connection, .. }) = of("far:vm-200-disk-1") else { panic!() };
        let keyring = host.path("/etc/pve/priv/ceph/far.keyring").display().to_string();
        assert_eq!(connection, ["-m", "10.0.0.1,10.0.0.2,10.0.0.3", "-n", "client.u", "--keyring", &keyring]);
        let volume = of("far:vm-200-disk-1").unwrap();
        let text = serde_json::to_string(&volume).unwrap();
        assert_eq!(serde_json::from_str::<Activation>(&text).unwrap(), volume);
    }

    #[test]
    fn the_device_of_an_image() {
        let list = r#"[{"id": "0", "pool": "p", "namespace": "", "name": "a", "snap": "-", "device": "/dev/rbd0"},
            {"id": "1", "pool": "p", "namespace": "n", "name": "a", "snap": "s", "device": "/dev/rbd1"},
            {"id": "2", "pool": "p", "namespace": "n", "name": "a", "snap": "-", "device": "/dev/rbd2"}]"#;
        assert_eq!(mapped(list, ["p", "n", "a"]).unwrap(), ["/dev/rbd2"]);
        assert_eq!(mapped(list, ["p", "", "a"]).unwrap(), ["/dev/rbd0"]);
        assert!(mapped("[]", ["p", "", "b"]).unwrap().is_empty());
        let old = r#"{"0": {"pool": "p", "name": "a", "snap": "-", "device": "/dev/rbd0"}}"#;
        assert_eq!(mapped(old, ["p", "", "a"]).unwrap(), ["/dev/rbd0"]);
        assert!(mapped("none", ["p", "", "a"]).unwrap_err().starts_with("'rbd device list': "));
    }
}
