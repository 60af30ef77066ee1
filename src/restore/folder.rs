//! Files that appear in a directory together, when all of them are complete: written beside under temporary names, synced,
//! renamed. Whatever goes wrong before, they are removed; what a killed run left, the next one removes.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use crate::host::files::{create_beside, reason, rename_new, sync_directory};
use crate::host::{Host, child};
use crate::image::{ImageError, Target, open_target};

/// How long `qemu-img create` may take; storages that hang are no reason to hang, too.
const CREATING: Duration = Duration::from_secs(60);

/// What a file cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The name is taken.
    #[error("'{0}' exists already and is not overwritten")]
    Exists(PathBuf),
    /// Something else than a directory is there.
    #[error("'{0}' is no directory")]
    NoDirectory(PathBuf),
    /// The system refused.
    #[error("{op} '{path}' failed: {}", reason(source))]
    Io {
        /// What was tried: `creating`, `writing`, `renaming`, `syncing`.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A program refused.
    #[error("{0}")]
    Program(String),
    /// A disk cannot be opened.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// A directory and the files that are being written into it.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    /// It was made for them.
    made: bool,
    files: Vec<Draft>,
}

/// A file under its temporary and its final name.
#[derive(Debug)]
struct Draft {
    temporary: PathBuf,
    path: PathBuf,
}

impl Folder {
    /// For files in `dir`, which is made if it does not exist.
    ///
    /// # Errors
    /// When it cannot be made, or is something else.
    pub fn open(dir: &Path) -> Result<Self, FolderError> {
        let made = match fs::create_dir(dir) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => false,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(FolderError::NoDirectory(dir.to_owned())),
            Err(source) => return Err(FolderError::Io { op: "creating", path: dir.to_owned(), source }),
        };
        Ok(Self { dir: dir.to_owned(), made, files: Vec::new() })
    }

    /// A file of this content.
    ///
    /// # Errors
    /// When the name is taken or the file cannot be written.
    pub fn add_file(&mut self, name: &str, content: &[u8]) -> Result<(), FolderError> {
        let (mut file, path) = self.create(name)?;
        let written = file.write_all(content).and_then(|()| file.sync_all());
        written.map_err(|source| FolderError::Io { op: "writing", path, source })
    }

    /// A disk of `size` bytes in `format`, opened for writing; `disk` is its name in messages. It reads as zeros.
    ///
    /// # Errors
    /// When the name is taken or the file cannot be made.
    pub fn add_disk(
        &mut self,
        host: &Host,
        name: &str,
        format: &str,
        size: u64,
        disk: &str,
    ) -> Result<Arc<dyn Target>, FolderError> {
        let (file, path) = self.create(name)?;
        if format == "raw" {
            file.set_len(size).map_err(|source| FolderError::Io { op: "creating", path: path.clone(), source })?;
        } else {
            let mut command = host.command("qemu-img");
            command.args(["create", "-q", "-f", format, "--"]).arg(&path).arg(size.to_string());
            child::said(&mut command, Stdio::null(), Some(CREATING)).map_err(FolderError::Program)?;
        }
        Ok(open_target(host, &path, format, disk, true)?)
    }

    /// Finds out early whether a file of this name could be added.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn expect_free(&self, name: &str) -> Result<(), FolderError> {
        let path = self.dir.join(name);
        if path.symlink_metadata().is_ok() { Err(FolderError::Exists(path)) } else { Ok(()) }
    }

    fn create(&mut self, name: &str) -> Result<(fs::File, PathBuf), FolderError> {
        self.expect_free(name)?;
        let path = self.dir.join(name);
        let (file, temporary) = create_beside(&path);
        let file = file.map_err(|source| FolderError::Io { op: "creating", path: temporary.clone(), source })?;
        self.files.push(Draft { temporary: temporary.clone(), path });
        Ok((file, temporary))
    }

    /// All are complete and synced: gives them their names. Nobody may have a disk open any more.
    ///
    /// # Errors
    /// When a name was taken meanwhile or the system refuses; those that have their names keep them.
    pub fn commit(mut self) -> Result<(), FolderError> {
        for draft in &self.files {
            // What a program wrote is not synced by us, and a disk is synced once more at no cost.
            let synced = fs::File::open(&draft.temporary).and_then(|file| file.sync_all());
            synced.map_err(|source| FolderError::Io { op: "syncing", path: draft.temporary.clone(), source })?;
        }
        while let Some(Draft { temporary, path }) = self.files.first() {
            rename_new(temporary, path).map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => FolderError::Exists(path.clone()),
                _ => FolderError::Io { op: "renaming", path: temporary.clone(), source },
            })?;
            self.made = false;
            self.files.remove(0);
        }
        sync_directory(&self.dir).map_err(|source| FolderError::Io { op: "syncing", path: self.dir.clone(), source })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Best effort: the next run removes what cannot be removed now.
        for draft in &self.files {
            fs::remove_file(&draft.temporary).unwrap_or_default();
        }
        if self.made {
            // Only when it is empty.
            fs::remove_dir(&self.dir).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        let host = Host::with_root("/".into());
        let mut folder = Folder::open(&to).unwrap();
        folder.add_file("a.conf", b"a").unwrap();
        drop(folder.add_disk(&host, "d.raw", "raw", 8192, "d").unwrap());
        assert!(!to.join("a.conf").exists() && fs::read_dir(&to).unwrap().count() == 2);
        drop(folder);
        assert!(!to.exists(), "made for nothing");

        fs::create_dir(&to).unwrap();
        // No process has this number: the kernel's highest is 4194304.
        fs::write(to.join("d.raw.tmp.4294967"), "left by a killed run").unwrap();
        let mut folder = Folder::open(&to).unwrap();
        folder.add_file("a.conf", b"a").unwrap();
        folder.add_disk(&host, "d.raw", "raw", 8192, "d").unwrap().write_at(b"x", 4096).unwrap();
        assert!(matches!(folder.add_file("a.conf", b"b"), Err(FolderError::Io { op: "creating", .. })));
        folder.commit().unwrap();
        assert_eq!(fs::read(to.join("a.conf")).unwrap(), b"a");
        assert_eq!(fs::metadata(to.join("d.raw")).unwrap().len(), 8192);
        assert_eq!(fs::read_dir(&to).unwrap().count(), 2);

        let mut folder = Folder::open(&to).unwrap();
        assert!(matches!(folder.add_file("a.conf", b"b"), Err(FolderError::Exists(_))));
        folder.add_file("c.conf", b"c").unwrap();
        fs::write(to.join("c.conf"), "came meanwhile").unwrap();
        assert!(matches!(folder.commit(), Err(FolderError::Exists(_))));
        assert_eq!(fs::read_dir(&to).unwrap().count(), 3);
        assert!(matches!(Folder::open(&to.join("a.conf")), Err(FolderError::NoDirectory(_))));
    }
}
