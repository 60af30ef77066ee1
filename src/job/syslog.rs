//! The lines of a task that go to the node's system log, as `vzdump[1234]: ...`: its start and end, what each guest came to,
//! and warnings. A node without a system log gets none, and one that is slow or full loses some: a backup never waits for it.

use std::fmt::Display;
use std::io::Write;
use std::os::unix::net::UnixDatagram;

use syslog::{Error, Facility, LogFormat, Logger, LoggerBackend, Severity};

use super::upid::Upid;
use crate::host::Host;

/// Where system logs listen.
const SOCKET: &str = "/dev/log";

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// What is as it should be.
    Info,
    /// Something to look at.
    Warning,
    /// Something failed.
    Error,
}

/// The way to the system log. Without one, lines go nowhere.
pub(crate) struct Syslog(Option<Logger<LoggerBackend, Tag>>);

impl std::fmt::Debug for Syslog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Syslog").field(&self.0.is_some()).finish()
    }
}

impl Syslog {
    /// For the lines of a task, in the name of what it does; without a task there are none.
    pub(super) fn for_task(host: &Host, upid: Option<&Upid>) -> Self {
        // The original's tasks are named after its programs, this one excepted.
        let program = |upid: &Upid| if upid.kind == "vzrestore" { "pct".to_owned() } else { upid.kind.clone() };
        upid.map_or(Self(None), |upid| Self::open(host, &program(upid)))
    }

    /// In the name of the program `tag`.
    pub(crate) fn open(host: &Host, tag: &str) -> Self {
        let socket = || {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            socket.connect(host.path(SOCKET)).map(|()| socket)
        };
        let tag = Tag { host: host.clone(), program: tag.to_owned() };
        Self(socket().ok().map(|socket| Logger::new(LoggerBackend::Unix(socket), tag)))
    }

    /// One line.
    pub(crate) fn line(&mut self, level: Level, text: &str) {
        let Some(logger) = &mut self.0 else { return };
        let text = text.trim_end().replace('\n', " ");
        // What cannot be logged cannot be told either; the task log has it all.
        let _ = match level {
            Level::Info => logger.info(text),
            Level::Warning => logger.warning(text),
            Level::Error => logger.err(text),
        };
    }
}

/// The head of every line: priority, local time, program and process id. The crate's own asks for the local time in a way that
/// can panic in a process with threads.
struct Tag {
    host: Host,
    program: String,
}

impl<T: Display> LogFormat<T> for Tag {
    fn format<W: Write>(&self, out: &mut W, severity: Severity, message: T) -> Result<(), Error> {
        let priority = Facility::LOG_DAEMON as u8 | severity as u8;
        let time = self.host.now().strftime("%b %e %H:%M:%S");
        let (program, pid) = (&self.program, std::process::id());
        // In one go: each write is a datagram of its own.
        write!(out, "<{priority}>{time} {program}[{pid}]: {message}").map_err(Error::Write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_datagram_and_a_full_log_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::with_root(dir.path().to_owned());
        // Nobody listens.
        Syslog::open(&host, "vzdump").line(Level::Info, "lost");
        std::fs::create_dir_all(host.path("/dev")).unwrap();
        let log = UnixDatagram::bind(host.path(SOCKET)).unwrap();
        let mut syslog = Syslog::open(&host, "vzdump");
        syslog.line(Level::Error, "two\nlines\n");
        let mut buffer = [0; 200];
        let length = log.recv(&mut buffer).unwrap();
        let line = std::str::from_utf8(&buffer[..length]).unwrap();
        let shape = regex::Regex::new(r"^<27>\w{3} [ \d]\d \d\d:\d\d:\d\d vzdump\[(\d+)\]: two lines$").unwrap();
        assert_eq!(shape.captures(line).unwrap()[1], std::process::id().to_string());
        // Nobody reads; a socket holds a few hundred lines at most.
        for _ in 0..5000 {
            syslog.line(Level::Info, "more");
        }
    }
}
