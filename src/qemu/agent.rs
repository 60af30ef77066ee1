//! The guest agent: a program inside the guest that we can only hope answers.
//!
//! It may be absent, slow, stuck, or still busy with a question somebody else asked long ago. So every command begins with
//! `guest-sync-delimited`, whose answer tells ours from stale ones, and everything has a deadline. A freeze is always
//! followed by a thaw, also when the freeze itself went unanswered. Protocol: docs/interop/qemu-ga-ref in QEMU.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::QemuError;
use super::socket::{Deadline, LineSocket};

const WHAT: &str = "guest agent";
/// Answers to the commands used here are short.
const LINE_LIMIT: usize = 1 << 20;
/// Marks the beginning of a delimited answer and, sent by us, makes the agent forget half a command.
const SENTINEL: u8 = 0xff;
/// How often a thaw is tried before we give up and say so.
const THAW_TRIES: u32 = 5;

/// What `guest-fsfreeze-status` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezeStatus {
    /// File systems accept writes.
    Thawed,
    /// File systems are frozen.
    Frozen,
}

/// A connection to the agent's socket. One command at a time, short-lived like a QMP connection.
pub struct Agent {
    socket: LineSocket,
    next_id: u64,
}

impl Agent {
    /// Connects to the agent's socket and makes sure that somebody answers.
    ///
    /// # Errors
    /// `NotRunning` when QEMU is gone, `Timeout` when no agent answered in time.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, QemuError> {
        let deadline = Deadline::after(timeout);
        let socket = LineSocket::connect(WHAT, path, LINE_LIMIT, deadline, None)?;
        // Not predictable from an earlier connection, so that its late answers are not taken for ours.
        let next_id = u64::from(uuid::Uuid::new_v4().as_fields().0) << 16;
        let mut agent = Self { socket, next_id };
        agent.execute("guest-ping", json!({}), timeout)?;
        Ok(agent)
    }

    /// Executes a command and returns its `return` value.
    ///
    /// # Errors
    /// `Timeout`, `Command` when the agent refuses, else what went wrong with the connection.
    pub fn execute(&mut self, command: &str, arguments: Value, timeout: Duration) -> Result<Value, QemuError> {
        let deadline = Deadline::after(timeout);
        self.next_id += 1;
        let id = self.next_id;
        // The agent works in order: sent together, the command is queued even if the synchronisation has to wait
        // for something that blocks the agent. A thaw behind a freeze that hangs depends on that.
        let mut bytes = vec![SENTINEL];
        bytes.extend(json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } }).to_string().into_bytes());
        bytes.push(b'\n');
        let mut request = json!({ "execute": command });
        if arguments.as_object().is_some_and(|a| !a.is_empty()) {
            request["arguments"] = arguments;
        }
        bytes.extend(request.to_string().into_bytes());
        bytes.push(b'\n');
        self.socket.send(command, &bytes, deadline)?;
        self.synchronise(id, command, deadline)?;
        let line = self.socket.line(command, deadline, None)?;
        let mut reply: Value =
            serde_json::from_slice(&line).map_err(|e| self.socket.protocol(command, format!("not JSON: {e}")))?;
        if let Some(error) = reply.get("error") {
            return Err(self.socket.refused(command, error));
        }
        match reply.get_mut("return") {
            Some(value) => Ok(value.take()),
            None => Err(self.socket.protocol(command, "neither 'return' nor 'error' in it")),
        }
    }

    /// Reads until the answer to our own `guest-sync-delimited`; what comes before is stale or garbage.
    fn synchronise(&mut self, id: u64, command: &str, deadline: Deadline) -> Result<(), QemuError> {
        loop {
            let line = self.socket.line(command, deadline, None)?;
            let Some(at) = line.iter().rposition(|&b| b == SENTINEL) else { continue };
            if serde_json::from_slice::<Value>(&line[at + 1..]).is_ok_and(|reply| reply["return"] == id) {
                return Ok(());
            }
        }
    }

    /// Whether file systems are frozen now.
    ///
    /// # Errors
    /// As [`Agent::execute`].
    pub fn freeze_status(&mut self, timeout: Duration) -> Result<FreezeStatus, QemuError> {
        match self.execute("guest-fsfreeze-status", json!({}), timeout)?.as_str() {
            Some("thawed") => Ok(FreezeStatus::Thawed),
            Some("frozen") => Ok(FreezeStatus::Frozen),
            other => Err(self.socket.protocol("guest-fsfreeze-status", format!("{other:?} is no status"))),
        }
    }

    /// Freezes all file systems of the guest. They are thawed when the result is thawed or dropped.
    ///
    /// File systems that somebody else froze are left alone: that is an error, and so is a freeze without an answer
    /// within `timeout`, after which a thaw is tried. Only the freeze itself may take long: an agent that does not say
    /// within `patience` what is frozen is not asked to freeze.
    ///
    /// # Errors
    /// As [`Agent::execute`]; `StillFrozen` when the freeze failed and the thaw after it, too.
    pub fn freeze(mut self, patience: Duration, timeout: Duration) -> Result<FsFreeze, QemuError> {
        if self.freeze_status(patience)? == FreezeStatus::Frozen {
            return Err(self
                .socket
                .protocol("guest-fsfreeze-freeze", "the file systems are already frozen by another"));
        }
        let answer = self.execute("guest-fsfreeze-freeze", json!({}), timeout);
        // From here on something may be frozen, whatever the answer was.
        let mut freeze =
            FsFreeze { path: self.socket.path().into(), agent: Some(self), frozen: 0, timeout, done: false };
        match answer {
            Ok(count) => {
                freeze.frozen = count.as_u64().unwrap_or(0);
                Ok(freeze)
            }
            Err(e) => {
                freeze.thaw_now()?;
                Err(e)
            }
        }
    }
}

