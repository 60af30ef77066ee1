//! What can go wrong between us and a QEMU process.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// An operation on a QEMU process or on the agent inside its guest failed.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// Nobody listens on the socket: the process is not running.
    #[error("{what} socket {path}: nobody is listening ({source}); is the guest running?")]
    NotRunning {
        /// `QMP` or `guest agent`.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another program holds the only connection QEMU accepts.
    #[error("{what} socket {path} is busy: another program is connected, waited {} s", waited.as_secs())]
    Busy {
        /// `QMP` or `guest agent`.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// How long we waited for our turn.
        waited: Duration,
    },
    /// Talking to the socket failed.
    #[error("{what} socket {path}: {op} failed: {source}")]
    Socket {
        /// `QMP` or `guest agent`.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// `connect`, `read`, `write`.
        op: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The other side closed the connection: QEMU ended, or its chardev was removed.
    #[error("{what} socket {path}: the connection was closed during '{command}'; did QEMU end?")]
    Closed {
        /// `QMP` or `guest agent`.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// The command we were waiting for.
        command: String,
    },
    /// No answer within the deadline.
    #[error("{what} socket {path}: no answer to '{command}' within {:.1} s", waited.as_secs_f64())]
    Timeout {
        /// `QMP` or `guest agent`.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// The command we were waiting for.
        command: String,
        /// The deadline.
        waited: Duration,
    },
    /// The answer is not what the protocol allows.
    #[error("{what} socket {path}: unexpected answer to '{command}': {detail}")]
    Protocol {
        /// `QMP` or `guest agent`.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// The command we were waiting for.
        command: String,
        /// What was wrong.
        detail: String,
    },
    /// QEMU or the agent refused the command.
    #[error("{what} command '{command}' failed: {desc} ({class})")]
    Command {
        /// `QMP` or `guest agent`.
        what: &'static str,
        /// The command.
        command: String,
        /// `GenericError`, `CommandNotFound`, `DeviceNotFound` ...
        class: String,
        /// The human-readable text of the other side.
        desc: String,
    },
    /// The guest has no such disk.
    #[error("guest {vmid} has no disk '{device}' with a front end in QEMU; it has: {known}")]
    NoSuchDisk {
        /// The guest.
        vmid: u32,
        /// The name that was asked for.
        device: String,
        /// The names there are.
        known: String,
    },
    /// This QEMU lacks something, or has it but cannot be trusted with it.
    #[error("guest {vmid}: QEMU {version} cannot fix its disks at one instant safely: {reason}")]
    Unsupported {
        /// The guest.
        vmid: u32,
        /// Version from the monitor's greeting.
        version: String,
        /// What is missing.
        reason: String,
    },
    /// The one NBD server of the process belongs to somebody else.
    #[error(
        "guest {vmid}: an NBD server that is not ours is already running in QEMU; \
         stop its user (a migration, another backup tool), or run the monitor command 'nbd-server-stop' if nobody uses it"
    )]
    NbdServerTaken {
        /// The guest.
        vmid: u32,
    },
    /// Another live process of ours works on this guest.
    #[error("guest {vmid}: process {pid} has a backup session open on it")]
    InUse {
        /// The guest.
        vmid: u32,
        /// That process.
        pid: u32,
    },
    /// The specification cannot be carried out.
    #[error("guest {vmid}: {detail}")]
    Spec {
        /// The guest.
        vmid: u32,
        /// What is wrong and what would be right.
        detail: String,
    },
    /// A fleecing image could not be made or used.
    #[error("guest {vmid}: fleecing image {path} for {device}: {op} failed: {source}")]
    Fleecing {
        /// The guest.
        vmid: u32,
        /// The image.
        path: PathBuf,
        /// The disk it belongs to.
        device: String,
        /// `create`, `open`, `unlink` ...
        op: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// Some of what we created in QEMU could not be removed.
    #[error("guest {vmid}: left behind in QEMU: {left}; first cause: {cause}")]
    LeftBehind {
        /// The guest.
        vmid: u32,
        /// Names of what is left.
        left: String,
        /// The first refusal.
        cause: String,
    },
    /// A freeze could not be undone.
    #[error("the guest's file systems may still be frozen: {source}")]
    StillFrozen {
        /// Why the thaw failed.
        source: Box<QemuError>,
    },
    /// The work that had to happen at the instant failed.
    #[error("{0}")]
    AtInstant(String),
    /// Somebody asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl QemuError {
    /// Whether the connection itself is fine and QEMU merely said no.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Command { .. })
    }

    /// Whether the process behind the socket is gone.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::NotRunning { .. } | Self::Closed { .. })
    }
}
