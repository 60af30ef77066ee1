//! The description of a call that hooks get on standard input when `hook-json` is on: one JSON object, whose shape is
//! promised in `docs/HOOKS.md`. Fields may be added; what is there keeps its meaning as long as `version` is the same.

use serde::Serialize;

use super::HookEnv;
use crate::config::{BackupVolume, MountPoint};
use crate::host::Host;
use crate::schema::{Vmid, VzdumpOptions};

/// Version of the shape.
const VERSION: u32 = 1;

/// What does not change during a job.
#[derive(Debug, Clone, Default, Serialize)]
pub struct JobFacts {
    /// The call as the log shows it.
    command: String,
    /// The task's id.
    task: String,
    /// The node's name.
    node: String,
    /// The job's name in the cluster's configuration.
    id: Option<String>,
    /// The guests that were asked for by number.
    guests: Vec<u32>,
    /// The storage; none with `dumpdir`.
    storage: Option<String>,
    /// The mode that was asked for; a stopped guest is backed up in mode `stop`.
    mode: &'static str,
    /// `0`, `lzo`, `gzip`, `zstd`.
    compress: &'static str,
    /// Whether the archive goes to standard output and has no name.
    stdout: bool,
    /// Whether the backups are protected from removal.
    protected: bool,
}

impl JobFacts {
    /// The job that `options` describe, run as task `upid`.
    pub fn new(host: &Host, options: &VzdumpOptions, upid: &str) -> Self {
        Self {
            command: options.command_line.clone(),
            task: upid.to_owned(),
            node: host.node().to_owned(),
            id: options.job_id.clone(),
            guests: options.vmids.iter().map(|vmid: &Vmid| vmid.get()).collect(),
            storage: options.storage.clone(),
            mode: options.mode.as_str(),
            compress: options.compress.as_str(),
            stdout: options.stdout,
            protected: options.protected,
        }
    }
}

/// The guest at work.
#[derive(Debug, Clone, Serialize)]
pub struct GuestFacts {
    /// Its number.
    pub vmid: u32,
    /// `qemu` or `lxc`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Whether it ran when its backup began.
    pub running: bool,
    /// Its disks or mount points, also those that are left out.
    pub disks: Vec<DiskFacts>,
}

/// A disk or mount point of the guest.
#[derive(Debug, Clone, Serialize)]
pub struct DiskFacts {
    key: String,
    volid: String,
    /// Bytes, if the config says so.
    size: Option<u64>,
    included: bool,
}

impl From<&BackupVolume> for DiskFacts {
    fn from(volume: &BackupVolume) -> Self {
        Self {
            key: volume.disk.key.clone(),
            volid: volume.disk.volid.clone(),
            size: volume.disk.size(),
            included: volume.excluded.is_none(),
        }
    }
}

impl From<&MountPoint> for DiskFacts {
    fn from(point: &MountPoint) -> Self {
        Self {
            key: point.key.clone(),
            volid: point.source.as_str().to_owned(),
            size: point.size(),
            included: point.excluded().is_none(),
        }
    }
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is being worked on.
    #[default]
    Running,
    /// It has ended well.
    Done,
    /// It has failed.
    Failed,
}

/// What became of the guest's backup, or of the job in its own phases, so far.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    /// How far it has come.
    pub state: State,
    /// Why it failed.
    pub error: Option<String>,
    /// Size of the complete archive in bytes.
    pub size: Option<u64>,
    /// How long it took so far; none in the job's own phases.
    pub seconds: Option<f64>,
}

/// What is told of one call beside its arguments and variables.
#[derive(Debug, Clone, Default)]
pub struct Story {
    /// The guest; none in the job's own phases.
    pub guest: Option<GuestFacts>,
    /// What became of it so far.
    pub outcome: Outcome,
}

impl From<Outcome> for Story {
    fn from(outcome: Outcome) -> Self {
        Self { guest: None, outcome }
    }
}

#[derive(Serialize)]
struct Description<'a> {
    version: u32,
    phase: &'a str,
    mode: Option<&'a str>,
    vmid: Option<u32>,
    job: &'a JobFacts,
    dumpdir: Option<&'a str>,
    guest: Option<&'a GuestFacts>,
    target: Option<&'a str>,
    logfile: Option<&'a str>,
    outcome: &'a Outcome,
}

/// The object for a call with `args`, on one line.
pub fn describe(job: &JobFacts, args: &[&str], env: &HookEnv, story: &Story) -> Vec<u8> {
    let description = Description {
        version: VERSION,
        phase: args.first().copied().unwrap_or_default(),
        mode: args.get(1).copied(),
        vmid: args.get(2).and_then(|vmid| vmid.parse().ok()),
        job,
        dumpdir: env.dumpdir.as_deref(),
        guest: story.guest.as_ref(),
        target: env.target.as_deref(),
        logfile: env.logfile.as_deref(),
        outcome: &story.outcome,
    };
    // Text, numbers and lists always become JSON.
    let mut text = serde_json::to_vec(&description).unwrap_or_default();
    text.push(b'\n');
    text
}
