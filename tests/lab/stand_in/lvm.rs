//! Volumes on LVM and LVM-thin storages, by the commands that a node calls.

use super::storage::Volume;
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::process::Command;

/// A storage that is a volume group, or a thin pool in one.
#[derive(Debug, Clone, Default)]
pub struct Group {
    /// The storage's name.
    pub storage: String,
    /// The volume group.
    pub group: String,
    /// The thin pool.
    pub pool: Option<String>,
}

impl Group {
    /// What the storage says of volume `name`.
    pub fn volume(&self, name: &str) -> Volume {
        Volume {
            volid: format!("{}:{name}", self.storage),
            path: PathBuf::from(format!("/dev/{}/{name}", self.group)),
            format: "raw".to_owned(),
            btrfs: false,
            group: Some(self.clone()),
        }
    }

    /// The names of its logical volumes.
    ///
    /// # Errors
    /// When `lvs` fails.
    pub fn names(&self) -> Result<Vec<String>> {
        let said = lvm("lvs", &["--noheadings", "-o", "lv_name", &self.group])?;
        Ok(said.lines().map(|line| line.trim().to_owned()).collect())
    }

    /// The first free name of a volume of guest `vmid`.
    ///
    /// # Errors
    /// When `lvs` fails.
    pub fn free_name(&self, vmid: u32) -> Result<String> {
        let names = self.names()?;
        let name = |n: u32| format!("vm-{vmid}-disk-{n}");
        Ok((0..).map(name).find(|name| !names.contains(name)).unwrap_or_default())
    }

    /// Makes volume `name`; it is active then.
    ///
    /// # Errors
    /// When `lvcreate` fails.
    pub fn create(&self, name: &str, bytes: u64) -> Result<()> {
        let size = format!("{}k", bytes.div_ceil(1024));
        let pool = self.pool.as_ref().map(|pool| format!("{}/{pool}", self.group));
        let words = match &pool {
            Some(pool) => vec!["-aly", "-V", &size, "--name", name, "--thinpool", pool],
            None => vec!["-aly", "-Wy", "--yes", "--size", &size, "--name", name, &self.group],
        };
        lvm("lvcreate", &words).map(drop)
    }

    /// Removes volume `name`.
    ///
    /// # Errors
    /// When `lvremove` fails.
    pub fn remove(&self, name: &str) -> Result<()> {
        lvm("lvremove", &["-f", &format!("{}/{name}", self.group)]).map(drop)
    }
}

/// Runs one of LVM's commands; what it printed.
///
/// # Errors
/// When it fails, with what it said.
pub fn lvm(program: &str, words: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    let output = command.args(words).output().with_context(|| format!("{program} cannot be started"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", words.join(" "), said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
