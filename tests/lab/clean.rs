//! Looks for what a backup left behind.

use super::{Node, cgroup, leash};
use anyhow::Result;
use serde_json::{Value, json};
use std::path::Path;

/// Everything that we create inside QEMU begins with this.
const OURS: &str = "vzkeep-";

impl Node {
    /// What is left of a backup of the running guest `vmid`: in QEMU, in its config, on disk, among the processes. Also
    /// says when the guest does not run. Empty when all is well.
    ///
    /// # Errors
    /// When one of them cannot be asked.
    pub fn leftovers(&self, vmid: u32) -> Result<Vec<String>> {
        let mut left = self.leftovers_on_disk(vmid)?;
        let status = match self.qmp(vmid, "query-status", &json!({})) {
            Ok(status) => status["status"].as_str().unwrap_or_default().to_owned(),
            Err(error) => {
                left.push(format!("guest {vmid} does not answer: {error:#}"));
                return Ok(left);
            }
        };
        if status != "running" {
            left.push(format!("guest {vmid} is {status}"));
        }
        let questions = [
            ("query-named-block-nodes", json!({"flat": true}), "node-name"),
            ("query-block-exports", json!({}), "id"),
            ("query-jobs", json!({}), "id"),
            ("qom-list", json!({"path": "/objects"}), "name"),
        ];
        for (question, arguments, key) in questions {
            let answer = self.qmp(vmid, question, &arguments)?;
            for item in answer.as_array().into_iter().flatten() {
                let name = item[key].as_str().unwrap_or_default();
                if name.starts_with(OURS) || question == "query-jobs" || question == "query-block-exports" {
                    left.push(format!("{question}: {name}"));
                }
            }
        }
        // What a device reads through must be the disk itself again, not a filter over it.
        for device in self.qmp(vmid, "query-block", &json!({}))?.as_array().into_iter().flatten() {
            let node = device["inserted"]["node-name"].as_str().unwrap_or_default();
            let own = node.starts_with("drive-") || node == "pflash0";
            if device["inserted"] != Value::Null && !own {
                left.push(format!("device {} reads through {node}", device["qdev"]));
            }
        }
        Ok(left)
    }

    /// The same for a guest that is off: config, disk and processes only.
    ///
    /// # Errors
    /// When one of them cannot be asked.
    pub fn leftovers_on_disk(&self, vmid: u32) -> Result<Vec<String>> {
        let mut left = Vec::new();
        if let Ok(text) = std::fs::read_to_string(self.config_path(vmid)) {
            let bad = text.lines().filter(|line| line.starts_with("lock:") || line.starts_with("[special:fleecing]"));
            left.extend(bad.map(|line| format!("{vmid}.conf: {line}")));
        }
        for dir in ["mnt", "var", "run", "tmp", "etc"] {
            walk(&self.root().join(dir), &mut left)?;
        }
        let qemus: Vec<i32> = std::fs::read_dir(self.path("/run/qemu-server"))?
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "pid"))
            .filter_map(|entry| std::fs::read_to_string(entry.path()).ok()?.trim().parse().ok())
            .collect();
        for pid in leash::processes(self.root())? {
            if !qemus.contains(&pid) && !cgroup::is_container(pid) {
                let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                left.push(format!("process {pid} {}", command.trim()));
            }
        }
        Ok(left)
    }

    /// Fails with the list of what is left behind of a backup of a running guest.
    ///
    /// # Panics
    /// When anything is, or when that cannot be found out.
    pub fn assert_clean(&self, vmid: u32) {
        let left = self.leftovers(vmid).unwrap_or_else(|error| vec![format!("{error:#}")]);
        assert!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    }

    /// The same for a guest that is off.
    ///
    /// # Panics
    /// As [`Node::assert_clean`].
    pub fn assert_clean_on_disk(&self, vmid: u32) {
        let left = self.leftovers_on_disk(vmid).unwrap_or_else(|error| vec![format!("{error:#}")]);
        assert!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    }
}

fn walk(dir: &Path, left: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let bad = name.ends_with(".dat") || name.ends_with(".tmp") || name.contains("fleec") || name.starts_with(OURS);
        if bad {
            left.push(entry.path().display().to_string());
        } else if entry.file_type()?.is_dir() {
            walk(&entry.path(), left)?;
        }
    }
    Ok(())
}
