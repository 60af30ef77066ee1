//! Carries out the plan for a container: makes the volumes and file systems, has the files unpacked, and takes the place of
//! the container in one step at the end. Everything made on the way is noted in the container's record first.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::plan::{Plan, SUBVOLUME};
use super::tree::{Members, Unpack, Volume, unpack};
use crate::config::Fresh;
use crate::guest::conffile::Kind;
use crate::guest::record::{Intent, Record};
use crate::guest::recover::GuestActions;
use crate::host::child::{self, Ended};
use crate::host::{Cancel, Host, sys};
use crate::restore::execute::{ExecuteError, Numbers, stop_if_asked};
use crate::restore::seat::{Restored, Seat};
use crate::restore::volumes::{Volumes, volume_name};

/// How long making a file system may take: a device of many TiB that is discarded first.
const MAKING: Duration = Duration::from_secs(3600);

/// What a restore of a container works with.
pub struct Tools<'a> {
    /// The node.
    pub host: &'a Host,
    /// Makes volumes.
    pub volumes: &'a dyn Volumes,
    /// Removes them.
    pub actions: &'a dyn GuestActions,
    /// Whether the container runs.
    pub runs: &'a dyn Fn() -> Result<bool, String>,
    /// Where new addresses come from.
    pub fresh: Fresh<'a>,
    /// The wish to stop.
    pub cancel: &'a Cancel,
    /// Takes the lines of the log.
    pub line: &'a mut dyn FnMut(&str),
    /// What tar could not unpack is left out.
    pub ignore_errors: bool,
}

/// Carries out `plan` with the files in `members`; `name` is what the log calls the archive. As
/// [`crate::restore::execute::execute`].
///
/// # Errors
/// The first step that failed.
pub fn execute(
    plan: &Plan,
    name: &str,
    members: Box<dyn Members>,
    record: &mut Record,
    tools: &mut Tools<'_>,
) -> Result<Vec<String>, ExecuteError> {
    let seat = Seat { kind: Kind::Container, vmid: plan.vmid, overwrite: plan.overwrite };
    seat.claim(record, tools.host, tools.runs)?;
    let root_ids = plan.root_ids().map_err(|e| ExecuteError::Step(e.to_string()))?;
    let mut volids = BTreeMap::new();
    let mut volumes = Vec::new();
    let mut numbers = Numbers::default();
    for volume in &plan.volumes {
        stop_if_asked(tools.cancel)?;
        let number = numbers.next(&volume.disk, plan.vmid, tools.volumes)?;
        let volid = volume_name(&volume.disk, plan.vmid, number).1;
        record.note(&Intent::Volume { volid: volid.clone(), in_qemu: false })?;
        tools.volumes.alloc(&volid, &volume.disk, plan.vmid).map_err(ExecuteError::Step)?;
        let path = tools.volumes.path(&volid).map_err(ExecuteError::Step)?;
        if !path.is_absolute() {
            let why = format!("volume '{volid}' cannot be mounted: '{}' is no path", path.display());
            return Err(ExecuteError::Step(why));
        }
        let path = tools.host.path(path);
        if volume.disk.format == SUBVOLUME {
            std::os::unix::fs::chown(&path, Some(root_ids.0), Some(root_ids.1))
                .map_err(|e| ExecuteError::Step(format!("giving '{}' to the container failed: {e}", path.display())))?;
        } else {
            make_file_system(&path, root_ids, tools)?;
        }
        volids.insert(volume.disk.key.clone(), volid);
        volumes.push(Volume { path, mp: volume.point.mp.clone() });
    }
    stop_if_asked(tools.cancel)?;
    if name != "-" {
        (tools.line)(&format!("restoring '{name}' now.."));
    }
    (tools.line)(&format!("extracting archive '{name}'"));
    let what = Unpack { volumes: &volumes, id_map: &plan.id_map, root_ids, ignore_errors: tools.ignore_errors };
    let line = &mut *tools.line;
    let (host, cancel) = (tools.host, tools.cancel);
    let unpacked = std::thread::scope(|scope| {
        let (say, said) = std::sync::mpsc::channel::<String>();
        let what = &what;
        let worker = scope.spawn(move || unpack(host, what, members, cancel, &say));
        said.iter().for_each(|text| line(&text));
        worker.join().unwrap_or_else(|_| Err("the thread that unpacks panicked".into()))
    });
    unpacked.map_err(|why| if tools.cancel.is_set() { ExecuteError::Interrupted } else { ExecuteError::Step(why) })?;
    stop_if_asked(tools.cancel)?;
    (tools.line)("merging backed-up and given configuration..");
    let config = plan.config(&volids, &mut tools.fresh);
    seat.rules(plan.firewall.as_deref(), record, tools.host)?;
    let restored = Restored { config: Some(config), replaced: &plan.replaced };
    seat.commit(restored, record, tools.host, tools.actions, tools.line)
}

/// Makes a file system whose top belongs to the container's root.
fn make_file_system(path: &PathBuf, (user, group): (u32, u32), tools: &mut Tools<'_>) -> Result<(), ExecuteError> {
    let owner = format!("root_owner={user}:{group}");
    let shown = || format!("command 'mkfs.ext4 -O mmp -E {owner} {}' failed", path.display());
    let mut command = tools.host.command("mkfs.ext4");
    command.args(["-O", "mmp", "-E", &owner]).arg(path).env("LC_ALL", "C");
    // If we are killed, the volume is removed, and nobody may write to it then.
    sys::end_with_thread(&mut command);
    let failed = |why: String| ExecuteError::Step(format!("{}: {why}", shown()));
    let out = match child::run(&mut command, None, MAKING, tools.cancel).map_err(|e| failed(e.to_string()))? {
        Ended::Exited(out) if out.status.success() => out,
        Ended::Exited(out) => return Err(failed(out.complaint().replace('\n', "; "))),
        Ended::Late(limit) => return Err(failed(format!("it did not end within {} seconds", limit.as_secs()))),
        Ended::Cancelled => return Err(ExecuteError::Interrupted),
    };
    for text in String::from_utf8_lossy(&out.stdout).lines().filter(|text| is_worth_a_line(text)) {
        (tools.line)(text);
    }
    Ok(())
}

/// Of what mkfs says, the original shows what file system it makes, not how it gets on.
fn is_worth_a_line(text: &str) -> bool {
    let numbers = text.starts_with('\t') && text.trim_start().starts_with(|c: char| c.is_ascii_digit());
    numbers || ["Creating filesystem", "Filesystem UUID", "Superblock backups"].iter().any(|s| text.starts_with(s))
}
