//! The phases of a container's backup between its lock and its release, each in the order and with the words of the original.
//! The container comes first: it stands still only as long as its data needs an instant, and never because a hook or a terminal
//! takes its time.

use std::path::Path;
use std::time::{Duration, Instant};

use super::container_copy::Place;
use super::guest_run::{GuestError, GuestRun};
use super::hooks::describe::GuestFacts;
use super::log::Kind;
use crate::config::{ContainerConfig, MountPoint};
use crate::guest::container::freeze::{Freezer, Frozen};
use crate::guest::container::mounts::{MountError, Room};
use crate::guest::container::power::ContainerPower;
use crate::guest::container::tree::{Excludes, Sync};
use crate::guest::container::{Container, mount_place, mounts, view};
use crate::guest::held::Held;
use crate::guest::record::Intent;
use crate::schema::Mode;

/// How long the first copy may take; the container runs meanwhile.
const FIRST_COPY: Duration = Duration::from_secs(30 * 24 * 3600);

impl GuestRun<'_> {
    pub(super) fn backup_container(&mut self) -> Result<(), GuestError> {
        let power = ContainerPower::new(self.job.host, self.vmid.get());
        self.running = power.is_running()?;
        let mut held = self.hold()?;
        let mut place = Place::default();
        let result = self.container_locked(&power, &mut place, &mut held);
        // From here on as the original: the lock goes, what was made for the backup goes, then a container that was stopped runs
        // again. What fails is undone by the release, from the record.
        if let Err(error) = held.unlock() {
            self.job.log.warn(&error.to_string());
        }
        let cleared = self.clear(place, &mut held);
        self.restart_container(&power, &mut held);
        if let (Ok(()), Err(error)) = (&result, cleared) {
            self.job.log.warn(&error.to_string());
        }
        self.let_go(held, result.is_ok());
        result
    }

    /// What happens while the config carries our lock.
    fn container_locked(
        &mut self,
        power: &ContainerPower,
        place: &mut Place,
        held: &mut Held,
    ) -> Result<(), GuestError> {
        if self.job.destination.pbs.is_some() {
            return Err(GuestError::NotToServer("containers cannot be backed up to"));
        }
        // A killed run may have left it switched off, and taking it switched it on again.
        self.running = power.is_running()?;
        let container = Container::new(self.vmid.get(), ContainerConfig::parse(&self.read_config()?))?;
        let mut freezer = None;
        if self.running {
            let init = power.init()?;
            self.qemu = Some(init);
            // Only to see whether somebody else lets it stand still.
            let of = Freezer::of(container.vmid, init);
            freezer = if self.mode == Mode::Stop { of.ok() } else { Some(of?) };
        } else {
            self.mode = Mode::Stop;
        }
        let frozen = freezer.as_ref().map(Freezer::is_frozen).transpose();
        self.paused = match self.mode {
            Mode::Stop => matches!(frozen, Ok(Some(true))),
            _ => frozen?.unwrap_or(false),
        };
        if self.paused && self.mode == Mode::Stop {
            return Err(GuestError::FrozenBefore(self.vmid));
        }
        let mut snapshots = Vec::new();
        if self.mode == Mode::Snapshot {
            self.describe(&container);
            match self.plan_snapshots(&container)? {
                Some(planned) => snapshots = planned,
                None => {
                    self.job.log.info("mode failure - some volumes do not support snapshots");
                    self.job.log.info("trying 'suspend' mode instead");
                    self.mode = Mode::Suspend;
                }
            }
        }
        self.announce_mode();
        if self.mode != Mode::Snapshot {
            self.describe(&container);
        }
        let excludes = Excludes::new(&self.job.options.exclude_path, self.job.options.stdexcludes);
        for useless in excludes.useless() {
            self.job.log.warn(&format!(
                "exclude-path '{useless}' excludes nothing, because it ends with '/': '{}' excludes the directory, '{useless}?*' what is in it",
                useless.trim_end_matches('/')
            ));
        }
        self.reserve(held)?;
        self.make_place(&container, place, held)?;
        match (self.mode, &freezer) {
            (Mode::Snapshot, Some(freezer)) => {
                self.remove_left_over(&container)?;
                self.hook("backup-start")?;
                self.hook("pre-stop")?;
                self.take_snapshots(freezer, snapshots, place, held)?;
            }
            (Mode::Suspend, Some(freezer)) => {
                self.hook("backup-start")?;
                self.copy_tree(&container, &excludes, (power, freezer), place, held)?;
            }
            _ => {
                self.hook("backup-start")?;
                if self.running {
                    self.stop_container(power, held)?;
                }
            }
        }
        if self.mode == Mode::Stop && power.is_running()? {
            // Somebody started it meanwhile: mounting its volumes a second time would destroy them.
            return Err(GuestError::StartedMeanwhile(self.vmid));
        }
        self.archive_container(&container, &excludes, place, held)?;
        self.complete(held)
    }

    /// Lists the volumes, and remembers what the archive will not have.
    fn describe(&mut self, container: &Container) {
        let log = &self.job.log;
        let name = container.config.hostname();
        name.iter().for_each(|name| log.info(&format!("CT Name: {name}")));
        container.points.iter().for_each(|point| log.info(&point.log_line()));
        let left_out = |(point, why): (&MountPoint, &str)| {
            let MountPoint { key, mp, source, .. } = point;
            let what = source.kind();
            format!("NOT in this backup: {what} mount point {key} ('{mp}') from '{}' ({why})", source.as_str())
        };
        self.left_out = container.excluded().map(left_out).collect();
        self.env.hostname = Some(name.unwrap_or_else(|| format!("CT{}", self.vmid)));
        self.story.guest = Some(GuestFacts {
            vmid: container.vmid,
            kind: self.kind.as_str(),
            name: container.config.hostname(),
            running: self.running,
            disks: container.points.iter().map(Into::into).collect(),
        });
    }

    /// Lets the container stand still, if it is not somebody else who does.
    pub(super) fn freeze_container(
        &self,
        freezer: &Freezer,
        most: Duration,
        held: &mut Held,
    ) -> Result<Option<Frozen>, GuestError> {
        if self.paused {
            return Ok(None);
        }
        held.note(&Intent::StandsStill { freezer: freezer.file().to_owned() })?;
        self.still_since.set(Some(Instant::now()));
        Ok(Some(freezer.freeze(most, self.job.cancel)?))
    }

    /// Lets it go on; how long it stood still. One that cannot be thawed stays noted.
    pub(super) fn thaw_container(
        &self,
        freezer: &Freezer,
        frozen: Option<Frozen>,
        held: &mut Held,
    ) -> Result<Option<Duration>, GuestError> {
        let Some(frozen) = frozen else { return Ok(None) };
        let stood = frozen.thaw()?;
        held.done(&Intent::StandsStill { freezer: freezer.file().to_owned() })?;
        Ok(Some(stood))
    }

    pub(super) fn say_online(&self, stood: Option<Duration>) {
        if let Some(stood) = stood {
            self.still_since.take();
            let seconds = if stood.as_secs() == 0 { "<1".to_owned() } else { stood.as_secs().to_string() };
            self.job.log.info(&format!("guest is online again after {seconds} seconds"));
            self.job.log.info(&format!("the container stood still for {:.3} seconds", stood.as_secs_f64()));
        }
    }

    /// Two copies: a long one while it runs, a short one of what changed meanwhile while it stands still.
    fn copy_tree(
        &self,
        container: &Container,
        excludes: &Excludes,
        (power, freezer): (&ContainerPower, &Freezer),
        place: &Place,
        held: &mut Held,
    ) -> Result<(), GuestError> {
        let (job, log) = (self.job, &self.job.log);
        let root = format!("/proc/{}/root", self.qemu.unwrap_or_default());
        let room = Room::open(job.host)?;
        let points: Vec<(&str, &str)> = container.included().map(|p| (p.key.as_str(), p.mp.as_str())).collect();
        let viewed = match room.view(&mount_place(), self.qemu.unwrap_or_default(), &points) {
            Ok(()) => true,
            Err(error) if error.is_refusal() => {
                log.warn(&format!("reading the container by its paths, as it cannot be seen otherwise: {error}"));
                false
            }
            Err(error) => return Err(error.into()),
        };
        let places: Vec<&str> = points.iter().map(|(_, mp)| *mp).collect();
        let covered = view::covered(self.qemu.unwrap_or_default(), &places);
        for place in covered.map_err(MountError::Room)? {
            log.warn(&format!(
                "in the container something is mounted over its volume at '{place}': the backup has that, not the volume"
            ));
        }
        let sync = Sync {
            from: if viewed { job.host.path(mount_place()) } else { root.clone().into() },
            room: viewed.then_some(&room),
            to: &place.tree,
            mount_points: container.included().map(|point| point.mp.as_str()).collect(),
            not: container.excluded().map(|(point, _)| point.mp.as_str()).collect(),
            excludes,
            attributes: place.attributes,
            bwlimit: job.options.bwlimit,
        };
        let copy = |text: &str, first: bool, most: Duration, said: &mut Vec<String>| {
            // A link in the container would lead the copy to files of the node.
            for point in container.included().filter(|_| !viewed) {
                mounts::check_inside(Path::new(&root), &point.key, &point.mp)?;
            }
            let begun = Instant::now();
            let transferred = sync.run(job.host, first, most, job.cancel, said)?;
            let seconds = begun.elapsed().as_secs();
            Ok::<_, GuestError>(format!("{text} sync finished - transferred {} in {seconds}s", in_bytes(&transferred)))
        };
        let starting = |text: &str| log.info(&format!("starting {text} sync {root}/ to {}", place.tree.display()));
        let tell = |said: &mut Vec<String>| said.drain(..).for_each(|line| log.info(&line));
        let mut said = Vec::new();
        starting("first");
        let copied = copy("first", true, FIRST_COPY, &mut said);
        tell(&mut said);
        log.info(&copied?);
        log.info("suspending guest");
        self.hook("pre-stop")?;
        starting("final");
        let most = Duration::from_secs(60 * job.options.stopwait.max(1));
        let frozen = self.freeze_container(freezer, most, held)?;
        // The number of its first process may be another's by now.
        let same = power
            .init()
            .map_err(GuestError::from)
            .and_then(|init| if Some(init) == self.qemu { Ok(()) } else { Err(GuestError::StartedAnew(self.vmid)) });
        let copied = same.and_then(|()| copy("final", false, most, &mut said));
        let stood = self.thaw_container(freezer, frozen, held);
        tell(&mut said);
        let closed = room.close();
        log.info(&copied?);
        closed?;
        log.info("resuming guest");
        let stood = stood?;
        self.hook("pre-restart")?;
        self.hook("post-restart")?;
        self.say_online(stood);
        Ok(())
    }

    /// Asks it to shut down. A container that does not goes on running, and the backup has failed.
    fn stop_container(&mut self, power: &ContainerPower, held: &mut Held) -> Result<(), GuestError> {
        self.job.log.info("stopping virtual guest");
        self.still_since.set(Some(Instant::now()));
        self.hook("pre-stop")?;
        held.note(&Intent::ShutDown { qemu: self.qemu })?;
        self.restart = true;
        let patience = Duration::from_secs(60 * self.job.options.stopwait);
        let off = power.shutdown(patience, self.job.cancel, &mut |line| self.job.log.info(line));
        if off.is_err() {
            // It may still be about to end: then it has to be started again, but nobody waits longer than was asked for.
            held.leaving = patience.clamp(super::vm_run::LINGER, held.leaving.max(super::vm_run::LINGER));
            self.restart = false;
        }
        Ok(off?)
    }

    /// Starts a container that was stopped for its backup, whatever became of that.
    fn restart_container(&self, power: &ContainerPower, held: &mut Held) {
        if !self.restart {
            return;
        }
        let mut restart = || -> Result<(), GuestError> {
            self.call_hook("pre-restart", false)?;
            self.job.log.info("restarting vm");
            if !power.is_running()? {
                power.start()?;
            }
            held.done(&Intent::ShutDown { qemu: self.qemu })?;
            self.call_hook("post-restart", false)
        };
        match (restart(), self.stood_still()) {
            (Err(error), _) => self.job.log.line(Kind::Bare, &error.to_string()),
            (Ok(()), None) => {}
            (Ok(()), Some(seconds)) => self.job.log.info(&format!("guest is online again after {seconds} seconds")),
        }
    }
}

/// As in the log: `75.42M bytes`, where rsync says `75.42M bytes` or, of an older kind, `75.42M`.
fn in_bytes(transferred: &str) -> String {
    if transferred.ends_with("bytes") { transferred.to_owned() } else { format!("{transferred} bytes") }
}
