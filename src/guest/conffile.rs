//! A guest's config file on the node: reading and replacing it whole, and the `lock:` line in it, under the lock that the
//! node's own tools take for the same (`/var/lock/qemu-server/lock-<vmid>.conf`, `/run/lock/lxc/pve-config-<vmid>.lock`).

use crate::config::GuestConfig;
use crate::host::Host;
use crate::host::files::{self, replace, sync_parent};
use nix::fcntl::Flock;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long we wait for another tool that edits the config.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A virtual machine.
    Vm,
    /// A container.
    Container,
}

/// `VM`, `CT`
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vm => "VM",
            Self::Container => "CT",
        })
    }
}

impl Kind {
    /// What guest `vmid` of this node is; one that does not exist is a VM.
    pub fn of(host: &Host, vmid: u32) -> Self {
        let is_container = host.path(Self::Container.config_path(host, vmid)).exists();
        // A number belongs to one guest, whatever it is.
        if is_container && !host.path(Self::Vm.config_path(host, vmid)).exists() { Self::Container } else { Self::Vm }
    }

    /// Where the config of a guest of this kind lies, as a path of the node.
    pub fn config_path(self, host: &Host, vmid: u32) -> PathBuf {
        let dir = match self {
            Self::Vm => "qemu-server",
            Self::Container => "lxc",
        };
        PathBuf::from(format!("/etc/pve/nodes/{}/{dir}/{vmid}.conf", host.node()))
    }

    /// Where the log of a guest's backups lies, as a path of the node.
    pub fn log_path(self, vmid: u32) -> String {
        let kind = if self == Self::Container { "lxc" } else { "qemu" };
        format!("/var/log/vzdump/{kind}-{vmid}.log")
    }

    fn lock_path(self, vmid: u32) -> String {
        match self {
            Self::Vm => format!("/var/lock/qemu-server/lock-{vmid}.conf"),
            Self::Container => format!("/run/lock/lxc/pve-config-{vmid}.lock"),
        }
    }
}

/// Where the config of guest `vmid` lies, as a path of the node.
pub fn config_path(host: &Host, vmid: u32) -> PathBuf {
    Kind::of(host, vmid).config_path(host, vmid)
}

/// Where the firewall rules of guest `vmid` lie, as a path of the node.
pub fn firewall_path(vmid: u32) -> PathBuf {
    PathBuf::from(format!("/etc/pve/firewall/{vmid}.fw"))
}

/// The config of guest `vmid`, byte by byte: a description may be in any encoding. `None` when there is no such guest on this
/// node.
///
/// # Errors
/// When it cannot be read.
pub fn read(host: &Host, vmid: u32) -> io::Result<Option<Vec<u8>>> {
    read_path(&host.path(config_path(host, vmid)))
}

fn read_path(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(config) => Ok(Some(config)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The value of `lock:` in the config's main part.
pub fn lock_of(config: &[u8]) -> Option<String> {
    GuestConfig::parse(config).lock()
}

/// The config with `lock: <lock>` in its main part, or without any lock line.
pub fn with_lock(config: &[u8], lock: Option<&str>) -> Vec<u8> {
    let mut config = GuestConfig::parse(config);
    match lock {
        Some(lock) => config.set_lock(lock),
        None => drop(config.remove_lock()),
    }
    config.to_bytes()
}

/// Runs `edit` on the config (`None`: no such guest) while nobody else edits it, and stores what it returns (`None`: leave as
/// it is).
///
/// # Errors
/// When the lock is not to be had in ten seconds, reading or writing fails, or `edit` says so.
pub fn edit<F>(host: &Host, vmid: u32, edit: F) -> io::Result<()>
where
    F: FnOnce(Option<Vec<u8>>) -> io::Result<Option<Vec<u8>>>,
{
    edit_of(host, Kind::of(host, vmid), vmid, edit)
}

/// As [`edit`], for a guest that may not exist yet and is to be of this kind.
///
/// # Errors
/// As [`edit`].
pub fn edit_of<F>(host: &Host, kind: Kind, vmid: u32, edit: F) -> io::Result<()>
where
    F: FnOnce(Option<Vec<u8>>) -> io::Result<Option<Vec<u8>>>,
{
    let _guard = file_lock(host, kind, vmid)?;
    let path = host.path(kind.config_path(host, vmid));
    if let Some(config) = edit(read_path(&path)?)? {
        replace(&path, &config)?;
    }
    Ok(())
}

/// Takes `lock: <lock>` out of the config if it is there. Returns whether it was.
///
/// # Errors
/// As [`edit`].
pub fn remove_lock(host: &Host, vmid: u32, lock: &str) -> io::Result<bool> {
    let mut removed = false;
    edit(host, vmid, |config| {
        let config = config.filter(|config| lock_of(config).as_deref() == Some(lock));
        removed = config.is_some();
        Ok(config.map(|config| with_lock(&config, None)))
    })?;
    Ok(removed)
}

/// Removes the config of guest `vmid` if it holds nothing but `lock: create`. Returns what it was.
///
/// # Errors
/// As [`edit`].
pub fn remove_placeholder(host: &Host, vmid: u32) -> io::Result<Option<Kind>> {
    let kind = Kind::of(host, vmid);
    let _guard = file_lock(host, kind, vmid)?;
    let path = host.path(kind.config_path(host, vmid));
    if !read_path(&path)?.is_some_and(|config| is_placeholder(&config)) {
        return Ok(None);
    }
    std::fs::remove_file(&path)?;
    sync_parent(&path)?;
    Ok(Some(kind))
}

/// Whether a config is the empty one that stands in for a guest being restored.
pub fn is_placeholder(config: &[u8]) -> bool {
    config.trim_ascii() == b"lock: create"
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

fn file_lock(host: &Host, kind: Kind, vmid: u32) -> io::Result<Flock<File>> {
    let path = host.path(kind.lock_path(vmid));
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
        assert_eq!(lock_of(CONFIG.as_bytes()), None);
        let locked = with_lock(CONFIG.as_bytes(), Some("backup"));
        let wanted = CONFIG.replace("scsi0:", "lock: backup\nscsi0:");
        assert_eq!(String::from_utf8(locked.clone()).unwrap(), wanted);
        assert_eq!(lock_of(&locked).as_deref(), Some("backup"));
        assert_eq!(with_lock(&locked, None), CONFIG.as_bytes());
        assert!(is_placeholder(&with_lock(b"", Some("create"))));
    }

    #[test]
    fn a_config_that_is_no_utf8_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/hostname"), "pve1").unwrap();
        let host = Host::with_root(dir.path().to_owned());
        let path = host.path(config_path(&host, 100));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let config = b"#K\xfcche\ncores: 1\n";
        std::fs::write(&path, config).unwrap();
        edit(&host, 100, |text| Ok(text.map(|text| with_lock(&text, Some("backup"))))).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"#K\xfcche\ncores: 1\nlock: backup\n");
        assert!(!remove_lock(&host, 100, "create").unwrap() && remove_lock(&host, 100, "backup").unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), config);
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
