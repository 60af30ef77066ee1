//! Which file system a directory is on, from the kernel's list of mounts: reading that touches no file system, so it never
//! hangs.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The mount point above `path`, or `path` itself. It must be without symbolic links, as [`super::Question`] answers it.
///
/// # Errors
/// When the list cannot be read.
pub fn mount_of(path: &Path) -> io::Result<PathBuf> {
    Ok(deepest(&std::fs::read("/proc/self/mountinfo")?, path))
}

/// The longest mount point in the text of `mountinfo` that `path` lies below.
fn deepest(mountinfo: &[u8], path: &Path) -> PathBuf {
    let points = mountinfo.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    let above = points.map(unescape).filter(|point| path.starts_with(point));
    above.max_by_key(|point| point.as_os_str().len()).unwrap_or_else(|| "/".into())
}

/// Blanks, tabs, line feeds and backslashes are written in octal: `\040`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_above_a_directory() {
        let text = b"22 1 0:21 / / rw - ext4 /dev/sda1 rw\n\
            40 22 0:30 / /mnt/bk rw shared:1 - nfs4 nas:/x rw\n\
            41 40 0:31 / /mnt/bk/dump\\040two rw - tmpfs none rw\n";
        let at = |path: &str| deepest(text, Path::new(path)).display().to_string();
        assert_eq!(at("/mnt/bk/dump"), "/mnt/bk");
        assert_eq!(at("/mnt/bk"), "/mnt/bk");
        assert_eq!(at("/mnt/bkx/dump"), "/");
        assert_eq!(at("/mnt/bk/dump two/a"), "/mnt/bk/dump two");
        assert_eq!(mount_of(Path::new("/proc/self/task")).unwrap(), Path::new("/proc"));
    }
}
