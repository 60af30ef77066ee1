//! The QEMU Machine Protocol: one connection, commands with deadlines, typed errors. Events are passed over.
//!
//! Only one client at a time can talk to a QMP socket, and on a node everybody wants to: connect, do one short batch,
//! drop. Protocol: docs/interop/qmp-spec in QEMU.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::QemuError;
use super::socket::{Deadline, LineSocket};
use crate::host::Cancel;

const WHAT: &str = "QMP";
/// `query-qmp-schema` is 240 KiB; a guest with hundreds of nodes stays far below this.
const LINE_LIMIT: usize = 32 << 20;
/// Deadline of commands that do not name one.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection to a QMP socket, ready for commands.
pub struct Qmp {
    socket: LineSocket,
    version: (u32, u32, u32),
    next_id: u64,
    #[cfg(test)]
    pub(super) fuse: Option<usize>,
}

impl Qmp {
    /// Connects, reads the greeting and leaves negotiation mode. While another client is connected the greeting does
    /// not come; that is waited for up to `timeout`.
    ///
    /// # Errors
    /// `NotRunning` when nobody listens, `Busy` when our turn did not come, `Protocol` when this is no QMP socket.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, QemuError> {
        Self::connect_inner(path, timeout, None)
    }

    /// As [`Qmp::connect`], but gives up as soon as `cancel` is set.
    ///
    /// # Errors
    /// As [`Qmp::connect`], and `Cancelled`.
    pub fn connect_unless(path: &Path, timeout: Duration, cancel: &Cancel) -> Result<Self, QemuError> {
        Self::connect_inner(path, timeout, Some(cancel))
    }

    fn connect_inner(path: &Path, timeout: Duration, cancel: Option<&Cancel>) -> Result<Self, QemuError> {
        let deadline = Deadline::after(timeout);
        let mut socket = LineSocket::connect(WHAT, path, LINE_LIMIT, deadline, cancel)?;
        let line = socket.line("greeting", deadline, cancel).map_err(|e| match e {
            QemuError::Timeout { .. } => QemuError::Busy { what: WHAT, path: path.into(), waited: timeout },
            other => other,
        })?;
        let greeting: Value =
            serde_json::from_slice(&line).map_err(|e| socket.protocol("greeting", format!("not JSON: {e}")))?;
        let qemu = &greeting["QMP"]["version"]["qemu"];
        if !qemu.is_object() {
            return Err(socket.protocol("greeting", "no QMP version in it; is this really a QMP socket?"));
        }
        let part = |name: &str| qemu[name].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        let version = (part("major"), part("minor"), part("micro"));
        let mut qmp = Self {
            socket,
            version,
            next_id: 1,
            #[cfg(test)]
            fuse: None,
        };
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Version of the QEMU behind the socket: major, minor, micro.
    pub fn version(&self) -> (u32, u32, u32) {
        self.version
    }

    /// The version as text: `10.0.2`.
    pub fn version_text(&self) -> String {
        let (major, minor, micro) = self.version;
        format!("{major}.{minor}.{micro}")
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        self.socket.path()
    }

    /// Executes one command and returns its `return` value.
    ///
    /// # Errors
    /// `Command` when QEMU refuses it, `Timeout` after 20 seconds, else what went wrong with the connection.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QemuError> {
        self.execute_within(command, arguments, COMMAND_TIMEOUT)
    }

    /// As [`Qmp::execute`] with a deadline of the caller's choice. After a timeout the connection stays usable: the
    /// late answer is recognised by its id and dropped.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn execute_within(&mut self, command: &str, arguments: Value, timeout: Duration) -> Result<Value, QemuError> {
        self.execute_inner(command, arguments, timeout, None)
    }

    /// As [`Qmp::execute_within`], but gives up as soon as `cancel` is set. QEMU goes on with the command.
    ///
    /// # Errors
    /// As [`Qmp::execute`], and `Cancelled`.
    pub fn execute_unless(
        &mut self,
        command: &str,
        arguments: Value,
        timeout: Duration,
        cancel: &Cancel,
    ) -> Result<Value, QemuError> {
        self.execute_inner(command, arguments, timeout, Some(cancel))
    }

    fn execute_inner(
        &mut self,
        command: &str,
        arguments: Value,
        timeout: Duration,
        cancel: Option<&Cancel>,
    ) -> Result<Value, QemuError> {
        #[cfg(test)]
        self.burn(command)?;
        let deadline = Deadline::after(timeout);
        let id = format!("vzkeep-{}", self.next_id);
        self.next_id += 1;
        let mut request = serde_json::Map::new();
        request.insert("execute".into(), command.into());
        if arguments.as_object().is_some_and(|a| !a.is_empty()) {
            request.insert("arguments".into(), arguments);
        }
        request.insert("id".into(), id.clone().into());
        let mut bytes = Value::Object(request).to_string().into_bytes();
        bytes.push(b'\n');
        self.socket.send(command, &bytes, deadline)?;
        loop {
            let line = self.socket.line(command, deadline, cancel)?;
            let mut reply: Value =
                serde_json::from_slice(&line).map_err(|e| self.socket.protocol(command, format!("not JSON: {e}")))?;
            if reply.get("event").is_some() {
                continue;
            }
            // An error in the request itself comes back without an id; there is only one request in flight.
            if reply.get("id").is_some_and(|i| *i != Value::String(id.clone())) {
                continue;
            }
            if let Some(error) = reply.get("error") {
                return Err(self.socket.refused(command, error));
            }
            return match reply.get_mut("return") {
                Some(value) => Ok(value.take()),
                None => Err(self.socket.protocol(command, "neither 'return' nor 'error' in it")),
            };
        }
    }

    /// Executes a line of the human monitor and returns what it printed.
    ///
    /// # Errors
    /// As [`Qmp::execute`]. Most commands of the human monitor report their own failures as text only.
    pub fn human(&mut self, line: &str) -> Result<String, QemuError> {
        let answer = self.execute("human-monitor-command", json!({ "command-line": line }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// Tests stop us after every single command, as a KILL would.
    #[cfg(test)]
    fn burn(&mut self, command: &str) -> Result<(), QemuError> {
        match &mut self.fuse {
            Some(0) => Err(QemuError::Closed { what: "fuse", path: self.path().into(), command: command.into() }),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}
