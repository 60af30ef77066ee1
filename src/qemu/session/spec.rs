//! What is asked of a session, and what it offers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::qemu::fleecing::Fleecing;
use crate::qemu::{QemuError, Qmp};

/// On which side of the instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The next command fixes the disks.
    Before,
    /// The last command fixed the disks.
    After,
}

/// Work that must happen as close to the instant as possible: it is called immediately before and immediately after, and
/// the guest runs and writes meanwhile. What is the same on both sides was so at the instant; a dirty bitmap made before
/// has every write since. It gets the open connection, because nobody else can have one at that moment.
pub type AroundInstant<'a> = dyn FnMut(&mut Qmp, Moment) -> Result<(), QemuError> + 'a;

/// One disk of a session.
#[derive(Debug, Clone)]
pub struct DiskSpec {
    /// `drive-scsi0`, `scsi0`, or a node name.
    pub device: String,
    /// Where old data is kept.
    pub fleecing: Fleecing,
}

/// What a session shall fix and how.
pub struct SessionSpec<'a> {
    /// The guest.
    pub vmid: u32,
    /// Its monitor: `/var/run/qemu-server/<vmid>.qmp`.
    pub qmp_socket: PathBuf,
    /// An existing private directory (mode 0700) for the NBD socket.
    pub socket_dir: PathBuf,
    /// The disks, at least one, each once.
    pub disks: Vec<DiskSpec>,
    /// How long a guest's write may wait for the fleecing image before the snapshot is given up; whole seconds, at
    /// least 1.
    pub cbw_timeout: Duration,
    /// How long to wait for our turn on a busy monitor.
    pub busy_timeout: Duration,
    /// Called before and after the instant.
    pub around_instant: Option<&'a mut AroundInstant<'a>>,
    #[cfg(test)]
    pub(in crate::qemu) die_after: Option<usize>,
}

impl<'a> SessionSpec<'a> {
    /// A specification with usual timeouts: 20 seconds for fleecing writes, 30 for a busy monitor.
    pub fn new(vmid: u32, qmp_socket: &Path, socket_dir: &Path, disks: Vec<DiskSpec>) -> SessionSpec<'a> {
        SessionSpec {
            vmid,
            qmp_socket: qmp_socket.into(),
            socket_dir: socket_dir.into(),
            disks,
            cbw_timeout: Duration::from_secs(20),
            busy_timeout: Duration::from_secs(30),
            around_instant: None,
            #[cfg(test)]
            die_after: None,
        }
    }
}

/// One disk as it can be read now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// The name the caller gave the disk.
    pub device: String,
    /// Export name on the NBD socket.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Whether TRIM on the export frees fleecing space. A range that was trimmed cannot be read again.
    pub discards: bool,
}
