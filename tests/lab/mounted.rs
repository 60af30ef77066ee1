//! Archives that `vzkeep mount` shows. Whatever a test does, no mount is left.

use anyhow::{Result, ensure};
use nix::mount::{MntFlags, umount2};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use vzkeep::host::Host;

pub use super::archives::make_vma;

/// How long something may take on a busy machine.
pub const LONG: Duration = Duration::from_secs(60);

/// Whether this machine can mount through FUSE. If not, that fails the test in CI and skips it elsewhere.
pub fn require_fuse(test: &str) -> bool {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let reason = match device {
        Ok(_) if nix::unistd::geteuid().is_root() => return true,
        Ok(_) => "mounting needs root".to_owned(),
        Err(error) => format!("/dev/fuse: {error}"),
    };
    assert!(std::env::var_os("CI").is_none(), "{test}: {reason}");
    println!("SKIPPED {test}: {reason}");
    false
}

/// A directory with something mounted on it until the end of the test.
pub struct MountPoint(PathBuf);

impl MountPoint {
    /// An empty directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name);
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// `vzkeep mount`, to be given more words.
    pub fn command(&self, archive: &Path) -> Result<Command> {
        let mut command = Command::new(super::programs::vzkeep()?);
        command.env_remove(Host::ROOT_VAR).arg("mount").arg(archive).arg(&self.0).stdin(Stdio::null());
        Ok(command)
    }

    /// Mounts the archive; returns what was said.
    ///
    /// # Errors
    /// When that fails, with what was said.
    pub fn mount(&self, archive: &Path) -> Result<String> {
        let output = self.command(archive)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success() && output.stdout.is_empty(), "vzkeep mount: {said}");
        ensure!(self.is_mounted()?, "vzkeep mount came back before there was a mount");
        Ok(said)
    }

    /// Whether anything is mounted on it.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn is_mounted(&self) -> Result<bool> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        // As the list has blanks.
        let path = self.0.display().to_string().replace(' ', "\\040");
        Ok(mounts.lines().any(|line| line.split(' ').nth(4) == Some(path.as_str())))
    }

    /// The processes that serve it.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn servers(&self) -> Result<Vec<i32>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            // One that has ended meanwhile is none.
            let Ok(words) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
            let mut words = words.split(|byte| *byte == 0);
            let path = self.0.as_os_str().as_encoded_bytes();
            if words.clone().nth(1) == Some(b"mount") && words.any(|word| word == path) {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// Unmounts it as people do; afterwards no process serves it any longer.
    ///
    /// # Errors
    /// When it stays.
    pub fn unmount(&self) -> Result<()> {
        let output = Command::new("umount").arg(&self.0).output()?;
        ensure!(output.status.success(), "umount: {}", String::from_utf8_lossy(&output.stderr));
        self.wait_until_gone()
    }

    /// Waits until nothing is mounted and nobody serves.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_until_gone(&self) -> Result<()> {
        wait("the mount and its process are gone", || Ok(!self.is_mounted()? && self.servers()?.is_empty()))
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        for pid in self.servers().unwrap_or_default() {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
                .unwrap_or_default();
        }
        while umount2(&self.0, MntFlags::MNT_DETACH).is_ok() {}
    }
}

/// Waits until it is so.
///
/// # Errors
/// When that takes too long, or cannot be found out.
pub fn wait(what: &str, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + LONG;
    while !so()? {
        ensure!(Instant::now() < deadline, "not so after {LONG:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The folder of recordings of the real tools: `GOLDEN_DIR`, else `../shared/golden` beside the project. Without it a test
/// is skipped, except in CI, where it fails.
pub fn golden() -> Option<PathBuf> {
    let default = super::programs::project().join("../shared/golden");
    let dir = std::env::var_os("GOLDEN_DIR").map_or(default, PathBuf::from);
    if dir.join("archives").is_dir() {
        return Some(dir);
    }
    assert!(std::env::var_os("CI").is_none(), "no recordings in {}: set GOLDEN_DIR", dir.display());
    println!("SKIPPED: no recordings in {}", dir.display());
    None
}
