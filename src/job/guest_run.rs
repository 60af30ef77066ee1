//! One guest's part of a job: the phases from its lock to its log, each in the order and with the words of the original
//! (see "One guest" and "Hook script" in the facts about vzdump). Whatever fails is undone from the guest's record.

use std::cell::Cell;
use std::io::ErrorKind::NotFound;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::civil::DateTime;

use super::cluster::{self, ClusterError};
use super::copy::QMP_PATIENCE;
use super::hooks::describe::{GuestFacts, Outcome, State, Story};
use super::hooks::{HookEnv, HookError};
use super::log::Kind;
use super::report::{GuestReport, GuestState};
use super::unlock;
use super::{DestinationError, Job};
use crate::config::{GuestConfig, Residence};
use crate::guest::conffile;
use crate::guest::fleecing::FleecingError;
use crate::guest::held::{Held, HeldError};
use crate::guest::monitor::qmp_socket;
use crate::guest::pbs::QemuBackupError;
use crate::guest::power::{Power, PowerError};
use crate::guest::record::Intent;
use crate::guest::vm::{Vm, VmError};
use crate::host::bridge;
use crate::image::ImageError;
use crate::qemu::QemuError;
use crate::qemu::Qmp;
use crate::schema::size::clock;
use crate::schema::{Mode, Vmid};
use crate::storage::pbs::{PbsError, Snapshot};
use crate::storage::{ArchiveName, GuestKind, VolumeError};
use crate::transfer::{DraftError, TransferError};

/// How long a guest that ignored its power button is watched at least, in case it obeys after all.
const LINGER: Duration = Duration::from_secs(10);

