//! A file that does not exist under its name until it is complete: written beside as `.dat`, then synced and renamed.
//!
//! A draft that is dropped is removed; one left by a killed run is replaced by the next. A lock on the file keeps two
//! runs from writing the same draft.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, PosixFadviseAdvice, posix_fadvise};

use crate::host::files::{create_beside, rename_new, sync_parent};
use crate::host::sys;

/// Bytes after which write-back is started for them.
const WRITE_BACK: u64 = 16 << 20;
/// Bytes that may be on their way to the device before the writer waits for the oldest of them. Enough that a stretch of
/// data which does not compress is buffered while the workers go on.
const IN_FLIGHT: u64 = 256 << 20;

/// A file being written that is not visible under its final name yet.
#[derive(Debug)]
pub struct Draft {
    file: Option<File>,
    /// None on a file system that knows no locks, and where the name is this process's alone.
    _lock: Option<Flock<File>>,
    path: PathBuf,
    final_path: PathBuf,
    written: u64,
    /// Up to here write-back was started, up to there it was waited for and the cache dropped.
    started: u64,
    dropped: u64,
    write_back: bool,
}

/// A draft cannot be made or finished.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// Another run writes it.
    #[error("'{0}' is being written by another run")]
    Busy(PathBuf),
    /// Something that is no file of ours is in the way.
    #[error("'{0}' is in the way: it is no regular file with a single name")]
    InTheWay(PathBuf),
    /// The final name is taken.
    #[error("'{0}' exists already and is not overwritten")]
    Exists(PathBuf),
    /// The system refused.
    #[error("{op} '{path}' failed: {source}")]
    Io {
        /// What was tried: `creating`, `writing`, `syncing`, `renaming`.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl Draft {
    /// Creates the draft of `final_path`: its last extension replaced by `.dat`.
    ///
    /// # Errors
    /// When the final name or the draft is taken, or the file cannot be created.
    pub fn create(final_path: &Path) -> Result<Self, DraftError> {
        let path = final_path.with_extension("dat");
        if path == final_path || final_path.symlink_metadata().is_ok() {
            return Err(DraftError::Exists(final_path.to_owned()));
        }
        loop {
            let failed = |source| DraftError::Io { op: "creating", path: path.clone(), source };
            let open = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(&path);
            let file = match open {
                Err(e) if e.raw_os_error() == Some(libc::ELOOP) => return Err(DraftError::InTheWay(path)),
                open => open.map_err(failed)?,
            };
            let meta = file.metadata().map_err(failed)?;
            if !meta.is_file() || meta.nlink() > 1 {
                return Err(DraftError::InTheWay(path));
            }
            let lock = match Flock::lock(file.try_clone().map_err(failed)?, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => Some(lock),
                Err((_, Errno::EWOULDBLOCK)) => return Err(DraftError::Busy(path)),
                // No reason to do without backups.
                Err((_, Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS)) => None,
                Err((_, e)) => return Err(DraftError::Io { op: "locking", path, source: e.into() }),
            };
            // Between open and lock its last owner may have renamed or removed it: then this is another file.
            if !is_file_at(&meta, &path) {
                continue;
            }
            file.set_len(0).map_err(failed)?;
            return Ok(Self {
                file: Some(file),
                _lock: lock,
                path,
                final_path: final_path.to_owned(),
                written: 0,
                started: 0,
                dropped: 0,
                write_back: true,
            });
        }
    }

    /// The same beside any file: [`crate::host::files::beside`] its name, so that it is in nobody's way whatever is called `.dat` there.
    ///
    /// # Errors
    /// As [`Draft::create`].
    pub fn beside(final_path: &Path) -> Result<Self, DraftError> {
        if final_path.symlink_metadata().is_ok() {
            return Err(DraftError::Exists(final_path.to_owned()));
        }
        let (file, path) = create_beside(final_path);
        let file = file.map_err(|source| DraftError::Io { op: "creating", path: path.clone(), source })?;
        let final_path = final_path.to_owned();
        Ok(Self {
            file: Some(file),
            _lock: None,
            path,
            final_path,
            written: 0,
            started: 0,
            dropped: 0,
            write_back: true,
        })
    }

    /// The draft's own path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path it will have.
    pub fn final_path(&self) -> &Path {
        &self.final_path
    }

    /// Bytes written through [`Draft::write_all`].
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The file, for a child process that writes it: its position is shared, the lock holds on.
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub fn file(&self) -> io::Result<File> {
        self.open_file()?.try_clone()
    }

    /// Appends `bytes`, and sees to it that they reach the device soon and leave the page cache: so the last fsync is
    /// short, and a backup does not push everything else out of memory.
    ///
    /// # Errors
    /// As write(2).
    pub fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        use std::io::Write;
        let mut file: &File = self.open_file()?;
        file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        if self.write_back && self.written - self.started >= WRITE_BACK {
            self.write_back_range();
        }
        Ok(())
    }

    /// Only a matter of timing: what fails here is found by the fsync in [`Draft::commit`], or does not matter.
    fn write_back_range(&mut self) {
        let Ok(file) = self.open_file() else { return };
        let (dropped, started, written) = (self.dropped, self.started, self.written);
        let mut known = sys::start_write_back(file, started, written - started).is_ok();
        let done = written.saturating_sub(IN_FLIGHT).max(dropped);
        if done > dropped {
            known &= sys::wait_write_back(file, dropped, done - dropped).is_ok();
            posix_fadvise(
                file,
                dropped.cast_signed(),
                (done - dropped).cast_signed(),
                PosixFadviseAdvice::POSIX_FADV_DONTNEED,
            )
            .ok();
        }
        self.write_back = known;
        self.dropped = done;
        self.started = written;
    }

    fn open_file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::Error::other("the draft is finished"))
    }

    /// Makes the file durable and gives it its final name, which must not exist.
    ///
    /// # Errors
    /// When syncing or renaming fails or the name was taken meanwhile; the draft is removed then.
    pub fn commit(mut self) -> Result<(), DraftError> {
        let failed = |op, source| DraftError::Io { op, path: self.path.clone(), source };
        let file = self.open_file().map_err(|e| failed("syncing", e))?;
        file.sync_all().map_err(|e| failed("syncing", e))?;
        rename_new(&self.path, &self.final_path).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => DraftError::Exists(self.final_path.clone()),
            _ => failed("renaming", e),
        })?;
        // From here on the name is the archive's: nothing is removed any more.
        self.file = None;
        let path = self.final_path.clone();
        sync_parent(&path).map_err(|source| DraftError::Io { op: "syncing the directory of", path, source })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let Some(file) = &self.file else { return };
        if file.metadata().is_ok_and(|meta| is_file_at(&meta, &self.path)) {
            // Best effort: the next run replaces what cannot be removed now.
            fs::remove_file(&self.path).ok();
        }
    }
}

