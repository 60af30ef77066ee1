//! Brings about what a recording says of the node before its run, and takes it back afterwards.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use regex::Regex;

use super::case::Case;
use super::files::{Seeds, dump_dirs};
use crate::lab::Node;

/// What has to be undone, last first.
enum Undo {
    Restore(PathBuf, Vec<u8>),
    MoveBack { from: PathBuf, to: PathBuf },
    Unmount(PathBuf),
    SwitchOff(u32),
}

/// A change of the node, read from its description.
enum Change {
    RemoveVolume(String),
    Guest { vmid: u32, key: String, value: String },
}

/// The node as a recording found it.
pub struct Scene<'a> {
    node: &'a Node,
    undo: Vec<Undo>,
    /// Backups of earlier runs that were put there.
    pub seeds: Seeds,
}

impl<'a> Scene<'a> {
    /// Sets the scene of `case`.
    ///
    /// # Errors
    /// What in the recording is not understood.
    pub fn set(node: &'a Node, case: &Case) -> Result<Self, String> {
        if let Some(what) = case.not_understood().first() {
            return Err(format!("before: '{what}' is not understood"));
        }
        if let Some(vmid) =
            case.running().iter().find(|vmid| !node.config_path(**vmid).exists() && !is_container(node, **vmid))
        {
            return Err(format!("running: the node has no guest {vmid} that could run"));
        }
        let changes = case.changes().iter().map(|text| change(text)).collect::<Result<Vec<_>, _>>()?;
        let storages =
            case.storages().iter().map(|(name, how)| made_storage(name, how)).collect::<Result<Vec<_>, _>>()?;
        let mut scene = Self { node, undo: Vec::new(), seeds: Seeds::default() };
        for (path, size, entry) in storages {
            match size {
                Some(size) => scene.mount(&path, size),
                None => std::fs::create_dir_all(node.path(&path)).unwrap(),
            }
            scene.edit(&node.path("/etc/pve/storage.cfg"), |text| format!("{text}\n{entry}"));
        }
        scene.hide_later_guests(case);
        scene.power(case, &changes);
        for change in &changes {
            scene.make(change);
        }
        for vmid in case.running() {
            if is_container(node, vmid) {
                if !runs(node, vmid) {
                    node.ct_start(vmid).unwrap();
                }
                continue;
            }
            if !runs(node, vmid) {
                node.switch_on(vmid).unwrap();
            }
            if changes.iter().any(|change| matches!(change, Change::Guest { vmid: changed, .. } if *changed == vmid)) {
                scene.undo.push(Undo::SwitchOff(vmid));
            }
            // A guest that is still booting after the case before does not listen to its power button.
            let boots = std::fs::read_to_string(node.config_path(vmid)).unwrap().contains("guest.img");
            if boots && node.witness_within(vmid, "status", Duration::from_secs(40)).is_err() {
                // One that was told to switch itself off in the case before, and got stuck.
                node.ok("qm", &["stop", &vmid.to_string(), "--skiplock"]).unwrap();
                node.start(vmid).unwrap();
            }
        }
        for dir in dump_dirs(node, case) {
            std::fs::create_dir_all(&dir).unwrap();
            for entry in std::fs::read_dir(&dir).unwrap() {
                std::fs::remove_file(entry.unwrap().path()).unwrap();
            }
        }
        scene.seeds = Seeds::sow(node, case);
        std::fs::remove_dir_all(node.path("/var/log/pve/tasks")).unwrap();
        std::fs::create_dir_all(node.path("/var/log/pve/tasks")).unwrap();
        scripts(node, case);
        let root = node.root().display().to_string();
        let paths = Regex::new(r"(?m)^(dumpdir|tmpdir): (/.*)$").unwrap();
        let conf = paths.replace_all(&case.conf(), format!("$1: {root}$2")).into_owned();
        std::fs::write(node.path("/etc/vzdump.conf"), conf).unwrap();
        Ok(scene)
    }

    /// Switches off whoever must not run, or gets another config.
    fn power(&self, case: &Case, changes: &[Change]) {
        if is_container(self.node, 200) && runs(self.node, 200) && !case.running().contains(&200) {
            self.node.ct_shutdown(200).unwrap();
        }
        for vmid in [100, 101, 102, 103, 110] {
            let changed = changes.iter().any(|c| matches!(c, Change::Guest { vmid: changed, .. } if *changed == vmid));
            if runs(self.node, vmid) && (changed || !case.running().contains(&vmid)) {
                self.node.ok("qm", &["stop", &vmid.to_string(), "--skiplock"]).unwrap();
            }
        }
    }

    /// The node got some of its guests after the runs that take all of them: those that such a run neither names nor was told of.
    fn hide_later_guests(&mut self, case: &Case) {
        let argv = case.argv();
        let said = case.said();
        if !said.contains("starting new backup job") || !argv.iter().any(|w| w == "--all" || w == "--exclude") {
            return;
        }
        for kind in ["qemu-server", "lxc"] {
            for entry in std::fs::read_dir(self.node.path(&format!("/etc/pve/nodes/pve1/{kind}"))).unwrap() {
                let path = entry.unwrap().path();
                let vmid = path.file_stem().unwrap().to_string_lossy().into_owned();
                let named = said.contains(&format!(" {vmid}")) || argv.iter().any(|w| w.split(',').any(|w| w == vmid));
                if !named && path.extension().is_some_and(|e| e == "conf") {
                    self.put_away(&path);
                }
            }
        }
    }