/// Why a guest was not backed up.
#[derive(Debug, thiserror::Error)]
pub(super) enum GuestError {
    #[error("unable to find VM '{0}'")]
    NotFound(Vmid),
    #[error("VM {0} is a container; backing up containers is not supported yet")]
    Container(Vmid),
    // As the original's VZDump.pm has it: a guest that the cluster restarts must not be stopped behind its back.
    #[error(
        "Cannot execute a backup with stop mode on a HA managed and enabled Service. Use snapshot mode or disable the Service."
    )]
    HighAvailability,
    // The words of `check_running` and of `load_config` there.
    #[error("unable to find configuration file for VM {0} on node '{1}'")]
    Vanished(Vmid, String),
    #[error("Configuration file 'nodes/{1}/qemu-server/{0}.conf' does not exist")]
    VanishedSince(Vmid, String),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("interrupted by signal")]
    Interrupted,
    #[error("mode 'stop' needs the program '{program}', which is not installed: use mode 'snapshot' or 'suspend'", program = bridge::PROGRAM)]
    NoBridge,
    #[error("the VM is paused and cannot shut down: use mode 'snapshot', or resume it first")]
    Paused,
    #[error("The number of protected backups per guest is limited to {most} on storage '{storage}'")]
    TooManyProtected { most: u64, storage: String },
    #[error(
        "There is a max backup limit of {0} enforced by the target storage or the vzdump parameters. Either increase the limit or delete old backups."
    )]
    TooMany(u64),
    #[error("unable to set protected flag - {0}")]
    NotProtected(#[source] Box<GuestError>),
    #[error("error pruning backups - check log")]
    Prune,
    #[error("removing archive {path} failed: {source}", path = path.display())]
    RemoveArchive {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Destination(#[from] DestinationError),
    #[error("cannot read the config of VM {0}: {1}")]
    Config(Vmid, #[source] std::io::Error),
    #[error("cannot write the log of VM {0}: {1}")]
    Log(Vmid, #[source] std::io::Error),
    #[error("{what} '{path}' failed: {source}")]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Held(#[from] HeldError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Fleecing(#[from] FleecingError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Power(PowerError),
    #[error(transparent)]
    Qemu(QemuError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Draft(#[from] DraftError),
    #[error("{0}")]
    Transfer(TransferError),
    #[error(transparent)]
    Pbs(#[from] PbsError),
    #[error("{0}")]
    QemuBackup(QemuBackupError),
    #[error("{0} a Proxmox Backup Server yet: use a storage for archives")]
    NotToServer(&'static str),
    #[error("{0}; {1}")]
    SnapshotBroke(TransferError, String),
}

impl From<PowerError> for GuestError {
    fn from(error: PowerError) -> Self {
        if matches!(error, PowerError::Interrupted) { Self::Interrupted } else { Self::Power(error) }
    }
}

impl From<QemuError> for GuestError {
    fn from(error: QemuError) -> Self {
        if matches!(error, QemuError::Cancelled) { Self::Interrupted } else { Self::Qemu(error) }
    }
}

impl From<QemuBackupError> for GuestError {
    fn from(error: QemuBackupError) -> Self {
        match error {
            QemuBackupError::Qemu(error) => error.into(),
            other => Self::QemuBackup(other),
        }
    }
}

impl From<TransferError> for GuestError {
    fn from(error: TransferError) -> Self {
        if matches!(error, TransferError::Cancelled) { Self::Interrupted } else { Self::Transfer(error) }
    }
}

/// A guest while it is worked on.
pub(super) struct GuestRun<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) vmid: Vmid,
    pub(super) mode: Mode,
    pub(super) power: Power,
    pub(super) running: bool,
    /// Whether it was stopped or suspended for the backup, so that the phases of its restart have to follow.
    restart: bool,
    /// Since when it stands still for the backup; none as soon as the log says that it goes on.
    still_since: Cell<Option<Instant>>,
    /// Whether it stood still before we came.
    pub(super) paused: bool,
    /// The QEMU process in which it runs when the run begins.
    qemu: Option<u32>,
    /// Name of the archive; none as long as the guest was not found.
    pub(super) name: Option<ArchiveName>,
    /// Bytes of the archive, once it is complete.
    size: u64,
    /// The same on a backup server.
    pub(super) snapshot: Option<Snapshot>,
    env: HookEnv,
    /// What hooks are told beside it.
    story: Story,
    begun: Instant,
}

/// Backs up guest `vmid`, which the cluster knows as `known`; everything is told to the log.
pub(super) fn run(job: &Job<'_>, vmid: Vmid, known: Option<&Residence>) -> GuestReport {
    let begun = Instant::now();
    let mut run = GuestRun {
        job,
        vmid,
        mode: job.options.mode,
        power: Power::new(job.host, vmid.get()),
        running: false,
        restart: false,
        still_since: Cell::new(None),
        paused: false,
        qemu: None,
        name: None,
        size: 0,
        snapshot: None,
        env: job.hook_env(),
        story: Story::default(),
        begun,
    };
    let result = run.check(known).and_then(|()| run.backup());
    let seconds = begun.elapsed().as_secs();
    let state = match result {
        Ok(()) => {
            job.log.announce(Kind::Info, &format!("Finished Backup of VM {vmid} ({})", clock(seconds)));
            job.log.job_line(Kind::Info, &format!("Backup finished at {}", job.time()));
            run.story.outcome.state = State::Done;
            GuestState::Done
        }
        Err(error) => {
            job.log.announce(Kind::Error, &format!("Backup of VM {vmid} failed - {error}"));
            run.explain_lock(&error);
            job.log.job_line(Kind::Info, &format!("Failed at {}", job.time()));
            // Whatever archive there was by then is one of a backup that failed.
            run.story.outcome = Outcome { state: State::Failed, error: Some(error.to_string()), ..Outcome::default() };
            run.hook_or_warn("backup-abort");
            GuestState::Failed
        }
    };
    let log = job.log.guest_text();
    run.publish_log(state);
    run.hook_or_warn("log-end");
    GuestReport { vmid, state, name: run.env.hostname, seconds, size: run.size, target: run.env.target, log }
}

impl GuestRun<'_> {
    /// What can be said before the guest has a log.
    fn check(&self, known: Option<&Residence>) -> Result<(), GuestError> {
        let kind = known.map(|guest| guest.kind.as_str()).filter(|kind| matches!(*kind, "qemu" | "lxc"));
        let kind = kind.ok_or(GuestError::NotFound(self.vmid))?;
        if self.mode == Mode::Stop && cluster::ha_keeps_running(self.job.host, self.vmid)? {
            return Err(GuestError::HighAvailability);
        }
        if kind == "lxc" { Err(GuestError::Container(self.vmid)) } else { Ok(()) }
    }

    fn backup(&mut self) -> Result<(), GuestError> {
        let (job, vmid) = (self.job, self.vmid);
        let node = || job.host.node().to_owned();
        job.check_quota(GuestKind::Qemu, vmid)?;
        self.name_archive()?;
        job.log.open_guest(GuestKind::Qemu.as_str(), vmid.get()).map_err(|e| GuestError::Log(vmid, e))?;
        job.log.announce(Kind::Info, &format!("Starting Backup of VM {vmid} (qemu)"));
        job.log.job_line(Kind::Info, &format!("Backup started at {}", job.time()));
        if conffile::read(job.host, vmid.get()).map_err(|e| GuestError::Config(vmid, e))?.is_none() {
            return Err(GuestError::Vanished(vmid, node()));
        }
        self.running = self.power.is_running();
        job.log.info(&format!("status = {}", if self.running { "running" } else { "stopped" }));
        let held = Held::take(job.host, vmid.get(), "vzdump", &mut |line| job.log.info(line));
        let mut held = held.map_err(|error| match error {
            HeldError::Config { source, .. } if source.kind() == NotFound => GuestError::VanishedSince(vmid, node()),
            other => other.into(),
        })?;
        // A killed run may have left the guest switched off, and taking it switched it on again.
        self.qemu = self.power.pid();
        self.running = self.qemu.is_some();
        let result = self.look_for_pause().and_then(|()| self.locked(&mut held));
        let report = held.release();
        // With an archive that is complete, what could not be put back is a warning, and so in the task's state.
        let tell = |line: &String| if result.is_ok() { job.log.warn(line) } else { job.log.error(line) };
        report.failed.iter().for_each(tell);
        if result.is_err() {
            // The lock, the reserved file and the place of our own sockets go with every backup that fails; the original has no
            // word for it.
            let draft = self.name.as_ref().map(|name| name.draft(&job.destination.dump_dir).display().to_string());
            let draft = |line: &str| draft.as_ref().is_some_and(|draft| line.contains(draft));
            let ordinary = |line: &str| line.contains("lock") || line.contains("'/var/run/vzkeep/") || draft(line);
            report.done.iter().filter(|line| !ordinary(line)).for_each(|line| job.log.info(line));
        }
        self.after_unlock();
        result
    }

    /// Says so when the lock that was in the way is nobody's any more.
    fn explain_lock(&self, error: &GuestError) {
        let (job, vmid) = (self.job, self.vmid);
        if matches!(error, GuestError::Held(HeldError::Locked(lock)) if lock == "backup")
            && let Some(by) = unlock::left_behind(job.host, vmid.get())
        {
            job.log.info(&format!("the lock was left behind by {by}; 'vzkeep unlock {vmid}' removes it"));
        }
    }

    /// A guest that its administrator paused stays paused, whatever the mode.
    fn look_for_pause(&mut self) -> Result<(), GuestError> {
        if self.running && self.mode != Mode::Snapshot {
            let socket = qmp_socket(self.job.host, self.vmid.get());
            let mut qmp = Qmp::connect_unless(&socket, QMP_PATIENCE, self.job.cancel)?;
            let status = qmp.execute("query-status", serde_json::json!({}))?;
            self.paused = status["status"] == "paused";
        }
        Ok(())
    }

    /// What happens while the config carries our lock.
    fn locked(&mut self, held: &mut Held) -> Result<(), GuestError> {
        let (job, vmid) = (self.job, self.vmid);
        let text = conffile::read(job.host, vmid.get()).map_err(|e| GuestError::Config(vmid, e))?;
        let vanished = || GuestError::VanishedSince(vmid, job.host.node().to_owned());
        let config = GuestConfig::parse(&text.ok_or_else(vanished)?);
        if !self.running {
            self.mode = Mode::Stop;
        }
        let vm = if self.mode == Mode::Snapshot {
            let vm = self.prepare(config)?;
            self.announce_mode();
            vm
        } else {
            self.announce_mode();
            self.prepare(config)?
        };
        self.check_server(&vm)?;
        self.reserve(held)?;
        self.hook("backup-start")?;
        match self.mode {
            _ if !self.running => {}
            Mode::Snapshot => {
                self.hook("pre-stop")?;
                self.hook("pre-restart")?;
                self.hook("post-restart")?;
            }
            Mode::Stop => {
                // Before it is switched off: afterwards nobody could start it for the backup.
                if !bridge::available(job.host) {
                    return Err(GuestError::NoBridge);
                }
                if self.paused {
                    return Err(GuestError::Paused);
                }
                job.log.info("stopping virtual guest");
                self.still_since.set(Some(Instant::now()));
                self.hook("pre-stop")?;
                held.note(&self.shut_down())?;
                self.switch_off(held)?;
                self.restart = true;
            }
            Mode::Suspend => {
                job.log.info("suspending guest");
                if !self.paused {
                    self.still_since.set(Some(Instant::now()));
                }
                self.hook("pre-stop")?;
                if !self.paused {
                    held.note(&Intent::Paused)?;
                    self.power.suspend()?;
                }
                self.restart = true;
            }
        }
        if let Some(repository) = &job.destination.pbs {
            self.send(repository, &vm, held)?;
            self.dress_snapshot(repository, &vm)?;
            return self.hook("backup-end");
        }
        self.archive(&vm, held)?;
        // Now: a hook may take it somewhere else.
        let archive =
            self.name.as_ref().filter(|_| !job.options.stdout).map(|name| name.path(&job.destination.dump_dir));
        self.size = archive.and_then(|path| std::fs::metadata(path).ok()).map_or(0, |archive| archive.len());
        if !job.options.stdout {
            self.dress(&vm, held)?;
        }
        let target = self.name.as_ref().map(|name| name.path(&job.destination.dump_dir));
        self.story.outcome.size = target.and_then(|path| path.metadata().ok()).map(|archive| archive.len());
        self.hook("backup-end")?;
        Ok(())
    }

    /// Presses the power button. A guest that ignores it goes on running, and the backup has failed.
    fn switch_off(&self, held: &mut Held) -> Result<(), GuestError> {
        let patience = Duration::from_secs(60 * self.job.options.stopwait);
        let off = self.power.shutdown(patience, self.job.cancel, &mut |line| self.job.log.info(line));
        if matches!(off, Err(PowerError::Command { .. })) {
            // It may still be about to end: then it has to be started again, but nobody waits longer than was asked for.
            held.leaving = patience.clamp(LINGER, held.leaving.max(LINGER));
        }
        Ok(off?)
    }

    pub(super) fn shut_down(&self) -> Intent {
        Intent::ShutDown { qemu: self.qemu }
    }

    /// Lists the disks and makes sure they are there.
    fn prepare(&mut self, config: GuestConfig) -> Result<Vm, GuestError> {
        let log = &self.job.log;
        let mut vm = Vm::new(self.vmid.get(), config);
        self.env.hostname = vm.config.name();
        if let Some(name) = &self.env.hostname {
            log.info(&format!("VM Name: {name}"));
        }
        for volume in &vm.volumes {
            log.info(&volume.to_string());
        }
        self.story.guest = Some(GuestFacts {
            vmid: vm.vmid,
            kind: GuestKind::Qemu.as_str(),
            name: self.env.hostname.clone(),
            running: self.running,
            disks: vm.volumes.iter().map(Into::into).collect(),
        });
        vm.find_disks(self.job.volumes)?;
        Ok(vm)
    }

    fn announce_mode(&self) {
        let (log, options) = (&self.job.log, self.job.options);
        log.info(&format!("backup mode: {}", self.mode.as_str()));
        if options.bwlimit > 0 {
            log.info(&format!("bandwidth limit: {} KiB/s", options.bwlimit));
        }
        log.info(&format!("ionice priority: {}", options.ionice));
    }

    /// After the lock is gone: the phases in which the original lets a stopped or suspended guest go on, whatever became of the
    /// backup. Ours went on long ago; a hook that fails here changes nothing any more.
    fn after_unlock(&self) {
        if !self.restart {
            return;
        }
        let restart = || -> Result<(), GuestError> {
            self.call_hook("pre-restart", false)?;
            if self.mode == Mode::Suspend && !self.paused {
                self.job.log.info("resume vm");
                self.power.resume()?;
            } else if self.mode == Mode::Stop && self.still_since.get().is_some() {
                self.job.log.info("restarting vm");
            }
            self.call_hook("post-restart", false)
        };
        match (restart(), self.still_since.take()) {
            (Err(error), _) => self.job.log.line(Kind::Bare, &error.to_string()),
            (Ok(()), None) => {}
            (Ok(()), Some(since)) => {
                let seconds = since.elapsed().as_secs();
                let seconds = if seconds == 0 { "<1".to_owned() } else { seconds.to_string() };
                self.job.log.info(&format!("guest is online again after {seconds} seconds"));
            }
        }
    }

    /// Says that the guest goes on; after how long, the first time.
    pub(super) fn say_resumed(&self) {
        if self.paused {
            return;
        }
        let after = self.still_since.take().map(|since| {
            // The original counts whole seconds and never less than one.
            format!(" after {} seconds", since.elapsed().as_secs().max(1))
        });
        self.job.log.info(&format!("resuming VM again{}", after.unwrap_or_default()));
    }

    /// Chooses the names of archive and log.
    fn name_archive(&mut self) -> Result<(), GuestError> {
        self.job.destination.check(self.job.host, self.job.volumes)?;
        self.name_from(self.job.host.now().datetime())
    }

    /// The first name from `moment` on that is free; from now on hooks see it.
    fn name_from(&mut self, moment: DateTime) -> Result<(), GuestError> {
        let (job, dir) = (self.job, &self.job.destination.dump_dir);
        if job.destination.pbs.is_some() {
            let snapshot = Snapshot { vmid: self.vmid.get(), time: job.host.now().timestamp().as_second() };
            self.env.vmtype = Some(GuestKind::Qemu.as_str().into());
            self.env.target = Some(snapshot.to_string());
            self.snapshot = Some(snapshot);
            return Ok(());
        }
        let extension = job.compression().suffix();
        let names = job.destination.names(job.host)?;
        let taken = |base: &str| names.iter().any(|name| name.starts_with(base));
        let name = ArchiveName::fresh(GuestKind::Qemu, self.vmid, moment, &format!("vma{extension}"), taken);
        self.env.vmtype = Some(GuestKind::Qemu.as_str().into());
        self.env.logfile = Some(name.log(dir).display().to_string());
        let target = if job.options.stdout { "-".to_owned() } else { name.path(dir).display().to_string() };
        self.env.target = Some(target);
        self.name = Some(name);
        Ok(())
    }

    /// Takes possession of the name, before anything is done to the guest and before a hook hears of it: another node, or
    /// another cluster with a guest of this number, may write into the same directory.
    fn reserve(&mut self, held: &mut Held) -> Result<(), GuestError> {
        while let Some(name) = self.name.clone().filter(|_| !self.job.options.stdout) {
            let draft = name.draft(&self.job.destination.dump_dir);
            let intent = Intent::File { path: draft.clone(), in_qemu: false };
            held.note(&intent)?;
            let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&draft);
            match made {
                Ok(_) if self.is_alone(&name)? => break,
                Ok(_) => std::fs::remove_file(&draft).map_err(|source| GuestError::File {
                    what: "removing",
                    path: draft,
                    source,
                })?,
                Err(source) if source.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(source) => {
                    held.done(&intent)?;
                    return Err(GuestError::File { what: "creating", path: draft, source });
                }
            }
            // It is not ours.
            held.done(&intent)?;
            self.name_from(name.time)?;
        }
        Ok(())
    }

    /// Whether nothing but our draft has this name: another run may have taken it with another extension, or have come and
    /// gone since we looked.
    fn is_alone(&self, name: &ArchiveName) -> Result<bool, GuestError> {
        let (base, ours) = (name.base(), name.draft(Path::new("")));
        let names = self.job.destination.names(self.job.host)?;
        Ok(!names.iter().any(|other| other.starts_with(&base) && Path::new(other) != ours))
    }

    fn publish_log(&self, state: GuestState) {
        let job = self.job;
        if let (Some(repository), Some(snapshot)) = (&job.destination.pbs, &self.snapshot) {
            return self.upload_log(repository, snapshot, state);
        }
        let log = self.name.as_ref().map(|name| name.log(&job.destination.dump_dir));
        // The log of a guest whose storage went away must not land beside the empty mount point.
        let reachable = if log.is_some() { job.destination.check(job.host, job.volumes) } else { Ok(()) };
        let closed = job.log.close_guest(log.as_deref().filter(|_| reachable.is_ok()));
        if let Err(reason) = reachable.map_err(|e| e.to_string()).and(closed.map_err(|e| e.to_string())) {
            let path = log.unwrap_or_default();
            job.log.warn(&format!("cannot store the log of VM {} as '{}': {reason}", self.vmid, path.display()));
        }
    }

    fn hook(&self, phase: &str) -> Result<(), GuestError> {
        self.job.check_interrupted()?;
        self.call_hook(phase, true)
    }

    /// Phases that clean up: they run also after a signal, and can only warn.
    fn hook_or_warn(&self, phase: &str) {
        if let Err(error) = self.call_hook(phase, false) {
            self.job.log.job_line(Kind::Warn, &error.to_string());
        }
    }

    fn call_hook(&self, phase: &str, interruptible: bool) -> Result<(), GuestError> {
        let args = [phase, self.mode.as_str(), &self.vmid.to_string()];
        let mut story = self.story.clone();
        story.outcome.seconds = Some(self.begun.elapsed().as_secs_f64());
        Ok(self.job.call_hook(&args, &self.env, &story, interruptible)?)
    }
}
