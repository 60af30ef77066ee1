//! A VM's config file on the node: reading and replacing it whole, and the `lock:` line in it, under the lock that the
//! node's own tools take for the same (`/var/lock/qemu-server/lock-<vmid>.conf`).

use crate::host::Host;
use crate::host::files::{self, replace, sync_parent};
use nix::fcntl::Flock;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long we wait for another tool that edits the config.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the config of VM `vmid` lies, as a path of the node.
pub fn config_path(host: &Host, vmid: u32) -> PathBuf {
    PathBuf::from(format!("/etc/pve/nodes/{}/qemu-server/{vmid}.conf", host.node()))
}

/// Where the firewall rules of guest `vmid` lie, as a path of the node.
pub fn firewall_path(vmid: u32) -> PathBuf {
    PathBuf::from(format!("/etc/pve/firewall/{vmid}.fw"))
}

/// The config of VM `vmid`; `None` when there is no such VM on this node.
///
/// # Errors
/// When it cannot be read.
pub fn read(host: &Host, vmid: u32) -> io::Result<Option<String>> {
    match std::fs::read_to_string(host.path(config_path(host, vmid))) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The value of `lock:` in the config's main part.
pub fn lock_of(text: &str) -> Option<&str> {
    main_part(text).find_map(|line| line.strip_prefix("lock:")).map(str::trim)
}

/// The config with `lock: <lock>` in its main part, or without any lock line.
pub fn with_lock(text: &str, lock: Option<&str>) -> String {
    let head_len: usize = main_len(text);
    let mut out: String = text[..head_len].split_inclusive('\n').filter(|line| !line.starts_with("lock:")).collect();
    if let Some(lock) = lock {
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        // Options come sorted by name in these files, but readers do not care.
        let blank_tail = out.len() - out.trim_end_matches('\n').len();
        let at = if out.is_empty() { 0 } else { out.len() + 1 - blank_tail.max(1) };
        out.insert_str(at, &format!("lock: {lock}\n"));
    }
    out.push_str(&text[head_len..]);
    out
}

/// Runs `edit` on the config's text (`None`: no such VM) while nobody else edits it, and stores what it returns
/// (`None`: leave as it is).
///
/// # Errors
/// When the lock is not to be had in ten seconds, reading or writing fails, or `edit` says so.
pub fn edit<F>(host: &Host, vmid: u32, edit: F) -> io::Result<()>
where
    F: FnOnce(Option<String>) -> io::Result<Option<String>>,
{
    let _guard = file_lock(host, vmid)?;
    if let Some(text) = edit(read(host, vmid)?)? {
        replace(&host.path(config_path(host, vmid)), text.as_bytes())?;
    }
    Ok(())
}

/// Takes `lock: <lock>` out of the config if it is there. Returns whether it was.
///
/// # Errors
/// As [`edit`].
pub fn remove_lock(host: &Host, vmid: u32, lock: &str) -> io::Result<bool> {
    let mut removed = false;
    edit(host, vmid, |text| {
        Ok(text.filter(|t| lock_of(t) == Some(lock)).map(|t| {
            removed = true;
            with_lock(&t, None)
        }))
    })?;
    Ok(removed)
}

/// Removes the config of VM `vmid` if it holds nothing but `lock: create`. Returns whether it did.
///
/// # Errors
/// As [`edit`].
pub fn remove_placeholder(host: &Host, vmid: u32) -> io::Result<bool> {
    let _guard = file_lock(host, vmid)?;
    match read(host, vmid)? {
        Some(text) if is_placeholder(&text) => {
            let path = host.path(config_path(host, vmid));
            std::fs::remove_file(&path)?;
            sync_parent(&path)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Whether a config is the empty one that stands in for a guest being restored.
pub fn is_placeholder(text: &str) -> bool {
    text.trim() == "lock: create"
}

/// Whether any guest's config on any node of the cluster names volume `volid`.
///
/// # Errors
/// When a config cannot be read: then nobody knows, and nothing may be removed.
pub fn names_volume(host: &Host, volid: &str) -> io::Result<bool> {
    let nodes = host.path("/etc/pve/nodes");
    for node in list(&nodes)? {
        for kind in ["qemu-server", "lxc"] {
            for config in list(&node.join(kind))? {
                let is_config = config.extension().is_some_and(|e| e == "conf");
                if is_config && mentions(&String::from_utf8_lossy(&std::fs::read(&config)?), volid) {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

/// Whether a value in the config is `volid`, alone or followed by options. Comments do not count.
pub fn mentions(text: &str, volid: &str) -> bool {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(':'))
        .flat_map(|(_, value)| value.split(','))
        .any(|part| {
            let part = part.trim();
            part == volid || part.split_once('=').is_some_and(|(_, v)| v == volid)
        })
}

fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(dir) {
        Ok(entries) => entries.map(|e| e.map(|e| e.path())).collect(),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn main_len(text: &str) -> usize {
    let mut len = 0;
    for line in text.split_inclusive('\n') {
        if line.starts_with('[') {
            break;
        }
        len += line.len();
    }
    len
}

fn main_part(text: &str) -> impl Iterator<Item = &str> {
    text[..main_len(text)].lines()
}

fn file_lock(host: &Host, vmid: u32) -> io::Result<Flock<File>> {
    let path = host.path(format!("/var/lock/qemu-server/lock-{vmid}.conf"));
    let failed = |why: &str| format!("can't lock file '{}' - {why}", path.display());
    match files::lock(&path, PATIENCE) {
        Ok(Some(lock)) => Ok(lock),
        Ok(None) => Err(io::Error::new(io::ErrorKind::TimedOut, failed("got timeout"))),
        Err(e) => Err(io::Error::new(e.kind(), failed(&e.to_string()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "#notes\ncores: 1\nscsi0: local:1/vm-1-disk-0.raw,size=1G\n\n[snap]\nlock: prepare\n";

    #[test]
    fn lock_line_goes_into_and_out_of_the_main_part_only() {
        assert_eq!(lock_of(CONFIG), None);
        let locked = with_lock(CONFIG, Some("backup"));
        assert_eq!(
            locked,
            "#notes\ncores: 1\nscsi0: local:1/vm-1-disk-0.raw,size=1G\nlock: backup\n\n[snap]\nlock: prepare\n"
        );
        assert_eq!(lock_of(&locked), Some("backup"));
        assert_eq!(with_lock(&locked, None), CONFIG);
        assert_eq!(with_lock("", Some("create")), "lock: create\n");
        assert_eq!(with_lock("a: 1", Some("create")), "a: 1\nlock: create\n");
        assert_eq!(with_lock("a: 1\n", Some("create")), "a: 1\nlock: create\n");
    }

    #[test]
    fn a_volume_is_named_only_as_a_whole_value() {
        assert!(mentions(CONFIG, "local:1/vm-1-disk-0.raw"));
        assert!(mentions("scsi0: file=local:1/x.raw,size=1G\n", "local:1/x.raw"));
        assert!(mentions("unused0: local:1/x.raw\n", "local:1/x.raw"));
        assert!(!mentions(CONFIG, "local:1/vm-1-disk-0"));
        assert!(!mentions("#scsi0: local:1/x.raw\n", "local:1/x.raw"));
    }
}
