//! One backup job: which guests in which order, the phases and their hooks, the global lock, the task record and the log, and
//! what became of it all. The phases are the node's contract, see "One job" in the facts about vzdump.
//!
//! Copying data is [`crate::transfer`]'s, holding a guest still is [`crate::qemu`]'s and [`crate::guest`]'s.

mod after;
mod copy;
mod destination;
mod global_lock;
mod guest_run;
pub mod hooks;
pub mod log;
mod progress;
mod quota;
pub mod tasklog;
pub mod upid;

pub use destination::{Destination, DestinationError};
pub use global_lock::{StopError, stop_running};

use std::time::Duration;

use crate::archive::Compression;
use crate::guest::held;
use crate::host::{Cancel, Host};
use crate::schema::{Compress, Vmid, VzdumpOptions};
use crate::storage::Volumes;
use global_lock::{GlobalLock, GlobalLockError};
use hooks::{Hook, HookEnv, HookError};
use log::LogSink;

/// A job ended early, or one of its guests failed.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// At least one guest has no backup; the log says which and why.
    #[error("job errors")]
    Guests,
    /// A signal asked the job to stop.
    #[error("interrupted by signal")]
    Interrupted,
    /// An option that this version cannot honour; better refused than ignored.
    #[error("{0}")]
    Unsupported(&'static str),
    /// `tmpdir` does not exist.
    #[error("tmpdir '{0}' does not exist")]
    TmpDir(std::path::PathBuf),
    /// The storages cannot be read.
    #[error(transparent)]
    Volume(#[from] crate::storage::VolumeError),
    /// There is nowhere to put archives.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// Another job runs.
    #[error(transparent)]
    Lock(#[from] GlobalLockError),
    /// A hook said no.
    #[error(transparent)]
    Hook(#[from] HookError),
}

/// What became of one guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuestOutcome {
    /// Its archive is complete.
    Done,
    /// There is no archive; the log says why.
    Failed,
}

/// Everything one job's guests share.
pub(crate) struct Job<'a> {
    host: &'a Host,
    options: &'a VzdumpOptions,
    volumes: &'a Volumes,
    destination: Destination,
    hook: Option<Hook>,
    log: LogSink,
    cancel: &'a Cancel,
}

/// Runs the job that `options` describe as task `upid`, telling everything to `log`.
///
/// # Errors
/// Why the job failed, as its last words.
pub fn run(host: &Host, options: &VzdumpOptions, upid: &str, log: &LogSink, cancel: &Cancel) -> Result<(), JobError> {
    refuse_unsupported(options)?;
    let (vmids, elsewhere): (Vec<Vmid>, Vec<Vmid>) = options.vmids.iter().partition(|vmid| !is_elsewhere(host, **vmid));
    if vmids.is_empty() && !elsewhere.is_empty() {
        // One command line for all nodes of a cluster: nothing to say here.
        return Ok(());
    }
    if let Some(dir) = options.tmpdir.as_ref().filter(|dir| !dir.is_dir()) {
        return Err(JobError::TmpDir(dir.clone()));
    }
    let volumes = Volumes::load(host)?;
    let hook = options.script.as_deref().map(|script| Hook::new(host, script)).transpose()?;
    if let Some(hook) = &hook {
        // Before any lock, and before anybody looks at the storage: the hook may be what mounts it.
        let env = HookEnv {
            storeid: options.storage.clone(),
            dumpdir: options.dumpdir.as_ref().map(|dir| dir.display().to_string()),
            ..HookEnv::default()
        };
        hook.run(&["job-init"], &env, Some(cancel), &mut |line| log.info(line))?;
    }
    let destination = Destination::open(host, options, &volumes)?;
    let job = Job { host, options, volumes: &volumes, destination, hook, log: log.clone(), cancel };
    let patience = Duration::from_secs(60 * options.lockwait);
    let _lock = GlobalLock::take(host, upid, patience, cancel, || {
        log.info("trying to get global lock - waiting...");
    })?;
    held::recover_all(host, &mut |line| log.info(line), &mut |line| log.warn(line));
    set_io_priority(host, options.ionice, log);
    log.info(&format!("starting new backup job: {}", options.command_line));
    if !elsewhere.is_empty() {
        let names: Vec<String> = elsewhere.iter().map(Vmid::to_string).collect();
        log.info(&format!("skip external VMs: {}", names.join(", ")));
    }
    match job.guests(vmids) {
        Ok(outcomes) => {
            let failed = outcomes.contains(&GuestOutcome::Failed);
            log.info(if failed { "Backup job finished with errors" } else { "Backup job finished successfully" });
            if failed { Err(JobError::Guests) } else { Ok(()) }
        }
        Err(error) => {
            if let Err(hook) = job.call_hook(&["job-abort"], &job.hook_env(), false) {
                log.warn(&hook.to_string());
            }
            log.error(&format!("Backup job failed - {error}"));
            Err(error)
        }
    }
}

/// Selections that belong to later work must not silently back up nothing.
fn refuse_unsupported(options: &VzdumpOptions) -> Result<(), JobError> {
    if options.all || options.pool.is_some() || !options.exclude.is_empty() {
        return Err(JobError::Unsupported("--all, --exclude and --pool are not supported yet: name the guests"));
    }
    if options.stop && options.vmids.is_empty() {
        return Err(JobError::Unsupported("--stop is not supported yet: send TERM to the running job"));
    }
    if options.stdout && options.vmids.len() > 1 {
        return Err(JobError::Unsupported("you can only backup a single VM with option --stdout"));
    }
    Ok(())
}

/// Whether guest `vmid` lives on another node of the cluster.
fn is_elsewhere(host: &Host, vmid: Vmid) -> bool {
    let here = |node: &std::path::Path| {
        ["qemu-server", "lxc"].iter().any(|kind| node.join(kind).join(format!("{vmid}.conf")).exists())
    };
    let nodes = host.path("/etc/pve/nodes");
    if here(&nodes.join(host.node())) {
        return false;
    }
    std::fs::read_dir(nodes).into_iter().flatten().flatten().any(|node| here(&node.path()))
}

/// Lowers our own I/O priority and that of our children, as the original does and with the same program.
fn set_io_priority(host: &Host, ionice: u8, log: &LogSink) {
    let pid = std::process::id().to_string();
    let class = format!("-c{}", if ionice >= 8 { 3 } else { 2 });
    let level = format!("-n{ionice}");
    let args: &[&str] = if ionice >= 8 { &[&class, "-p", &pid] } else { &[&class, &level, "-p", &pid] };
    let done = host.command("ionice").args(args).output();
    if !done.is_ok_and(|output| output.status.success()) {
        log.warn("ionice failed: the backup runs at normal I/O priority");
    }
}

impl Job<'_> {
    fn guests(&self, mut vmids: Vec<Vmid>) -> Result<Vec<GuestOutcome>, JobError> {
        self.call_hook(&["job-start"], &self.hook_env(), true)?;
        vmids.sort_unstable();
        let mut outcomes = Vec::new();
        for vmid in vmids {
            outcomes.push(guest_run::run(self, vmid));
            if self.cancel.is_set() {
                return Err(JobError::Interrupted);
            }
        }
        self.call_hook(&["job-end"], &self.hook_env(), true)?;
        Ok(outcomes)
    }

    /// What every hook of this job sees.
    fn hook_env(&self) -> HookEnv {
        HookEnv {
            storeid: self.destination.storage_id().map(str::to_owned),
            dumpdir: Some(self.destination.dump_dir.display().to_string()),
            ..HookEnv::default()
        }
    }

    fn call_hook(&self, args: &[&str], env: &HookEnv, interruptible: bool) -> Result<(), HookError> {
        let Some(hook) = &self.hook else { return Ok(()) };
        hook.run(args, env, interruptible.then_some(self.cancel), &mut |line| self.log.info(line))
    }

    fn check_interrupted(&self) -> Result<(), HookError> {
        if self.cancel.is_set() { Err(HookError::Interrupted) } else { Ok(()) }
    }

    fn compression(&self) -> Compression {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        match self.options.compress {
            Compress::None => Compression::None,
            Compress::Lzo => Compression::Lzo,
            Compress::Gzip => Compression::Gzip { threads: self.options.gzip_threads(cores) },
            Compress::Zstd => Compression::Zstd { threads: self.options.zstd_threads(cores) },
        }
    }

    /// As in the log: local time to the second.
    fn time(&self) -> String {
        self.host.now().strftime("%Y-%m-%d %H:%M:%S").to_string()
    }

    /// The cluster's name in `/etc/pve/corosync.conf`, for notes.
    fn cluster_name(&self) -> String {
        let text = std::fs::read_to_string(self.host.path("/etc/pve/corosync.conf")).unwrap_or_default();
        let name = text.lines().find_map(|line| line.trim().strip_prefix("cluster_name:"));
        name.map_or_else(|| "standalone node".to_owned(), |name| name.trim().to_owned())
    }
}
