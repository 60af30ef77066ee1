//! A running container's volumes as we see them: copies of its mounts, read-only, in our own mount namespace, in which no link
//! is followed on the way to a file. Whatever the container moves while it is read, the way never leads out of it; and what it
//! mounted itself, a file system of its own that nobody serves while it stands still, is not there.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;

use crate::host::sys;

/// How long looking up the places in the container may take: it may have put anything there.
const PATIENCE: Duration = Duration::from_secs(30);

/// Copies of the mounts at `places` of the container whose first process is `init`, sealed.
///
/// # Errors
/// When the container's mounts cannot be copied (`Unsupported`, if nobody can help that), or a place is none without a link on
/// its way.
pub(super) fn copies(init: u32, places: Vec<String>) -> io::Result<Vec<OwnedFd>> {
    let (tell, told) = channel();
    // A thread of its own: it goes into the container's namespace and ends there. One that hangs there is left behind.
    std::thread::spawn(move || tell.send(copy(init, &places)).unwrap_or_default());
    told.recv_timeout(PATIENCE).map_err(io::Error::other)?
}

fn copy(init: u32, places: &[String]) -> io::Result<Vec<OwnedFd>> {
    let namespace = File::open(format!("/proc/{init}/ns/mnt"))?;
    let its_root = std::fs::metadata(format!("/proc/{init}/root"))?;
    unshare(CloneFlags::CLONE_FS)?;
    setns(namespace, CloneFlags::CLONE_NEWNS)?;
    let root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let found = nix::sys::stat::fstat(&root)?;
    if (found.st_dev, found.st_ino) != (its_root.dev(), its_root.ino()) {
        // Everything around it would be copied.
        let why = "the container's root is not the root of its mount namespace";
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    places
        .iter()
        .map(|place| {
            let below = place.trim_start_matches('/');
            let dir = openat2(&root, if below.is_empty() { "." } else { below }, how)?;
            // A container without privileges has mounts that belong together: they are copied with what is below them.
            let tree = sys::clone_tree(&dir, false).or_else(|_| sys::clone_tree(&dir, true))?;
            sys::seal_tree(&tree)?;
            Ok(tree)
        })
        .collect()
}

/// Mounts a copy at `at`, and takes away what came with it.
///
/// # Errors
/// When it cannot be mounted.
pub(super) fn attach(tree: &OwnedFd, at: &Path) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let dir = open(at, flags, Mode::empty())?;
    sys::attach_tree(tree, dir.as_fd())?;
    // What does not let itself go was there before the container's own programs ran.
    let mut stays: Vec<PathBuf> = Vec::new();
    loop {
        let mounts = places(&std::fs::read("/proc/thread-self/mountinfo")?);
        let foreign: Vec<&PathBuf> =
            mounts.iter().filter(|place| *place != at && place.starts_with(at) && !stays.contains(place)).collect();
        // The outermost first, and with it all that is on it: the way to a place within leads through a file system that perhaps
        // nobody serves.
        let Some(outermost) = foreign.iter().min_by_key(|place| place.components().count()) else { return Ok(()) };
        if umount2(*outermost, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_err() {
            stays.push(outermost.to_path_buf());
        }
    }
}

/// Which of `places` of the container whose first process is `init` have something mounted over the volume that the node has
/// put there.
///
/// # Errors
/// When the container's mounts cannot be listed.
pub fn covered<'p>(init: u32, among: &[&'p str]) -> io::Result<Vec<&'p str>> {
    let mounts = places(&std::fs::read(format!("/proc/{init}/mountinfo"))?);
    let times = |place: &str| mounts.iter().filter(|mount| *mount == Path::new(place)).count();
    Ok(among.iter().copied().filter(|place| times(place) > 1).collect())
}

/// The places of the mounts that mountinfo(5) lists. Blanks and such are written as backslash and three octal digits.
fn places(mountinfo: &[u8]) -> Vec<PathBuf> {
    let place = |line: &[u8]| {
        let written = line.split(|byte| *byte == b' ').nth(4)?;
        let (mut plain, mut rest) = (Vec::new(), written);
        while let Some((&first, after)) = rest.split_first() {
            let escaped =
                if first == b'\\' { after.get(..3).and_then(|octal| std::str::from_utf8(octal).ok()) } else { None };
            let byte = escaped.and_then(|octal| u8::from_str_radix(octal, 8).ok());
            plain.push(byte.unwrap_or(first));
            rest = if byte.is_some() { &after[3..] } else { after };
        }
        Some(PathBuf::from(OsString::from_vec(plain)))
    };
    mountinfo.split(|byte| *byte == b'\n').filter_map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_mounts() {
        let text = b"22 1 0:20 / / rw - ext4 /dev/a rw\n23 22 0:21 / /a\\040b\\134 rw - tmpfs x rw\n\
            24 22 0:22 / /\xff rw - tmpfs x rw\n25 22 0:22 / / rw - tmpfs x rw\n";
        let name = PathBuf::from(OsString::from_vec(b"/\xff".to_vec()));
        assert_eq!(places(text), [PathBuf::from("/"), "/a b\\".into(), name, "/".into()]);
        assert_eq!(covered(std::process::id(), &["/proc/no/such"]).unwrap(), Vec::<&str>::new());
    }
}
