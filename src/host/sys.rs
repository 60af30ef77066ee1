//! System calls that have no safe wrapper in the crates we use. The only place in the engine with unsafe code.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

/// Starts writing the dirty pages of a range to the device, without waiting for them. A hint: whether it took effect shows
/// at the next `fdatasync`, and so do the errors.
pub(crate) fn start_writeback(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // SAFETY: takes a descriptor that `file` keeps open during the call, and numbers; no memory is passed.
    unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
}
