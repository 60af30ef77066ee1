//! Files that must be the old ones or the new ones whatever happens: replacing them whole, syncing their directory, and
//! locks on files that other programs take, too.

use std::ffi::{CStr, CString};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, OFlag, RenameFlags, renameat2};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::procfs;

/// Replaces a file whole: writes [`beside`] it, syncs, renames, syncs the directory. What a killed process left of its own
/// attempt is removed.
///
/// # Errors
/// When any of it fails; the old file is untouched then.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_with(path, 0o666, |mut file| file.write_all(content))
}

/// As [`replace`]; the new file has at most the permissions `mode`, and `fill` writes it.
///
/// # Errors
/// As [`replace`], or that of `fill`.
pub fn replace_with(path: &Path, mode: u32, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    remove_stale(path);
    let beside = beside(path);
    let written = (|| {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        fill(&file)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    })();
    if let Err(e) = written {
        return match std::fs::remove_file(&beside) {
            Err(gone) if gone.kind() != io::ErrorKind::NotFound => {
                Err(io::Error::new(e.kind(), format!("{e}; and '{}' could not be removed: {gone}", beside.display())))
            }
            _ => Err(e),
        };
    }
    sync_parent(path)
}

/// Creates the file [`beside`] `path`, which is to be new, and removes what killed processes left of theirs. Returns its path,
/// too.
pub fn create_beside(path: &Path) -> (io::Result<File>, PathBuf) {
    remove_stale(path);
    let beside = beside(path);
    (OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(&beside), beside)
}

/// Renames without replacing. File systems that cannot do that in one step get a hard link, or a look before.
///
/// # Errors
/// When the new name is taken (`AlreadyExists`), or as rename(2).
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => return Ok(()),
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {}
        Err(e) => return Err(e.into()),
    }
    match std::fs::hard_link(from, to) {
        Ok(()) => std::fs::remove_file(from),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(e),
        Err(_) if to.symlink_metadata().is_ok() => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => std::fs::rename(from, to),
    }
}

/// Removes a directory with all it holds, without following any link, and calls `each` for every entry that is gone. Of a deep
/// tree every level holds a file descriptor; if there are not enough, the limit is raised as far as it goes.
///
/// # Errors
/// The first entry that cannot be removed.
pub fn remove_tree(path: &Path, each: &dyn Fn()) -> io::Result<()> {
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let name = CString::new(name.as_encoded_bytes())?;
    let parent = nix::fcntl::open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    match remove_below(parent.as_fd(), &name, each) {
        Err(Errno::EMFILE) => {
            let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
            setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
            Ok(remove_below(parent.as_fd(), &name, each)?)
        }
        done => Ok(done?),
    }
}

/// A directory that is being emptied.
struct Level {
    dir: Dir,
    /// In the one above.
    name: CString,
    entries: Vec<CString>,
}

impl Level {
    fn open(above: BorrowedFd<'_>, name: CString) -> nix::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut dir = Dir::openat(above, name.as_c_str(), flags, Mode::empty())?;
        let mut entries = Vec::new();
        for entry in dir.iter() {
            let entry = entry?;
            if ![c".", c".."].contains(&entry.file_name()) {
                entries.push(entry.file_name().to_owned());
            }
        }
        Ok(Self { dir, name, entries })
    }
}

