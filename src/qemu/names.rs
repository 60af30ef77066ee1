//! Names of what we create inside QEMU. All begin with `vzkeep-`, so that any later run can find leftovers.
//!
//! Node names and object ids are limited to letters, digits, `-`, `.`, `_`; node names also to 31 bytes.

use crate::host::procfs;

/// Prefix of everything we create in a QEMU process.
pub(super) const PREFIX: &str = "vzkeep-";
/// The throttle group, without limits, of the nodes that make several disks change over at once.
pub(super) const UNLIMITED: &str = "vzkeep-unlimited";
/// This object exists while the process's NBD server is (or is about to be) ours.
pub(super) const NBD: &str = "vzkeep-nbd";

const RUN: &str = "vzkeep-run-";
/// 31 bytes less the longest of our prefixes, `vzkeep-fleece-`.
const LABEL_MAX: usize = 17;

/// The names that belong to one disk.
#[derive(Debug, Clone)]
pub(super) struct Names {
    pub(super) fleece: String,
    pub(super) file: String,
    pub(super) filter: String,
    pub(super) top: String,
    pub(super) snapshot: String,
    pub(super) export: String,
}

impl Names {
    /// Names for the disk called `device`, the `index`th of its session. A name that does not fit is replaced by the index.
    pub(super) fn new(device: &str, index: usize) -> Self {
        let short = device.strip_prefix("drive-").unwrap_or(device);
        let fits = !short.is_empty()
            && short.len() <= LABEL_MAX
            && short.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        let label = if fits { short.to_owned() } else { format!("disk.{index}") };
        let name = |kind: &str| format!("{PREFIX}{kind}-{label}");
        Self {
            fleece: name("fleece"),
            file: name("file"),
            filter: name("filter"),
            top: name("top"),
            snapshot: name("snap"),
            export: name("export"),
        }
    }
}

/// File name of the NBD socket of a guest; [`nbd_socket_alive`] looks for it.
pub(super) fn nbd_socket(vmid: u32) -> String {
    format!("vzkeep-{vmid}-{}.nbd", std::process::id())
}

/// Whether some process of this machine listens on an NBD socket made by us for this guest. `proc_net_unix` is the
/// content of `/proc/net/unix`; it names a socket by the path it was bound to, even when that path is gone.
pub(super) fn nbd_socket_alive(proc_net_unix: &str, vmid: u32) -> bool {
    let prefix = format!("vzkeep-{vmid}-");
    proc_net_unix
        .lines()
        .filter_map(|line| line.rsplit_once('/'))
        .any(|(_, name)| name.starts_with(&prefix) && name.ends_with(".nbd"))
}

/// The object that says which process works on the guest: pid and its start time, so that a reused pid is not
/// taken for it.
pub(super) fn run_marker() -> String {
    let pid = std::process::id();
    format!("{RUN}{pid}-{}", procfs::start_time(pid).unwrap_or(0))
}

/// The process that a run marker names, if it is alive and not we.
pub(super) fn other_owner(marker: &str) -> Option<u32> {
    let (pid, started) = marker.strip_prefix(RUN)?.split_once('-')?;
    let (pid, started): (u32, u64) = (pid.parse().ok()?, started.parse().ok()?);
    (pid != std::process::id() && procfs::is_alive(pid, started)).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_legal_and_short() {
        for (i, device) in
            ["drive-scsi0", "virtio15", "drive-tpmstate0-backup", "a b", "", "#block123"].iter().enumerate()
        {
            let n = Names::new(device, i);
            for name in [n.fleece, n.file, n.filter, n.top, n.snapshot, n.export] {
                assert!(name.len() <= 31 && name.starts_with(PREFIX), "{name}");
                assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)), "{name}");
            }
        }
        assert_eq!(Names::new("drive-scsi0", 3).filter, "vzkeep-filter-scsi0");
    }

    #[test]
    fn own_marker_is_not_somebody_else() {
        assert_eq!(other_owner(&run_marker()), None);
        let parent = std::os::unix::process::parent_id();
        let marker = format!("{RUN}{parent}-{}", procfs::start_time(parent).unwrap());
        assert_eq!(other_owner(&marker), Some(parent));
        assert_eq!(other_owner(&format!("{RUN}{parent}-1")), None);
        assert_eq!(other_owner("vzkeep-run-x"), None);
    }

    #[test]
    fn socket_of_another_guest_is_not_ours() {
        let table = "Num RefCount\n0000: 00000002 00000000 00010000 0001 01 123 /run/x/vzkeep-100-77.nbd\n";
        assert!(nbd_socket_alive(table, 100));
        assert!(!nbd_socket_alive(table, 10));
        assert!(!nbd_socket_alive(table, 101));
    }
}
