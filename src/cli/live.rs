//! `vzkeep live-restore <archive> <vmid>` and `qmrestore --live-restore`: the machine runs from the archive, which we serve to its
//! QEMU, while its disks move to their volumes.

use super::qmrestore;
use super::restoring::ended;
use crate::archive::VmaArchive;
use crate::guest::record::Record;
use crate::host::{Cancel, Host};
use crate::image::Image;
use crate::job::log::{Kind, LogSink};
use crate::nbd::server::{Event, Export, Exports, Listener, Server, Settings};
use crate::restore::execute::{ExecuteError, Tools};
use crate::restore::live::{LiveData, execute_live};
use crate::restore::plan::Plan;
use crate::schema::{RestoreOptions, Vmid};
use anyhow::{Result, bail};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// What the original's users are told before they choose this.
const WARNING: &str = "live-restore: if anything goes wrong before it is complete, the VM is removed again, and new data that it \
     has written until then is lost";

/// Restore a machine that runs meanwhile.
#[derive(Debug, clap::Args)]
pub(super) struct LiveRestore {
    /// The archive, a path or a volume such as local:backup/<name>
    archive: String,
    /// The machine to make
    vmid: Vmid,
    /// Where its disks go; each to the storage it came from without
    #[arg(long)]
    storage: Option<String>,
    /// Replace a machine that exists and does not run
    #[arg(long)]
    force: bool,
    /// Give it new MAC addresses and machine ids
    #[arg(long)]
    unique: bool,
    /// KiB a second that are copied behind the running machine; 0 lifts the limits of storages
    #[arg(long, value_name = "KIB")]
    bwlimit: Option<u64>,
}

/// Runs the verb.
pub(super) fn run(live: LiveRestore) -> ExitCode {
    let LiveRestore { archive, vmid, storage, force, unique, bwlimit } = live;
    let bwlimit = bwlimit.map(|kib| kib.saturating_mul(1024));
    ended(if archive == "-" {
        Err(anyhow::anyhow!("standard input can be read only once and in order; give the archive by its path"))
    } else {
        qmrestore::restore(RestoreOptions { archive, vmid, storage, force, unique, bwlimit, start: false, live: true })
    })
}

/// Opens an archive so that it can be read at any place, and says what a live restore means.
///
/// # Errors
/// When it cannot be read, or only once.
pub(super) fn open(host: &Host, path: &Path, log: &LogSink, cancel: &Cancel) -> Result<Arc<VmaArchive>> {
    log.warn(WARNING);
    let real = host.path(path);
    if !real.is_file() {
        bail!("'{}' is no regular file: a live restore reads the archive at any place", path.display());
    }
    log.line(Kind::Bare, "opening the archive; one of another program is gone through once before the VM starts");
    let archive = VmaArchive::open(host, &real, cancel)?;
    if let Some(note) = archive.note() {
        log.line(Kind::Bare, note);
    }
    Ok(archive)
}

/// Carries out the plan with the guest running from `archive`.
///
/// # Errors
/// The first step that failed.
pub(super) fn execute(
    plan: &mut Plan,
    archive: &Arc<VmaArchive>,
    limit: Option<u64>,
    record: &mut Record,
    tools: &mut Tools<'_>,
) -> Result<Vec<String>, ExecuteError> {
    let data = LiveData { disk: &|name| archive.disk(name), serve: &serve, limit };
    execute_live(plan, &data, record, tools)
}

/// Serves the disks. Not until somebody wants to stop, but until the guest is through with them.
fn serve(socket: &Path, disks: Vec<(String, Arc<dyn Image>)>) -> Result<Box<dyn Send>, String> {
    let listener = Listener::bind(socket).map_err(|e| e.to_string())?;
    let exports = disks.into_iter().map(|(name, image)| Export::read_only(&name, image)).collect();
    // What cannot be read is noted with the disks; that QEMU comes and goes is no news.
    let report = Box::new(|_: &Event<'_>| {});
    let server = Server::start(listener, Exports::new(exports), Settings::default(), report, &Cancel::new());
    server.map(|server| Box::new(server) as Box<dyn Send>).map_err(|e| format!("the archive cannot be served: {e}"))
}
