//! What must hold after a fault: the guest is well, nothing is left, and the next backup is good.

use super::run::Output;
use super::{Node, checker, leash};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The guest to which archives are restored, only to be looked at.
const RESTORED: u32 = 900;

impl Node {
    /// Where `path`, a real one, lies on the node: `/mnt/backup/dump/...`.
    pub fn inner(&self, path: &Path) -> PathBuf {
        path.strip_prefix(self.root()).map_or_else(|_| path.to_owned(), |rest| Path::new("/").join(rest))
    }

    /// The guardians of runs on this node: process ids.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn guardians(&self) -> Result<Vec<i32>> {
        let is_guard = |pid: &i32| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|b| *b == 0).nth(1) == Some(b"guard")
        };
        Ok(leash::processes(self.root())?.into_iter().filter(is_guard).collect())
    }

    /// Waits until the guardian of a killed run has done its work; says how long that took.
    ///
    /// # Errors
    /// When it is still there after a minute.
    pub fn wait_for_guardian(&self) -> Result<Duration> {
        let begun = Instant::now();
        while !self.guardians()?.is_empty() {
            ensure!(begun.elapsed() < Duration::from_secs(60), "the guardian does not end: {:?}", self.guardians()?);
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(begun.elapsed())
    }

    /// The guest runs, its witness writes without errors, no lock and nothing else is left in QEMU or on disk.
    ///
    /// # Errors
    /// What is not so.
    pub fn unharmed(&self, vmid: u32) -> Result<()> {
        let left = self.leftovers(vmid)?;
        ensure!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
        let report = self.wait_for_records(vmid, 10)?;
        ensure!(report.errors == 0, "the guest saw I/O errors: {report:?}");
        Ok(())
    }

    /// A backup of the running guest succeeds, leaves nothing, and its disks `keys` are restored as they were at one instant.
    ///
    /// # Errors
    /// What is not so.
    pub fn backup_is_good(&self, vmid: u32, keys: &[&str]) -> Result<checker::Verdict> {
        let id = vmid.to_string();
        let output = self.vzdump(&[&id, "--storage", "backup", "--mode", "snapshot", "--compress", "zstd"])?;
        ensure!(output.code == 0, "exit {}: {}{}", output.code, output.stdout, output.stderr);
        self.unharmed(vmid)?;
        let archive = self.archives("backup", vmid)?.pop().context("no archive")?;
        self.restore(&archive, keys)
    }

    /// Restores an archive to a guest that is never started, checks its disks `keys`, and removes it.
    ///
    /// # Errors
    /// When it cannot be restored or its disks were never so at one instant.
    pub fn restore(&self, archive: &Path, keys: &[&str]) -> Result<checker::Verdict> {
        let id = RESTORED.to_string();
        let archive = self.inner(archive).display().to_string();
        self.ok("qmrestore", &[&archive, &id, "--storage", "local", "--force"])?;
        let disks = keys.iter().map(|key| self.raw_disk(RESTORED, key)).collect::<Result<Vec<_>>>()?;
        let verdict = checker::check(&disks);
        std::fs::remove_file(self.config_path(RESTORED))?;
        std::fs::remove_dir_all(self.path("/var/lib/vz/images").join(&id))?;
        Ok(verdict?)
    }
}

impl Output {
    /// The run failed, as `vzdump` fails, and its log has these `words`, in this order, each in a line of its own.
    ///
    /// # Errors
    /// What is not so, with all it said.
    pub fn failed_with(&self, words: &[&str]) -> Result<()> {
        ensure!(self.code == 255, "exit {}, not 255:\n{}{}", self.code, self.stdout, self.stderr);
        self.says(words)
    }

    /// Its log has these `words`, in this order, each in a line of its own.
    ///
    /// # Errors
    /// Which are missing, with all it said.
    pub fn says(&self, words: &[&str]) -> Result<()> {
        let mut lines = self.stdout.lines();
        for wanted in words {
            if !lines.any(|line| line.contains(wanted)) {
                bail!("'{wanted}' is missing, or comes too early, in:\n{}{}", self.stdout, self.stderr);
            }
        }
        Ok(())
    }
}
