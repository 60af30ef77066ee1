//! The task record that the node's web interface shows: the log file of one task, and its lines in `active` (running and
//! lately ended tasks) and `index` (ended ones).

use super::upid::{TASKS, Upid};
use crate::host::Host;
use crate::host::files::{self, reason, replace};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::time::Duration;

/// How many tasks stay in `active`, unless more are running; the node's own tools keep as many.
const KEPT: usize = 25;
/// How much of the end of a log is read for its last line.
const TAIL: u64 = 4096;
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
    /// Why the list of active tasks does not know of it.
    unlisted: Option<io::Error>,
}

impl TaskLog {
    /// Starts the record of task `upid`. A list that cannot be written, as on a full `/var/log`, keeps no task from running;
    /// [`TaskLog::finish`] tells of it.
    ///
    /// # Errors
    /// When the log cannot be made: a task that nobody could ever look at is not begun.
    pub fn start(host: &Host, upid: Upid) -> io::Result<Self> {
        let path = host.path(upid.log_path());
        let create = || {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            OpenOptions::new().create(true).append(true).open(&path)
        };
        let shown = upid.log_path();
        let refused = |e: io::Error| {
            io::Error::new(e.kind(), format!("unable to create output file '{}' - {}", shown.display(), reason(&e)))
        };
        let file = create().map_err(refused)?;
        let unlisted = edit_active(host, |lines| lines.insert(0, format!("{upid} 0"))).err();
        Ok(Self { host: host.clone(), upid, file, unlisted })
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

    /// Ends the record: as much of it as can be written is.
    ///
    /// # Errors
    /// The first reason why one of the files is not complete.
    pub fn finish(mut self, outcome: &Outcome) -> io::Result<()> {
        let logged = self.file.write_all(outcome.last_line().as_bytes());
        let upid = self.upid.to_string();
        let ended = format!("{upid} 0 {:08X} {}", self.host.now().timestamp().as_second(), outcome.status());
        let listed = edit_active(&self.host, |lines| {
            lines.retain(|l| l.split(' ').next() != Some(&upid));
            lines.insert(0, ended);
        });
        self.unlisted.map_or(Ok(()), Err).and(logged).and(listed)
    }
}

/// Changes the list of active tasks while nobody else does, and brings it in order as the node's own tools do: a task whose
/// process is gone has ended, whatever ended is written to the index once, and only the latest of those stay.
///
/// A line is `UPID 0` while the task runs, `UPID 0 <end> <status>` once it ended, and has a `1` when the index has it.
fn edit_active(host: &Host, edit: impl FnOnce(&mut Vec<String>)) -> io::Result<()> {
    let dir = host.path(TASKS);
    let lock = dir.join(".active.lock");
    let Some(_lock) = files::lock(&lock, PATIENCE)? else {
        let why = format!("can't lock file '{}' - got timeout", lock.display());
        return Err(io::Error::new(io::ErrorKind::TimedOut, why));
    };
    let path = dir.join("active");
    let text = match std::fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(e),
    };
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    edit(&mut lines);
    let mut entries: Vec<Entry> = lines.iter().filter_map(|line| Entry::parse(line)).collect();
    for entry in &mut entries {
        if entry.end.is_none() && !entry.upid.is_alive() {
            let now = host.now().timestamp().as_second();
            entry.end = Some((format!("{now:08X}"), status_in_log(host, &entry.upid)));
        }
    }
    let (running, mut ended): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(|e| e.end.is_none());
    ended.sort_by_key(|entry| std::cmp::Reverse(entry.upid.start));
    let fresh: String = ended.iter().rev().filter(|e| !e.indexed).map(Entry::index_line).collect();
    let indexed = append(&dir.join("index"), &fresh);
    if indexed.is_ok() {
        ended.iter_mut().for_each(|entry| entry.indexed = true);
    }
    ended.truncate(KEPT.saturating_sub(running.len()));
    let kept: String = running.iter().chain(&ended).map(|entry| format!("{entry}\n")).collect();
    replace(&path, kept.as_bytes()).and(indexed)
}

/// Adds whole lines to a file, or nothing.
fn append(path: &std::path::Path, lines: &str) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let before = file.metadata()?.len();
    file.write_all(lines.as_bytes()).inspect_err(|_| {
        // Half a line would be glued to the next one; if even this fails, the error is on its way.
        file.set_len(before).unwrap_or_default();
    })
}

