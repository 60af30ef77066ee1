//! The name of a task on a node: `UPID:pve1:0000446E:0005B3B1:6B02B257:vzdump:100:root@pam:`.

use crate::host::{Host, procfs};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

/// Directory of the node's task records.
pub const TASKS: &str = "/var/log/pve/tasks";

/// Names one task: where, which process, when, what, for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upid {
    /// Node name.
    pub node: String,
    /// Process id.
    pub pid: u32,
    /// When that process started, in clock ticks since boot.
    pub pstart: u64,
    /// When the task started, in seconds since 1970.
    pub start: i64,
    /// `vzdump`, `qmrestore`.
    pub kind: String,
    /// The guest, when there is exactly one; else empty.
    pub id: String,
    /// `root@pam`.
    pub user: String,
}

/// A text is no UPID.
#[derive(Debug, thiserror::Error)]
#[error(
    "'{0}' is no task id: expected UPID:<node>:<pid>:<pstart>:<start>:<kind>:<id>:<user>: with hexadecimal numbers"
)]
pub struct UpidError(String);

impl Upid {
    /// The name of a task that this process starts now.
    ///
    /// # Errors
    /// When the kernel does not tell when we were started.
    pub fn for_us(host: &Host, kind: &str, id: &str, user: &str) -> io::Result<Self> {
        let pid = std::process::id();
        Ok(Self {
            node: host.node().to_owned(),
            pid,
            pstart: procfs::start_time(pid)?,
            start: host.now().timestamp().as_second(),
            kind: kind.to_owned(),
            id: id.to_owned(),
            user: user.to_owned(),
        })
    }

    /// The task's log file, as a path of the node: in one of sixteen directories, by the last digit of the start time.
    pub fn log_path(&self) -> PathBuf {
        PathBuf::from(format!("{TASKS}/{:X}/{self}", self.start & 0xF))
    }

    /// Whether the task's process is still alive.
    pub fn is_alive(&self) -> bool {
        procfs::is_alive(self.pid, self.pstart)
    }
}

impl fmt::Display for Upid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, pid, pstart, start, kind, id, user } = self;
        write!(f, "UPID:{node}:{pid:08X}:{pstart:08X}:{start:08X}:{kind}:{id}:{user}:")
    }
}

impl FromStr for Upid {
    type Err = UpidError;

    fn from_str(text: &str) -> Result<Self, UpidError> {
        let parts: Vec<&str> = text.split(':').collect();
        let parse = || {
            let ["UPID", node, pid, pstart, start, kind, id, user, ""] = parts.as_slice() else { return None };
            Some(Self {
                node: (*node).to_owned(),
                pid: u32::from_str_radix(pid, 16).ok()?,
                pstart: u64::from_str_radix(pstart, 16).ok()?,
                start: i64::from_str_radix(start, 16).ok()?,
                kind: (*kind).to_owned(),
                id: (*id).to_owned(),
                user: (*user).to_owned(),
            })
        };
        parse().ok_or_else(|| UpidError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_names_round_trip() {
        for text in [
            "UPID:pve1:0000446E:0005B3B1:6B02B257:vzdump:100:root@pam:",
            "UPID:pve1:00001614:00064BB9:6B02B3DC:vzdump::root@pam:",
        ] {
            assert_eq!(text.parse::<Upid>().unwrap().to_string(), text);
        }
        let upid: Upid = "UPID:pve1:0000446E:0005B3B1:6B02B257:vzdump:100:root@pam:".parse().unwrap();
        assert_eq!((upid.pid, upid.start), (0x446E, 0x6B02_B257));
        assert_eq!(upid.log_path().parent().unwrap(), std::path::Path::new("/var/log/pve/tasks/7"));
        assert!("UPID:pve1:x:0005B3B1:6B02B257:vzdump:100:root@pam:".parse::<Upid>().is_err());
        assert!("UPID:pve1".parse::<Upid>().is_err());
    }

    #[test]
    fn our_own_task_is_alive() {
        let dir = tempfile::tempdir().unwrap();
        let mut upid = Upid::for_us(&Host::with_root(dir.path().into()), "vzdump", "", "root@pam").unwrap();
        assert!(upid.is_alive());
        upid.pstart += 1;
        assert!(!upid.is_alive());
    }
}
