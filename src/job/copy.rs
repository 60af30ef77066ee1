//! The archive step of one guest: opens its disks at one instant, copies them into the archive, lets the guest go on as early
//! as it can, and takes everything away again.

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::guest_run::{GuestError, GuestRun};
use super::progress::ProgressLines;
use super::steady::steady;
use crate::guest::fleecing::{self, FleecingError, FleecingVolumes};
use crate::guest::held::Held;
use crate::guest::monitor::{agent_socket, qmp_socket, resume};
use crate::guest::record::Intent;
use crate::guest::vm::Vm;
use crate::image::{ImageError, MemImage, open_image};
use crate::qemu::{Agent, FsFreeze, Moment, QemuError, Qmp, Session, SessionSpec};
use crate::schema::Mode;
use crate::schema::size::archive_size;
use crate::transfer::{Backup, BackupDisk, DEFAULT_MEMORY, Draft, Output, Progress, TransferError, backup};

/// How long a guest agent may take to answer: an agent that is not there must not hold up the backup.
const AGENT_PATIENCE: Duration = Duration::from_secs(5);
/// How long a freeze may take; afterwards it is taken back.
const FREEZE_PATIENCE: Duration = Duration::from_secs(60);
/// How long the monitor may be in use by somebody else.
pub(super) const QMP_PATIENCE: Duration = Duration::from_secs(30);

/// Disks that QEMU does not have, by device, as they were at the instant.
type Beside = Vec<(String, Arc<MemImage>)>;

/// Size in bytes of the largest disk that is read whole into memory; the state of a TPM has 4 MiB.
const MOST_BESIDE: u64 = 64 << 20;

/// The disks at their instant, and what has to go when they were read.
#[derive(Default)]
struct Opened {
    // Declared before the session: the readers say goodbye first.
    disks: Vec<BackupDisk>,
    session: Option<Session>,
    fleecing: FleecingVolumes,
}

