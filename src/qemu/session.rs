//! The point in time of a running guest: all its disks fixed at one instant and exported over NBD.
//!
//! Over each disk goes a copy-before-write filter that saves old data to a fleecing image; `snapshot-access` shows the
//! disk as it was, and an NBD export shows that to us. All disks get their filters in one command, so the guest is never
//! paused. If the fleecing image fails, the snapshot breaks, never the guest. Every step leaves a state that
//! [`sweep`](super::sweep) can clear, and so does the end of this process.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::broken::{Broken, is_refused_read};
use super::disks::{self, Disk};
use super::fleecing::{Fleece, Fleecing, remove_stale_files};
use super::names::{self, NBD, Names, UNLIMITED};
use super::sweep::{Swept, sweep_connected};
use super::{QemuError, Qmp, features, switch};
use crate::host::Cancel;

mod spec;

pub use spec::{AroundInstant, DiskSpec, Export, Moment, SessionSpec};

struct SessionDisk {
    spec: DiskSpec,
    disk: Disk,
    names: Names,
    fleece: Option<Fleece>,
}

/// All disks of a guest at one instant. Ends when finished or dropped.
pub struct Session {
    vmid: u32,
    qmp_socket: PathBuf,
    busy_timeout: Duration,
    cbw_timeout: Duration,
    socket: PathBuf,
    disks: Vec<SessionDisk>,
    exports: Vec<Export>,
    swept: Swept,
    open: bool,
}

impl Session {
    /// Fixes the disks at one instant and exports them. Leftovers of earlier runs are removed first.
    ///
    /// A guest that runs goes on running, one that stands still stays so.
    ///
    /// # Errors
    /// Then nothing of the session is left; if something is, the error says so.
    pub fn start(mut spec: SessionSpec<'_>, cancel: &Cancel) -> Result<Self, QemuError> {
        let vmid = spec.vmid;
        let wrong = |detail: String| Err(QemuError::Spec { vmid, detail });
        if spec.disks.is_empty() {
            return wrong("a session needs at least one disk".into());
        }
        if spec.cbw_timeout < Duration::from_secs(1) {
            return wrong("the timeout of fleecing writes must be at least 1 second, 0 would block the guest".into());
        }
        let mut qmp = Qmp::connect_unless(&spec.qmp_socket, spec.busy_timeout, cancel)?;
        #[cfg(test)]
        {
            qmp.fuse = spec.die_after;
        }
        let swept = sweep_connected(&mut qmp, vmid)?;
        features::require_filter(&mut qmp, vmid)?;
        let disks = find(&mut qmp, vmid, std::mem::take(&mut spec.disks))?;
        for dir in directories(&spec.socket_dir, &disks) {
            // A directory that cannot be read is found out when something is made in it.
            let _ = remove_stale_files(dir, vmid);
        }
        let mut session = Self {
            vmid,
            qmp_socket: spec.qmp_socket,
            busy_timeout: spec.busy_timeout,
            cbw_timeout: spec.cbw_timeout,
            socket: std::path::absolute(&spec.socket_dir).unwrap_or(spec.socket_dir).join(names::nbd_socket(vmid)),
            disks,
            exports: Vec::new(),
            swept,
            open: true,
        };
        match session.build(&mut qmp, spec.around_instant, cancel) {
            Ok(()) => Ok(session),
            #[cfg(test)]
            Err(e) if qmp.fuse == Some(0) => {
                session.abandon();
                Err(e)
            }
            Err(e) => {
                // On the same connection first: another client may already be waiting for its turn.
                let undone = sweep_connected(&mut qmp, vmid);
                drop(qmp);
                match undone {
                    Ok(_) => session.closed(),
                    Err(left) if left.is_gone() => session.closed(),
                    Err(_) => session.finish()?,
                }
                Err(e)
            }
        }
    }

    fn build(
        &mut self,
        qmp: &mut Qmp,
        around: Option<&mut AroundInstant<'_>>,
        cancel: &Cancel,
    ) -> Result<(), QemuError> {
        let go_on = || if cancel.is_set() { Err(QemuError::Cancelled) } else { Ok(()) };
        go_on()?;
        mark(qmp, &names::run_marker())?;
        self.start_server(qmp)?;
        for index in 0..self.disks.len() {
            go_on()?;
            self.add_filter(qmp, index)?;
        }
        go_on()?;
        self.switch(qmp, around)?;
        for index in 0..self.disks.len() {
            go_on()?;
            let names = &self.disks[index].names;
            let snapshot = json!({
                "driver": "snapshot-access", "node-name": names.snapshot, "file": names.filter, "discard": "unmap",
            });
            qmp.execute("blockdev-add", snapshot)?;
            self.export(qmp, index)?;
        }
        Ok(())
    }

