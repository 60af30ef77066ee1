//! The task record that the node's web interface shows: the log file of one task, and its lines in `active` (running and
//! lately ended tasks) and `index` (ended ones).

use super::upid::{TASKS, Upid};
use crate::host::Host;
use crate::host::files::{self, replace};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::time::Duration;

/// How many ended tasks stay in `active`; the node's own tools keep as many.
const KEPT_ENDED: usize = 25;
/// How long another task may take to edit the list.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All good.
    Ok,
    /// All good, with so many warnings.
    Warnings(usize),
    /// Why it failed.
    Error(String),
}

impl Outcome {
    /// The status in the task lists: `OK`, `WARNINGS: 1`, or the error on one line.
    pub fn status(&self) -> String {
        match self {
            Self::Ok => "OK".into(),
            Self::Warnings(n) => format!("WARNINGS: {n}"),
            Self::Error(text) => text.trim_end().replace('\n', " "),
        }
    }

    /// The last line of the log. Anything but success stands out by an empty line before it.
    fn last_line(&self) -> String {
        match self {
            Self::Ok => "TASK OK\n".into(),
            Self::Warnings(n) => format!("\nTASK WARNINGS: {n}\n"),
            Self::Error(_) => format!("\nTASK ERROR: {}\n", self.status()),
        }
    }
}

/// A running task.
#[derive(Debug)]
pub struct TaskLog {
    host: Host,
    upid: Upid,
    file: File,
}

impl TaskLog {
    /// Starts the record of task `upid`.
    ///
    /// # Errors
    /// When the log cannot be made or the list cannot be written.
    pub fn start(host: &Host, upid: Upid) -> io::Result<Self> {
        let path = host.path(upid.log_path());
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        edit_active(host, |lines| lines.insert(0, format!("{upid} 0")))?;
        Ok(Self { host: host.clone(), upid, file })
    }

    /// The task's name.
    pub fn upid(&self) -> &Upid {
        &self.upid
    }

    /// Appends one line.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub fn line(&mut self, line: &str) -> io::Result<()> {
        self.file.write_all(format!("{line}\n").as_bytes())
    }

    /// Ends the record.
    ///
    /// # Errors
    /// When one of the files cannot be written.
    pub fn finish(mut self, outcome: &Outcome) -> io::Result<()> {
        self.file.write_all(outcome.last_line().as_bytes())?;
        let upid = self.upid.to_string();
        let ended = format!("{:08X} {}", self.host.now().timestamp().as_second(), outcome.status());
        edit_active(&self.host, |lines| {
            lines.retain(|l| l.split(' ').next() != Some(&upid));
            lines.insert(0, format!("{upid} 1 {ended}"));
            let mut kept = 0;
            lines.retain(|l| {
                let is_ended = l.split(' ').nth(1) == Some("1");
                kept += usize::from(is_ended);
                !is_ended || kept <= KEPT_ENDED
            });
        })?;
        let index = self.host.path(TASKS).join("index");
        OpenOptions::new().create(true).append(true).open(index)?.write_all(format!("{upid} {ended}\n").as_bytes())
    }
}

/// Changes the list of active tasks while nobody else does.
fn edit_active(host: &Host, edit: impl FnOnce(&mut Vec<String>)) -> io::Result<()> {
    let dir = host.path(TASKS);
    let lock = dir.join(".active.lock");
    let Some(_lock) = files::lock(&lock, PATIENCE)? else {
        let why = format!("can't lock file '{}' - got timeout", lock.display());
        return Err(io::Error::new(io::ErrorKind::TimedOut, why));
    };
    let path = dir.join("active");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(e),
    };
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    edit(&mut lines);
    replace(&path, lines.iter().map(|l| format!("{l}\n")).collect::<String>().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(host: &Host, pid: u32, outcome: &Outcome) -> (String, Upid) {
        let upid = Upid { pid, ..Upid::for_us(host, "vzdump", "101", "root@pam").unwrap() };
        let mut log = TaskLog::start(host, upid.clone()).unwrap();
        log.line("INFO: Backup job finished").unwrap();
        let active = std::fs::read_to_string(host.path("/var/log/pve/tasks/active")).unwrap();
        assert_eq!(active.lines().next().unwrap(), format!("{upid} 0"));
        log.finish(outcome).unwrap();
        (std::fs::read_to_string(host.path(upid.log_path())).unwrap(), upid)
    }

    #[test]
    fn the_last_line_says_how_it_ended_and_both_lists_know() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::with_root(dir.path().to_owned());
        let (ok, _) = run(&host, 1, &Outcome::Ok);
        assert_eq!(ok, "INFO: Backup job finished\nTASK OK\n");
        let (warned, _) = run(&host, 2, &Outcome::Warnings(1));
        assert_eq!(warned, "INFO: Backup job finished\n\nTASK WARNINGS: 1\n");
        let (failed, upid) = run(&host, 3, &Outcome::Error("two\nlines\n".into()));
        assert_eq!(failed, "INFO: Backup job finished\n\nTASK ERROR: two lines\n");
        let index = std::fs::read_to_string(host.path("/var/log/pve/tasks/index")).unwrap();
        let last = index.lines().last().unwrap();
        assert!(last.starts_with(&format!("{upid} ")) && last.ends_with(" two lines"), "{last}");
        assert_eq!(index.lines().count(), 3);
        for pid in 10..40 {
            run(&host, pid, &Outcome::Ok);
        }
        let active = std::fs::read_to_string(host.path("/var/log/pve/tasks/active")).unwrap();
        assert_eq!(active.lines().count(), KEPT_ENDED);
    }
}
