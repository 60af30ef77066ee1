//! Whether another scheduler runs the jobs of this machine already. Two of them would back up every guest twice.

use crate::host::Host;

/// What says that the node's own scheduler runs the jobs here; `None` on a machine without it.
pub fn other_scheduler(host: &Host) -> Option<String> {
    let pid_file = "/run/pvescheduler.pid";
    let pid = std::fs::read_to_string(host.path(pid_file)).ok().and_then(|pid| pid.trim().parse::<u32>().ok());
    if let Some(pid) = pid.filter(|pid| crate::host::procfs::start_time(*pid).is_ok()) {
        return Some(format!("pvescheduler runs (process {pid} of '{pid_file}')"));
    }
    let installed = [
        "/usr/bin/pvescheduler",
        "/lib/systemd/system/pvescheduler.service",
        "/usr/lib/systemd/system/pvescheduler.service",
    ];
    if let Some(file) = installed.iter().find(|file| host.path(file).exists()) {
        return Some(format!("pvescheduler is installed ('{file}')"));
    }
    let mounts = std::fs::read_to_string(host.path("/proc/mounts")).unwrap_or_default();
    let is_cluster = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        matches!(fields.as_slice(), [_, "/etc/pve", kind, ..] if kind.starts_with("fuse"))
    };
    mounts.lines().any(is_cluster).then(|| "'/etc/pve' is the file system of a cluster".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_known_by_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::with_root(dir.path().to_owned());
        let put = |path: &str, text: &str| {
            std::fs::create_dir_all(host.path(path).parent().unwrap()).unwrap();
            std::fs::write(host.path(path), text).unwrap();
        };
        assert_eq!(other_scheduler(&host), None);
        put("/run/pvescheduler.pid", "4294967\n");
        put("/proc/mounts", "proc /proc proc rw 0 0\ntmpfs /etc/pve tmpfs rw 0 0\n");
        assert_eq!(other_scheduler(&host), None, "a process that is gone, a directory that is no cluster's");
        put("/proc/mounts", "/dev/fuse /etc/pve fuse rw,nosuid 0 0\n");
        assert!(other_scheduler(&host).unwrap().contains("cluster"));
        put("/run/pvescheduler.pid", &format!("{}\n", std::process::id()));
        assert!(other_scheduler(&host).unwrap().contains("runs"));
        std::fs::remove_file(host.path("/run/pvescheduler.pid")).unwrap();
        put("/usr/lib/systemd/system/pvescheduler.service", "");
        assert!(other_scheduler(&host).unwrap().contains("installed"));
    }
}
