//! The archive step of one guest: opens its disks at one instant, copies them into the archive, lets the guest go on as early
//! as it can, and takes everything away again.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::guest_run::{GuestError, GuestRun};
use super::progress::ProgressLines;
use crate::guest::fleece::FleecingVolumes;
use crate::guest::held::Held;
use crate::guest::monitor::{agent_socket, qmp_socket, resume};
use crate::guest::record::Intent;
use crate::guest::vm::Vm;
use crate::image::{Image, ImageError, MemImage, open_image};
use crate::qemu::{Agent, DiskSpec, Fleecing, FsFreeze, Qmp, Session, SessionSpec};
use crate::schema::Mode;
use crate::storage::Draft;
use crate::transfer::{self, Backup, BackupDisk, DEFAULT_MEMORY, Output, Summary, TransferError};

/// How long a guest agent may take to answer or to freeze: longer, and the guest would stand still for it.
const FREEZE_PATIENCE: Duration = Duration::from_secs(10);
/// How long the monitor may be in use by somebody else.
const QMP_PATIENCE: Duration = Duration::from_secs(30);

/// The disks at their instant, and what has to go when they were read.
struct Opened {
    disks: Vec<BackupDisk>,
    session: Option<Session>,
    fleecing: FleecingVolumes,
}

impl GuestRun<'_> {
    /// Writes the archive. Returns its size in bytes, `None` when it went to standard output.
    pub(super) fn archive(&self, vm: &Vm, held: &mut Held, stopped_at: Instant) -> Result<Option<u64>, GuestError> {
        let log = &self.job.log;
        let target = self.name.as_ref().filter(|_| !self.job.options.stdout);
        let target = target.map(|name| name.path(&self.job.destination.dump_dir));
        match &target {
            Some(path) => log.info(&format!("creating vzdump archive '{}'", path.display())),
            None => log.info("sending archive to stdout"),
        }
        if vm.disks.is_empty() {
            log.info("backup contains no disks");
            log.info("starting diskless backup");
        }
        let uuid = uuid::Uuid::new_v4();
        let mut draft = target.map(|path| self.draft(path, held)).transpose()?;
        let opened = if self.running { self.open_running(vm, held, stopped_at)? } else { self.open_stopped(vm)? };
        if !vm.disks.is_empty() {
            log.info(&format!("started backup task '{uuid}'"));
        }
        if self.running {
            self.go_on(held, stopped_at, !vm.disks.is_empty())?;
        }
        let result = self.copy(vm, &opened, uuid, draft.as_mut());
        if let Err(error) = &result {
            log.error(&error.to_string());
            log.info("aborting backup job");
        }
        let closed = self.close(opened, held);
        if result.is_err() && self.running {
            log.info("resuming VM again");
        }
        result?;
        closed?;
        let Some(draft) = draft else { return Ok(None) };
        let (intent, path) = (draft_intent(&draft), draft.final_path().to_owned());
        draft.commit()?;
        held.done(&intent)?;
        let size = std::fs::metadata(&path).map_err(|source| GuestError::File { what: "reading", path, source })?.len();
        Ok(Some(size))
    }

    fn draft(&self, path: PathBuf, held: &mut Held) -> Result<Draft, GuestError> {
        held.note(&Intent::File { path: path.with_extension("dat"), in_qemu: false })?;
        Ok(Draft::create(&path)?)
    }

    fn open_stopped(&self, vm: &Vm) -> Result<Opened, GuestError> {
        let disks = vm.open_stopped(self.job.host)?;
        Ok(Opened { disks, session: None, fleecing: FleecingVolumes::default() })
    }

    /// Fixes the disks of the guest at one instant. In stop mode QEMU is started for that, and the guest waits in it.
    fn open_running(&self, vm: &Vm, held: &mut Held, stopped_at: Instant) -> Result<Opened, GuestError> {
        let (job, log) = (self.job, &self.job.log);
        if self.mode == Mode::Stop {
            log.info("starting kvm to execute backup task");
            self.power.start_paused()?;
        }
        if vm.disks.is_empty() {
            return Ok(Opened { disks: Vec::new(), session: None, fleecing: FleecingVolumes::default() });
        }
        job.check_interrupted()?;
        let fleecing = FleecingVolumes::allocate(job.host, job.storages, &job.options.fleecing, vm, held, log)?;
        let frozen = self.freeze(vm, held)?;
        log.info("starting backup via QMP command");
        let started = self.start_session(vm, held, &fleecing);
        if let Some(frozen) = frozen {
            log.info("issuing guest-agent 'fs-thaw' command");
            match frozen.thaw() {
                Ok(_) => held.done(&Intent::Frozen)?,
                // Noted as frozen still: recovery goes on trying when the guest is let go.
                Err(e) => log.warn(&e.to_string()),
            }
        }
        let (session, beside) = started?;
        let still = session.paused_for();
        if !still.is_zero() {
            log::stood_still(self, still);
        }
        let disks = vm.open_running(Some(&session), &beside)?;
        let _ = stopped_at;
        Ok(Opened { disks, session: Some(session), fleecing })
    }
}
