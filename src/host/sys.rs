//! System calls without a safe wrapper elsewhere. The only module with unsafe code.
#![expect(unsafe_code, reason = "system calls that no crate in use wraps")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
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
