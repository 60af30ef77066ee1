//! `qmrestore <archive> <vmid>`: words, messages and exit codes as those of the node's own; the work is done in `restore`.

use super::restoring::{Input, Restore, Wish, called, ctime};
use crate::archive::{Source, VmaArchive, vma::Header};
use crate::config::Fresh;
use crate::guest::conffile::Kind as GuestKind;
use crate::guest::monitor::QemuMonitor;
use crate::guest::record::Record;
use crate::host::{Cancel, Host};
use crate::image::{Target, open_target};
use crate::job::log::{Kind, LogSink};
use crate::restore::execute::{Data, ExecuteError, Tools, execute};
use crate::restore::plan::{Device, Existing, Options, plan};
use crate::restore::volumes::NodeVolumes;
use crate::schema::{RestoreOptions, tables::QMRESTORE};
use anyhow::{Context, Result, anyhow};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// Runs `qmrestore` with the arguments after its name.
pub fn run(args: &[OsString]) -> ExitCode {
    called(args, &QMRESTORE, RestoreOptions::parse, restore)
}

/// Restores as the options say.
pub(super) fn restore(given: RestoreOptions) -> Result<()> {
    let host = Host::from_env();
    let monitor = QemuMonitor::new(&host);
    let wish = Wish {
        kind: GuestKind::Vm,
        vmid: given.vmid.get(),
        force: given.force,
        // A guest that is restored while it runs is started already.
        start: given.start && !given.live,
        bwlimit: given.bwlimit,
    };
    let restore = Restore::new(&host, &monitor, wish)?;
    let options = Options {
        vmid: given.vmid.get(),
        storage: given.storage,
        force: given.force,
        unique: given.unique,
        mac_prefix: restore.datacenter.mac_prefix().unwrap_or_default().to_owned(),
    };
    let input = restore.input(&given.archive)?;
    let vm = Vm { restore: &restore, options, live: given.live };
    restore.run(&|record, existing, log| vm.restore(&input, record, existing, log))
}

/// The restore of a virtual machine.
struct Vm<'a> {
    restore: &'a Restore<'a>,
    options: Options,
    live: bool,
}

impl Vm<'_> {
    fn restore(
        &self,
        input: &Input,
        record: &mut Record,
        existing: Option<&Existing>,
        log: &LogSink,
    ) -> Result<Vec<String>> {
        let (host, cancel) = (self.restore.host, &self.restore.cancel);
        let bare = |line: &str| log.line(Kind::Bare, line);
        let archive = match input {
            Input::Stdin => {
                bare("restore vma archive: from standard input");
                let fd = std::io::stdin().as_fd().try_clone_to_owned().context("standard input cannot be read")?;
                Archive::Stream(Box::new(Source::from_fd(host, "stdin", fd, cancel)?))
            }
            Input::File(path) => {
                bare(&format!("restore vma archive: {}", path.display()));
                if self.live {
                    Archive::Disks(super::live::open(host, path, log, cancel)?)
                } else {
                    Archive::Stream(Box::new(Source::open(host, &host.path(path), cancel)?))
                }
            }
        };
        let header = archive.header().clone();
        for (name, data) in &header.configs {
            bare(&format!("CFG: size: {} name: {name}", data.len()));
        }
        for device in &header.devices {
            bare(&format!("DEV: dev_id={} size: {} devname: {}", device.id, device.size, device.name));
        }
        bare(&format!("CTIME: {}", ctime(header.ctime)));
        let devices: Vec<Device> =
            header.devices.iter().map(|d| Device { id: d.id, name: d.name.clone(), size: d.size }).collect();
        let mut plan = plan(&header.configs, &devices, &self.options, &self.restore.storages, host.node(), existing)?;
        plan.warnings.iter().for_each(|w| log.warn(w));
        let limit = self.restore.limit(plan.disks.iter().map(|disk| disk.storage.as_str()));
        let volumes = NodeVolumes {
            host,
            image_dir: &|id: &str| self.restore.storages.get(id).and_then(|s| s.content_dir("images")),
        };
        let mut tools = Tools {
            host,
            volumes: &volumes,
            actions: &self.restore.actions,
            open: &|path: &Path, format: &str, name: &str, zeroed: bool| {
                open_target(host, &host.path(path), format, name, zeroed).map_err(|e| e.to_string())
            },
            fresh: Fresh::random(),
            cancel,
            line: &mut |line: &str| match line.strip_prefix(Kind::Warn.prefix()) {
                Some(warning) => log.warn(warning),
                None => log.line(Kind::Bare, line),
            },
        };
        let left = match archive {
            Archive::Stream(source) => {
                execute(&mut plan, Box::new(Stream { source: *source, bwlimit: limit }), record, &mut tools)
            }
            Archive::Disks(disks) => super::live::execute(&mut plan, &disks, limit, record, &mut tools),
        };
        let left = left.map_err(|e| match e {
            ExecuteError::Step(why) => anyhow!("unable to restore VM {} - {why}", self.options.vmid),
            other => anyhow::Error::new(other),
        })?;
        if plan.template {
            self.restore.make_template(log);
        }
        Ok(left)
    }
}

/// The archive, read once from its begin to its end, or at any place.
enum Archive {
    Stream(Box<Source>),
    Disks(Arc<VmaArchive>),
}

impl Archive {
    fn header(&self) -> &Header {
        match self {
            Self::Stream(source) => source.header(),
            Self::Disks(disks) => disks.header(),
        }
    }
}

/// The archive, as `restore` wants it.
struct Stream {
    source: Source,
    bwlimit: Option<u64>,
}

impl Data for Stream {
    fn copy(
        self: Box<Self>,
        targets: &BTreeMap<u8, Arc<dyn Target>>,
        progress: &mut dyn FnMut(u64, u64),
        cancel: &Cancel,
    ) -> Result<String, String> {
        let mut report = |p: &crate::transfer::RestoreProgress| progress(p.done, p.total);
        crate::transfer::restore(self.source, targets, self.bwlimit, &mut report, cancel)
            .map(|summary| summary.to_string())
            .map_err(|e| e.to_string())
    }
}