    fn start_server(&mut self, qmp: &mut Qmp) -> Result<(), QemuError> {
        mark(qmp, NBD)?;
        let path = &self.socket;
        let address = json!({ "addr": { "type": "unix", "data": { "path": path } } });
        match qmp.execute("nbd-server-start", address) {
            Ok(_) => Ok(()),
            Err(QemuError::Command { desc, .. }) if desc.contains("already running") => {
                // Not knowing its address or purpose, we neither use nor stop it.
                qmp.execute("object-del", json!({ "id": NBD }))?;
                Err(QemuError::NbdServerTaken { vmid: self.vmid })
            }
            Err(e) => Err(e),
        }
    }

    /// Opens the fleecing image and puts the filter over the disk's node, not yet under the device.
    fn add_filter(&mut self, qmp: &mut Qmp, index: usize) -> Result<(), QemuError> {
        let vmid = self.vmid;
        let SessionDisk { spec, disk, names, fleece } = &mut self.disks[index];
        let image = fleece.insert(Fleece::prepare(&spec.fleecing, vmid, &spec.device, disk.size)?);
        qmp.execute("blockdev-add", image.node(names))?;
        let path = image.path().to_owned();
        image.unlink().map_err(|source| QemuError::Fleecing {
            vmid,
            path: path.clone(),
            device: spec.device.clone(),
            op: "unlink",
            source,
        })?;
        if matches!(spec.fleecing, Fleecing::Image { .. }) {
            check_size(qmp, vmid, names, disk, &path)?;
        }
        let filter = json!({
            "driver": "copy-before-write",
            "node-name": names.filter,
            "file": disk.node,
            "target": names.fleece,
            "on-cbw-error": "break-snapshot",
            "cbw-timeout": self.cbw_timeout.as_secs(),
        });
        qmp.execute("blockdev-add", filter).map(drop)
    }

    /// The instant: one command, for any number of disks, and the guest runs on.
    fn switch(&mut self, qmp: &mut Qmp, around: Option<&mut AroundInstant<'_>>) -> Result<(), QemuError> {
        let single = if let [disk] = &self.disks[..] { Some(disk) } else { None };
        if single.is_none() {
            mark(qmp, UNLIMITED)?;
            let disks: Vec<_> = self.disks.iter().map(|d| (&d.names, &d.disk)).collect();
            switch::insert_tops(qmp, self.vmid, &disks)?;
        }
        let mut nothing = |_: &mut Qmp, _: Moment| Ok(());
        let around = around.unwrap_or(&mut nothing);
        around(qmp, Moment::Before)?;
        match single {
            Some(SessionDisk { disk, names, .. }) => switch::set_drive(qmp, &disk.qdev, &names.filter)?,
            None => switch::switch_tops(qmp, self.disks.iter().map(|d| &d.names))?,
        }
        around(qmp, Moment::After)
    }

    /// Exports a snapshot. Only a writable export takes TRIM; `snapshot-access` itself refuses every write.
    fn export(&mut self, qmp: &mut Qmp, index: usize) -> Result<(), QemuError> {
        let SessionDisk { spec, disk, names, .. } = &self.disks[index];
        let arguments = |writable: bool| {
            json!({
                "type": "nbd", "id": names.export, "node-name": names.snapshot, "name": spec.device, "writable": writable,
            })
        };
        let discards = match qmp.execute("block-export-add", arguments(true)) {
            Ok(_) => true,
            Err(e) if e.is_refusal() => {
                qmp.execute("block-export-add", arguments(false))?;
                false
            }
            Err(e) => return Err(e),
        };
        self.exports.push(Export { device: spec.device.clone(), name: spec.device.clone(), size: disk.size, discards });
        Ok(())
    }

    /// The unix socket on which the exports are served.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The disks, in the order they were asked for.
    pub fn exports(&self) -> &[Export] {
        &self.exports
    }

    /// What an earlier run had left and this one removed before it began.
    pub fn swept(&self) -> &Swept {
        &self.swept
    }

