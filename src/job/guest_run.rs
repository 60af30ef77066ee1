//! One guest's part of a job: what is the same for a VM and a container, from the choice of its archive's name to its log
//! (see "One guest" and "Hook script" in the facts about vzdump). The phases between are [`super::vm_run`]'s and
//! [`super::container_run`]'s. Whatever fails is undone from the guest's record.

use std::cell::Cell;
use std::io::ErrorKind::NotFound;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

use jiff::civil::DateTime;

use super::Job;
use super::cluster;
pub(super) use super::guest_error::GuestError;
use super::hooks::HookEnv;
use super::hooks::describe::{Outcome, State, Story};
use super::log::Kind;
use super::report::{GuestReport, GuestState};
use super::unlock;
use crate::config::Residence;
use crate::guest::conffile;
use crate::guest::held::{Held, HeldError};
use crate::guest::power::Power;
use crate::guest::record::Intent;
use crate::schema::size::clock;
use crate::schema::{Mode, Vmid};
use crate::storage::pbs::Snapshot;
use crate::storage::{ArchiveName, GuestKind};

/// A guest while it is worked on.
pub(super) struct GuestRun<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) vmid: Vmid,
    /// VM or container.
    pub(super) kind: GuestKind,
    pub(super) mode: Mode,
    pub(super) power: Power,
    pub(super) running: bool,
    /// Whether it was stopped or suspended for the backup, so that the phases of its restart have to follow.
    pub(super) restart: bool,
    /// Since when it stands still for the backup; none as soon as the log says that it goes on.
    pub(super) still_since: Cell<Option<Instant>>,
    /// Whether it stood still before we came.
    pub(super) paused: bool,
    /// The QEMU process in which it runs when the run begins.
    pub(super) qemu: Option<u32>,
    /// Name of the archive; none as long as the guest was not found.
    pub(super) name: Option<ArchiveName>,
    /// Bytes of the archive, once it is complete.
    size: u64,
    /// The same on a backup server.
    pub(super) snapshot: Option<Snapshot>,
    pub(super) env: HookEnv,
    /// What hooks are told beside it.
    pub(super) story: Story,
    /// What the archive does not have, in the words of the log.
    pub(super) left_out: Vec<String>,
    begun: Instant,
}

/// Backs up guest `vmid`, which the cluster knows as `known`; everything is told to the log.
pub(super) fn run(job: &Job<'_>, vmid: Vmid, known: Option<&Residence>) -> GuestReport {
    let begun = Instant::now();
    let mut run = GuestRun {
        job,
        vmid,
        kind: known.filter(|guest| guest.kind == "lxc").map_or(GuestKind::Qemu, |_| GuestKind::Lxc),
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
        left_out: Vec::new(),
        begun,
    };
    let result = run.check(known).and_then(|()| run.backup());
    let seconds = begun.elapsed().as_secs();
    // Once more, where nobody reads over it.
    run.left_out.iter().for_each(|line| job.log.info(line));
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
    let (name, target) = (run.env.hostname, run.env.target);
    GuestReport { vmid, state, name, seconds, size: run.size, target, log, left_out: run.left_out }
}

