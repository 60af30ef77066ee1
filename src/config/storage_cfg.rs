//! `/etc/pve/storage.cfg`: sections `type: id` with indented properties. Directory storages are read in full, of the
//! others everything is kept as text.

use std::ops::Deref;
use std::path::PathBuf;

use super::sections::{CfgSection, Fault, Sections};
use crate::schema::words::split_list;
use crate::schema::{Keep, parse_bool};

/// All storages of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageCfg {
    /// In the order of the file; `local` at the end when the file does not have it.
    pub storages: Vec<Storage>,
    /// Lines that could not be read, each a message with its number.
    pub warnings: Vec<String>,
}

/// One storage: a section of the file whose properties have a meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    section: CfgSection,
}

impl Deref for Storage {
    type Target = CfgSection;

    fn deref(&self) -> &CfgSection {
        &self.section
    }
}

/// Why a storage cannot be used. The texts follow `could not activate storage 'x': ` and the like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// Not in storage.cfg.
    #[error("storage '{0}' does not exist")]
    Missing(String),
    /// Switched off.
    #[error("storage '{0}' is disabled")]
    Disabled(String),
    /// Restricted to other nodes.
    #[error("storage '{0}' is not available on node '{1}'")]
    OtherNode(String, String),
    /// It does not take backups.
    #[error("can't use storage '{0}' for backups - wrong content type")]
    NoBackups(String),
    /// Its path is in bytes that are no text; what we made of them would be another directory.
    #[error("storage '{0}' cannot be used: its path is not valid UTF-8")]
    NotText(String),
}

impl StorageCfg {
    /// Where the file lies.
    pub const PATH: &'static str = "/etc/pve/storage.cfg";

