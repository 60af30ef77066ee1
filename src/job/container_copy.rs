//! The archive step of one container: a place for temporary files, its volumes mounted where nobody else sees them, `tar` on
//! them, its output into the archive; and everything taken away again.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::statfs::{self, FsType, statfs};

use super::guest_run::{GuestError, GuestRun};
use super::progress::TreeLines;
use crate::config::MountPoint;
use crate::guest::commands::wait_for_makers;
use crate::guest::container::activate::Activation;
use crate::guest::container::complaints::{Complaints, verdict, wait};
use crate::guest::container::mounts::{Mount, Room};
use crate::guest::container::snapshot::{Mountable, SnapshotError, StorageSnapshot};
use crate::guest::container::tree::{Excludes, Tar, TreeError};
use crate::guest::container::{Container, mount_place};
use crate::guest::held::Held;
use crate::guest::record::Intent;
use crate::guest::vm::VmError;
use crate::host::{child, files};
use crate::schema::Mode;
use crate::storage::{VolId, mount_of};
use crate::transfer::{DEFAULT_MEMORY, Draft, Output, TarFrom, TarPack, TarProgress, TransferError, pack_tar};

/// How long `tar` may take to end after its output has.
const END: Duration = Duration::from_secs(60);
/// File systems that keep everything of a container's files, by the name the log has for them.
const POSIX: [FsType; 8] = [
    statfs::EXT4_SUPER_MAGIC,
    statfs::NFS_SUPER_MAGIC,
    statfs::XFS_SUPER_MAGIC,
    statfs::BTRFS_SUPER_MAGIC,
    statfs::TMPFS_MAGIC,
    statfs::OVERLAYFS_SUPER_MAGIC,
    statfs::REISERFS_SUPER_MAGIC,
    // ZFS, which libc has no name for.
    FsType(0x2fc1_2fc1),
];

/// What a container's backup makes on the node.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// Where the copy of a running container's tree is.
    pub(super) tree: PathBuf,
    /// Where the config for the archive is.
    config: PathBuf,
    /// Whether the copy keeps ACLs and extended attributes.
    pub(super) attributes: bool,
    /// The snapshots that were made.
    pub(super) snapshots: Vec<(MountPoint, StorageSnapshot)>,
    /// The volumes that were off.
    switched_on: Vec<(Activation, Option<PathBuf>)>,
}

