//! What the command lines that restore have in common: finding the archive and the guest that is to be replaced, the record
//! and the task of the run, the guardian beside it, and undoing everything if it fails.

use super::place::{NoArchive, find_archive};
use super::{FAILED, complain, say, words};
use crate::config::{DatacenterCfg, StorageCfg, bandwidth_limit};
use crate::guest::actions::{Monitor, NodeActions};
use crate::guest::commands::output;
use crate::guest::conffile::Kind;
use crate::guest::guard::Guard;
use crate::guest::record::{Opened, Orphan, Record};
use crate::guest::recover::{LockClaim, recover};
use crate::host::{Cancel, Host};
use crate::job::log::{Kind as LineKind, LogSink, Terminal};
use crate::job::tasklog::Outcome;
use crate::job::upid::Upid;
use crate::restore::plan::{Existing, Refusal, check_existing};
use crate::schema::{self, Command, UsageError};
use anyhow::{Context, Result, anyhow, bail};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The exit code when the archive is not there: ENOENT, as the original has it.
const NO_ARCHIVE: u8 = 2;

/// Where the archive comes from.
pub(super) enum Input {
    Stdin,
    File(PathBuf),
}

/// What is to be done, as both command lines say it.
pub(super) struct Wish {
    /// What is restored.
    pub kind: Kind,
    /// Its number.
    pub vmid: u32,
    /// Replace what has the number.
    pub force: bool,
    /// Start it afterwards.
    pub start: bool,
    /// Bytes a second; 0 lifts every limit.
    pub bwlimit: Option<u64>,
}

/// One restore.
pub(super) struct Restore<'a> {
    pub host: &'a Host,
    pub actions: NodeActions<'a>,
    pub storages: StorageCfg,
    pub datacenter: DatacenterCfg,
    pub wish: Wish,
    pub cancel: Cancel,
}

/// Does the work: makes the guest and returns what of the one it replaces could not be removed.
pub(super) type Work<'a> = &'a dyn Fn(&mut Record, Option<&Existing>, &LogSink) -> Result<Vec<String>>;

impl<'a> Restore<'a> {
    pub(super) fn new(host: &'a Host, monitor: &'a dyn Monitor, wish: Wish) -> Result<Self> {
        let storages = read_or_empty(&host.path(StorageCfg::PATH))?;
        let datacenter = read_or_empty(&host.path(DatacenterCfg::PATH))?;
        Ok(Self {
            host,
            actions: NodeActions { host, monitor, leaving: None },
            storages: StorageCfg::parse(&storages),
            datacenter: DatacenterCfg::parse(&datacenter),
            wish,
            cancel: Cancel::new(),
        })
    }