    fn make(&mut self, change: &Change) {
        match change {
            Change::RemoveVolume(volid) => {
                let path = self.node.ok("pvesm", &["path", volid]).unwrap().stdout;
                self.put_away(Path::new(path.trim()));
            }
            Change::Guest { vmid, key, value } => self.edit(&self.node.config_path(*vmid), |text| {
                let start = format!("{key}: ");
                let (own, snapshots) = text.split_at(text.find("\n[").map_or(text.len(), |at| at + 1));
                let kept: Vec<&str> = own.lines().filter(|line| !line.starts_with(&start)).collect();
                format!("{}\n{start}{value}\n{snapshots}", kept.join("\n"))
            }),
        }
    }

    fn edit(&mut self, path: &Path, edit: impl FnOnce(&str) -> String) {
        let before = std::fs::read(path).unwrap();
        std::fs::write(path, edit(&String::from_utf8_lossy(&before))).unwrap();
        self.undo.push(Undo::Restore(path.to_owned(), before));
    }

    fn put_away(&mut self, path: &Path) {
        let away = path.with_extension("away");
        std::fs::rename(path, &away).unwrap();
        self.undo.push(Undo::MoveBack { from: away, to: path.to_owned() });
    }

    fn mount(&mut self, path: &str, size: u64) {
        let at = self.node.path(path);
        std::fs::create_dir_all(&at).unwrap();
        let size = format!("size={size}");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at).status().unwrap();
        assert!(done.success(), "{} cannot be mounted", at.display());
        self.undo.push(Undo::Unmount(at));
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        for undo in self.undo.drain(..).rev() {
            match undo {
                Undo::Restore(path, content) => std::fs::write(path, content).unwrap(),
                Undo::MoveBack { from, to } => std::fs::rename(from, to).unwrap(),
                Undo::Unmount(at) => drop(Command::new("umount").arg("-l").arg(at).status().unwrap()),
                Undo::SwitchOff(vmid) => drop(self.node.ok("qm", &["stop", &vmid.to_string(), "--skiplock"]).unwrap()),
            }
        }
    }
}

fn is_container(node: &Node, vmid: u32) -> bool {
    node.ct_config_path(vmid).exists()
}

fn runs(node: &Node, vmid: u32) -> bool {
    let tool = if is_container(node, vmid) { "pct" } else { "qm" };
    node.run(tool, &["status", &vmid.to_string()]).unwrap().stdout.contains("running")
}

/// `volume file local:101/x.raw removed`, or `guest 102: lock: migrate, in words`.
fn change(text: &str) -> Result<Change, String> {
    let volume = Regex::new(r"^volume file (\S+) removed$").unwrap();
    let guest = Regex::new(r"^guest (\d+): ([a-z][\w-]*): (.*?)(?:, .*)?$").unwrap();
    if let Some(found) = volume.captures(text) {
        return Ok(Change::RemoveVolume(found[1].to_owned()));
    }
    if let Some(found) = guest.captures(text) {
        let vmid = found[1].parse().map_err(|_| format!("change: '{text}' is not understood"))?;
        return Ok(Change::Guest { vmid, key: found[2].to_owned(), value: found[3].to_owned() });
    }
    Err(format!("change: '{text}' is not understood"))
}

/// `dir on a 20 MiB tmpfs at /mnt/full, content backup`: path, size in bytes (none without the tmpfs), and its part of
/// `storage.cfg`.
fn made_storage(name: &str, how: &str) -> Result<(String, Option<u64>, String), String> {
    let shape =
        Regex::new(r"^dir(?: on an? (\d+) ([KMG])iB tmpfs)? at (/\S+?)(?:, content (\S+))?((?:, [a-z-]+ \S+)*)$")
            .unwrap();
    let found = shape.captures(how).ok_or_else(|| format!("storage {name}: '{how}' is not understood"))?;
    let shift = match found.get(2).map_or("", |unit| unit.as_str()) {
        "K" => 10,
        "M" => 20,
        _ => 30,
    };
    let number = found.get(1).map(|number| number.as_str().parse::<u64>()).transpose();
    let size = number.map_err(|e| format!("storage {name}: '{how}': {e}"))?.map(|number| number << shift);
    let content = found.get(4).map_or("backup", |m| m.as_str());
    let more = found[5].replace(", ", "\n\t");
    Ok((found[3].to_owned(), size, format!("dir: {name}\n\tpath {}\n\tcontent {content}{more}\n", &found[3])))
}

/// The scripts of the recordings: the one that writes down its calls, one that is no program, one that may not be run.
fn scripts(node: &Node, case: &Case) {
    let dir = node.path("/root");
    std::fs::create_dir_all(&dir).unwrap();
    let scripts = [
        ("hook.pl", include_str!("hook.pl"), 0o755),
        ("hook-badexec", "no\n", 0o755),
        ("hook-noexec", "#!/bin/sh\n", 0o644),
    ];
    for (name, text, mode) in scripts {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
    for name in ["hook.jsonl", "hook.fail"] {
        if dir.join(name).exists() {
            std::fs::remove_file(dir.join(name)).unwrap();
        }
    }
    let fails = case.hook_fails();
    if !fails.is_empty() {
        std::fs::write(dir.join("hook.fail"), fails).unwrap();
    }
}
