//! Disks of a guest that is started from an archive. A raw volume cannot say what of it is written already: the guest works on
//! a throwaway overlay over the archive, and a mirror moves what that shows to the volume. A qcow2 volume has the archive as its
//! backing node and a stream that takes over the rest, as it is for every disk on a node, whose QEMU has a driver for that.

use super::{GuestConfig, Machine, Storages};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Deserialize)]
struct Request {
    directory: PathBuf,
    disks: BTreeMap<String, Source>,
}

#[derive(Deserialize)]
struct Source {
    socket: PathBuf,
    export: String,
}

/// The disks of a guest that show an archive.
pub struct Live {
    disks: BTreeMap<String, LiveDisk>,
}

/// One of them.
pub struct LiveDisk {
    key: String,
    source: Source,
    /// The throwaway overlay of a raw volume.
    overlay: Option<PathBuf>,
}

impl Live {
    /// Makes what the disks of `request` need.
    ///
    /// # Errors
    /// When the request is malformed, or names a disk that the guest does not have.
    pub fn prepare(machine: &Machine, guest: &GuestConfig, request: &Value) -> Result<Self> {
        let Request { directory, disks } = Request::deserialize(request)?;
        let storages = Storages::load(machine)?;
        let mut prepared = BTreeMap::new();
        for (key, source) in disks {
            let line = guest.get(&key).with_context(|| format!("the guest has no disk '{key}'"))?;
            let volume = storages.volume(line.split(',').next().unwrap_or_default())?;
            let size = size(&volume.path, &volume.format)?;
            let overlay = if volume.format == "qcow2" {
                // Its clusters are preallocated, as on a node: they would hide what is behind them.
                create(&volume.path, size)?;
                None
            } else {
                let overlay = directory.join(format!("vzkeep-overlay-{key}.qcow2"));
                create(&overlay, size)?;
                Some(overlay)
            };
            prepared.insert(key.clone(), LiveDisk { key, source, overlay });
        }
        Ok(Self { disks: prepared })
    }

    /// The disk with this key, if it shows an archive.
    pub fn disk(&self, key: &str) -> Option<&LiveDisk> {
        self.disks.get(key)
    }

    /// What the bridge says of them.
    pub fn answer(&self) -> Value {
        let disks: Map<String, Value> = self.disks.values().map(|disk| (disk.key.clone(), disk.answer())).collect();
        json!({ "disks": disks })
    }
}

impl LiveDisk {
    fn source(&self) -> String {
        format!("vzkeep-source-{}", self.key)
    }

    fn shown(&self) -> String {
        format!("vzkeep-live-{}", self.key)
    }

    fn volume(&self) -> String {
        format!("volume-{}", self.key)
    }

    /// The disk's nodes, made of the one it would have otherwise: a throttle over the volume.
    pub fn nodes(&self, mut top: Value) -> Vec<Value> {
        let mut volume = top["file"].take();
        volume["node-name"] = self.volume().into();
        // A mirror leaves holes where the archive has them, and takes no time for that, only if it may.
        volume["discard"] = "unmap".into();
        volume["file"]["discard"] = "unmap".into();
        // Without us nobody ever answers: a read fails at once.
        let source = json!({
            "driver": "nbd", "node-name": self.source(), "read-only": true, "reconnect-delay": 0,
            "server": {"type": "unix", "path": self.source.socket}, "export": self.source.export,
        });
        match &self.overlay {
            None => {
                volume["backing"] = self.source().into();
                top["file"] = volume;
                vec![source, top]
            }
            Some(overlay) => {
                let shown = json!({
                    "driver": "qcow2", "node-name": self.shown(), "backing": self.source(), "discard": "unmap",
                    "file": {"driver": "file", "filename": overlay, "discard": "unmap"},
                });
                top["file"] = self.shown().into();
                vec![volume, source, shown, top]
            }
        }
    }

    fn answer(&self) -> Value {
        match self.overlay {
            None => json!({ "job": "stream", "node": self.volume(), "remove": [self.source()] }),
            Some(_) => json!({
                "job": "mirror", "node": format!("drive-{}", self.key), "replaces": self.shown(), "target": self.volume(),
                "remove": [self.shown(), self.source()],
            }),
        }
    }
}

fn size(path: &Path, format: &str) -> Result<u64> {
    let done = Command::new("qemu-img").args(["info", "--output=json", "-f", format]).arg(path).output()?;
    let info: Value =
        serde_json::from_slice(&done.stdout).with_context(|| format!("{} has no size", path.display()))?;
    info["virtual-size"].as_u64().with_context(|| format!("{} has no size", path.display()))
}

fn create(path: &Path, bytes: u64) -> Result<()> {
    let done =
        Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(path).arg(bytes.to_string()).output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{} cannot be made: {said}", path.display());
    Ok(())
}
