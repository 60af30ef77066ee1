//! Carries out a restore plan. The guest's new config is renamed into place last: before that instant the old guest (or
//! none) is there with all its volumes, after it the new one. Everything made on the way is noted in the guest's record
//! first; a failure, a signal and a kill are undone by the same recovery.

use super::plan::{DiskPlan, Plan};
use super::seat::{Restored, Seat};
use super::volumes::{Volumes, volume_name};
use crate::config::Fresh;
use crate::guest::conffile::Kind;
use crate::guest::power::Power;
use crate::guest::record::{Intent, Record, RecordError};
use crate::guest::recover::GuestActions;
use crate::host::{Cancel, Host};
use crate::image::Target;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// The data of an archive, ready to be copied.
pub trait Data {
    /// Copies into the targets, by number of the disk, and flushes them. `progress` gets bytes done and in total. Returns
    /// the lines that sum it up.
    ///
    /// # Errors
    /// What went wrong, with disk or archive and offset.
    fn copy(
        self: Box<Self>,
        targets: &BTreeMap<u8, Arc<dyn Target>>,
        progress: &mut dyn FnMut(u64, u64),
        cancel: &Cancel,
    ) -> Result<String, String>;
}

/// Opens a volume at a path of the node for writing: path, format, name, whether it reads as zeros.
pub type OpenTarget<'a> = &'a dyn Fn(&Path, &str, &str, bool) -> Result<Arc<dyn Target>, String>;

/// What a restore works with.
pub struct Tools<'a> {
    /// The node.
    pub host: &'a Host,
    /// Makes volumes.
    pub volumes: &'a dyn Volumes,
    /// Removes them.
    pub actions: &'a dyn GuestActions,
    /// Opens them.
    pub open: OpenTarget<'a>,
    /// Where new ids come from.
    pub fresh: Fresh<'a>,
    /// The wish to stop.
    pub cancel: &'a Cancel,
    /// Takes the lines of the log.
    pub line: &'a mut dyn FnMut(&str),
}

/// Why a restore failed.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// A step failed.
    #[error("{0}")]
    Step(String),
    /// The record cannot be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The guest's config cannot be read or written.
    #[error("config of {kind} {vmid}: {source}")]
    Config {
        /// `VM`, `CT`.
        kind: Kind,
        /// The guest.
        vmid: u32,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A signal came.
    #[error("interrupted by signal")]
    Interrupted,
}

/// Carries out `plan` with the data in `data`; `record` notes every step. On failure the caller has what is in the record
/// undone. On success the guest is there; returned are the replaced volumes that could not be removed, for which the record
/// has to stay.
///
/// # Errors
/// The first step that failed.
pub fn execute(
    plan: &mut Plan,
    data: Box<dyn Data>,
    record: &mut Record,
    tools: &mut Tools<'_>,
) -> Result<Vec<String>, ExecuteError> {
    let start = Instant::now();
    seat(plan).claim(record, tools.host, &|| Ok(Power::new(tools.host, plan.vmid).is_running()))?;
    let volids = make_volumes(plan, record, tools)?;
    let mut targets: BTreeMap<u8, Arc<dyn Target>> = BTreeMap::new();
    for disk in &plan.disks {
        let path = tools.volumes.path(&volids[&disk.key]).map_err(ExecuteError::Step)?;
        let DiskPlan { device, format, starts_zeroed, .. } = disk;
        let target = (tools.open)(&path, format, &device.name, *starts_zeroed).map_err(ExecuteError::Step)?;
        let zeros = u8::from(!starts_zeroed);
        (tools.line)(&format!("map '{}' to '{}' (write zeros = {zeros})", device.name, path.display()));
        targets.insert(device.id, target);
    }
    let mut percent = 0;
    let line = &mut *tools.line;
    let summary = data.copy(
        &targets,
        &mut |done, total| {
            let now = done.saturating_mul(100).checked_div(total).unwrap_or(100);
            if now > percent {
                percent = now;
                let seconds = start.elapsed().as_secs();
                line(&format!("progress {percent}% (read {done} bytes, duration {seconds} sec)"));
            }
        },
        tools.cancel,
    );
    // Lets go of the volumes in any case: nobody may have them open when they are removed or the guest is started.
    drop(targets);
    let summary = summary
        .map_err(|why| if tools.cancel.is_set() { ExecuteError::Interrupted } else { ExecuteError::Step(why) })?;
    summary.lines().for_each(|l| (tools.line)(l));
    stop_if_asked(tools.cancel)?;
    commit(plan, &volids, record, tools)
}

/// Makes a volume for each disk, by key.
pub(super) fn make_volumes(
    plan: &Plan,
    record: &mut Record,
    tools: &mut Tools<'_>,
) -> Result<BTreeMap<String, String>, ExecuteError> {
    let mut volids = BTreeMap::new();
    let mut numbers = Numbers::default();
    for disk in &plan.disks {
        stop_if_asked(tools.cancel)?;
        let number = numbers.next(disk, plan.vmid, tools.volumes)?;
        let volid = volume_name(disk, plan.vmid, number).1;
        record.note(&Intent::Volume { volid: volid.clone(), in_qemu: false })?;
        tools.volumes.alloc(&volid, disk, plan.vmid).map_err(ExecuteError::Step)?;
        (tools.line)(&format!("new volume ID is '{volid}'"));
        volids.insert(disk.key.clone(), volid);
    }
    Ok(volids)
}

/// The free numbers of each storage, asked for once.
#[derive(Default)]
pub(super) struct Numbers(BTreeMap<String, std::collections::BTreeSet<u32>>);

impl Numbers {
    pub(super) fn next(&mut self, disk: &DiskPlan, vmid: u32, volumes: &dyn Volumes) -> Result<u32, ExecuteError> {
        if !self.0.contains_key(&disk.storage) {
            let taken = volumes.taken(disk, vmid).map_err(ExecuteError::Step)?;
            self.0.insert(disk.storage.clone(), taken);
        }
        let taken = self.0.entry(disk.storage.clone()).or_default();
        let number = (0..=u32::MAX).find(|n| !taken.contains(n)).unwrap_or(u32::MAX);
        taken.insert(number);
        Ok(number)
    }
}

/// Makes the restored guest the one of this id, and takes away what it replaces.
fn commit(
    plan: &mut Plan,
    volids: &BTreeMap<String, String>,
    record: &mut Record,
    tools: &mut Tools<'_>,
) -> Result<Vec<String>, ExecuteError> {
    let planned = plan.warnings.len();
    let config = plan.config(volids, &mut tools.fresh);
    plan.warnings[planned..].iter().for_each(|w| (tools.line)(&format!("WARN: {w}")));
    seat(plan).rules(plan.firewall.as_deref(), record, tools.host)?;
    let left = seat(plan).commit(
        Restored { config: Some(config), replaced: &plan.replaced },
        record,
        tools.host,
        tools.actions,
        tools.line,
    )?;
    (tools.line)("rescan volumes...");
    Ok(left)
}

pub(super) fn seat(plan: &Plan) -> Seat {
    Seat { kind: Kind::Vm, vmid: plan.vmid, overwrite: plan.overwrite }
}

pub(super) fn stop_if_asked(cancel: &Cancel) -> Result<(), ExecuteError> {
    if cancel.is_set() { Err(ExecuteError::Interrupted) } else { Ok(()) }
}