    /// The node's command for guests of this kind.
    fn tool(&self) -> &'static str {
        match self.wish.kind {
            Kind::Vm => "qm",
            Kind::Container => "pct",
        }
    }

    /// The program's name in records, and that of its tasks.
    fn names(&self) -> (&'static str, &'static str) {
        match self.wish.kind {
            Kind::Vm => ("qmrestore", "qmrestore"),
            Kind::Container => ("pct restore", "vzrestore"),
        }
    }

    /// Whether the guest runs.
    pub(super) fn runs(&self) -> Result<bool, String> {
        let out = output(self.host, self.tool(), &["status", &self.wish.vmid.to_string()])?;
        Ok(out.trim().strip_prefix("status:").unwrap_or(&out).trim() == "running")
    }

    /// The limit that holds for a restore to these storages, in bytes a second.
    pub(super) fn limit<'s>(&self, storages: impl Iterator<Item = &'s str>) -> Option<u64> {
        let of_storage = |id: &str| bandwidth_limit("restore", self.storages.get(id), &self.datacenter);
        let limits = storages.filter_map(of_storage);
        self.wish.bwlimit.or_else(|| Some(limits.min()?.saturating_mul(1024))).filter(|bytes| *bytes > 0)
    }

    /// Makes the guest a template again, whose volumes are others than the restored ones.
    pub(super) fn make_template(&self, log: &LogSink) {
        let Wish { kind, vmid, .. } = self.wish;
        if let Err(e) = output(self.host, self.tool(), &["template", &vmid.to_string()]) {
            log.warn(&format!("{kind} {vmid} was restored, but could not be made a template again: {e}"));
        }
    }

    /// Runs `work` in order.
    pub(super) fn run(&self, work: Work<'_>) -> Result<()> {
        let Wish { kind, vmid, force, .. } = self.wish;
        let (command, task) = self.names();
        self.cancel.on_signals().context("signals cannot be handled")?;
        let record = match Record::open(self.host, vmid, command)? {
            Opened::Fresh(record) => record,
            Opened::Orphaned(mut orphan) => {
                let line = |line: &str| say(&format!("{line}\n"));
                line(&format!("an earlier run on {kind} {vmid} was killed; undoing what it left"));
                self.undo(&mut orphan, LockClaim::UnlessVzdumpRuns, &line);
                orphan.into_record(command)?
            }
        };
        let existing = match self.existing() {
            Ok(existing) => existing,
            Err(e) => return Err(cleared(record, e)),
        };
        let refused = match check_existing(kind, vmid, force, self.host.node(), existing.as_ref()) {
            Ok(()) => None,
            // The original looks for these in its task.
            Err(refusal @ (Refusal::Running(..) | Refusal::Protected(..))) => Some(refusal),
            Err(refusal) => return Err(cleared(record, refusal.into())),
        };
        let task = Upid::for_us(self.host, task, &vmid.to_string(), "root@pam")
            .and_then(|upid| LogSink::start(self.host, Terminal::Stdout, Some(upid)));
        let log = match task {
            Ok(log) => log,
            Err(e) => return Err(cleared(record, anyhow!("the task record cannot be started: {e}"))),
        };
        let result = match refused {
            Some(refusal) => Err(cleared(record, refusal.into())),
            None => self.guarded(work, record, existing.as_ref(), &log),
        };
        let outcome = match &result {
            Ok(()) => Outcome::Ok,
            Err(e) => Outcome::Error(format!("{e:#}")),
        };
        // A guest that was restored was restored, whatever became of the record.
        if let Err(error) = log.finish(&outcome) {
            complain(&format!("the task's record is incomplete: {error}\n"));
        }
        result
    }

    /// Restores with a guardian beside us, and undoes everything if it fails.
    fn guarded(&self, work: Work<'_>, mut record: Record, existing: Option<&Existing>, log: &LogSink) -> Result<()> {
        let vmid = record.vmid();
        let guard = match Guard::spawn(self.host, vmid) {
            Ok(guard) => Some(guard),
            Err(e) => {
                log.warn(&format!("{e}; if this run is killed, the next one cleans up"));
                None
            }
        };
        let result = work(&mut record, existing, log);
        let result = match result {
            Ok(left) if left.is_empty() => record.clear().map_err(Into::into),
            // The record stays, and with it the wish to remove them; the guest is there.
            Ok(_) => Ok(()),
            Err(cause) => {
                let undone = record.into_orphan().and_then(|mut orphan| {
                    self.undo(&mut orphan, LockClaim::Certain, &|line| log.line(LineKind::Bare, line));
                    orphan.clear()
                });
                match undone {
                    Ok(()) => Err(cause),
                    Err(e) => Err(cause.context(e.to_string())),
                }
            }
        };
        // What could not be undone is left to the guardian: letting go of it without a word sets it to work.
        let undone = crate::guest::record::recorded(self.host).is_ok_and(|left| !left.contains(&vmid));
        if let Some(guard) = guard
            && undone
            && let Err(e) = guard.done()
        {
            log.warn(&format!("the guardian process did not end well: {e}"));
        }
        result?;
        if self.wish.start {
            output(self.host, self.tool(), &["start", &vmid.to_string()]).map_err(anyhow::Error::msg)?;
        }
        Ok(())
    }

    /// Where the archive is.
    pub(super) fn input(&self, archive: &str) -> Result<Input> {
        if archive == "-" {
            return Ok(Input::Stdin);
        }
        find_archive(self.host, &self.storages, archive).map(Input::File)
    }

    /// The guest that has the id already, on any node of the cluster.
    fn existing(&self) -> Result<Option<Existing>> {
        let vmid = self.wish.vmid;
        let nodes = match std::fs::read_dir(self.host.path("/etc/pve/nodes")) {
            Ok(nodes) => nodes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                bail!("'/etc/pve/nodes' does not exist: this is no node")
            }
            Err(e) => return Err(e).context("reading '/etc/pve/nodes' failed"),
        };
        for entry in nodes {
            let entry = entry.context("reading '/etc/pve/nodes' failed")?;
            for (kind, dir) in [(Kind::Vm, "qemu-server"), (Kind::Container, "lxc")] {
                let path = entry.path().join(dir).join(format!("{vmid}.conf"));
                let config = match std::fs::read(&path) {
                    Ok(config) => config,
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(e).with_context(|| format!("reading '{}' failed", path.display())),
                };
                let node = entry.file_name().to_string_lossy().into_owned();
                let ask = self.wish.force && kind == self.wish.kind && node == self.host.node();
                let running = ask && self.runs().map_err(anyhow::Error::msg)?;
                return Ok(Some(Existing { node, kind, running, config }));
            }
        }
        Ok(None)
    }

    fn undo(&self, orphan: &mut Orphan, claim: LockClaim, line: &dyn Fn(&str)) {
        let report = recover(self.host, orphan, &self.actions, claim);
        report.done.iter().chain(&report.failed).for_each(|l| line(l));
    }
}

/// Lets go of a record in which nothing stands yet.
fn cleared(record: Record, cause: anyhow::Error) -> anyhow::Error {
    match record.clear() {
        Ok(()) => cause,
        Err(e) => cause.context(e.to_string()),
    }
}

pub(super) fn read_or_empty(path: &Path) -> Result<String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(e).with_context(|| format!("reading '{}' failed", path.display())),
    }
}

/// `Sun Nov 22 09:25:34 2026`, local time.
pub(super) fn ctime(seconds: i64) -> String {
    let at = jiff::Timestamp::from_second(seconds).unwrap_or_default().to_zoned(jiff::tz::TimeZone::system());
    at.strftime("%a %b %e %H:%M:%S %Y").to_string()
}

/// Runs a restore as it was called: help, or `restore` with what `parse` makes of the words.
pub(super) fn called<T>(
    args: &[OsString],
    table: &Command,
    parse: fn(&[String]) -> Result<T, UsageError>,
    restore: fn(T) -> Result<()>,
) -> ExitCode {
    let words = match words(args) {
        Ok(words) => words,
        Err(code) => return code,
    };
    if words.first().is_some_and(|word| word == "help") {
        complain(&schema::help(table));
        return ExitCode::SUCCESS;
    }
    match parse(&words) {
        Ok(given) => ended(restore(given)),
        Err(e) => {
            complain(&e.to_string());
            ExitCode::from(FAILED)
        }
    }
}

/// Says how it ended.
pub(super) fn ended(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            complain(&format!("{e:#}\n"));
            ExitCode::from(if e.is::<NoArchive>() { NO_ARCHIVE } else { FAILED })
        }
    }
}
