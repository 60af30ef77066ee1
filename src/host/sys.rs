//! System calls without a safe wrapper elsewhere. The only module with unsafe code.
#![expect(unsafe_code, reason = "system calls that no crate in use wraps")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Starts writing back the dirty pages of a range of a file, without waiting for the device.
///
/// # Errors
/// As sync_file_range(2); many network file systems do not know it.
pub fn start_write_back(file: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    range(file, offset, len, libc::SYNC_FILE_RANGE_WRITE)
}

/// Writes back the dirty pages of a range of a file and waits until the device has them. That is no replacement for
/// fsync: neither metadata nor the device's cache is flushed.
///
/// # Errors
/// As sync_file_range(2); many network file systems do not know it.
pub fn wait_write_back(file: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    let all = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    range(file, offset, len, all)
}

fn range(file: impl AsFd, offset: u64, len: u64, flags: libc::c_uint) -> io::Result<()> {
    let fd = file.as_fd();
    // SAFETY: the call takes no pointers, and the descriptor is borrowed, so open, until it returns.
    let rc = unsafe { libc::sync_file_range(fd.as_raw_fd(), offset.cast_signed(), len.cast_signed(), flags) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets the kernel kill what `command` starts as soon as the thread that started it is gone, whatever became of that.
pub fn end_with_thread(command: &mut Command) {
    let ask = || {
        // SAFETY: the call takes numbers only, and may be made between fork and exec.
        let rc = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(ask) };
}

// As linux/mount.h and linux/fcntl.h have them; the C library's crate does not.
const OPEN_TREE_CLONE: libc::c_uint = 1;
const AT_RECURSIVE: libc::c_uint = 0x8000;
const MOVE_MOUNT_BOTH_EMPTY: libc::c_uint = 0x4 | 0x40;
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_NOEXEC: u64 = 0x8;
const MOUNT_ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

/// `struct mount_attr`
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// A copy of the mount that `at` is in, from `at` on; with those below it if `recursive`. It is attached nowhere, and goes with
/// its descriptor.
///
/// # Errors
/// As open_tree(2).
pub fn clone_tree(at: impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    let cloexec = libc::O_CLOEXEC.cast_unsigned();
    let below = if recursive { AT_RECURSIVE } else { 0 };
    let flags = OPEN_TREE_CLONE | cloexec | below | libc::AT_EMPTY_PATH.cast_unsigned();
    let fd = at.as_fd().as_raw_fd();
    // SAFETY: the path is a string with an end, the descriptor is borrowed until the call returns.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, fd, c"".as_ptr(), flags) };
    let tree = i32::try_from(tree).ok().filter(|tree| *tree >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the call returned a descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(tree) })
}

/// Makes a tree of [`clone_tree`] one that can only be read, in which no link is followed on the way to a file, and of which
/// nothing spreads to where it came from.
///
/// # Errors
/// As mount_setattr(2).
pub fn seal_tree(tree: impl AsFd) -> io::Result<()> {
    let set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOSYMFOLLOW;
    let attr = MountAttr { set, clear: 0, propagation: libc::MS_PRIVATE, userns: 0 };
    let flags = libc::AT_EMPTY_PATH.cast_unsigned() | AT_RECURSIVE;
    let fd = tree.as_fd().as_raw_fd();
    // SAFETY: path and structure live until the call returns, and the size is the structure's.
    let rc = unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, &raw const attr, size_of::<MountAttr>())
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Mounts a tree of [`clone_tree`] on the directory `at`.
///
/// # Errors
/// As move_mount(2).
pub fn attach_tree(tree: impl AsFd, at: impl AsFd) -> io::Result<()> {
    let (tree, at) = (tree.as_fd().as_raw_fd(), at.as_fd().as_raw_fd());
    // SAFETY: both paths are strings with an end, both descriptors are borrowed until the call returns.
    let rc =
        unsafe { libc::syscall(libc::SYS_move_mount, tree, c"".as_ptr(), at, c"".as_ptr(), MOVE_MOUNT_BOTH_EMPTY) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
