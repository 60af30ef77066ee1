//! The machine we run on: the root prefix, paths below it, commands found through `PATH`, the node's name, the clock
//! and the wish to stop. Everything the engine touches outside its own files goes through here; that seam is how a whole
//! `vzdump` runs in tests against a real QEMU on a machine that is no Proxmox node.

pub mod bridge;
mod cancel;
pub mod child;
pub mod files;
mod private;
pub mod procfs;
pub mod sys;
pub use cancel::Cancel;
pub use private::private_directory;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The machine, as the engine sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
    node: String,
}

impl Host {
    /// Environment variable that holds the root prefix.
    pub const ROOT_VAR: &'static str = "VZKEEP_ROOT";

    /// The host described by the environment: root prefix from `VZKEEP_ROOT` (default `/`), node name from
    /// `<root>/etc/hostname` when a prefix is set, else from the kernel, up to the first dot.
    pub fn from_env() -> Self {
        let root = std::env::var_os(Self::ROOT_VAR)
            .filter(|r| !r.is_empty())
            .map_or_else(|| PathBuf::from("/"), PathBuf::from);
        Self::with_root(root)
    }

    /// A host whose files lie under `root`.
    pub fn with_root(root: PathBuf) -> Self {
        let root = std::path::absolute(&root).unwrap_or(root);
        let prefixed =
            (root != Path::new("/")).then(|| std::fs::read_to_string(root.join("etc/hostname")).ok()).flatten();
        let full = prefixed.unwrap_or_else(|| {
            nix::unistd::gethostname().map_or_else(|_| "localhost".into(), |n| n.to_string_lossy().into_owned())
        });
        let node = full.trim().split('.').next().unwrap_or_default().to_owned();
        Self { root, node }
    }

    /// The root prefix, `/` on a real node.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The node's name: `pve1`.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The node's full name, with the domain of `/etc/resolv.conf`: `pve1.example.com`; without one as [`Self::node`].
    pub fn fqdn(&self) -> String {
        let resolv = std::fs::read(self.path("/etc/resolv.conf")).unwrap_or_default();
        let resolv = String::from_utf8_lossy(&resolv);
        // The last line of either kind counts, as for the resolver.
        let domain = resolv.lines().rev().find_map(|line| {
            let mut words = line.split_whitespace();
            words.next().filter(|key| ["search", "domain"].contains(key)).and_then(|_| words.next())
        });
        domain.map_or_else(|| self.node.clone(), |domain| format!("{}.{}", self.node, domain.trim_end_matches('.')))
    }

    /// Where the node's absolute path `path` (`/etc/pve/storage.cfg`, a storage's `path` property) really lies:
    /// below the root prefix. A path that already lies below it is left alone.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        if path.starts_with(&self.root) {
            return path.to_owned();
        }
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A command of the node (`qm`, `pvesm`, `vzkeep-pve-bridge`, `lzop`), found through `PATH`.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // Ctrl-C is for us: what a child does to a guest must not be cut in half, and recovery needs its children, too.
        command.env(Self::ROOT_VAR, &self.root).process_group(0);
        command
    }

    /// Whether `program` is found through `PATH`.
    pub fn has_command(&self, program: &str) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .any(|dir| nix::unistd::access(&dir.join(program), nix::unistd::AccessFlags::X_OK).is_ok())
    }

    /// The time now, in the node's time zone.
    pub fn now(&self) -> jiff::Zoned {
        jiff::Zoned::now()
    }
}