fn is_file_at(meta: &fs::Metadata, path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|at| at.dev() == meta.dev() && at.ino() == meta.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appears_complete_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.vma.zst");
        let mut draft = Draft::create(&path).unwrap();
        draft.write_all(b"all of it").unwrap();
        assert_eq!(draft.path(), dir.path().join("a.vma.dat"));
        assert!(!path.exists());
        draft.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"all of it");
        assert!(!dir.path().join("a.vma.dat").exists());
        assert!(matches!(Draft::create(&path), Err(DraftError::Exists(_))));

        drop(Draft::create(&dir.path().join("b.vma")).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn stale_drafts_are_replaced_and_live_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.vma.dat"), b"left by a killed run").unwrap();
        let path = dir.path().join("a.vma.zst");
        let first = Draft::create(&path).unwrap();
        assert_eq!(fs::metadata(first.path()).unwrap().len(), 0);
        assert!(matches!(Draft::create(&path), Err(DraftError::Busy(_))));
        drop(first);
        Draft::create(&path).unwrap().commit().unwrap();
    }

    #[test]
    fn never_overwrites() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.vma");
        let draft = Draft::create(&path).unwrap();
        fs::write(&path, b"came meanwhile").unwrap();
        assert!(matches!(draft.commit(), Err(DraftError::Exists(_))));
        assert_eq!(fs::read(&path).unwrap(), b"came meanwhile");
        assert!(!dir.path().join("a.dat").exists());

        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("b.dat")).unwrap();
        assert!(matches!(Draft::create(&dir.path().join("b.vma")), Err(DraftError::InTheWay(_))));
    }

    #[test]
    fn write_back_keeps_the_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.vma");
        let mut draft = Draft::create(&path).unwrap();
        let piece = vec![7; 8 << 20];
        let pieces = (IN_FLIGHT >> 23) as usize + 5;
        for _ in 0..pieces {
            draft.write_all(&piece).unwrap();
        }
        assert!(draft.dropped > 0);
        draft.commit().unwrap();
        assert!(fs::read(&path).unwrap() == vec![7; pieces * (8 << 20)]);
    }
}