/// One task of the list.
#[derive(Debug)]
struct Entry {
    upid: Upid,
    indexed: bool,
    /// Time in hexadecimal digits, and the status.
    end: Option<(String, String)>,
}

impl Entry {
    /// `None` for a line that is none; the node's tools drop such lines, too.
    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.splitn(4, ' ');
        let (upid, flag) = (parts.next()?.parse().ok()?, parts.next()?);
        let end = parts.next().map(|time| (time.to_owned(), parts.next().unwrap_or("unknown").to_owned()));
        matches!(flag, "0" | "1").then_some(Self { upid, indexed: flag == "1", end })
    }

    fn index_line(&self) -> String {
        self.end.as_ref().map_or_else(String::new, |(time, status)| format!("{} {time} {status}\n", self.upid))
    }
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.upid, u8::from(self.indexed))?;
        self.end.as_ref().map_or(Ok(()), |(time, status)| write!(f, " {time} {status}"))
    }
}

/// What the last line of a task's log says about its end, in the words of the node's own tools.
fn status_in_log(host: &Host, upid: &Upid) -> String {
    let tail = || -> io::Result<String> {
        let mut file = File::open(host.path(upid.log_path()))?;
        let start = file.metadata()?.len().saturating_sub(TAIL);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let Ok(tail) = tail() else { return "unable to open file".into() };
    let last = tail.trim_end().rsplit('\n').next().unwrap_or_default();
    let status = last.strip_prefix("TASK ERROR: ").or_else(|| last.strip_prefix("TASK "));
    status.unwrap_or("unexpected status").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(host: &Host, id: u32, outcome: &Outcome) -> (String, Upid) {
        let upid = Upid { id: id.to_string(), ..Upid::for_us(host, "vzdump", "", "root@pam").unwrap() };
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
        for id in 10..40 {
            run(&host, id, &Outcome::Ok);
        }
        let active = std::fs::read_to_string(host.path("/var/log/pve/tasks/active")).unwrap();
        assert_eq!(active.lines().count(), KEPT);
        assert!(active.lines().all(|l| Entry::parse(l).unwrap().indexed));
        assert_eq!(std::fs::read_to_string(host.path("/var/log/pve/tasks/index")).unwrap().lines().count(), 33);
    }

    #[test]
    fn a_task_that_was_killed_is_ended_by_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::with_root(dir.path().to_owned());
        let us = Upid::for_us(&host, "vzdump", "101", "root@pam").unwrap();
        let gone = Upid { pstart: us.pstart + 1, id: "100".into(), ..us.clone() };
        drop(TaskLog::start(&host, gone.clone()).unwrap());
        let half = Upid { id: "102".into(), ..gone.clone() };
        // Written before the list knows of it: a process that is gone cannot write any more.
        std::fs::create_dir_all(host.path(half.log_path()).parent().unwrap()).unwrap();
        std::fs::write(host.path(half.log_path()), "TASK ERROR: interrupted by signal\n").unwrap();
        drop(TaskLog::start(&host, half.clone()).unwrap());
        let active = host.path("/var/log/pve/tasks/active");
        let junk = std::fs::read_to_string(&active).unwrap() + "what is this\n\u{fffd}";
        std::fs::write(&active, junk).unwrap();
        let log = TaskLog::start(&host, us.clone()).unwrap();
        let index = std::fs::read_to_string(host.path("/var/log/pve/tasks/index")).unwrap();
        let ends: Vec<_> = index.lines().map(|l| l.splitn(3, ' ').collect::<Vec<_>>()).map(|p| (p[0], p[2])).collect();
        let (gone, half) = (gone.to_string(), half.to_string());
        assert_eq!(ends, [(gone.as_str(), "unexpected status"), (half.as_str(), "interrupted by signal")]);
        let text = std::fs::read_to_string(&active).unwrap();
        let flags: Vec<_> = text.lines().map(|l| l.split(' ').nth(1).unwrap()).collect();
        assert_eq!(flags, ["0", "1", "1"], "{text}");
        assert!(text.starts_with(&format!("{us} 0\n")));
        log.finish(&Outcome::Ok).unwrap();
        assert_eq!(std::fs::read_to_string(host.path("/var/log/pve/tasks/index")).unwrap().lines().count(), 3);
    }
}
