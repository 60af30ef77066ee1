//! What a record says: who wrote it, what was about to be done and what was undone, one JSON object a line.

use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::guest::container::activate::Activation;
use crate::guest::container::snapshot::StorageSnapshot;

/// Something a run is about to do to a guest or to the node, in the words of what has to be undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Intent {
    /// `lock: <lock>` in the guest's config.
    ConfigLock {
        /// `backup` or `create`.
        lock: String,
    },
    /// A config that holds nothing but `lock: create`, for a guest that does not exist yet.
    NewConfig,
    /// We pause the guest (it was running).
    Paused,
    /// We freeze the guest's file systems through its agent.
    Frozen,
    /// We let all processes of a container stand still.
    StandsStill {
        /// The freezer of its control group.
        freezer: PathBuf,
    },
    /// A snapshot that a storage makes of a container's volume for the backup.
    StorageSnapshot {
        /// Which.
        of: StorageSnapshot,
    },
    /// A volume of a container that is off, which is switched on for the backup.
    SwitchedOn {
        /// Which.
        of: Activation,
    },
    /// We shut the guest down; it has to run again.
    ShutDown {
        /// Process id of the QEMU, or of the container's first process, that is told to end.
        qemu: Option<u32>,
    },
    /// We start the guest (it was stopped) and have to stop it again.
    Started,
    /// We start a guest that is being restored while it runs, and put its config in place before. As long as this is noted the
    /// guest is not complete: it is ended, whatever it has done since, and what was in its place comes back.
    LiveGuest {
        /// The config of the guest it replaces; none if there was no guest.
        old: Option<Vec<u8>>,
        /// Its own config, without our lock. By it the guest is known if somebody has removed the lock.
        new: Vec<u8>,
    },
    /// A backup that the guest's QEMU sends to a server by itself.
    QemuBackup,
    /// Nodes, exports and filters of ours in the guest's QEMU.
    Session {
        /// Monitor socket, as a path of the node.
        qmp: PathBuf,
    },
    /// A file: draft of an archive, fleecing image, temporary log.
    File {
        /// Path of the node.
        path: PathBuf,
        /// QEMU may have it open: it goes only after the session is swept.
        in_qemu: bool,
    },
    /// A directory with all it holds.
    Dir {
        /// Path of the node.
        path: PathBuf,
    },
    /// The firewall file of a guest that does not exist yet; it goes unless the guest came into being.
    NewFirewall,
    /// The firewall file of a guest that is about to be replaced; it is put back unless that came to pass.
    OldFirewall {
        /// What was in it; none if there was no file.
        rules: Option<Vec<u8>>,
    },
    /// A volume that goes unless some guest's config names it: one being restored (named from the moment the restore is
    /// complete), one being replaced by a restore (named until then), a fleecing volume (never named).
    Volume {
        /// Volume id: `local:300/vm-300-disk-0.qcow2`.
        volid: String,
        /// QEMU may have it open: it goes only after the session is swept.
        in_qemu: bool,
    },
}

impl Intent {
    /// Whether what it describes outlives a crash of the node; if not, the note need not either.
    pub fn outlives_boot(&self) -> bool {
        !matches!(
            self,
            Self::Paused
                | Self::Frozen
                | Self::StandsStill { .. }
                | Self::SwitchedOn { .. }
                | Self::Session { .. }
                | Self::QemuBackup
                | Self::Started
        )
    }
}

/// Who wrote a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The guest.
    pub vmid: u32,
    /// Process id of the run.
    pub pid: u32,
    /// When that process started, in clock ticks since boot.
    pub start: u64,
    /// The boot it ran in.
    pub boot_id: String,
    /// `vzdump` or `qmrestore`.
    pub command: String,
}

/// `vzdump (process 4711)`
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.command, self.pid)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Line {
    Owner(Owner),
    Intent(Intent),
    Done(Intent),
}

/// Owner and open intents of a record's text. A torn last line is left out: its action never began.
pub(super) fn parse(text: &str) -> io::Result<(Option<Owner>, Vec<Intent>)> {
    let mut owner = None;
    let mut intents: Vec<Intent> = Vec::new();
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    for (number, line) in complete.lines().enumerate().filter(|(_, l)| !l.is_empty()) {
        match serde_json::from_str(line) {
            Ok(Line::Owner(o)) => owner = Some(o),
            Ok(Line::Intent(intent)) => intents.push(intent),
            Ok(Line::Done(intent)) => intents.retain(|i| *i != intent),
            // A line that was torn before an earlier recovery went on behind it.
            Err(e) if e.is_eof() => {}
            // The same, after a power failure: the file was long enough, its last bytes were not written yet.
            Err(_) if line.contains('\0') => {}
            Err(e) => {
                let text = format!("line {}: {e}: '{line}'", number + 1);
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
    }
    Ok((owner, intents))
}
