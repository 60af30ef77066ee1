//! There and back: a backup that must succeed, its archive restored as another guest, and that guest taken away again.

use super::Node;
use super::run::Output;
use super::stand_in::Storages;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

impl Node {
    /// Runs `vzdump <vmid> --storage backup` with further words; it must succeed. Returns the archive and what was said.
    ///
    /// # Errors
    /// When it fails or leaves no archive.
    pub fn backup(&self, vmid: u32, words: &[&str]) -> Result<(PathBuf, Output)> {
        let known = self.archives("backup", vmid)?;
        let vmid_word = vmid.to_string();
        let output = self.vzdump(&[&[vmid_word.as_str(), "--storage", "backup"], words].concat())?;
        ensure!(output.code == 0, "vzdump: exit {}: {}\n{}", output.code, output.stderr, output.stdout);
        let fresh = self.archives("backup", vmid)?.into_iter().find(|path| !known.contains(path));
        Ok((fresh.with_context(|| format!("vzdump left no archive, but said:\n{}", output.stdout))?, output))
    }

    /// Runs `qmrestore <archive> <vmid> --storage local`; it must succeed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn restore(&self, archive: &Path, vmid: u32) -> Result<Output> {
        let archive = archive.display().to_string();
        let output = self.qmrestore(&[&archive, &vmid.to_string(), "--storage", "local"])?;
        ensure!(output.code == 0, "qmrestore {archive}: {}: {}\n{}", output.code, output.stderr, output.stdout);
        Ok(output)
    }

    /// Removes a guest that is off: its config, its firewall rules and every image of it in storage `local`.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn remove(&self, vmid: u32) -> Result<()> {
        std::fs::remove_file(self.config_path(vmid))?;
        let rules = self.path(&format!("/etc/pve/firewall/{vmid}.fw"));
        let images = Storages::load(self.machine())?.dir("local")?.join("images").join(vmid.to_string());
        for file in
            [rules].into_iter().chain(std::fs::read_dir(&images).into_iter().flatten().flatten().map(|e| e.path()))
        {
            if file.exists() {
                std::fs::remove_file(file)?;
            }
        }
        for raw in std::fs::read_dir(self.path("/tmp"))?.flatten() {
            if raw.file_name().to_string_lossy().starts_with(&format!("{vmid}-")) {
                std::fs::remove_file(raw.path())?;
            }
        }
        Ok(())
    }
}

/// Small pseudo-random numbers; the seed is printed, so that a failure can be repeated with `VZKEEP_SEED`.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Seeded by `VZKEEP_SEED`, else by the clock.
    pub fn new(test: &str) -> Self {
        let clock = || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            now.subsec_nanos().into()
        };
        let seed = std::env::var("VZKEEP_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(clock);
        println!("{test}: VZKEEP_SEED={seed}");
        Self::seeded(seed)
    }

    /// Always the same numbers.
    pub fn seeded(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// `len` bytes that do not compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(len);
        out
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
