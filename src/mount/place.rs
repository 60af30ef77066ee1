//! The directory an archive is mounted on: whether it can be, the mount itself and its end. A mount whose process was
//! killed stays and answers nothing; it is removed when it is one of ours.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::MountError;
use crate::host::{Cancel, Host, child};
use crate::storage::{Mount, mounted_on};

/// Where the kernel's part of FUSE is spoken to.
const DEVICE: &str = "/dev/fuse";
/// What the kernel calls a mount of ours.
const KIND: &str = "fuse.vzkeep";
/// What is said to be mounted.
pub(super) const SOURCE: &str = "vzkeep";
/// Dead mounts above each other that are removed.
const MOST_DEAD: usize = 16;
/// How long fusermount3 may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory that an archive can be mounted on.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
}

/// How an unmount went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unmounted {
    /// It is gone.
    Done,
    /// Files in it are open: nobody finds it any more, and it ends with the last of them.
    Busy,
}

impl Place {
    /// Looks whether an archive can be mounted on `directory`. A dead mount of ours that is there is removed and told with
    /// `say`.
    ///
    /// # Errors
    /// With the reason when it cannot be.
    pub fn find(host: &Host, directory: &Path, say: &mut dyn FnMut(&str)) -> Result<Self, MountError> {
        let path = std::fs::canonicalize(directory).map_err(|source| refused(directory, source))?;
        OpenOptions::new().read(true).write(true).open(DEVICE).map_err(MountError::NoFuse)?;
        let place = Self { path };
        for _ in 0..MOST_DEAD {
            let Some(mount) = place.mounted()? else { break };
            // A file system of somebody else's is not asked: it may never answer.
            if mount.kind != KIND || !place.is_dead() {
                let what = if mount.kind == KIND {
                    "an archive".to_owned()
                } else {
                    format!("{} ({})", mount.source, mount.kind)
                };
                return Err(MountError::Taken { directory: place.name(), what });
            }
            place.detach(host)?;
            say(&format!("removed the mount that a killed vzkeep had left on '{}'", place.name()));
        }
        place.check()?;
        Ok(place)
    }

    /// The directory without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn check(&self) -> Result<(), MountError> {
        let asked = |source| refused(&self.path, source);
        if !std::fs::metadata(&self.path).map_err(asked)?.is_dir() {
            return Err(MountError::NoDirectory(self.name()));
        }
        match std::fs::read_dir(&self.path).map_err(asked)?.next() {
            None => Ok(()),
            Some(_) => Err(MountError::NotEmpty(self.name())),
        }
    }

    fn mounted(&self) -> Result<Option<Mount>, MountError> {
        mounted_on(&self.path).map_err(|source| refused(&self.path, source))
    }

    /// Whether the process behind the mount is gone.
    fn is_dead(&self) -> bool {
        std::fs::metadata(&self.path).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))
    }

    /// Takes the directory for mounting, so that no other process of ours does it at the same time, and looks again.
    pub(super) fn take(&self) -> Result<Flock<File>, MountError> {
        let directory = File::open(&self.path).map_err(|source| refused(&self.path, source))?;
        let lock = Flock::lock(directory, FlockArg::LockExclusiveNonblock);
        let lock =
            lock.map_err(|_| MountError::Taken { directory: self.name(), what: "another archive".to_owned() })?;
        if self.mounted()?.is_some() {
            return Err(MountError::Taken { directory: self.name(), what: "another archive".to_owned() });
        }
        self.check()?;
        Ok(lock)
    }

    /// Mounts and returns the descriptor that the kernel asks through; `None` when only fusermount3 may do it.
    pub(super) fn mount(&self, allow_other: bool) -> Result<Option<OwnedFd>, MountError> {
        let device = OpenOptions::new().read(true).write(true).open(DEVICE).map_err(MountError::NoFuse)?;
        let (user, group) = (nix::unistd::getuid(), nix::unistd::getgid());
        let mut data =
            format!("fd={},rootmode=40000,user_id={user},group_id={group},default_permissions", device.as_raw_fd());
        if allow_other {
            data.push_str(",allow_other");
        }
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
        match mount(Some(SOURCE), &self.path, Some(KIND), flags, Some(data.as_str())) {
            Ok(()) => Ok(Some(device.into())),
            Err(Errno::EPERM) => Ok(None),
            Err(errno) => Err(MountError::Refused { directory: self.name(), source: errno.into() }),
        }
    }

    /// What is mounted here now, for [`Place::unmount`].
    pub(super) fn device(&self) -> Result<Option<String>, MountError> {
        Ok(self.mounted()?.map(|mount| mount.device))
    }

    /// Ends the mount with this device number; if that is gone, or another one lies above it, nothing is done.
    pub(super) fn unmount(&self, host: &Host, device: &str) -> Result<Unmounted, MountError> {
        if self.device()?.is_none_or(|found| found != device) {
            return Ok(Unmounted::Done);
        }
        match umount2(&self.path, MntFlags::UMOUNT_NOFOLLOW) {
            // Somebody was faster.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(Unmounted::Done),
            Err(Errno::EPERM) if self.fusermount(host, &["-u"]).is_ok() => Ok(Unmounted::Done),
            Err(Errno::EBUSY | Errno::EPERM) => self.detach(host).map(|()| Unmounted::Busy),
            Err(errno) => Err(self.stays(errno.into())),
        }
    }

    /// Takes the mount off, however busy it is.
    pub(super) fn detach(&self, host: &Host) -> Result<(), MountError> {
        match umount2(&self.path, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
            Err(Errno::EPERM) => self.fusermount(host, &["-u", "-z"]).map_err(|source| self.stays(source)),
            Err(errno) => Err(self.stays(errno.into())),
        }
    }

    fn stays(&self, source: io::Error) -> MountError {
        MountError::Unmount { directory: self.name(), source }
    }

    fn fusermount(&self, host: &Host, words: &[&str]) -> io::Result<()> {
        let mut command = host.command("fusermount3");
        command.args(words).arg("--").arg(&self.path);
        match child::run(&mut command, None, PATIENCE, &Cancel::new())? {
            child::Ended::Exited(output) if output.status.success() => Ok(()),
            child::Ended::Exited(output) => Err(io::Error::other(output.complaint())),
            child::Ended::Late(_) | child::Ended::Cancelled => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

fn refused(directory: &Path, source: io::Error) -> MountError {
    MountError::Directory { directory: directory.display().to_string(), source }
}
