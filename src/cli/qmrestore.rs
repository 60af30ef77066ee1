//! `qmrestore <archive> <vmid>`: words, messages and exit codes as those of the node's own; the work is done in `restore`.

use super::{FAILED, complain, say, words};
use crate::archive::Source;
use crate::config::{DatacenterCfg, Fresh, StorageCfg, bandwidth_limit};
use crate::guest::actions::{LEAVING, Monitor, NodeActions, output};
use crate::guest::guard::Guard;
use crate::guest::monitor::QemuMonitor;
use crate::guest::record::{Opened, Orphan, Record};
use crate::guest::recover::{LockClaim, recover};
use crate::host::{Cancel, Host};
use crate::image::{Target, open_target};
use crate::job::log::{Kind, LogSink, Terminal};
use crate::job::tasklog::Outcome;
use crate::job::upid::Upid;
use crate::restore::execute::{Data, ExecuteError, Tools, execute};
use crate::restore::plan::{Device, Existing, Options, Refusal, check_existing, plan};
use crate::restore::volumes::NodeVolumes;
use crate::schema::{self, RestoreOptions, tables::QMRESTORE};
use anyhow::{Context, Result, anyhow, bail};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// The exit code when the archive is not there: ENOENT, as the original has it.
const NO_ARCHIVE: u8 = 2;

