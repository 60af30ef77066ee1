//! A guest's config file: read, locked, unlocked.

use super::Machine;
use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

/// The lines of a guest's config.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    lines: Vec<String>,
}

impl GuestConfig {
    /// Reads the config of guest `vmid`.
    ///
    /// # Errors
    /// When there is no such guest.
    pub fn load(machine: &Machine, vmid: u32) -> Result<Self> {
        Self::read(machine, "qemu-server", vmid)
    }

    /// Reads the config of container `vmid`.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn load_container(machine: &Machine, vmid: u32) -> Result<Self> {
        Self::read(machine, "lxc", vmid)
    }

    fn read(machine: &Machine, kind: &str, vmid: u32) -> Result<Self> {
        let text = std::fs::read_to_string(path(machine, kind, vmid))
            .with_context(|| format!("Configuration file 'nodes/pve1/{kind}/{vmid}.conf' does not exist"))?;
        Ok(Self { lines: text.lines().map(str::to_owned).collect() })
    }

    fn head(&self) -> usize {
        self.lines.iter().position(|line| line.starts_with('[')).unwrap_or(self.lines.len())
    }

    /// The value of a key, snapshots and other sections aside.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.entries().find_map(|(name, value)| (name == key).then_some(value))
    }

    /// Keys and values in the order of the file.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        let head = self.lines.get(..self.head()).unwrap_or_default();
        head.iter()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.trim(), value.trim()))
    }

    /// Sets a key, or removes it with `None`.
    pub fn set(&mut self, key: &str, value: Option<&str>) {
        let prefix = format!("{key}:");
        let head = self.head();
        if let Some(at) = self.lines.iter().take(head).position(|line| line.starts_with(&prefix)) {
            self.lines.remove(at);
        }
        if let Some(value) = value {
            let mut at = self.head();
            while at > 0 && self.lines[at - 1].trim().is_empty() {
                at -= 1;
            }
            self.lines.insert(at, format!("{key}: {value}"));
        }
    }

    /// Replaces the section `[name]`, or removes it when `body` is empty.
    pub fn set_section(&mut self, name: &str, body: &[String]) {
        let title = format!("[{name}]");
        if let Some(from) = self.lines.iter().position(|line| *line == title) {
            let after = self.lines.iter().skip(from + 1).position(|line| line.starts_with('['));
            self.lines.drain(from..after.map_or(self.lines.len(), |len| from + 1 + len));
            while self.lines.last().is_some_and(String::is_empty) {
                self.lines.pop();
            }
        }
        if !body.is_empty() {
            self.lines.extend([String::new(), title]);
            self.lines.extend_from_slice(body);
        }
    }

    /// Refuses a locked guest as PVE does.
    ///
    /// # Errors
    /// `VM is locked (backup)`.
    pub fn refuse_locked(&self) -> Result<()> {
        match self.get("lock") {
            Some(lock) => bail!("VM is locked ({lock})"),
            None => Ok(()),
        }
    }
}

fn path(machine: &Machine, kind: &str, vmid: u32) -> PathBuf {
    machine.path(&format!("/etc/pve/{kind}/{vmid}.conf"))
}

/// Reads the config under the file lock, lets `change` work on it, and writes it beside and renames.
///
/// # Errors
/// What `change` says, in which case nothing is written, and failing files.
pub fn change(machine: &Machine, vmid: u32, change: impl FnOnce(&mut GuestConfig) -> Result<()>) -> Result<()> {
    change_under(machine, "qemu-server", vmid, &format!("/var/lock/qemu-server/lock-{vmid}.conf"), change)
}

/// The same for a container.
///
/// # Errors
/// As [`change`].
pub fn change_container(
    machine: &Machine,
    vmid: u32,
    change: impl FnOnce(&mut GuestConfig) -> Result<()>,
) -> Result<()> {
    change_under(machine, "lxc", vmid, &format!("/run/lock/lxc/pve-config-{vmid}.lock"), change)
}

fn change_under(
    machine: &Machine,
    kind: &str,
    vmid: u32,
    lock: &str,
    change: impl FnOnce(&mut GuestConfig) -> Result<()>,
) -> Result<()> {
    let lock = machine.path(lock);
    std::fs::create_dir_all(lock.parent().context("lock in no directory")?)?;
    let _held = Flock::lock(File::create(&lock)?, FlockArg::LockExclusive)
        .map_err(|(_, error)| anyhow::anyhow!("can't lock file '{}': {error}", lock.display()))?;
    let mut config = GuestConfig::read(machine, kind, vmid)?;
    change(&mut config)?;
    // Written beside the directory that /etc/pve/qemu-server points to, else the rename would cross it.
    let target = path(machine, kind, vmid).canonicalize()?;
    let mut beside = tempfile::NamedTempFile::new_in(target.parent().context("config in no directory")?)?;
    for line in &config.lines {
        writeln!(beside, "{line}")?;
    }
    beside.as_file().sync_all()?;
    beside.persist(&target)?;
    Ok(())
}
