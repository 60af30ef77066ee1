//! Files that are taken out of an archive, written below one directory and nowhere else: names are looked up one by one
//! from the directory on and never through a symbolic link, and nothing that is there is replaced. A file gets its name when it is complete.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags, open, openat, renameat, renameat2};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, fstatat, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, geteuid, linkat, symlinkat, unlinkat};

use crate::archive::vma::is_zero;

/// Zeros of so many bytes become a hole.
const HOLE: usize = 64 << 10;

/// The parts of a path below the directory; each is a name.
pub(super) type Way = Vec<Vec<u8>>;

/// Writes a file, and says of what cannot be written which file it is.
pub(super) type Fill<'a, E> = dyn FnMut(&File, &dyn Fn(io::Error) -> WriteError) -> Result<(), E> + 'a;

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
                    // A link on a file system that has none.
                    | Errno::EPERM
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
    /// The first file whose owner or permissions the file system refused.
    refused: RefCell<Option<String>>,
}

/// A file that has no name yet, or a temporary one.
struct Draft {
    file: File,
    temporary: Option<OsString>,
}

impl Draft {
    /// Temporary names that are tried: one may be left of a killed process of the same number.
    const TRIES: u32 = 100;

    fn new(at: &OwnedFd) -> Result<Self, Errno> {
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        // The name is given over /proc; without it there has to be one from the beginning.
        if Path::new("/proc/self/fd").is_dir() {
            match openat(at, ".", flags | OFlag::O_TMPFILE, mode) {
                Ok(file) => return Ok(Self { file: file.into(), temporary: None }),
                Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT | Errno::EINVAL | Errno::ENOSYS) => {}
                Err(e) => return Err(e),
            }
        }
        let flags = flags | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
        let mut made = Err(Errno::EEXIST);
        for number in 0..Self::TRIES {
            // Not longer with a long name: that may have all the length there is.
            let name = OsString::from(format!(".vzkeep.{}.{number}", std::process::id()));
            made =
                openat(at, name.as_os_str(), flags, mode).map(|file| Self { file: file.into(), temporary: Some(name) });
            if !matches!(made, Err(Errno::EEXIST)) {
                break;
            }
        }
        made
    }

    /// Gives it its name, which must be free.
    fn name(&self, at: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
        let Some(temporary) = self.temporary.as_deref() else {
            let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            return linkat(AT_FDCWD, path.as_str(), at, name, AtFlags::AT_SYMLINK_FOLLOW);
        };
        match renameat2(at, temporary, at, name, RenameFlags::RENAME_NOREPLACE) {
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {}
            renamed => return renamed,
        }
        match linkat(at, temporary, at, name, AtFlags::empty()) {
            Ok(()) => unlinkat(at, temporary, UnlinkatFlags::NoRemoveDir),
            Err(Errno::EEXIST) => Err(Errno::EEXIST),
            Err(_) if is_there(at, name) => Err(Errno::EEXIST),
            Err(_) => renameat(at, temporary, at, name),
        }
    }

    fn remove(&self, at: &OwnedFd) {
        if let Some(temporary) = &self.temporary {
            // Why it is removed is worth saying, that it stays is not: its name says what it is.
            unlinkat(at, temporary.as_os_str(), UnlinkatFlags::NoRemoveDir).unwrap_or_default();
        }
    }
}

fn is_there(at: &OwnedFd, name: &OsStr) -> bool {
    fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
}

/// Whether a file system that has no owners, or no such permissions, or gives none away, said so.
fn is_refusal(error: Errno) -> bool {
    matches!(error, Errno::EPERM | Errno::EOPNOTSUPP | Errno::EINVAL)
}

impl Outlet {
    /// Opens the directory `path`, which is made if it is not there.
    pub fn open(path: &Path) -> Result<Self, WriteError> {
        let failed = |source| WriteError { path: path.display().to_string(), source };
        std::fs::create_dir_all(path).map_err(failed)?;
        let root = open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
        let root = root.map_err(|e| failed(e.into()))?;
        let (owners, refused) = (geteuid().is_root(), RefCell::default());
        Ok(Self { root, path: path.to_owned(), owners, last: None, made: Vec::new(), refused })
    }