impl GuestRun<'_> {
    /// Makes the temporary directories.
    pub(super) fn make_place(
        &self,
        container: &Container,
        place: &mut Place,
        held: &mut Held,
    ) -> Result<(), GuestError> {
        let (job, Some(name)) = (self.job, &self.name) else { return Ok(()) };
        let dump_dir = &job.destination.dump_dir;
        let elsewhere = |dir: &Path| dir.join(format!("vzdumptmp{}_{}", std::process::id(), self.vmid));
        let tmp = match &job.options.tmpdir {
            Some(dir) => elsewhere(dir),
            None => match file_system(dump_dir)? {
                kind if POSIX.contains(&kind) => name.tmp(dump_dir),
                kind => {
                    let tmp = elsewhere(&job.host.path("/var/tmp"));
                    let line = format!(
                        "filesystem type on dumpdir is '{}' -using {} for temporary files",
                        known(kind),
                        tmp.display()
                    );
                    job.log.info(&line);
                    tmp
                }
            },
        };
        // Beside the copy, which is the container's own: a link in it must not lead us anywhere.
        let config = if self.mode == Mode::Suspend { tmp.with_extension("conf") } else { tmp.clone() };
        place.attributes = true;
        if self.mode == Mode::Suspend {
            make_dir(&tmp, held)?;
            place.tree = tmp.clone();
            if file_system(&tmp)? == statfs::NFS_SUPER_MAGIC {
                job.log.info(
                    "temporary directory is on NFS, disabling xattr and acl support, consider configuring a local tmpdir via /etc/vzdump.conf",
                );
                place.attributes = false;
            }
        }
        make_dir(&config, held)?;
        place.config = config;
        let (user, group) = container.root_ids();
        let own = |path: &Path| {
            let done = std::os::unix::fs::chown(path, Some(user), Some(group));
            done.map_err(|source| GuestError::File { what: "making", path: path.to_owned(), source })
        };
        own(&place.config)?;
        let mut dir = place.config.clone();
        for part in ["etc", "vzdump"] {
            dir.push(part);
            std::fs::DirBuilder::new().mode(0o755).create(&dir).map_err(|source| GuestError::File {
                what: "making",
                path: dir.clone(),
                source,
            })?;
            own(&dir)?;
        }
        let firewall = job.host.path(crate::guest::conffile::firewall_path(container.vmid));
        let firewall = match std::fs::read(&firewall) {
            Ok(text) => text,
            // An empty one, as with the original.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(GuestError::File { what: "reading", path: firewall, source }),
        };
        for (file, text) in [("pct.conf", container.config.archive_text()), ("pct.fw", firewall)] {
            let path = dir.join(file);
            let mut options = std::fs::OpenOptions::new();
            let made = options.write(true).create_new(true).mode(0o644).open(&path);
            let written = made.and_then(|mut made| std::io::Write::write_all(&mut made, &text));
            written.map_err(|source| GuestError::File { what: "writing", path: path.clone(), source })?;
            own(&path)?;
        }
        Ok(())
    }

    /// Writes the archive.
    pub(super) fn archive_container(
        &self,
        container: &Container,
        excludes: &Excludes,
        place: &mut Place,
        held: &mut Held,
    ) -> Result<(), GuestError> {
        let archived = self.archive_volumes(container, excludes, place, held);
        // Before the lock goes: whoever starts the container switches them on, and must not be overtaken.
        let off = self.leave_as_found(place, held);
        archived?;
        if let Err(error) = off {
            self.job.log.warn(&error.to_string());
        }
        Ok(())
    }

    fn archive_volumes(
        &self,
        container: &Container,
        excludes: &Excludes,
        place: &mut Place,
        held: &mut Held,
    ) -> Result<(), GuestError> {
        let (job, log) = (self.job, &self.job.log);
        let target = self.name.as_ref().filter(|_| !job.options.stdout);
        let target = target.map(|name| name.path(&job.destination.dump_dir));
        match &target {
            Some(path) => log.info(&format!("creating vzdump archive '{}'", path.display())),
            None => log.info("sending archive to stdout"),
        }
        let mut draft = target.map(|path| self.draft(&path)).transpose()?;
        let room = Room::open(job.host)?;
        let in_copy = self.mode == Mode::Suspend;
        let mount_points = if in_copy {
            vec!["."]
        } else {
            room.mount(&mount_place(), &self.mounts(container, place, held)?)?;
            container.included().map(|point| point.mp.as_str()).collect()
        };
        let mounted = job.host.path(mount_place());
        let tar = Tar {
            config: &place.config,
            tree: if in_copy { &place.tree } else { &mounted },
            mount_points,
            excludes,
            id_map: &container.id_map,
        };
        self.pack(&room, &tar, draft.as_mut())?;
        room.close()?;
        if let Some(draft) = draft {
            self.publish(draft, held)?;
        }
        Ok(())
    }

    /// What is mounted for the archive: snapshots, or the volumes of a container that is off.
    fn mounts(&self, container: &Container, place: &mut Place, held: &mut Held) -> Result<Vec<Mount>, GuestError> {
        let mut mounts = Vec::new();
        for point in container.included() {
            let snapshot = place.snapshots.iter().find(|(of, _)| of.key == point.key).cloned();
            let volid = point.volid().unwrap_or_default();
            let source = match &snapshot {
                Some((_, snapshot)) => snapshot
                    .open(self.job.host)
                    .map_err(|reason| SnapshotError::SwitchOn { volid: volid.to_owned(), reason })?,
                None => self.volume(point, volid, place, held)?,
            };
            mounts.push(Mount {
                key: point.key.clone(),
                mp: point.mp.clone(),
                source,
                frozen: container.config.is_template(),
                read_only: point.is_read_only(),
                // A snapshot goes when it is read.
                quota: point.has_quota() && snapshot.is_none(),
                acl: point.acl(),
            });
        }
        Ok(mounts)
    }

    /// A volume of a container that is off.
    fn volume(
        &self,
        point: &MountPoint,
        volid: &str,
        place: &mut Place,
        held: &mut Held,
    ) -> Result<Mountable, GuestError> {
        use std::os::unix::fs::FileTypeExt;
        if let Some(of) = Activation::of(self.job.host, self.job.volumes, volid)? {
            return Ok(Mountable::Device(self.switch_on(of, volid, place, held)?));
        }
        let path = self.job.volumes.path(volid)?;
        // The directory of a dataset that is not mounted is empty, and so would be the backup.
        let empty = || std::fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none());
        if path.is_dir() && (self.is_unmounted_dataset(volid, &path) || (point.key == "rootfs" && empty())) {
            return Err(GuestError::NotMounted { volid: volid.to_owned(), path });
        }
        let found = path.metadata().map_err(|_| VmError::NoVolume(volid.to_owned()))?.file_type();
        Ok(match found {
            kind if kind.is_dir() => Mountable::Directory(path),
            kind if kind.is_block_device() => Mountable::Device(path),
            _ => Mountable::Image(path),
        })
    }

    /// Makes sure that a block volume can be read on this node.
    fn switch_on(
        &self,
        of: Activation,
        volid: &str,
        place: &mut Place,
        held: &mut Held,
    ) -> Result<PathBuf, GuestError> {
        let host = self.job.host;
        let failed = |reason| SnapshotError::SwitchOn { volid: volid.to_owned(), reason };
        if let Some(device) = of.device(host, self.job.volumes, volid).map_err(failed)? {
            return Ok(device);
        }
        held.note(&Intent::SwitchedOn { of: of.clone() })?;
        let device = of.switch_on(host, self.vmid.get());
        // One that could not be switched on may be half there.
        place.switched_on.push((of, device.as_ref().ok().cloned()));
        Ok(device.map_err(failed)?)
    }

    /// Leaves the volumes as they were found.
    fn leave_as_found(&self, place: &mut Place, held: &mut Held) -> Result<(), GuestError> {
        let mut result = Ok(());
        for (of, device) in place.switched_on.drain(..).rev() {
            match of.switch_off(self.job.host, device.as_deref()) {
                Ok(_) => held.done(&Intent::SwitchedOn { of })?,
                Err(reason) => result = Err(GuestError::StaysOn { what: of.to_string(), reason }),
            }
        }
        result
    }

    fn is_unmounted_dataset(&self, volid: &str, path: &Path) -> bool {
        let id = volid.parse::<VolId>().ok();
        let storage = id.and_then(|id| self.job.volumes.storage(&id.storage).ok());
        storage.is_some_and(|storage| storage.kind == "zfspool")
            && !path.canonicalize().and_then(|path| Ok(mount_of(&path)? == path)).unwrap_or(false)
    }

    /// Runs `tar` in the room, its output into the archive.
    fn pack(&self, room: &Room, tar: &Tar<'_>, draft: Option<&mut Draft>) -> Result<(), GuestError> {
        let job = self.job;
        let start = |source| TreeError::Start { program: "tar", source };
        let mut child = room.spawn(tar.command(job.host)).map_err(start)?;
        let pipes = child.stdout.take().zip(child.stderr.take());
        let (stdout, stderr) = pipes.ok_or_else(|| start(std::io::ErrorKind::BrokenPipe.into()))?;
        let log = job.log.clone();
        let said = Complaints::collect(stderr, move |line| log.info(line));
        let packed = self.output(draft).and_then(|output| {
            let how = TarPack {
                compression: job.compression(),
                bwlimit: (job.options.bwlimit > 0).then_some(job.options.bwlimit * 1024),
                memory: DEFAULT_MEMORY,
                host: job.host.clone(),
            };
            let from = TarFrom::Fd(OwnedFd::from(stdout), "tar".into());
            let mut lines = TreeLines::start();
            let mut progress = |now: &TarProgress| lines.due(now).iter().for_each(|line| job.log.info(line));
            Ok(pack_tar(from, output, &how, &mut progress, job.cancel)?)
        });
        // What tar makes is wrong because tar failed; what cannot be written is not tar's fault, and it is sent home.
        let is_tars = matches!(packed, Ok(_) | Err(GuestError::Transfer(TransferError::Tar { .. })));
        if !is_tars {
            child::group(&child).and_then(|group| child::signal_group(group, Signal::SIGKILL)).map_err(start)?;
        }
        let status = wait(&mut child, END).map_err(start)?;
        let said = said.end();
        // A tar that nobody listened to any more is not the cause.
        if is_tars && !(packed.is_err() && status.signal() == Some(libc::SIGPIPE)) {
            verdict("tar", status, &said)?;
        }
        let summary = packed?;
        summary.note.iter().for_each(|note| job.log.info(note));
        Ok(())
    }

    fn output<'d>(&self, draft: Option<&'d mut Draft>) -> Result<Output<'d>, GuestError> {
        let Some(draft) = draft else {
            let stdout = std::io::stdout().as_fd().try_clone_to_owned();
            let source = |source| GuestError::File { what: "opening", path: "stdout".into(), source };
            return Ok(Output::Fd(stdout.map_err(source)?, "stdout".into()));
        };
        Ok(Output::Draft(draft))
    }

    /// Takes the snapshots and temporary directories away, whatever became of the backup. What stays is noted.
    pub(super) fn clear(&self, place: Place, held: &mut Held) -> Result<(), GuestError> {
        let (job, log) = (self.job, &self.job.log);
        let mut result = Ok(());
        if !place.snapshots.is_empty() {
            log.info("cleanup temporary 'vzdump' snapshot");
        }
        for (_, of) in place.snapshots {
            // One that took too long to make may still come into being.
            match wait_for_makers(job.host, self.vmid.get()).and_then(|()| of.remove(job.host)) {
                Ok(_) => held.done(&Intent::StorageSnapshot { of })?,
                Err(reason) => result = Err(GuestError::LeftOver { what: of.to_string(), reason }),
            }
        }
        for path in [place.tree, place.config] {
            if path.as_os_str().is_empty() {
                continue;
            }
            match files::remove_tree(&path, &|| ()) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    result = Err(GuestError::File { what: "removing", path, source });
                }
                _ => held.done(&Intent::Dir { path })?,
            }
        }
        result
    }
}

