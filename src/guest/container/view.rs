//! A running container's volumes as we see them: copies of its mounts, read-only, in our own mount namespace, in which no link
//! is followed on the way to a file. Whatever the container moves while it is read, the way never leads out of it; and what it
//! mounted itself, a file system of its own that nobody serves while it stands still, is not there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
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
/// When the container's mounts cannot be copied, or a place is none without a link on its way.
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
        return Err(io::Error::other("the container's root is not the root of its mount namespace"));
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
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    for below in mounts.lines().rev().filter_map(|line| below(line, at)) {
        // What does not let itself go was there before the container's own programs ran.
        umount2(&below, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).unwrap_or_default();
    }
    Ok(())
}

/// The place of the mount that a line of mountinfo(5) is about, if it is one below `at`.
fn below(line: &str, at: &Path) -> Option<std::path::PathBuf> {
    let mut place = line.split(' ').nth(4)?.to_owned();
    for (escaped, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        place = place.replace(escaped, plain);
    }
    let place = std::path::PathBuf::from(place);
    (place != at && place.starts_with(at)).then_some(place)
}
