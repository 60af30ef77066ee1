//! Volumes: their paths and their removal. On storages that are plain directories both are done here; for the others `pvesm`
//! is asked. New ones are always made by `pvesm`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::mounts::mount_of;
use super::probe::Question;
use super::volid::{VolId, VolIdError};
use crate::config::{Storage, StorageCfg, StorageError};
use crate::host::{Cancel, Host, child};
use crate::schema::Vmid;

/// How long the node may take to mount a storage: its own checks of the server take ten seconds each.
const ACTIVATION: Duration = Duration::from_secs(60);

/// The storages of the node.
#[derive(Debug, Clone)]
pub struct Volumes {
    host: Host,
    cfg: StorageCfg,
}

/// Why a volume could not be found, made or removed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The storage cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The name cannot be used.
    #[error(transparent)]
    Name(#[from] VolIdError),
    /// The storage's mount is missing: writing would fill the file system below it.
    #[error(
        "unable to activate storage '{storage}' - directory is expected to be a mount point but is not mounted: '{path}'"
    )]
    NotMounted {
        /// The storage.
        storage: String,
        /// The node's path that should be a mount point.
        path: PathBuf,
    },
    /// The storage's directory is missing or does not answer.
    #[error("unable to activate storage '{storage}' - directory '{path}' does not exist or is unreachable")]
    Unreachable {
        /// The storage.
        storage: String,
        /// The node's path.
        path: PathBuf,
    },
    /// The server behind a storage does not answer.
    #[error("storage '{0}' is not online")]
    Offline(String),
    /// An operation on a file failed.
    #[error("{operation} '{path}' failed: {source}")]
    File {
        /// What was done.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A command could not be run or failed.
    #[error("command '{command}' failed: {reason}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status and what it said.
        reason: String,
    },
}

impl Volumes {
    /// The storages of `cfg` on `host`.
    pub fn new(host: Host, cfg: StorageCfg) -> Self {
        Self { host, cfg }
    }

    /// The storages that `storage.cfg` lists.
    ///
    /// # Errors
    /// When the file exists and cannot be read.
    pub fn load(host: &Host) -> Result<Self, VolumeError> {
        let path = host.path(StorageCfg::PATH);
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(source) if source.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(VolumeError::File { operation: "reading", path, source }),
        };
        Ok(Self::new(host.clone(), StorageCfg::parse(&text)))
    }

    /// The storage configuration.
    pub fn cfg(&self) -> &StorageCfg {
        &self.cfg
    }

    /// The storage named `id`, enabled on this node and, if it must be, mounted.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn storage(&self, id: &str) -> Result<&Storage, VolumeError> {
        let storage = self.cfg.usable(id, self.host.node())?;
        if let Some(path) = storage.mount_point() {
            self.check_mount(storage, path)?;
        }
        Ok(storage)
    }

    fn check_mount(&self, storage: &Storage, path: PathBuf) -> Result<(), VolumeError> {
        if self.is_mounted(storage, &path)? {
            return Ok(());
        }
        if storage.is_network() && self.host.has_command("pvesm") {
            // Asked for its state, the node mounts it. What it complains about shows in the second look.
            let mut status = self.host.command("pvesm");
            status.args(["status", "--storage", &storage.id]);
            child::run(&mut status, None, ACTIVATION, &Cancel::new()).map(drop).unwrap_or_default();
            if self.is_mounted(storage, &path)? {
                return Ok(());
            }
        }
        Err(VolumeError::NotMounted { storage: storage.id.clone(), path })
    }

    fn is_mounted(&self, storage: &Storage, path: &Path) -> Result<bool, VolumeError> {
        let place = self.host.path(path);
        let failed = |source| VolumeError::File { operation: "looking at", path: place.clone(), source };
        match Question::Look.ask(&self.host, &place) {
            Ok(answer) => Ok(mount_of(&answer.path).map_err(failed)? == answer.path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::TimedOut && storage.is_network() => {
                Err(VolumeError::Offline(storage.id.clone()))
            }
            Err(error) => Err(VolumeError::of_directory(storage, path, error)),
        }
    }

    /// Makes sure that the directory `dir` of `storage` is there and answers; makes it if the storage wants that.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn directory(&self, storage: &Storage, dir: &Path) -> Result<(), VolumeError> {
        let question = if storage.makes_directories() { Question::Make } else { Question::Look };
        let asked = question.ask(&self.host, &self.host.path(dir)).map(drop);
        asked.map_err(|error| VolumeError::of_directory(storage, dir, error))
    }

    /// Where a volume really lies (below our root prefix). An absolute path stands for itself.
    ///
    /// # Errors
    /// When the storage cannot be used or the name means nothing there.
    pub fn path(&self, volume: &str) -> Result<PathBuf, VolumeError> {
        if volume.starts_with('/') {
            return Ok(self.host.path(volume));
        }
        let volid: VolId = volume.parse()?;
        let storage = self.storage(&volid.storage)?;
        if storage.has_image_files() || (storage.path().is_some() && volid.volume.starts_with("backup/")) {
            return Ok(self.host.path(volid.path_on(storage)?.path));
        }
        Ok(PathBuf::from(run(self.host.command("pvesm").args(["path", volume]))?.trim()))
    }

    /// Removes a volume; one that is gone already is fine.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn free(&self, volid: &VolId) -> Result<(), VolumeError> {
        let storage = self.storage(&volid.storage)?;
        if !storage.has_image_files() {
            return run(self.host.command("pvesm").args(["free", &volid.to_string()])).map(drop);
        }
        let path = self.host.path(volid.path_on(storage)?.path);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(VolumeError::File { operation: "removing", path, source });
            }
            _ => {}
        }
        // The guest's own directory goes with its last image; it stays while something else lies in it.
        if let Some(dir) =
            path.parent().filter(|dir| dir.file_name().is_some_and(|n| n.to_string_lossy().parse::<Vmid>().is_ok()))
        {
            fs::remove_dir(dir).unwrap_or_default();
        }
        Ok(())
    }
}

/// Runs a command; its standard output, or what it complained about.
fn run(command: &mut Command) -> Result<String, VolumeError> {
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let line = words.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let failed = |reason| VolumeError::Command { command: line.clone(), reason };
    let out = command.stdin(std::process::Stdio::null()).output().map_err(|error| failed(error.to_string()))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    let code = out.status.code().map_or_else(|| out.status.to_string(), |code| format!("exit code {code}"));
    Err(failed(if said.trim().is_empty() { code } else { format!("{code}: {}", said.trim()) }))
}

impl VolumeError {
    /// What `error` about the directory `dir` of `storage` means: the original's sentence if it is missing or does not
    /// answer, else what the system said.
    pub fn of_directory(storage: &Storage, dir: &Path, error: io::Error) -> Self {
        let path = dir.to_owned();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::TimedOut => {
                Self::Unreachable { storage: storage.id.clone(), path }
            }
            _ => Self::File { operation: "using", path, source: error },
        }
    }
}
