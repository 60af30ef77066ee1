//! Snapshot mode of a container: which snapshots its storages make, what an earlier run left of them, and the instant at which
//! they are taken.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::container_copy::Place;
use super::guest_run::{GuestError, GuestRun};
use crate::config::{ContainerConfig, MountPoint};
use crate::guest::conffile;
use crate::guest::container::Container;
use crate::guest::container::freeze::Freezer;
use crate::guest::container::snapshot::{NAME, SnapshotError, StorageSnapshot};
use crate::guest::held::Held;
use crate::guest::record::Intent;

/// How long a container may stand still while its storages make snapshots.
const SNAPSHOT_FREEZE: Duration = Duration::from_secs(60);
/// How long writing back what its file systems hold may take.
const FLUSH: Duration = Duration::from_secs(20);

impl GuestRun<'_> {
    /// The snapshots of all volumes that are backed up; none if one of them has none.
    pub(super) fn plan_snapshots(
        &self,
        container: &Container,
    ) -> Result<Option<Vec<(MountPoint, StorageSnapshot)>>, GuestError> {
        let mut planned = Vec::new();
        for point in container.included() {
            let Some(volid) = point.volid() else { return Ok(None) };
            match StorageSnapshot::of(self.job.host, self.job.volumes, volid)? {
                Some(snapshot) => planned.push((point.clone(), snapshot)),
                None => return Ok(None),
            }
        }
        Ok(Some(planned))
    }

    /// Removes snapshots of our name that an earlier run left, of all volumes, and their section in the config.
    pub(super) fn remove_left_over(&self, container: &Container) -> Result<(), GuestError> {
        let (job, vmid) = (self.job, self.vmid);
        let mut told = false;
        let mut tell = || {
            if !std::mem::replace(&mut told, true) {
                job.log.info("found old vzdump snapshot (force removal)");
            }
        };
        // Detached since, too: the next snapshot of such a volume would fail.
        let aside = container.config.aside(NAME);
        let in_use: BTreeSet<&str> = container.points.iter().filter_map(MountPoint::volid).collect();
        let detached: BTreeSet<&str> = aside.iter().map(String::as_str).filter(|id| !in_use.contains(id)).collect();
        for volid in in_use.union(&detached) {
            let snapshot = StorageSnapshot::of(job.host, job.volumes, volid);
            if detached.contains(volid) && !matches!(&snapshot, Ok(Some(of)) if of.exists(job.host) == Ok(true)) {
                // It is not backed up, and may be gone with its storage.
                continue;
            }
            let Some(snapshot) = snapshot? else { continue };
            let failed = |reason| GuestError::LeftOver { what: snapshot.to_string(), reason };
            if snapshot.exists(job.host).map_err(failed)? {
                tell();
                snapshot.remove(job.host).map_err(failed)?;
            }
        }
        if container.config.clone().remove_snapshot(NAME) {
            tell();
            let edited = conffile::edit(job.host, vmid.get(), |text| {
                let mut config = ContainerConfig::parse(&text.unwrap_or_default());
                Ok(config.remove_snapshot(NAME).then(|| config.to_bytes()))
            });
            edited.map_err(|error| GuestError::Config(vmid, error))?;
        }
        Ok(())
    }

    /// One instant of all volumes.
    pub(super) fn take_snapshots(
        &self,
        freezer: &Freezer,
        snapshots: Vec<(MountPoint, StorageSnapshot)>,
        place: &mut Place,
        held: &mut Held,
    ) -> Result<(), GuestError> {
        let (job, log) = (self.job, &self.job.log);
        let still = snapshots.len() > 1;
        if still {
            log.info("suspend vm to make snapshot");
        }
        log.info(&format!("create storage snapshot '{NAME}'"));
        // What is in the container's caches goes to its storages: most of it before, so that it stands still for less.
        self.flush(&snapshots);
        for (_, snapshot) in &snapshots {
            held.note(&Intent::StorageSnapshot { of: snapshot.clone() })?;
        }
        let frozen = if still { self.freeze_container(freezer, SNAPSHOT_FREEZE, held)? } else { None };
        if frozen.is_some() {
            self.flush(&snapshots);
        }
        let mut taken = Ok(());
        for (point, snapshot) in snapshots {
            let volid = point.volid().unwrap_or_default().to_owned();
            taken = snapshot.take(job.host, self.vmid.get()).map_err(|reason| SnapshotError::Command { volid, reason });
            // Noted, so it is removed even if it is only half there.
            place.snapshots.push((point, snapshot));
            if taken.is_err() {
                break;
            }
        }
        let stood = self.thaw_container(freezer, frozen, held);
        // The cause comes first; a container that stays frozen is still noted.
        taken?;
        let stood = stood?;
        self.hook("pre-restart")?;
        if still && !self.paused {
            log.info("resume vm");
            self.say_online(stood);
        }
        self.hook("post-restart")
    }

    /// Asks the kernel to write what the container's file systems hold back. What fails, or takes too long, is no loss: the
    /// snapshot is then as after a power failure.
    fn flush(&self, snapshots: &[(MountPoint, StorageSnapshot)]) {
        let Some(init) = self.qemu else { return };
        let points: Vec<String> = snapshots.iter().map(|(point, _)| point.mp.clone()).collect();
        let (done, is_done) = std::sync::mpsc::channel();
        // A storage that hangs keeps this thread, and nobody else.
        std::thread::spawn(move || {
            for mp in points {
                flush_mount(init, &mp).unwrap_or_default();
            }
            done.send(()).unwrap_or_default();
        });
        is_done.recv_timeout(FLUSH).unwrap_or_default();
    }
}

/// Flushes the file system at `mp` in the container whose first process is `init`. The container may put anything there: no link
/// is followed, and only a directory is opened.
fn flush_mount(init: u32, mp: &str) -> nix::Result<()> {
    let root = nix::fcntl::open(
        format!("/proc/{init}/root").as_str(),
        OFlag::O_PATH | OFlag::O_DIRECTORY,
        nix::sys::stat::Mode::empty(),
    )?;
    let below = mp.trim_start_matches('/');
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let dir = openat2(&root, if below.is_empty() { "." } else { below }, how)?;
    nix::unistd::syncfs(&dir)
}
