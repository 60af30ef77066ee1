//! A container's config, built word by word.

use super::guest::size;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// How a volume is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// A raw image with an ext4 file system.
    Image,
    /// A directory; a subvolume on a btrfs storage.
    Subvolume,
    /// A directory of the node, which is no volume of a storage.
    Bind,
}

#[derive(Debug, Clone)]
pub(super) struct Volume {
    pub key: String,
    pub storage: String,
    pub keep: Keep,
    pub mp: String,
    pub bytes: u64,
    pub properties: String,
    pub content: Option<PathBuf>,
}

/// A container to be: `Container::new(200).name("ct01").rootfs(mib(64)).mp(0, "/data", mib(32), "backup=1")`. Its first
/// process is the diarist, which writes to the root file system and to every mount point with `backup=1`.
#[derive(Debug, Clone)]
pub struct Container {
    pub(super) vmid: u32,
    pub(super) volumes: Vec<Volume>,
    pub(super) unprivileged: bool,
    pub(super) ballast: u64,
    lines: Vec<(String, String)>,
}

impl Container {
    /// Container `vmid` without volumes. Give it a root file system.
    pub fn new(vmid: u32) -> Self {
        Self { vmid, volumes: Vec::new(), unprivileged: false, ballast: 0, lines: Vec::new() }
    }

    /// Sets the name.
    pub fn name(self, name: &str) -> Self {
        self.line("hostname", name)
    }

    /// Adds or replaces a line of the config; `lxc.idmap` may be there many times.
    pub fn line(mut self, key: &str, value: &str) -> Self {
        self.lines.retain(|(known, _)| known != key || key.starts_with("lxc."));
        self.lines.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Its root is user 100000 of the node.
    pub fn unprivileged(mut self) -> Self {
        self.unprivileged = true;
        self.line("unprivileged", "1")
    }

    /// Files in the root file system that do not compress, `bytes` together, so that a backup takes a while.
    pub fn ballast(mut self, bytes: u64) -> Self {
        self.ballast = bytes;
        self
    }

    /// The root file system: a raw image on storage `local`.
    pub fn rootfs(self, bytes: u64) -> Self {
        self.volume("rootfs".to_owned(), "/", bytes, "")
    }

    /// Mount point `mp<index>` at `path`: a raw image on storage `local`, with further properties: `backup=1,acl=1`.
    pub fn mp(self, index: u32, path: &str, bytes: u64, properties: &str) -> Self {
        self.volume(format!("mp{index}"), path, bytes, properties)
    }

    /// Mount point `mp<index>` at `path`: the directory `source` of the node.
    pub fn bind(mut self, index: u32, source: &str, path: &str, properties: &str) -> Self {
        self = self.volume(format!("mp{index}"), path, 0, properties);
        if let Some(volume) = self.volumes.last_mut() {
            volume.keep = Keep::Bind;
            source.clone_into(&mut volume.storage);
        }
        self
    }

    fn volume(mut self, key: String, mp: &str, bytes: u64, properties: &str) -> Self {
        self.volumes.push(Volume {
            key,
            storage: "local".to_owned(),
            keep: Keep::Image,
            mp: mp.to_owned(),
            bytes,
            properties: properties.to_owned(),
            content: None,
        });
        self
    }

    /// Puts the volume added last on another storage.
    pub fn on(mut self, storage: &str) -> Self {
        if let Some(volume) = self.volumes.last_mut() {
            storage.clone_into(&mut volume.storage);
        }
        self
    }

    /// Makes the volume added last a directory, or a subvolume where the storage has such.
    pub fn subvolume(mut self) -> Self {
        if let Some(volume) = self.volumes.last_mut() {
            volume.keep = Keep::Subvolume;
        }
        self
    }

    /// Copies the tree below `dir` into the volume added last, with all its metadata.
    pub fn holding(mut self, dir: &Path) -> Self {
        if let Some(volume) = self.volumes.last_mut() {
            volume.content = Some(dir.to_owned());
        }
        self
    }

    /// Adds the container to a node that exists already: makes its volumes and writes its config.
    ///
    /// # Errors
    /// When a volume cannot be made.
    pub fn add_to(&self, node: &super::Node) -> anyhow::Result<()> {
        node.make_container(self)
    }

    /// Where the diaries are written: in the root file system and in what else is backed up.
    pub(super) fn diaries(&self) -> String {
        let kept = |volume: &&Volume| volume.properties.split(',').any(|property| property == "backup=1");
        let rest = self.volumes.iter().filter(|volume| volume.key != "rootfs").filter(kept);
        rest.fold("/diary\n".to_owned(), |list, volume| format!("{list}{}/diary\n", volume.mp.trim_end_matches('/')))
    }

    /// The config file, with `sources` (volume identifiers and paths) in the order of the volumes.
    pub(super) fn config(&self, sources: &[String]) -> String {
        let mut lines: Vec<(String, String)> =
            [("arch", "amd64"), ("memory", "128"), ("ostype", "unmanaged"), ("swap", "512")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .to_vec();
        for (volume, source) in self.volumes.iter().zip(sources) {
            let mut value = source.clone();
            if volume.key != "rootfs" {
                write!(value, ",mp={}", volume.mp).ok();
            }
            if !volume.properties.is_empty() {
                write!(value, ",{}", volume.properties).ok();
            }
            if volume.keep != Keep::Bind {
                // A directory without quota has no size, which PVE writes as 0T.
                let size = if volume.bytes == 0 { "0T".to_owned() } else { size(volume.bytes) };
                write!(value, ",size={size}").ok();
            }
            lines.push((volume.key.clone(), value));
        }
        lines.retain(|(key, _)| !self.lines.iter().any(|(own, _)| own == key));
        lines.extend(self.lines.clone());
        // As PVE writes it: raw lines of LXC at the end.
        lines.sort_by_key(|(key, _)| (key.starts_with("lxc."), key.clone()));
        lines.iter().fold(String::new(), |mut text, (key, value)| {
            writeln!(text, "{key}: {value}").ok();
            text
        })
    }
}