    /// Reads the text of the file; an absent file is an empty one.
    pub fn parse(text: &str) -> Self {
        let Sections { sections, faults } = Sections::parse(text, |_, id| id.to_owned());
        let told = |fault: Fault| match fault.twice {
            Some(id) => format!(
                "file {} line {} (skip section '{id}'): there is one of this name already",
                Self::PATH,
                fault.line
            ),
            None => format!("file {} line {} - ignore config line: {}", Self::PATH, fault.line, fault.text),
        };
        let warnings = faults.into_iter().map(told).collect();
        let mut storages: Vec<_> = sections.into_iter().map(|section| Storage { section }).collect();
        if !storages.iter().any(|storage| storage.id == "local") {
            let properties = [
                ("path", "/var/lib/vz"),
                ("content", "backup,images,iso,rootdir,snippets,vztmpl"),
                ("prune-backups", "keep-all=1"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
            storages.push(Storage { section: CfgSection::new("dir", "local", properties.into()) });
        }
        Self { storages, warnings }
    }

    /// The storage named `id`.
    pub fn get(&self, id: &str) -> Option<&Storage> {
        self.storages.iter().find(|storage| storage.id == id)
    }

    /// The storage named `id`, if it is enabled on `node`.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn usable(&self, id: &str, node: &str) -> Result<&Storage, StorageError> {
        let storage = self.get(id).ok_or_else(|| StorageError::Missing(id.to_owned()))?;
        if storage.is_disabled() {
            return Err(StorageError::Disabled(id.to_owned()));
        }
        if !storage.is_on_node(node) {
            return Err(StorageError::OtherNode(id.to_owned(), node.to_owned()));
        }
        let paths = ["path", "is_mountpoint", "content-dirs"].iter().filter_map(|key| storage.get(key));
        if paths.into_iter().any(|path| path.contains(char::REPLACEMENT_CHARACTER)) {
            return Err(StorageError::NotText(id.to_owned()));
        }
        Ok(storage)
    }
}

impl Storage {
    fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value.is_empty() || parse_bool(value) == Some(true))
    }

    /// Whether it is switched off.
    pub fn is_disabled(&self) -> bool {
        self.flag("disable")
    }

    /// Whether `node` may use it.
    pub fn is_on_node(&self, node: &str) -> bool {
        self.get("nodes").is_none_or(|nodes| split_list(nodes).iter().any(|name| name == node))
    }

    /// The directory its files lie below (the node's path, without our root prefix); `None` for other storages.
    pub fn path(&self) -> Option<PathBuf> {
        match self.get("path") {
            Some(path) if matches!(self.kind.as_str(), "dir" | "btrfs") || self.is_network() => {
                Some(PathBuf::from(path))
            }
            None if self.is_network() => Some(PathBuf::from("/mnt/pve").join(&self.id)),
            _ => None,
        }
    }

    /// Whether it is a file system that the node mounts from elsewhere.
    pub fn is_network(&self) -> bool {
        matches!(self.kind.as_str(), "nfs" | "cifs" | "cephfs" | "glusterfs")
    }

    /// Whether images are plain files below `path` (not so on btrfs, where each is a subvolume).
    pub fn has_image_files(&self) -> bool {
        self.kind != "btrfs" && self.kind != "cephfs" && self.path().is_some()
    }

    /// What may be kept on it: `backup`, `images`, ...
    pub fn content(&self) -> Vec<String> {
        match self.get("content") {
            Some(content) => split_list(content),
            None => match self.kind.as_str() {
                "pbs" | "cephfs" => vec!["backup".into()],
                "nfs" | "cifs" | "glusterfs" | "lvm" | "rbd" | "iscsi" | "iscsidirect" | "zfs" => {
                    vec!["images".into()]
                }
                "esxi" => vec!["import".into()],
                _ => vec!["images".into(), "rootdir".into()],
            },
        }
    }

    /// Whether backups may be kept on it.
    ///
    /// # Errors
    /// The sentence that says it may not.
    pub fn check_backup_content(&self) -> Result<(), StorageError> {
        if self.content().iter().any(|kind| kind == "backup") {
            Ok(())
        } else {
            Err(StorageError::NoBackups(self.id.clone()))
        }
    }

    /// The directory of one kind of content below `path`: `dump` for `backup`, unless `content-dirs` says otherwise.
    pub fn content_dir(&self, content: &str) -> Option<PathBuf> {
        let configured = self.get("content-dirs").and_then(|dirs| {
            dirs.split(',').filter_map(|pair| pair.trim().split_once('=')).find(|(kind, _)| *kind == content)
        });
        let default = match content {
            "backup" => "dump",
            "iso" => "template/iso",
            "vztmpl" => "template/cache",
            "rootdir" => "private",
            other => other,
        };
        let dir = configured.map_or(default, |(_, dir)| dir.trim_start_matches('/'));
        Some(self.path()?.join(dir))
    }

    /// Where its backups lie.
    pub fn dump_dir(&self) -> Option<PathBuf> {
        self.content_dir("backup")
    }

    /// Its retention.
    ///
    /// # Errors
    /// When the property cannot be read: then nothing must be removed.
    pub fn prune_backups(&self) -> Result<Option<Keep>, String> {
        self.get("prune-backups").map(Keep::parse).transpose()
    }

    /// How many protected backups a guest may have, as configured; `None` without limit.
    pub fn max_protected_backups(&self) -> Option<u64> {
        // Minus one is the word for no limit. The original allows root any number by default.
        self.get("max-protected-backups")?.parse::<u64>().ok()
    }

    /// Whether its directories are made when they are missing. `mkdir` is the old word for both of its successors.
    pub fn makes_directories(&self) -> bool {
        let says_no = |key| self.get(key).and_then(parse_bool) == Some(false);
        !["mkdir", "create-base-path", "create-subdirs"].into_iter().any(says_no)
    }

    /// The directory that must be a mount point before the storage may be used.
    pub fn mount_point(&self) -> Option<PathBuf> {
        match self.get("is_mountpoint") {
            Some(path) if path.starts_with('/') => Some(PathBuf::from(path)),
            Some(value) if parse_bool(value) == Some(true) => self.path(),
            // Nobody but the node mounts it: without that, its directory is one on the node's own disk.
            _ if self.is_network() => self.path(),
            _ => None,
        }
    }
}