impl GuestRun<'_> {
    /// Writes the archive, and takes everything away that this took.
    pub(super) fn archive(&self, vm: &Vm, held: &mut Held) -> Result<(), GuestError> {
        let log = &self.job.log;
        let target = self.name.as_ref().filter(|_| !self.job.options.stdout);
        let target = target.map(|name| name.path(&self.job.destination.dump_dir));
        match &target {
            Some(path) => log.info(&format!("creating vzdump archive '{}'", path.display())),
            None => log.info("sending archive to stdout"),
        }
        let mut draft = target.map(|path| self.draft(&path)).transpose()?;
        let uuid = Uuid::new_v4();
        let opened = if self.running { self.open_running(vm, held, uuid) } else { self.open_stopped(vm, uuid) };
        let (opened, mut result) = match opened {
            Ok(opened) => {
                let result = self.copy(vm, &opened, uuid, draft.as_mut());
                (opened, result)
            }
            Err(error) => (Opened::default(), Err(error)),
        };
        if let Err(GuestError::Transfer(TransferError::Image(error))) = result {
            result = Err(explain(error, opened.session.as_ref()));
        }
        if let Err(error) = &result {
            log.error(&error.to_string());
            log.info("aborting backup job");
            if self.running {
                self.say_resumed();
            }
        }
        let Opened { disks, session, fleecing } = opened;
        drop(disks);
        let closed = self.close(session, held);
        result?;
        let fleecing_may_go = closed.is_ok();
        if let Some(draft) = draft {
            self.publish(draft, held)?;
        }
        // The archive is complete: what could not be taken away is said, and tried again by whoever lets the guest go.
        if let Err(error) = closed {
            log.warn(&error.to_string());
        }
        if fleecing_may_go && let Err(error) = self.free_fleecing(&fleecing, held) {
            log.warn(&error.to_string());
        }
        Ok(())
    }

    /// Gives the complete archive its name.
    pub(super) fn publish(&self, draft: Draft, held: &mut Held) -> Result<(), GuestError> {
        let intent = Intent::File { path: draft.path().to_owned(), in_qemu: false };
        let path = draft.final_path().to_owned();
        draft.commit()?;
        held.done(&intent)?;
        let size = std::fs::metadata(&path).map_err(|source| GuestError::File { what: "looking at", path, source })?;
        self.job.log.info(&format!("archive file size: {}", archive_size(size.len())));
        Ok(())
    }

    /// Opens the file that was reserved, if its storage is still the one it was reserved on.
    pub(super) fn draft(&self, path: &Path) -> Result<Draft, GuestError> {
        self.job.destination.check(self.job.host, self.job.volumes)?;
        Ok(Draft::create(path)?)
    }

    fn announce_task(&self, vm: &Vm, uuid: Uuid) {
        if vm.disks.is_empty() {
            self.job.log.info("backup contains no disks");
            self.job.log.info("starting diskless backup");
        } else {
            self.job.log.info(&format!("started backup task '{uuid}'"));
        }
    }

    fn open_stopped(&self, vm: &Vm, uuid: Uuid) -> Result<Opened, GuestError> {
        let opened = Opened { disks: vm.open_stopped(self.job.host)?, ..Opened::default() };
        self.announce_task(vm, uuid);
        Ok(opened)
    }

    /// Fixes the disks of the guest at one instant, and lets it go on. In stop mode QEMU is started for that, and the guest waits
    /// in it until the instant is over.
    fn open_running(&self, vm: &Vm, held: &mut Held, uuid: Uuid) -> Result<Opened, GuestError> {
        let (job, log) = (self.job, &self.job.log);
        if self.mode == Mode::Stop {
            log.info("starting kvm to execute backup task");
            self.power.start_paused()?;
        }
        let mut opened = Opened::default();
        if !vm.disks.is_empty() {
            job.check_interrupted()?;
            opened.fleecing = self.allocate_fleecing(vm, held)?;
            // Our turn at the monitor comes before the freeze: a guest must not stand frozen while somebody else uses it.
            drop(Qmp::connect_unless(&qmp_socket(job.host, vm.vmid), QMP_PATIENCE, job.cancel)?);
            let frozen = if self.mode == Mode::Stop { None } else { self.freeze(vm, held)? };
            // No line is printed while the guest stands frozen: a terminal that blocks would hold it.
            let started = self.start_session(vm, held, &opened.fleecing);
            let was_frozen = frozen.is_some();
            if let Some(frozen) = frozen {
                // A guest that stays frozen comes before the backup: it is given up, and whoever lets the guest go tries to
                // thaw it again, because it is still noted as frozen.
                frozen.thaw()?;
                held.done(&Intent::Frozen)?;
            }
            log.info("starting backup via QMP command");
            if was_frozen {
                log.info("issuing guest-agent 'fs-thaw' command");
            }
            let (session, beside) = started?;
            opened.disks = vm.open_running(&session, &beside)?;
            opened.session = session;
        }
        self.announce_task(vm, uuid);
        self.go_on(held)?;
        // The original lets a guest without disks stand still until its archive is there, and says so then.
        if !vm.disks.is_empty() {
            self.say_resumed();
        }
        Ok(opened)
    }

    fn allocate_fleecing(&self, vm: &Vm, held: &mut Held) -> Result<FleecingVolumes, GuestError> {
        let (job, wanted) = (self.job, &self.job.options.fleecing);
        if !wanted.enabled {
            return Ok(FleecingVolumes::default());
        }
        let storage = wanted.storage.as_deref().ok_or(FleecingError::NoStorage)?;
        let mut qmp = Qmp::connect_unless(&qmp_socket(job.host, vm.vmid), QMP_PATIENCE, job.cancel)?;
        let blocks = qmp.execute("query-block", serde_json::json!({}))?;
        drop(qmp);
        let size = |disk: &crate::guest::vm::VmDisk| {
            let device = disk.device();
            let devices = blocks.as_array().into_iter().flatten();
            let inserted = devices.map(|b| &b["inserted"]).find(|i| i["node-name"] == device.as_str());
            // A disk that is not there under that name is found, or missed, when the session starts.
            inserted.and_then(|i| i["image"]["virtual-size"].as_u64()).or(disk.disk.size()).unwrap_or_default()
        };
        let fleecing = FleecingVolumes::allocate(job.volumes, job.host, storage, vm, held, size)?;
        for (device, volid) in fleecing.iter() {
            job.log.info(&format!("{device}: attaching fleecing image {volid} to QEMU"));
        }
        Ok(fleecing)
    }

    /// Freezes the guest's file systems through its agent, if it has one and may.
    pub(super) fn freeze(&self, vm: &Vm, held: &mut Held) -> Result<Option<FsFreeze>, GuestError> {
        let (log, settings) = (&self.job.log, vm.config.agent());
        if !settings.enabled {
            log.info("skipping guest filesystem freeze - disabled in VM options");
            return Ok(None);
        }
        if !settings.freeze_fs_on_backup {
            log.info("skipping guest filesystem freeze - freeze-fs-on-backup is disabled in VM options");
            return Ok(None);
        }
        if self.mode == Mode::Suspend {
            log.info("skipping guest filesystem freeze - VM is suspended");
            return Ok(None);
        }
        let socket = agent_socket(self.job.host, vm.vmid);
        let Ok(agent) = Agent::connect(&socket, AGENT_PATIENCE) else {
            log.info("skipping guest filesystem freeze - agent configured but not running?");
            return Ok(None);
        };
        log.info("issuing guest-agent 'fs-freeze' command");
        held.note(&Intent::Frozen)?;
        match agent.freeze(AGENT_PATIENCE, FREEZE_PATIENCE) {
            Ok(frozen) => Ok(Some(frozen)),
            // The original goes on with a backup that is consistent as after a power failure.
            Err(e) => {
                log.warn(&format!("{e}; going on without frozen file systems"));
                // Whoever lets the guest go tries again to thaw, if there is anything to thaw.
                if !matches!(e, QemuError::StillFrozen { .. }) {
                    held.done(&Intent::Frozen)?;
                }
                Ok(None)
            }
        }
    }

    fn start_session(
        &self,
        vm: &Vm,
        held: &mut Held,
        fleecing: &FleecingVolumes,
    ) -> Result<(Option<Session>, Beside), GuestError> {
        let job = self.job;
        let directory = fleecing::directory(job.host, job.options.tmpdir.as_deref())?;
        let specs = fleecing.specs(job.volumes, vm, &directory)?;
        let socket_dir = job.host.path(format!("/var/run/vzkeep/{}", vm.vmid));
        held.note(&Intent::Dir { path: PathBuf::from(format!("/var/run/vzkeep/{}", vm.vmid)) })?;
        private_dir(&socket_dir)?;
        let qmp = qmp_socket(job.host, vm.vmid);
        held.note(&Intent::Session { qmp: PathBuf::from(format!("/var/run/qemu-server/{}.qmp", vm.vmid)) })?;
        if specs.is_empty() {
            return Ok((None, self.read_beside(vm)?));
        }
        let beside = RefCell::new(Ok(Vec::new()));
        let mut read_beside = |_: &mut Qmp, moment| {
            let mut last = beside.borrow_mut();
            *last = match (moment, &*last) {
                (Moment::After, Ok(before)) => steady(before, || self.read_beside(vm)),
                _ => self.read_beside(vm),
            };
            Ok(())
        };
        let mut spec = SessionSpec::new(vm.vmid, &qmp, &socket_dir, specs);
        if vm.disks.iter().any(|d| !d.is_in_qemu()) {
            spec.around_instant = Some(&mut read_beside);
        }
        let session = Session::start(spec, job.cancel)?;
        Ok((Some(session), beside.into_inner()?))
    }

    /// The disks that QEMU does not have, read whole: the TPM's state, a few MiB.
    fn read_beside(&self, vm: &Vm) -> Result<Beside, ImageError> {
        let beside = vm.disks.iter().filter(|d| !d.is_in_qemu());
        beside
            .map(|disk| {
                let device = disk.device();
                let image = open_image(self.job.host, &disk.path, &disk.format, &device)?;
                if image.size() > MOST_BESIDE {
                    let source = std::io::Error::other(format!("the state of a TPM has at most {MOST_BESIDE} bytes"));
                    return Err(ImageError { image: device, op: "read", offset: 0, len: image.size(), source });
                }
                let mut bytes = vec![0; usize::try_from(image.size()).unwrap_or_default()];
                image.read_at(&mut bytes, 0)?;
                Ok((device.clone(), Arc::new(MemImage::sparse(&device, bytes))))
            })
            .collect()
    }

    /// The instant is fixed: a guest that was stopped or suspended for it runs again.
    pub(super) fn go_on(&self, held: &mut Held) -> Result<(), GuestError> {
        if self.mode == Mode::Snapshot || self.paused {
            return Ok(());
        }
        let mut qmp = Qmp::connect_unless(&qmp_socket(self.job.host, self.vmid.get()), QMP_PATIENCE, self.job.cancel)?;
        resume(&mut qmp)?;
        drop(qmp);
        Ok(held.done(&if self.mode == Mode::Stop { self.shut_down() } else { Intent::Paused })?)
    }

    fn copy(&self, vm: &Vm, opened: &Opened, uuid: Uuid, draft: Option<&mut Draft>) -> Result<(), GuestError> {
        let (job, log) = (self.job, &self.job.log);
        let mut configs = vec![("qemu-server.conf".to_owned(), vm.config_blob())];
        let firewall = job.host.path(format!("/etc/pve/firewall/{}.fw", self.vmid));
        match std::fs::read(&firewall) {
            Ok(text) => configs.push(("qemu-server.fw".into(), text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(GuestError::File { what: "reading", path: firewall, source }),
        }
        let work = Backup {
            disks: opened.disks.clone(),
            configs,
            compression: job.compression(),
            uuid: *uuid.as_bytes(),
            ctime: job.host.now().timestamp().as_second(),
            bwlimit: (job.options.bwlimit > 0).then_some(job.options.bwlimit * 1024),
            max_workers: usize::try_from(job.options.performance.max_workers).unwrap_or(usize::MAX),
            memory: DEFAULT_MEMORY,
            host: job.host.clone(),
        };
        let output = match draft {
            Some(draft) => Output::Draft(draft),
            None => {
                let stdout = std::io::stdout().as_fd().try_clone_to_owned();
                let source = |source| GuestError::File { what: "opening", path: "stdout".into(), source };
                Output::Fd(stdout.map_err(source)?, "stdout".into())
            }
        };
        let mut lines = ProgressLines::start();
        let mut tell = |now: &Progress| {
            if let Some(line) = lines.due(now) {
                log.info(&line);
            }
        };
        let summary = backup(&work, output, &mut tell, job.cancel)?;
        if !vm.disks.is_empty() {
            lines.end(&summary).iter().for_each(|line| log.info(line));
        }
        Ok(())
    }

    /// Takes the session out of QEMU.
    fn close(&self, session: Option<Session>, held: &mut Held) -> Result<(), GuestError> {
        let Some(session) = session else { return Ok(()) };
        session.finish()?;
        held.done(&Intent::Session { qmp: PathBuf::from(format!("/var/run/qemu-server/{}.qmp", self.vmid)) })?;
        Ok(())
    }

    fn free_fleecing(&self, fleecing: &FleecingVolumes, held: &mut Held) -> Result<(), GuestError> {
        for (_, volid) in fleecing.iter() {
            self.job.log.info(&format!("removing (old) fleecing image '{volid}'"));
            self.job.volumes.free(&volid.parse().map_err(crate::storage::VolumeError::from)?)?;
            held.done(&Intent::Volume { volid: volid.to_owned(), in_qemu: true })?;
        }
        Ok(())
    }
}

/// A read through a session failed: was it the disk, or did the snapshot break because fleecing failed?
fn explain(error: ImageError, session: Option<&Session>) -> GuestError {
    let broken = session.and_then(|s| s.broken(&error.image, &error.source));
    match broken {
        Some(broken) => GuestError::SnapshotBroke(error.into(), broken.to_string()),
        None => GuestError::Transfer(error.into()),
    }
}

/// A directory that only root may enter, for sockets.
fn private_dir(path: &Path) -> Result<(), GuestError> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let failed = |source| GuestError::File { what: "making", path: path.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(failed)
}