/// Runs `qmrestore` with the arguments after its name.
pub fn run(args: &[OsString]) -> ExitCode {
    let words = match words(args) {
        Ok(words) => words,
        Err(code) => return code,
    };
    if words.first().is_some_and(|word| word == "help") {
        complain(&schema::help(&QMRESTORE));
        return ExitCode::SUCCESS;
    }
    let given = match RestoreOptions::parse(&words) {
        Ok(given) => given,
        Err(e) => {
            complain(&e.to_string());
            return ExitCode::from(FAILED);
        }
    };
    let host = Host::from_env();
    match Restore::new(&host, given, &QemuMonitor::new(&host)).and_then(|mut restore| restore.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            complain(&format!("{e:#}\n"));
            ExitCode::from(if e.is::<NoArchive>() { NO_ARCHIVE } else { FAILED })
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum NoArchive {
    #[error("can't find file '{0}'")]
    File(String),
    #[error("volume '{0}' does not exist")]
    Volume(String),
}

/// Where the archive comes from.
enum Input {
    Stdin,
    File(PathBuf),
}

struct Restore<'a> {
    host: &'a Host,
    actions: NodeActions<'a>,
    storages: StorageCfg,
    datacenter: DatacenterCfg,
    options: Options,
    archive: String,
    /// Bytes a second; 0 lifts every limit.
    bwlimit: Option<u64>,
    start: bool,
    cancel: Cancel,
}

impl<'a> Restore<'a> {
    fn new(host: &'a Host, given: RestoreOptions, monitor: &'a dyn Monitor) -> Result<Self> {
        let storages = read_or_empty(&host.path(StorageCfg::PATH))?;
        let datacenter = DatacenterCfg::parse(&read_or_empty(&host.path(DatacenterCfg::PATH))?);
        let options = Options {
            vmid: given.vmid.get(),
            storage: given.storage,
            force: given.force,
            unique: given.unique,
            mac_prefix: datacenter.mac_prefix().unwrap_or_default().to_owned(),
        };
        Ok(Self {
            host,
            actions: NodeActions { host, monitor, leaving: LEAVING },
            storages: StorageCfg::parse(&storages),
            datacenter,
            options,
            archive: given.archive,
            bwlimit: given.bwlimit,
            start: given.start,
            cancel: Cancel::new(),
        })
    }

    fn run(&mut self) -> Result<()> {
        let input = self.input()?;
        let vmid = self.options.vmid;
        self.cancel.on_signals().context("signals cannot be handled")?;
        let record = match Record::open(self.host, vmid, "qmrestore")? {
            Opened::Fresh(record) => record,
            Opened::Orphaned(mut orphan) => {
                let line = |line: &str| say(&format!("{line}\n"));
                line(&format!("an earlier run on VM {vmid} was killed; undoing what it left"));
                self.undo(&mut orphan, LockClaim::UnlessVzdumpRuns, &line);
                orphan.into_record("qmrestore")?
            }
        };
        let existing = match self.existing() {
            Ok(existing) => existing,
            Err(e) => return Err(cleared(record, e)),
        };
        let refused = match check_existing(&self.options, self.host.node(), existing.as_ref()) {
            Ok(()) => None,
            // The original looks for these in its task.
            Err(refusal @ (Refusal::Running(_) | Refusal::Protected(_))) => Some(refusal),
            Err(refusal) => return Err(cleared(record, refusal.into())),
        };
        let task = Upid::for_us(self.host, "qmrestore", &vmid.to_string(), "root@pam")
            .and_then(|upid| LogSink::start(self.host, Terminal::Stdout, Some(upid)));
        let log = match task {
            Ok(log) => log,
            Err(e) => return Err(cleared(record, anyhow!("the task record cannot be started: {e}"))),
        };
        let result = match refused {
            Some(refusal) => Err(cleared(record, refusal.into())),
            None => self.guarded(input, record, existing.as_ref(), &log),
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
    fn guarded(&self, input: Input, mut record: Record, existing: Option<&Existing>, log: &LogSink) -> Result<()> {
        let vmid = record.vmid();
        let guard = match Guard::spawn(self.host, vmid) {
            Ok(guard) => Some(guard),
            Err(e) => {
                log.warn(&format!("{e}; if this run is killed, the next one cleans up"));
                None
            }
        };
        let result = self.restore(input, &mut record, existing, log);
        let result = match result {
            Ok(left) if left.is_empty() => record.clear().map_err(Into::into),
            // The record stays, and with it the wish to remove them; the guest is there.
            Ok(_) => Ok(()),
            Err(cause) => {
                let undone = record.into_orphan().and_then(|mut orphan| {
                    self.undo(&mut orphan, LockClaim::Certain, &|line| log.line(Kind::Bare, line));
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
        if self.start {
            output(self.host, "qm", &["start", &vmid.to_string()]).map_err(anyhow::Error::msg)?;
        }
        Ok(())
    }

    fn restore(
        &self,
        input: Input,
        record: &mut Record,
        existing: Option<&Existing>,
        log: &LogSink,
    ) -> Result<Vec<String>> {
        let bare = |line: &str| log.line(Kind::Bare, line);
        let source = match &input {
            Input::Stdin => {
                bare("restore vma archive: from standard input");
                let fd = std::io::stdin().as_fd().try_clone_to_owned().context("standard input cannot be read")?;
                Source::from_fd(self.host, "stdin", fd, &self.cancel)?
            }
            Input::File(path) => {
                bare(&format!("restore vma archive: {}", path.display()));
                Source::open(self.host, &self.host.path(path), &self.cancel)?
            }
        };
        let header = source.header().clone();
        for (name, data) in &header.configs {
            bare(&format!("CFG: size: {} name: {name}", data.len()));
        }
        for device in &header.devices {
            bare(&format!("DEV: dev_id={} size: {} devname: {}", device.id, device.size, device.name));
        }
        bare(&format!("CTIME: {}", ctime(header.ctime)));
        let devices: Vec<Device> =
            header.devices.iter().map(|d| Device { id: d.id, name: d.name.clone(), size: d.size }).collect();
        let mut plan = plan(&header.configs, &devices, &self.options, &self.storages, self.host.node(), existing)?;
        plan.warnings.iter().for_each(|w| log.warn(w));
        let of_storage = |id: &str| bandwidth_limit("restore", self.storages.get(id), &self.datacenter);
        let limits = plan.disks.iter().filter_map(|disk| of_storage(&disk.storage));
        let limit = self.bwlimit.or_else(|| Some(limits.min()?.saturating_mul(1024))).filter(|bytes| *bytes > 0);
        let volumes = NodeVolumes {
            host: self.host,
            image_dir: &|id: &str| self.storages.get(id).and_then(|s| s.content_dir("images")),
        };
        let mut tools = Tools {
            host: self.host,
            volumes: &volumes,
            actions: &self.actions,
            open: &|path: &Path, format: &str, name: &str, zeroed: bool| {
                open_target(self.host, &self.host.path(path), format, name, zeroed).map_err(|e| e.to_string())
            },
            fresh: Fresh::random(),
            cancel: &self.cancel,
            line: &mut |line: &str| match line.strip_prefix(Kind::Warn.prefix()) {
                Some(warning) => log.warn(warning),
                None => log.line(Kind::Bare, line),
            },
        };
        let data = Box::new(Archive { source, bwlimit: limit });
        let left = execute(&mut plan, data, record, &mut tools).map_err(|e| match e {
            ExecuteError::Step(why) => anyhow!("unable to restore VM {} - {why}", self.options.vmid),
            other => anyhow::Error::new(other),
        })?;
        if plan.template {
            // Makes base images of the volumes, which the restored ones are not.
            if let Err(e) = output(self.host, "qm", &["template", &plan.vmid.to_string()]) {
                log.warn(&format!("VM {} was restored, but could not be made a template again: {e}", plan.vmid));
            }
        }
        Ok(left)
    }

    /// Where the archive is.
    fn input(&self) -> Result<Input> {
        if self.archive == "-" {
            return Ok(Input::Stdin);
        }
        let (path, missing) = match self.archive.split_once(":backup/") {
            Some((id, file)) if !id.is_empty() && !id.contains('/') => {
                let storage = self.storages.usable(id, self.host.node())?;
                let dir = storage.dump_dir().with_context(|| format!("storage '{id}' keeps no backups as files"))?;
                if file.split('/').any(|part| part == "..") {
                    bail!("'{}' is no volume of storage '{id}'", self.archive);
                }
                (dir.join(file), NoArchive::Volume(self.archive.clone()))
            }
            _ => {
                let path =
                    std::path::absolute(&self.archive).with_context(|| format!("'{}' is no path", self.archive))?;
                let missing = NoArchive::File(path.display().to_string());
                (path, missing)
            }
        };
        if !self.host.path(&path).exists() {
            return Err(missing.into());
        }
        Ok(Input::File(path))
    }

    /// The guest that has the id already, on any node of the cluster.
    fn existing(&self) -> Result<Option<Existing>> {
        let vmid = self.options.vmid;
        let nodes = match std::fs::read_dir(self.host.path("/etc/pve/nodes")) {
            Ok(nodes) => nodes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                bail!("'/etc/pve/nodes' does not exist: this is no node")
            }
            Err(e) => return Err(e).context("reading '/etc/pve/nodes' failed"),
        };
        for entry in nodes {
            let entry = entry.context("reading '/etc/pve/nodes' failed")?;
            for (kind, container) in [("qemu-server", false), ("lxc", true)] {
                let path = entry.path().join(kind).join(format!("{vmid}.conf"));
                let config = match std::fs::read(&path) {
                    Ok(config) => config,
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(e).with_context(|| format!("reading '{}' failed", path.display())),
                };
                let node = entry.file_name().to_string_lossy().into_owned();
                let ask = self.options.force && !container && node == self.host.node();
                let running = ask && self.actions.status(vmid).map_err(anyhow::Error::msg)? == "running";
                return Ok(Some(Existing { node, container, running, config }));
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

fn read_or_empty(path: &Path) -> Result<String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(e).with_context(|| format!("reading '{}' failed", path.display())),
    }
}

/// `Sun Nov 22 09:25:34 2026`, local time.
fn ctime(seconds: i64) -> String {
    let at = jiff::Timestamp::from_second(seconds).unwrap_or_default().to_zoned(jiff::tz::TimeZone::system());
    at.strftime("%a %b %e %H:%M:%S %Y").to_string()
}

/// The archive, as `restore` wants it.
struct Archive {
    source: Source,
    bwlimit: Option<u64>,
}

impl Data for Archive {
    fn copy(
        self: Box<Self>,
        targets: &BTreeMap<u8, Arc<dyn Target>>,
        progress: &mut dyn FnMut(u64, u64),
        cancel: &Cancel,
    ) -> Result<String, String> {
        let mut report = |p: &crate::transfer::RestoreProgress| progress(p.done, p.total);
        crate::transfer::restore(self.source, targets, self.bwlimit, &mut report, cancel)
            .map(|summary| summary.to_string())
            .map_err(|e| e.to_string())
    }
}
