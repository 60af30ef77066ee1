//! A directory of our own for a socket: nobody else looks into it, and what a killed run left is removed by the next one.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::procfs;

/// How the name begins; the process it belongs to follows.
const PREFIX: &str = "vzkeep-nbd-";

/// Makes a directory that is removed with what it returns. Those of killed runs are removed: they are known by the process
/// in their name.
///
/// # Errors
/// When the directory for temporary files cannot be read or written.
pub fn private_directory() -> io::Result<TempDir> {
    // Others than we are to find it, too.
    let parent = std::path::absolute(std::env::temp_dir())?;
    for entry in std::fs::read_dir(&parent)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let mut owner = name.strip_prefix(PREFIX).unwrap_or_default().split('-');
        let number = |word: Option<&str>| word.and_then(|w| w.parse::<u64>().ok());
        let (Some(pid), Some(start)) = (number(owner.next()), number(owner.next())) else { continue };
        if !u32::try_from(pid).is_ok_and(|pid| procfs::is_alive(pid, start)) {
            // Somebody else may be removing it, too; what stays is an empty directory.
            std::fs::remove_dir_all(entry.path()).unwrap_or_default();
        }
    }
    let pid = std::process::id();
    let prefix = format!("{PREFIX}{pid}-{}-", procfs::start_time(pid)?);
    tempfile::Builder::new().prefix(&prefix).permissions(Permissions::from_mode(0o700)).tempdir_in(parent)
}
