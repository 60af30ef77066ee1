//! One log line, everywhere it belongs: the terminal, the task log, and the log of the guest at work.

use super::syslog::{Level, Syslog};
use super::tasklog::{Outcome, TaskLog};
use super::upid::Upid;
use crate::host::Host;
use crate::host::files::reason;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `INFO: `
    Info,
    /// `WARN: `, counted as a warning of the task.
    Warn,
    /// `ERROR: `
    Error,
    /// Without a prefix, and never in the guest's log.
    Bare,
}

impl Kind {
    /// What stands before the line.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Info => "INFO: ",
            Self::Warn => "WARN: ",
            Self::Error => "ERROR: ",
            Self::Bare => "",
        }
    }
}

/// Where the terminal's share of the log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terminal {
    /// Standard output.
    Stdout,
    /// Standard error, because standard output carries the archive.
    Stderr,
    /// Nowhere (`--quiet`).
    Quiet,
}

/// Takes the lines of one task. Cheap to clone; clones share everything.
#[derive(Debug, Clone)]
pub struct LogSink(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    host: Host,
    terminal: Terminal,
    task: Option<TaskLog>,
    syslog: Syslog,
    guest: Option<GuestLog>,
    warnings: usize,
    /// The first line that could not be stored, and why. The job goes on; its end says so.
    lost: Option<String>,
}

#[derive(Debug)]
struct GuestLog {
    path: PathBuf,
    file: File,
    text: LogText,
}

/// Lines of a log with their times, for mails. No more than [`LogText::MOST`] bytes are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogText {
    text: String,
    cut: bool,
}

impl LogText {
    /// How many bytes are kept: what is longer is of no use in a mail.
    pub const MOST: usize = 1 << 20;

    /// Adds lines, each with a line feed at its end.
    pub fn push(&mut self, lines: &str) {
        self.cut |= self.text.len() + lines.len() > Self::MOST;
        if self.cut {
            self.text = String::new();
        } else {
            self.text += lines;
        }
    }

    /// The lines; none when there were too many.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether there were too many.
    pub fn is_cut(&self) -> bool {
        self.cut
    }
}

impl LogSink {
    /// A sink for task `upid` (`None`: no task record, and nothing for the system log).
    ///
    /// # Errors
    /// When the task record cannot be started.
    pub fn start(host: &Host, terminal: Terminal, upid: Option<Upid>) -> io::Result<Self> {
        let task = upid.map(|upid| TaskLog::start(host, upid)).transpose()?;
        let mut syslog = Syslog::for_task(host, task.as_ref().map(TaskLog::upid));
        if let Some(task) = &task {
            syslog.line(Level::Info, &format!("<{}> starting task {}", task.upid().user, task.upid()));
        }
        let inner = Inner { host: host.clone(), terminal, task, syslog, guest: None, warnings: 0, lost: None };
        Ok(Self(Arc::new(Mutex::new(inner))))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes `text`, line by line, to the terminal, the task log, and the guest's log while one is open.
    pub fn line(&self, kind: Kind, text: &str) {
        self.inner().write(kind, text, kind != Kind::Bare);
    }

    /// As [`LogSink::line`], but not into the guest's log: `Backup started at ...`, output of hooks after the guest's end.
    pub fn job_line(&self, kind: Kind, text: &str) {
        self.inner().write(kind, text, false);
    }

    /// As [`LogSink::line`], and to the node's system log: what somebody who looks after many nodes wants to know of.
    pub fn announce(&self, kind: Kind, text: &str) {
        let mut inner = self.inner();
        inner.write(kind, text, kind != Kind::Bare);
        // A warning is there already.
        let level = match kind {
            Kind::Warn => return,
            Kind::Error => Level::Error,
            Kind::Info | Kind::Bare => Level::Info,
        };
        inner.syslog.line(level, &format!("{}{text}", kind.prefix()));
    }

    /// [`LogSink::line`] of kind [`Kind::Info`].
    pub fn info(&self, text: &str) {
        self.line(Kind::Info, text);
    }

    /// [`LogSink::line`] of kind [`Kind::Warn`].
    pub fn warn(&self, text: &str) {
        self.line(Kind::Warn, text);
    }

    /// [`LogSink::line`] of kind [`Kind::Error`].
    pub fn error(&self, text: &str) {
        self.line(Kind::Error, text);
    }

    /// How many warnings were written.
    pub fn warnings(&self) -> usize {
        self.inner().warnings
    }

    /// Opens the guest's own log, `/var/log/vzdump/<type>-<vmid>.log` on the node, anew.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open_guest(&self, guest_type: &str, vmid: u32) -> io::Result<()> {
        let mut inner = self.inner();
        let path = inner.host.path(format!("/var/log/vzdump/{guest_type}-{vmid}.log"));
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        inner.guest = Some(GuestLog { file: File::create(&path)?, path, text: LogText::default() });
        Ok(())
    }