impl GuestRun<'_> {
    /// What can be said before the guest has a log.
    fn check(&self, known: Option<&Residence>) -> Result<(), GuestError> {
        let kind = known.map(|guest| guest.kind.as_str()).filter(|kind| matches!(*kind, "qemu" | "lxc"));
        kind.ok_or(GuestError::NotFound(self.vmid))?;
        if self.mode == Mode::Stop && cluster::ha_keeps_running(self.job.host, self.vmid)? {
            return Err(GuestError::HighAvailability);
        }
        Ok(())
    }

    fn backup(&mut self) -> Result<(), GuestError> {
        let (job, vmid, kind) = (self.job, self.vmid, self.kind);
        job.check_quota(kind, vmid)?;
        self.name_archive()?;
        job.log.open_guest(kind.as_str(), vmid.get()).map_err(|e| GuestError::Log(vmid, e))?;
        job.log.announce(Kind::Info, &format!("Starting Backup of VM {vmid} ({kind})"));
        job.log.job_line(Kind::Info, &format!("Backup started at {}", job.time()));
        if conffile::read(job.host, vmid.get()).map_err(|e| GuestError::Config(vmid, e))?.is_none() {
            return Err(GuestError::Vanished(vmid, job.host.node().to_owned()));
        }
        if kind == GuestKind::Lxc { self.backup_container() } else { self.backup_vm() }
    }

    fn vanished(&self) -> GuestError {
        let dir = if self.kind == GuestKind::Lxc { "lxc" } else { "qemu-server" };
        GuestError::VanishedSince(self.vmid, self.job.host.node().to_owned(), dir)
    }

    /// Says what the guest is doing, then makes it ours.
    pub(super) fn hold(&self) -> Result<Held, GuestError> {
        let job = self.job;
        job.log.info(&format!("status = {}", if self.running { "running" } else { "stopped" }));
        let held = Held::take(job.host, self.vmid.get(), "vzdump", &mut |line| job.log.info(line));
        held.map_err(|error| match error {
            HeldError::Config { source, .. } if source.kind() == NotFound => self.vanished(),
            other => other.into(),
        })
    }

    /// Undoes what is still noted, the lock last. `done` says whether there is a backup.
    pub(super) fn let_go(&self, held: Held, done: bool) {
        let job = self.job;
        let report = held.release();
        // With an archive that is complete, what could not be put back is a warning, and so in the task's state.
        let tell = |line: &String| if done { job.log.warn(line) } else { job.log.error(line) };
        report.failed.iter().for_each(tell);
        if !done {
            // The lock, the reserved file and the place of our own sockets go with every backup that fails; the original has no
            // word for it.
            let draft = self.name.as_ref().map(|name| name.draft(&job.destination.dump_dir).display().to_string());
            let draft = |line: &str| draft.as_ref().is_some_and(|draft| line.contains(draft));
            let ordinary = |line: &str| line.contains("lock") || line.contains("'/var/run/vzkeep/") || draft(line);
            report.done.iter().filter(|line| !ordinary(line)).for_each(|line| job.log.info(line));
        }
    }

    /// The guest's config, while it is ours.
    pub(super) fn read_config(&self) -> Result<Vec<u8>, GuestError> {
        let text = conffile::read(self.job.host, self.vmid.get()).map_err(|e| GuestError::Config(self.vmid, e))?;
        text.ok_or_else(|| self.vanished())
    }

    /// The archive is there: what comes after it, up to its last hook.
    pub(super) fn complete(&mut self, held: &mut Held) -> Result<(), GuestError> {
        let job = self.job;
        let archive = || self.name.as_ref().map(|name| name.path(&job.destination.dump_dir));
        let size = || archive().and_then(|path| path.metadata().ok()).map(|archive| archive.len());
        // Now: a hook may take it somewhere else.
        self.size = size().filter(|_| !job.options.stdout).unwrap_or(0);
        if !job.options.stdout {
            self.dress(held)?;
        }
        self.story.outcome.size = size();
        self.hook("backup-end")
    }

    /// As in "guest is online again after 3 seconds": since it stood still, if it does.
    pub(super) fn stood_still(&self) -> Option<String> {
        let seconds = self.still_since.take()?.elapsed().as_secs();
        Some(if seconds == 0 { "<1".to_owned() } else { seconds.to_string() })
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

    pub(super) fn announce_mode(&self) {
        let (log, options) = (&self.job.log, self.job.options);
        log.info(&format!("backup mode: {}", self.mode.as_str()));
        if options.bwlimit > 0 {
            log.info(&format!("bandwidth limit: {} KiB/s", options.bwlimit));
        }
        log.info(&format!("ionice priority: {}", options.ionice));
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
            self.env.vmtype = Some(self.kind.as_str().into());
            self.env.target = Some(snapshot.to_string());
            self.snapshot = Some(snapshot);
            return Ok(());
        }
        let format = if self.kind == GuestKind::Lxc { "tar" } else { "vma" };
        let extension = format!("{format}{}", job.compression().suffix());
        let names = job.destination.names(job.host)?;
        let taken = |base: &str| names.iter().any(|name| name.starts_with(base));
        let name = ArchiveName::fresh(self.kind, self.vmid, moment, &extension, taken);
        self.env.vmtype = Some(self.kind.as_str().into());
        self.env.logfile = Some(name.log(dir).display().to_string());
        let target = if job.options.stdout { "-".to_owned() } else { name.path(dir).display().to_string() };
        self.env.target = Some(target);
        self.name = Some(name);
        Ok(())
    }

    /// Takes possession of the name, before anything is done to the guest and before a hook hears of it: another node, or
    /// another cluster with a guest of this number, may write into the same directory.
    pub(super) fn reserve(&mut self, held: &mut Held) -> Result<(), GuestError> {
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

    pub(super) fn hook(&self, phase: &str) -> Result<(), GuestError> {
        self.job.check_interrupted()?;
        self.call_hook(phase, true)
    }

    /// Phases that clean up: they run also after a signal, and can only warn.
    fn hook_or_warn(&self, phase: &str) {
        if let Err(error) = self.call_hook(phase, false) {
            self.job.log.job_line(Kind::Warn, &error.to_string());
        }
    }

    pub(super) fn call_hook(&self, phase: &str, interruptible: bool) -> Result<(), GuestError> {
        let args = [phase, self.mode.as_str(), &self.vmid.to_string()];
        let mut story = self.story.clone();
        story.outcome.seconds = Some(self.begun.elapsed().as_secs_f64());
        Ok(self.job.call_hook(&args, &self.env, &story, interruptible)?)
    }
}
