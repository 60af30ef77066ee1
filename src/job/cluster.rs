//! What the cluster has, read from its files: which node has which guest, the pools, the cluster's name.

use std::io;
use std::path::{Path, PathBuf};

use super::selection::{Selection, SelectionError, Wanted, select};
use crate::config::{HaResources, MEMBERS_PATH, UserCfg, Vmlist, cluster_name};
use crate::host::Host;
use crate::schema::Vmid;

/// The guests to back up are not known.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no pool of that name.
    #[error(transparent)]
    Selection(#[from] SelectionError),
    /// A file or directory of the node cannot be read.
    #[error("cannot read '{path}': {source}")]
    Read {
        /// The node's path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// All guests are wanted, and there is nothing that says which there are.
    #[error("cannot tell the guests of this node: '{0}' does not exist; is the cluster's file system mounted?")]
    NoNode(PathBuf),
}

/// The guests that `wanted` means on this node. `told` gets a line for everything that is wrong in the files but does not matter.
///
/// # Errors
/// When nobody can say which guests are meant.
pub fn selection(host: &Host, wanted: &Wanted, told: &mut dyn FnMut(&str)) -> Result<Selection, ClusterError> {
    let vmlist = vmlist(host)?;
    let users = match &wanted.pool {
        Some(_) => UserCfg::parse(&text(host, UserCfg::PATH)?),
        None => UserCfg::default(),
    };
    users.warnings.iter().for_each(|warning| told(warning));
    let own = node_dir(host.node());
    if wanted.all && wanted.pool.is_none() && vmlist.iter().next().is_none() && !host.path(&own).is_dir() {
        return Err(ClusterError::NoNode(own));
    }
    Ok(select(wanted, &vmlist, &users, host.node())?)
}

/// All guests of the cluster: from its own list, else from the directories of its nodes.
///
/// # Errors
/// When the directory of this node cannot be read.
pub fn vmlist(host: &Host) -> Result<Vmlist, ClusterError> {
    if let Some(list) = Vmlist::parse(&text(host, Vmlist::PATH).unwrap_or_default()) {
        return Ok(list);
    }
    let mut list = Vmlist::default();
    let others = std::fs::read_dir(host.path("/etc/pve/nodes")).into_iter().flatten().flatten();
    for node in others.filter_map(|entry| entry.file_name().into_string().ok()).filter(|node| node != host.node()) {
        // A guest that is not seen there is looked for here and fails, so nothing is lost by going on.
        add_node(host, &node, &mut list).unwrap_or_default();
    }
    // Last, so that a guest in two places is ours.
    add_node(host, host.node(), &mut list)?;
    Ok(list)
}

fn add_node(host: &Host, node: &str, list: &mut Vmlist) -> Result<(), ClusterError> {
    for (dir, kind) in [("qemu-server", "qemu"), ("lxc", "lxc")] {
        let path = node_dir(node).join(dir);
        let failed = |source| ClusterError::Read { path: path.clone(), source };
        let entries = match std::fs::read_dir(host.path(&path)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            if let Some(vmid) = name.to_str().and_then(vmid_of) {
                list.insert(vmid, node, kind);
            }
        }
    }
    Ok(())
}

/// The guest whose config has this name. `0100.conf` and temporary files are nobody's.
fn vmid_of(name: &str) -> Option<Vmid> {
    let number = name.strip_suffix(".conf")?;
    number.parse::<Vmid>().ok().filter(|vmid| vmid.to_string() == number)
}

fn node_dir(node: &str) -> PathBuf {
    Path::new("/etc/pve/nodes").join(node)
}

/// Whether the cluster keeps guest `vmid` running.
///
/// # Errors
/// When its file cannot be read: then nobody knows.
pub fn ha_keeps_running(host: &Host, vmid: Vmid) -> Result<bool, ClusterError> {
    Ok(HaResources::parse(&text(host, HaResources::PATH)?).keeps_running(vmid))
}

/// The cluster's name, for notes.
pub fn name(host: &Host) -> String {
    let members = || cluster_name(&text(host, MEMBERS_PATH).ok()?);
    let corosync = || {
        let text = text(host, "/etc/pve/corosync.conf").ok()?;
        text.lines().find_map(|line| Some(line.trim().strip_prefix("cluster_name:")?.trim().to_owned()))
    };
    members().or_else(corosync).unwrap_or_else(|| "standalone node".to_owned())
}

/// A file of the node, empty if there is none; what is no UTF-8 is replaced.
fn text(host: &Host, path: &str) -> Result<String, ClusterError> {
    match std::fs::read(host.path(path)) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(ClusterError::Read { path: path.into(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        for dir in ["pve1/qemu-server", "pve1/lxc", "pve2/qemu-server"] {
            std::fs::create_dir_all(etc.join("pve/nodes").join(dir)).unwrap();
        }
        std::fs::write(etc.join("hostname"), "pve1.example.com\n").unwrap();
        for config in ["pve1/qemu-server/100", "pve1/lxc/110", "pve2/qemu-server/200", "pve2/qemu-server/100"] {
            std::fs::write(etc.join("pve/nodes").join(format!("{config}.conf")), "").unwrap();
        }
        for name in ["0101.conf", "102.conf.tmp.77", "99.conf", "x.conf", "103"] {
            std::fs::write(etc.join("pve/nodes/pve1/qemu-server").join(name), "").unwrap();
        }
        let host = Host::with_root(root.path().to_owned());
        (root, host)
    }

    fn guests(host: &Host) -> Vec<(u32, String, String)> {
        let list = vmlist(host).unwrap();
        list.iter().map(|(vmid, at)| (vmid.get(), at.node.clone(), at.kind.clone())).collect()
    }

    fn guest(vmid: u32, node: &str, kind: &str) -> (u32, String, String) {
        (vmid, node.into(), kind.into())
    }

    #[test]
    fn the_list_counts_and_without_it_the_directories() {
        let (root, host) = node();
        let dirs = [guest(100, "pve1", "qemu"), guest(110, "pve1", "lxc"), guest(200, "pve2", "qemu")];
        assert_eq!(guests(&host), dirs);
        // A node whose directory nobody sees here.
        let list = r#"{"version": 7, "ids": {
            "100": {"node": "pve1", "type": "qemu", "version": 3}, "300": {"node": "pve3", "type": "lxc", "version": 1}}}"#;
        let file = root.path().join("etc/pve/.vmlist");
        std::fs::write(&file, list).unwrap();
        assert_eq!(guests(&host), [guest(100, "pve1", "qemu"), guest(300, "pve3", "lxc")]);
        // Cut anywhere, it is no list: guests must not disappear with its end.
        for end in 0..list.len() {
            std::fs::write(&file, &list[..end]).unwrap();
            assert_eq!(guests(&host), dirs, "{}", &list[..end]);
        }
    }

    #[test]
    fn all_guests_of_a_node_that_is_not_there_are_not_none() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::with_root(root.path().to_owned());
        let all = Wanted { all: true, ..Wanted::default() };
        let error = selection(&host, &all, &mut |_| {}).unwrap_err();
        assert!(error.to_string().starts_with("cannot tell the guests of this node: '/etc/pve/nodes/"), "{error}");
        let (_root, host) = node();
        assert_eq!(selection(&host, &all, &mut |_| {}).unwrap().external.len(), 1);
    }

    #[test]
    fn the_name_of_the_cluster() {
        let (root, host) = node();
        let write = |name: &str, text: &str| std::fs::write(root.path().join("etc/pve").join(name), text).unwrap();
        assert_eq!(name(&host), "standalone node");
        write("corosync.conf", "totem {\n  cluster_name: north\r\n}\n");
        assert_eq!(name(&host), "north");
        write(".members", r#"{"nodename": "pve1", "version": 0}"#);
        assert_eq!(name(&host), "north");
        write(".members", r#"{"nodename": "pve1", "cluster": {"name": "south", "nodes": 2}, "nodelist": {}}"#);
        assert_eq!(name(&host), "south");
    }

    #[test]
    fn what_the_cluster_keeps_running() {
        let (root, host) = node();
        let vmid = Vmid::new(100).unwrap();
        assert!(!ha_keeps_running(&host, vmid).unwrap());
        std::fs::create_dir(root.path().join("etc/pve/ha")).unwrap();
        std::fs::write(root.path().join("etc/pve/ha/resources.cfg"), "vm: 100\n\tstate started\n").unwrap();
        assert!(ha_keeps_running(&host, vmid).unwrap());
        std::fs::remove_file(root.path().join("etc/pve/ha/resources.cfg")).unwrap();
        std::fs::create_dir(root.path().join("etc/pve/ha/resources.cfg")).unwrap();
        let error = ha_keeps_running(&host, vmid).unwrap_err().to_string();
        assert!(error.starts_with("cannot read '/etc/pve/ha/resources.cfg': "), "{error}");
    }
}