/// Frozen file systems; dropped, they are thawed.
pub struct FsFreeze {
    path: std::path::PathBuf,
    agent: Option<Agent>,
    frozen: u64,
    timeout: Duration,
    done: bool,
}

impl FsFreeze {
    /// How many file systems were frozen.
    pub fn frozen(&self) -> u64 {
        self.frozen
    }

    /// Thaws the file systems and makes sure of it. Returns how many there were.
    ///
    /// # Errors
    /// `StillFrozen` when the agent does not confirm after several tries.
    pub fn thaw(mut self) -> Result<u64, QemuError> {
        self.thaw_now()
    }

    fn thaw_now(&mut self) -> Result<u64, QemuError> {
        if std::mem::replace(&mut self.done, true) {
            return Ok(0);
        }
        // All tries together may not take much longer than the caller is willing to wait for one answer.
        let until = Instant::now() + self.timeout * 2;
        let mut tries = 0;
        loop {
            tries += 1;
            match self.thaw_once() {
                Ok(count) => return Ok(count),
                // Nothing in the guest is frozen once QEMU is gone.
                Err(QemuError::NotRunning { .. }) => return Ok(0),
                Err(e) if tries >= THAW_TRIES || Instant::now() > until => {
                    return Err(QemuError::StillFrozen { source: Box::new(e) });
                }
                Err(_) => {
                    self.agent = None;
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn thaw_once(&mut self) -> Result<u64, QemuError> {
        let timeout = self.timeout;
        let mut agent = match self.agent.take() {
            Some(agent) => agent,
            None => Agent::connect(&self.path, timeout)?,
        };
        let count = agent.execute("guest-fsfreeze-thaw", json!({}), timeout)?.as_u64().unwrap_or(0);
        match agent.freeze_status(timeout)? {
            FreezeStatus::Thawed => Ok(count),
            FreezeStatus::Frozen => {
                Err(agent.socket.protocol("guest-fsfreeze-thaw", "the file systems are still frozen"))
            }
        }
    }
}

impl Drop for FsFreeze {
    fn drop(&mut self) {
        // Whoever wants to know calls `thaw`; here only the thaw itself counts.
        let _ = self.thaw_now();
    }
}
