//! Files that are taken out of an archive, written below one directory and nowhere else: names are looked up one by one
//! from the directory on and never through a symbolic link, and nothing that is there is replaced.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, geteuid, linkat, symlinkat, unlinkat};

/// The parts of a path below the directory; each is a name.
pub(super) type Way = Vec<Vec<u8>>;

/// Owner, permissions and time of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub modified: (i64, u32),
}

/// A file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub(super) struct WriteError {
    path: String,
    source: io::Error,
}

impl WriteError {
    /// Whether other files can be written all the same.
    pub fn is_of_one_file(&self) -> bool {
        let known = self.source.raw_os_error().map(Errno::from_raw);
        matches!(
            known,
            Some(
                Errno::EEXIST
                    | Errno::ENAMETOOLONG
                    | Errno::ELOOP
                    | Errno::ENOTDIR
                    | Errno::EINVAL
                    | Errno::EILSEQ
                    | Errno::EFBIG
            )
        )
    }
}

/// A directory that files are written to.
pub(super) struct Outlet {
    root: OwnedFd,
    path: PathBuf,
    /// Only root can give files away.
    owners: bool,
    /// The directory that was used last.
    last: Option<(Way, OwnedFd)>,
    /// Directories that were made, and what they get when nothing is written to them any more.
    made: Vec<(Way, Marks)>,
}

impl Outlet {
    /// Opens the directory `path`, which is made if it is not there.
    pub fn open(path: &Path) -> Result<Self, WriteError> {
        let failed = |source| WriteError { path: path.display().to_string(), source };
        std::fs::create_dir_all(path).map_err(failed)?;
        let root = open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
        let root = root.map_err(|e| failed(e.into()))?;
        Ok(Self { root, path: path.to_owned(), owners: geteuid().is_root(), last: None, made: Vec::new() })
    }

    fn failed(&self, way: &[Vec<u8>], source: impl Into<io::Error>) -> WriteError {
        let path = way.iter().fold(self.path.clone(), |path, name| path.join(OsStr::from_bytes(name)));
        let path = crate::archive::tar::printable(path.as_os_str().as_bytes());
        WriteError { path, source: source.into() }
    }

    /// The directory a file is to be in, and the file's name. Directories on the way are made.
    fn seat<'w>(&mut self, way: &'w [Vec<u8>]) -> Result<(OwnedFd, &'w OsStr), WriteError> {
        let Some((name, directories)) = way.split_last() else {
            return Err(self.failed(way, io::Error::from(io::ErrorKind::AlreadyExists)));
        };
        let name = OsStr::from_bytes(name);
        let again = |fd: &OwnedFd| fd.try_clone();
        if let Some((known, fd)) = &self.last
            && known == directories
        {
            return Ok((again(fd).map_err(|e| self.failed(way, e))?, name));
        }
        let mut at = again(&self.root).map_err(|e| self.failed(way, e))?;
        for depth in 0..directories.len() {
            at = self.enter(&at, &directories[..=depth])?;
        }
        let kept = again(&at).map_err(|e| self.failed(way, e))?;
        self.last = Some((directories.to_vec(), kept));
        Ok((at, name))
    }

    /// Opens the directory that the last part of `way` names in `at`, and makes it if it is not there.
    fn enter(&self, at: &OwnedFd, way: &[Vec<u8>]) -> Result<OwnedFd, WriteError> {
        let name = OsStr::from_bytes(way.last().map(Vec::as_slice).unwrap_or_default());
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(at, name, flags, Mode::empty()) {
            Err(Errno::ENOENT) => {
                mkdirat(at, name, Mode::S_IRWXU).map_err(|e| self.failed(way, e))?;
                openat(at, name, flags, Mode::empty()).map_err(|e| self.failed(way, e))
            }
            found => found.map_err(|e| self.failed(way, e)),
        }
    }

    /// Makes a directory; one that is there already is used as it is.
    pub fn directory(&mut self, way: &[Vec<u8>], marks: Marks) -> Result<(), WriteError> {
        if way.is_empty() {
            return Ok(());
        }
        let (at, name) = self.seat(way)?;
        match mkdirat(&at, name, Mode::S_IRWXU) {
            Ok(()) => self.made.push((way.to_vec(), marks)),
            Err(Errno::EEXIST) => drop(self.enter(&at, way)?),
            Err(e) => return Err(self.failed(way, e)),
        }
        Ok(())
    }

    /// Makes a file, which `fill` writes. When that fails, nothing is left of it.
    pub fn file<E: From<WriteError>>(
        &mut self,
        way: &[Vec<u8>],
        marks: Marks,
        fill: &mut dyn FnMut(&File, &dyn Fn(io::Error) -> WriteError) -> Result<(), E>,
    ) -> Result<(), E> {
        let (at, name) = self.seat(way)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&at, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| self.failed(way, e))?;
        let file = File::from(file);
        let failed = |e: io::Error| self.failed(way, e);
        let filled = fill(&file, &failed).and_then(|()| Ok(self.mark(&file, marks).map_err(failed)?));
        if filled.is_err() {
            unlinkat(&at, name, UnlinkatFlags::NoRemoveDir).map_err(|e| self.failed(way, e))?;
        }
        filled
    }

    /// Makes a symbolic link.
    pub fn symlink(&mut self, way: &[Vec<u8>], target: &[u8], marks: Marks) -> Result<(), WriteError> {
        let (at, name) = self.seat(way)?;
        let failed = |e: Errno| self.failed(way, e);
        symlinkat(OsStr::from_bytes(target), &at, name).map_err(failed)?;
        if self.owners {
            let (uid, gid) = (Uid::from_raw(marks.uid), Gid::from_raw(marks.gid));
            fchownat(&at, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
        }
        let (accessed, modified) = times(marks);
        utimensat(&at, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink).map_err(failed)
    }

    /// Makes another name for a file that was made before.
    pub fn hard_link(&mut self, way: &[Vec<u8>], known: &[Vec<u8>]) -> Result<(), WriteError> {
        let (from, from_name) = self.seat(known)?;
        let (at, name) = self.seat(way)?;
        linkat(&from, from_name, &at, name, AtFlags::empty()).map_err(|e| self.failed(way, e))
    }

    /// Gives the directories that were made their marks.
    pub fn finish(mut self) -> Result<(), WriteError> {
        for (way, marks) in std::mem::take(&mut self.made).into_iter().rev() {
            let (at, _) = self.seat(&way)?;
            let directory = File::from(self.enter(&at, &way)?);
            self.mark(&directory, marks).map_err(|e| self.failed(&way, e))?;
        }
        Ok(())
    }

    /// The owner before the permissions: giving a file away takes some of them.
    fn mark(&self, file: &File, marks: Marks) -> io::Result<()> {
        if self.owners {
            fchown(file, Some(Uid::from_raw(marks.uid)), Some(Gid::from_raw(marks.gid)))?;
        }
        // Who runs a program with the rights of its owner must not become another one.
        let mode = if self.owners { marks.mode & 0o7777 } else { marks.mode & 0o777 };
        fchmod(file.as_fd(), Mode::from_bits_truncate(mode))?;
        let (accessed, modified) = times(marks);
        Ok(futimens(file.as_fd(), &accessed, &modified)?)
    }
}

fn times(marks: Marks) -> (TimeSpec, TimeSpec) {
    (TimeSpec::UTIME_OMIT, TimeSpec::new(marks.modified.0, marks.modified.1.into()))
}
