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

/// What is mounted on a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its device number, as `0:57`; no other mount has it at the same time.
    pub device: String,
    /// The kind of file system, as `ext4` or `fuse.vzkeep`.
    pub kind: String,
    /// What is mounted, as `/dev/sda1`.
    pub source: String,
}

/// What is mounted on `path` itself, the topmost of several; the path must be without symbolic links.
///
/// # Errors
/// When the list cannot be read.
pub fn mounted_on(path: &Path) -> io::Result<Option<Mount>> {
    Ok(topmost(&std::fs::read("/proc/self/mountinfo")?, path))
}

/// The last line in the text of `mountinfo` for this mount point.
fn topmost(mountinfo: &[u8], path: &Path) -> Option<Mount> {
    let text = |field: &[u8]| unescape(field).to_string_lossy().into_owned();
    let mut mounts = mountinfo.split(|byte| *byte == b'\n').rev().filter_map(|line| {
        let fields: Vec<_> = line.split(|byte| *byte == b' ').collect();
        if unescape(fields.get(4)?) != path {
            return None;
        }
        // Before the dash stand as many optional fields as there are.
        let dash = fields.iter().position(|field| field == b"-")?;
        Some(Mount { device: text(fields[2]), kind: text(fields.get(dash + 1)?), source: text(fields.get(dash + 2)?) })
    });
    mounts.next()
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
        let on = |path: &str| topmost(text, Path::new(path));
        let found = on("/mnt/bk").unwrap();
        assert_eq!((&*found.device, &*found.kind, &*found.source), ("0:30", "nfs4", "nas:/x"));
        assert_eq!(on("/mnt/bk/dump two").unwrap().kind, "tmpfs");
        assert_eq!(on("/mnt"), None);
        assert_eq!(mounted_on(Path::new("/proc")).unwrap().unwrap().kind, "proc");
        assert_eq!(mount_of(Path::new("/proc/self/task")).unwrap(), Path::new("/proc"));
    }
}