/// Whoever made the tree decides how deep it is: no recursion, which has an end.
fn remove_below(top: BorrowedFd<'_>, name: &CStr, each: &dyn Fn()) -> nix::Result<()> {
    let mut levels = vec![Level::open(top, name.to_owned())?];
    while let Some(level) = levels.last_mut() {
        if let Some(entry) = level.entries.pop() {
            match unlinkat(&level.dir, entry.as_c_str(), UnlinkatFlags::NoRemoveDir) {
                Err(refused @ (Errno::EISDIR | Errno::EPERM)) => match Level::open(level.dir.as_fd(), entry) {
                    Ok(below) => levels.push(below),
                    Err(Errno::ENOTDIR) => return Err(refused),
                    // Somebody else was faster: another removal of the same tree.
                    Err(Errno::ENOENT) => {}
                    Err(errno) => return Err(errno),
                },
                Err(Errno::ENOENT) | Ok(()) => each(),
                Err(errno) => return Err(errno),
            }
        } else if let Some(Level { name, .. }) = levels.pop() {
            let above = levels.last().map_or(top, |level| level.dir.as_fd());
            match unlinkat(above, name.as_c_str(), UnlinkatFlags::RemoveDir) {
                Err(Errno::ENOENT) | Ok(()) => each(),
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

/// Where this process writes what becomes `path`. The node's own tools use the same name, which is why its file system knows
/// not to list it as a guest.
pub fn beside(path: &Path) -> PathBuf {
    path.with_file_name(format!("{}{}", beside_prefix(path), std::process::id()))
}

fn beside_prefix(path: &Path) -> String {
    format!("{}.tmp.", path.file_name().unwrap_or_default().to_string_lossy())
}

/// Removes what processes that are gone wrote beside `path`. Only tidiness: what stays does no harm.
pub fn remove_stale(path: &Path) {
    let (Some(dir), prefix) = (path.parent(), beside_prefix(path)) else { return };
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix(&prefix)).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| procfs::start_time(pid).is_err()) {
            std::fs::remove_file(entry.path()).unwrap_or_default();
        }
    }
}

/// What went wrong, in the words that programs of the node use: without the number of the error.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let number = error.raw_os_error().map(|number| format!(" (os error {number})"));
    number.and_then(|number| text.strip_suffix(&number).map(str::to_owned)).unwrap_or(text)
}

/// Makes the name of `path` durable.
///
/// # Errors
/// When its directory cannot be synced.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match File::open(dir).and_then(|dir| dir.sync_all()) {
        // Some file systems (FUSE, CIFS) cannot sync a directory.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        synced => synced,
    }
}

/// Makes the names in a directory durable, and its own.
///
/// # Errors
/// As [`sync_parent`].
pub fn sync_directory(dir: &Path) -> io::Result<()> {
    sync_parent(&dir.join("any")).and_then(|()| sync_parent(dir))
}

/// Takes the lock (flock) on the file at `path`, which is made if it does not exist and stays for good: removing it would
/// let two processes lock two different files of the same name. `None` when somebody else has it for longer than `patience`.
///
/// # Errors
/// When the file cannot be made or locked at all.
pub fn lock(path: &Path, patience: Duration) -> io::Result<Option<Flock<File>>> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let give_up = Instant::now() + patience;
    // Some locks lie below a directory that anybody may write to: a link there is somebody else's idea.
    let mut open = OpenOptions::new();
    open.create(true).truncate(false).write(true).custom_flags(libc::O_NOFOLLOW);
    let mut file = open.open(path)?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() >= give_up => return Ok(None),
            Err((back, Errno::EWOULDBLOCK)) => {
                file = back;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err((_, errno)) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_what_dead_processes_left_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("100.conf");
        // No process has this number: the kernel's highest is 4194304.
        for left in ["100.conf.tmp.4294967", "100.conf.tmp.1", "100.conf.tmp.x", "1100.conf.tmp.4294967"] {
            std::fs::write(dir.path().join(left), "half").unwrap();
        }
        replace(&path, b"cores: 1\n").unwrap();
        replace(&path, b"cores: 2\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"cores: 2\n");
        let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        // Process 1 lives, and may be writing.
        assert_eq!(names, ["100.conf", "100.conf.tmp.1", "100.conf.tmp.x", "1100.conf.tmp.4294967"]);
    }

    #[test]
    fn a_tree_goes_however_deep_it_is_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (top, kept) = (dir.path().join("top"), dir.path().join("kept"));
        std::fs::create_dir_all(top.join("a")).unwrap();
        std::fs::write(&kept, "kept").unwrap();
        std::os::unix::fs::symlink(dir.path(), top.join("a/link")).unwrap();
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut at = nix::fcntl::open(&top, flags, Mode::empty()).unwrap();
        for _ in 0..1500 {
            nix::sys::stat::mkdirat(&at, c"d", Mode::S_IRWXU).unwrap();
            at = nix::fcntl::openat(&at, c"d", flags, Mode::empty()).unwrap();
        }
        let gone = std::cell::Cell::new(0);
        remove_tree(&top, &|| gone.set(gone.get() + 1)).unwrap();
        assert!(!top.exists() && kept.exists());
        assert_eq!(gone.get(), 1503);
        assert_eq!(remove_tree(&top, &|| ()).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_lock_is_for_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/lock");
        let held = lock(&path, Duration::ZERO).unwrap();
        assert!(held.is_some() && lock(&path, Duration::from_millis(30)).unwrap().is_none());
        drop(held);
        assert!(lock(&path, Duration::ZERO).unwrap().is_some());
    }
}