/// A directory that is ours alone: nothing that is there already is used.
fn make_dir(path: &Path, held: &mut Held) -> Result<(), GuestError> {
    let intent = Intent::Dir { path: path.to_owned() };
    held.note(&intent)?;
    match std::fs::DirBuilder::new().mode(0o755).create(path) {
        Ok(()) => Ok(()),
        Err(source) => {
            held.done(&intent)?;
            Err(GuestError::File { what: "making", path: path.to_owned(), source })
        }
    }
}

fn file_system(path: &Path) -> Result<FsType, GuestError> {
    let found = statfs(path).map_err(std::io::Error::from);
    let found = found.map_err(|source| GuestError::File { what: "looking at", path: path.to_owned(), source })?;
    Ok(found.filesystem_type())
}

/// The name of a file system that does not keep a container's files as they are.
fn known(kind: FsType) -> String {
    match kind.0 {
        0xff53_4d42 | 0xfe53_4d42 => "cifs".into(),
        0x6573_5546 => "fuse".into(),
        0x4d44 => "vfat".into(),
        0x2011_bab0 => "exfat".into(),
        0x7366_746e => "ntfs3".into(),
        0x0102_1997 => "9p".into(),
        0x00c3_6400 => "ceph".into(),
        other => format!("{other:#x}"),
    }
}