    /// After a read of `device` over NBD failed with `error`: did the snapshot break, and why? None means that it did
    /// not, so the error is the disk's own. A range that was trimmed cannot be told from a broken snapshot.
    ///
    /// QEMU is not asked: there is no query for it, and while a fleecing storage hangs, every change of the block graph
    /// would make QEMU, and with it the guest, wait for that storage.
    pub fn broken(&self, device: &str, error: &io::Error) -> Option<Broken> {
        let disk = self.disks.iter().find(|d| d.spec.device == device || d.disk.answers_to(device))?;
        is_refused_read(error).then(|| Broken {
            device: disk.spec.device.clone(),
            fleecing: disk.fleece.as_ref().map(|f| f.path().to_owned()).unwrap_or_default(),
            free: disk.fleece.as_ref().and_then(Fleece::free),
            timeout: self.cbw_timeout,
        })
    }

    /// Takes everything away again. A QEMU that ended meanwhile has taken it away itself.
    ///
    /// # Errors
    /// When something could not be removed; the next session's start and [`sweep`](super::sweep) try again.
    pub fn finish(mut self) -> Result<(), QemuError> {
        self.tear_down()
    }

    fn tear_down(&mut self) -> Result<(), QemuError> {
        if !self.open {
            return Ok(());
        }
        let mut tries = 0;
        let result = loop {
            tries += 1;
            let result = Qmp::connect(&self.qmp_socket, self.busy_timeout)
                .and_then(|mut qmp| sweep_connected(&mut qmp, self.vmid));
            match result {
                Err(QemuError::NotRunning { .. }) => break Ok(()),
                Err(_) if tries < 3 => std::thread::sleep(Duration::from_millis(300)),
                other => break other.map(drop),
            }
        };
        self.closed();
        result
    }

    /// Nothing of the session is left in QEMU, or nothing more can be done about it.
    fn closed(&mut self) {
        self.open = false;
        // QEMU removes the socket with its server; one that was killed leaves it.
        let _ = std::fs::remove_file(&self.socket);
    }

    /// What a KILL at this instant would do: nothing at all.
    #[cfg(test)]
    pub(super) fn abandon(mut self) {
        self.open = false;
        self.disks.iter_mut().filter_map(|d| d.fleece.as_mut()).for_each(Fleece::abandon);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Best effort: whoever wants to know calls `finish`.
        let _ = self.tear_down();
    }
}

fn mark(qmp: &mut Qmp, id: &str) -> Result<(), QemuError> {
    // The cheapest object every QEMU has. Without limits it throttles nothing.
    qmp.execute("object-add", json!({ "qom-type": "throttle-group", "id": id })).map(drop)
}

/// Where files of ours may lie.
fn directories<'a>(socket_dir: &'a Path, disks: &'a [SessionDisk]) -> impl Iterator<Item = &'a Path> {
    let fleecing = disks.iter().filter_map(|d| match &d.spec.fleecing {
        Fleecing::Directory(dir) => Some(dir.as_path()),
        Fleecing::Image { .. } => None,
    });
    fleecing.chain([socket_dir])
}

fn find(qmp: &mut Qmp, vmid: u32, specs: Vec<DiskSpec>) -> Result<Vec<SessionDisk>, QemuError> {
    let present = disks::parse(&qmp.execute("query-block", json!({}))?);
    let mut found: Vec<SessionDisk> = Vec::new();
    for (index, spec) in specs.into_iter().enumerate() {
        let Some(disk) = present.iter().find(|d| d.answers_to(&spec.device)) else {
            let known = present.iter().map(Disk::label).collect::<Vec<_>>().join(", ");
            return Err(QemuError::NoSuchDisk { vmid, device: spec.device, known });
        };
        if found.iter().any(|d| d.disk.qdev == disk.qdev) {
            return Err(QemuError::Spec { vmid, detail: format!("disk '{}' was asked for twice", spec.device) });
        }
        let names = Names::new(&spec.device, index);
        found.push(SessionDisk { spec, disk: disk.clone(), names, fleece: None });
    }
    Ok(found)
}

/// A smaller image would fail in the middle of the backup.
fn check_size(qmp: &mut Qmp, vmid: u32, names: &Names, disk: &Disk, path: &Path) -> Result<(), QemuError> {
    let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true }))?;
    let node = nodes.as_array().into_iter().flatten().find(|n| n["node-name"] == names.fleece.as_str());
    let size = node.and_then(|n| n["image"]["virtual-size"].as_u64()).unwrap_or(0);
    if size >= disk.size {
        return Ok(());
    }
    let (path, label, need) = (path.display(), disk.label(), disk.size);
    Err(QemuError::Spec {
        vmid,
        detail: format!("fleecing image {path} for {label} has {size} bytes, the disk has {need}: make it as large"),
    })
}
