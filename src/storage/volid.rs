//! Volume ids (`local:100/vm-100-disk-0.qcow2`, `bk:backup/vzdump-...`) and where they lie on directory storages.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::config::Storage;
use crate::schema::Vmid;

/// A storage and a volume on it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolId {
    /// The storage's name.
    pub storage: String,
    /// The volume's name there.
    pub volume: String,
}

/// What a text is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolIdError {
    /// Not a volume id at all.
    #[error("unable to parse volume ID '{0}'")]
    Syntax(String),
    /// The volume's name means nothing on a directory storage.
    #[error("unable to parse directory volume name '{0}'")]
    Volume(String),
    /// The storage has no directory.
    #[error("storage '{0}' has no path of its own; ask for its volumes with pvesm")]
    NoPath(String),
}

/// A path below a storage, and what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentPath {
    /// The node's path, without our root prefix.
    pub path: PathBuf,
    /// The guest it belongs to, where the name says so.
    pub owner: Option<Vmid>,
}

impl FromStr for VolId {
    type Err = VolIdError;

    fn from_str(text: &str) -> Result<Self, VolIdError> {
        let error = || VolIdError::Syntax(text.to_owned());
        let (storage, volume) = text.split_once(':').ok_or_else(error)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let valid = storage.starts_with(|c: char| c.is_ascii_alphabetic()) && storage.chars().all(plain);
        if !valid || volume.is_empty() || volume.contains(char::is_whitespace) {
            return Err(error());
        }
        Ok(Self { storage: storage.to_owned(), volume: volume.to_owned() })
    }
}

impl fmt::Display for VolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.storage, self.volume)
    }
}

impl VolId {
    /// The image format that the file's extension says; `raw` without one.
    pub fn format(&self) -> &str {
        match self.volume.rsplit_once('.').map(|(_, extension)| extension) {
            Some(format @ ("qcow2" | "vmdk" | "subvol")) => format,
            _ => "raw",
        }
    }

    /// Where the volume lies on the directory storage `storage`.
    ///
    /// # Errors
    /// When the storage is none, or the name is none of its names; a name never leads out of the storage.
    pub fn path_on(&self, storage: &Storage) -> Result<ContentPath, VolIdError> {
        let error = || VolIdError::Volume(self.volume.clone());
        let parts: Vec<&str> = self.volume.split('/').collect();
        if parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
            return Err(error());
        }
        let dir = |content| storage.content_dir(content).ok_or_else(|| VolIdError::NoPath(storage.id.clone()));
        match parts.as_slice() {
            [content @ ("backup" | "iso" | "vztmpl" | "snippets" | "import"), name] => {
                let owner = super::ArchiveInfo::parse(name).and_then(|archive| archive.vmid());
                Ok(ContentPath { path: dir(content)?.join(name), owner })
            }
            // A linked clone names its base first: 103/base-103-disk-0.qcow2/104/vm-104-disk-0.qcow2
            [vmid, name] | [_, _, vmid, name] => {
                let owner: Vmid = vmid.parse().map_err(|_| error())?;
                Ok(ContentPath { path: dir("images")?.join(vmid).join(name), owner: Some(owner) })
            }
            _ => Err(error()),
        }
    }
}