    /// What is worth a word about what was written.
    pub fn note(&self) -> Option<String> {
        let first = self.refused.take()?;
        Some(format!(
            "{first}: the file system refuses owners or permissions; this and others like it belong to who made them, without \
             setuid and setgid"
        ))
    }

    fn shown(&self, way: &[Vec<u8>]) -> String {
        let path = way.iter().fold(self.path.clone(), |path, name| path.join(OsStr::from_bytes(name)));
        crate::archive::tar::printable(path.as_os_str().as_bytes())
    }

    fn failed(&self, way: &[Vec<u8>], source: impl Into<io::Error>) -> WriteError {
        WriteError { path: self.shown(way), source: source.into() }
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

    /// Makes a file, which `fill` writes. It gets its name when it is complete; when that fails, nothing is left of it.
    pub fn file<E: From<WriteError>>(
        &mut self,
        way: &[Vec<u8>],
        marks: Marks,
        fill: &mut Fill<'_, E>,
    ) -> Result<(), E> {
        let (at, name) = self.seat(way)?;
        // Known before all of it is written; it is looked at once more when the file gets the name.
        if is_there(&at, name) {
            return Err(self.failed(way, Errno::EEXIST).into());
        }
        let failed = |e: io::Error| self.failed(way, e);
        let draft = Draft::new(&at).map_err(|e| failed(e.into()))?;
        let filled = fill(&draft.file, &failed).and_then(|()| {
            self.mark(&draft.file, way, marks).map_err(failed)?;
            Ok(draft.name(&at, name).map_err(|e| failed(e.into()))?)
        });
        if filled.is_err() {
            draft.remove(&at);
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
            let given = fchownat(&at, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW);
            self.granted(given, way).map_err(failed)?;
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

    /// Gives the directories that were made their marks; all that can get them, and the first error is returned.
    pub fn finish(&mut self) -> Result<(), WriteError> {
        let mut done = Ok(());
        for (way, marks) in std::mem::take(&mut self.made).into_iter().rev() {
            done = done.and(self.finish_one(&way, marks));
        }
        done
    }

    fn finish_one(&mut self, way: &[Vec<u8>], marks: Marks) -> Result<(), WriteError> {
        let (at, _) = self.seat(way)?;
        let directory = File::from(self.enter(&at, way)?);
        self.mark(&directory, way, marks).map_err(|e| self.failed(way, e))
    }

    /// Whether the file system did what was asked for; that it does not do such things is noted and no error.
    fn granted(&self, done: Result<(), Errno>, way: &[Vec<u8>]) -> Result<bool, Errno> {
        match done {
            Err(e) if is_refusal(e) => {
                self.refused.borrow_mut().get_or_insert_with(|| self.shown(way));
                Ok(false)
            }
            done => done.map(|()| true),
        }
    }

    /// The owner before the permissions: giving a file away takes some of them.
    fn mark(&self, file: &File, way: &[Vec<u8>], marks: Marks) -> io::Result<()> {
        let mut own = self.owners;
        if own {
            own = self.granted(fchown(file, Some(Uid::from_raw(marks.uid)), Some(Gid::from_raw(marks.gid))), way)?;
        }
        // Who runs a program with the rights of its owner must not become another one.
        let mode = if own { marks.mode & 0o7777 } else { marks.mode & 0o777 };
        let given = fchmod(file.as_fd(), Mode::from_bits_truncate(mode));
        // FAT refuses all of them for one that it does not know.
        if !self.granted(given, way)? && mode > 0o777 {
            self.granted(fchmod(file.as_fd(), Mode::from_bits_truncate(mode & 0o777)), way)?;
        }
        let (accessed, modified) = times(marks);
        Ok(futimens(file.as_fd(), &accessed, &modified)?)
    }
}

/// Writes what is not zero of `bytes`, which begin at byte `at` of a file whose size is set; the rest stays a hole.
pub(super) fn write_data(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    for (number, piece) in bytes.chunks(HOLE).enumerate() {
        if !is_zero(piece) {
            file.write_all_at(piece, at + (number * HOLE) as u64)?;
        }
    }
    Ok(())
}

fn times(marks: Marks) -> (TimeSpec, TimeSpec) {
    (TimeSpec::UTIME_OMIT, TimeSpec::new(marks.modified.0, marks.modified.1.into()))
}