    /// Closes the guest's own log and copies it to `copy`, the `.log` beside the archive.
    ///
    /// # Errors
    /// When it cannot be copied; it is closed nevertheless.
    pub fn close_guest(&self, copy: Option<&Path>) -> io::Result<()> {
        let Some(log) = self.inner().guest.take() else { return Ok(()) };
        drop(log.file);
        copy.map_or(Ok(()), |copy| std::fs::copy(&log.path, copy).map(|_| ()))
    }

    /// What was written for the guest whose log is open; `None` while none is.
    pub fn guest_text(&self) -> Option<LogText> {
        self.inner().guest.as_ref().map(|guest| guest.text.clone())
    }

    /// [`LogSink::job_line`] of kind [`Kind::Info`], which `text` also gets, as a guest's log would.
    pub fn job_info(&self, line: &str, text: &mut LogText) {
        let mut inner = self.inner();
        inner.write(Kind::Info, line, false);
        let now = inner.now();
        line.trim_end_matches('\n')
            .split('\n')
            .for_each(|line| text.push(&format!("{now} {}{line}\n", Kind::Info.prefix())));
    }

    /// Ends the task record. Warnings turn a success into [`Outcome::Warnings`].
    ///
    /// # Errors
    /// When the record or any line before could not be written.
    pub fn finish(&self, outcome: &Outcome) -> io::Result<()> {
        let mut inner = self.inner();
        let outcome = match outcome {
            Outcome::Ok if inner.warnings > 0 => Outcome::Warnings(inner.warnings),
            other => other.clone(),
        };
        let Some(task) = inner.task.take() else { return Ok(()) };
        let (level, upid) = match &outcome {
            Outcome::Error(error) => {
                inner.syslog.line(Level::Error, error);
                (Level::Error, task.upid().clone())
            }
            Outcome::Ok | Outcome::Warnings(_) => (Level::Info, task.upid().clone()),
        };
        let finished = task.finish(&outcome);
        inner.syslog.line(level, &format!("<{}> end task {upid} {}", upid.user, outcome.status()));
        inner.lost.take().map_or(finished, |lost| Err(io::Error::other(lost)))
    }
}

impl Inner {
    /// As logs have it: local time to the second.
    fn now(&self) -> String {
        self.host.now().strftime("%Y-%m-%d %H:%M:%S").to_string()
    }

    fn write(&mut self, kind: Kind, text: &str, to_guest: bool) {
        if kind == Kind::Warn {
            self.warnings += 1;
            self.syslog.line(Level::Warning, text);
        }
        let now = self.now();
        for line in text.trim_end_matches('\n').split('\n') {
            let line = format!("{}{line}", kind.prefix());
            let mut results = Vec::new();
            match self.terminal {
                // A closed terminal is no reason to lose a backup, and nobody would read the complaint.
                Terminal::Stdout => drop(writeln!(io::stdout().lock(), "{line}").and_then(|()| io::stdout().flush())),
                Terminal::Stderr => drop(writeln!(io::stderr().lock(), "{line}")),
                Terminal::Quiet => {}
            }
            if let Some(task) = &mut self.task {
                results.push(task.line(&line).map_err(|e| format!("the task log lost a line: {}", reason(&e))));
            }
            if let (Some(guest), true) = (&mut self.guest, to_guest) {
                let line = format!("{now} {line}\n");
                guest.text.push(&line);
                let written = guest.file.write_all(line.as_bytes());
                results.push(written.map_err(|e| format!("'{}' lost a line: {}", guest.path.display(), reason(&e))));
            }
            let failed = results.into_iter().find_map(Result::err);
            self.lost = self.lost.take().or(failed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_goes_where_it_belongs() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::with_root(dir.path().to_owned());
        let upid = Upid::for_us(&host, "vzdump", "101", "root@pam").unwrap();
        let task_path = host.path(upid.log_path());
        let sink = LogSink::start(&host, Terminal::Quiet, Some(upid)).unwrap();
        sink.info("starting new backup job: vzdump 101");
        sink.open_guest("qemu", 101).unwrap();
        sink.info("Starting Backup of VM 101 (qemu)");
        sink.job_line(Kind::Info, "Backup started at now");
        sink.error("first\nsecond\n");
        sink.line(Kind::Bare, "command failed");
        let copy = dir.path().join("a.log");
        sink.close_guest(Some(&copy)).unwrap();
        sink.warn("hm");
        assert_eq!(sink.warnings(), 1);
        sink.finish(&Outcome::Ok).unwrap();
        assert_eq!(
            std::fs::read_to_string(task_path).unwrap(),
            "INFO: starting new backup job: vzdump 101\nINFO: Starting Backup of VM 101 (qemu)\n\
             INFO: Backup started at now\nERROR: first\nERROR: second\ncommand failed\nWARN: hm\n\nTASK WARNINGS: 1\n"
        );
        let guest = std::fs::read_to_string(copy).unwrap();
        let lines: Vec<&str> = guest.lines().map(|l| l.get(20..).unwrap()).collect();
        assert_eq!(lines, ["INFO: Starting Backup of VM 101 (qemu)", "ERROR: first", "ERROR: second"]);
        let stamp = regex::Regex::new(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO: ").unwrap();
        assert!(stamp.is_match(&guest));
    }
}
