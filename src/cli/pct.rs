//! `pct restore <vmid> <archive>`: words, messages and exit codes as those of the node's own; the work is done in
//! `restore::container`. Called as `pct`, every other word is handed on to the node's own program.

use super::restoring::{Input, Restore, Wish, called};
use super::{FAILED, complain};
use crate::archive::tar::TarSource;
use crate::config::Fresh;
use crate::guest::conffile::Kind as GuestKind;
use crate::guest::monitor::QemuMonitor;
use crate::guest::record::Record;
use crate::host::Host;
use crate::job::log::{Kind, LogSink};
use crate::restore::container::execute::{Tools, execute};
use crate::restore::container::members::TarMembers;
use crate::restore::container::plan::{Archived, ContainerRefusal, Request, plan};
use crate::restore::execute::ExecuteError;
use crate::restore::plan::Existing;
use crate::restore::volumes::NodeVolumes;
use crate::schema::{ContainerRestoreOptions, tables::PCT_RESTORE};
use anyhow::{Context, Result, anyhow};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// How far into an archive its config is looked for: it is at the start, and is small.
const HEAD: usize = 4 << 20;

/// Runs `pct` with the arguments after its name: `restore` here, all else by the next `pct` in `PATH`.
pub fn run_as_pct(args: &[OsString]) -> ExitCode {
    if args.first().is_some_and(|word| word == "restore") {
        return run(args.get(1..).unwrap_or_default());
    }
    let own = std::fs::canonicalize("/proc/self/exe").ok();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let other = std::env::split_paths(&path)
        .map(|dir| dir.join("pct"))
        .find(|program| std::fs::canonicalize(program).is_ok_and(|real| Some(&real) != own.as_ref()));
    match other {
        Some(program) => {
            let error = Command::new(&program).args(args).exec();
            complain(&format!("'{}' cannot be run: {error}\n", program.display()));
        }
        None => complain("of pct only 'pct restore' is in vzkeep, and there is no other 'pct' in PATH\n"),
    }
    ExitCode::from(FAILED)
}

/// Runs `pct restore` with the arguments after these words.
pub fn run(args: &[OsString]) -> ExitCode {
    called(args, &PCT_RESTORE, ContainerRestoreOptions::parse, restore)
}

fn restore(given: ContainerRestoreOptions) -> Result<()> {
    let host = Host::from_env();
    let monitor = QemuMonitor::new(&host);
    let vmid = given.vmid.get();
    let wish =
        Wish { kind: GuestKind::Container, vmid, force: given.force, start: given.start, bwlimit: given.bwlimit };
    let restore = Restore::new(&host, &monitor, wish)?;
    let request = Request {
        vmid,
        storage: given.storage,
        rootfs: given.rootfs,
        mount_points: given.mount_points,
        unprivileged: given.unprivileged,
        force: given.force,
        unique: given.unique,
        mac_prefix: restore.datacenter.mac_prefix().unwrap_or_default().to_owned(),
        description: given.description,
        settings: given.settings,
    };
    let input = restore.input(&given.archive)?;
    let container = Container { restore: &restore, request, ignore_errors: given.ignore_unpack_errors };
    restore.run(&|record, existing, log| {
        container.restore(&input, record, existing, log).map_err(|e| match e.downcast::<ContainerRefusal>() {
            // Its words are whole sentences already.
            Ok(ContainerRefusal::Existing(refusal)) => refusal.into(),
            Ok(refusal) => anyhow!("unable to restore CT {vmid} - {refusal}"),
            Err(other) => other,
        })
    })
}

/// The restore of a container.
struct Container<'a> {
    restore: &'a Restore<'a>,
    request: Request,
    ignore_errors: bool,
}

impl Container<'_> {
    fn restore(
        &self,
        input: &Input,
        record: &mut Record,
        existing: Option<&Existing>,
        log: &LogSink,
    ) -> Result<Vec<String>> {
        let (host, cancel, vmid) = (self.restore.host, &self.restore.cancel, self.request.vmid);
        let unable = |why: &dyn std::fmt::Display| anyhow!("unable to restore CT {vmid} - {why}");
        let bare = |line: &str| log.line(Kind::Bare, line);
        let (source, name) = match input {
            Input::Stdin => {
                let fd = std::io::stdin().as_fd().try_clone_to_owned().context("standard input cannot be read")?;
                (TarSource::from_fd(host, "stdin", fd, cancel), "-".to_owned())
            }
            Input::File(path) => {
                bare(&format!("recovering backed-up configuration from '{}'", path.display()));
                (TarSource::open(host, &host.path(path), cancel), path.display().to_string())
            }
        };
        let mut source = source.map_err(|e| unable(&e))?;
        let wanted: [&[u8]; 3] = [b"./etc/vzdump/pct.conf", b"./etc/vzdump/pct.fw", b"./etc/vzdump/vps.conf"];
        let [config, firewall, openvz] = source.peek(wanted, HEAD).map_err(|e| unable(&e))?;
        source.note().into_iter().for_each(|note| log.warn(note));
        let archived = Archived { config, firewall, openvz: openvz.is_some() };
        let plan = plan(&archived, &self.request, &self.restore.storages, host.node(), existing)?;
        // Not warnings of the task, which ends well as the original's does.
        plan.warnings.iter().for_each(|warning| bare(&format!("{}{warning}", Kind::Warn.prefix())));
        let limit = self.restore.limit(plan.volumes.iter().map(|volume| volume.disk.storage.as_str()));
        let volumes = NodeVolumes {
            host,
            image_dir: &|id: &str| self.restore.storages.get(id).and_then(|storage| storage.content_dir("images")),
        };
        let mut tools = Tools {
            host,
            volumes: &volumes,
            actions: &self.restore.actions,
            runs: &|| self.restore.runs(),
            fresh: Fresh::random(),
            cancel,
            line: &mut |line: &str| match line.strip_prefix(Kind::Warn.prefix()) {
                Some(warning) => log.warn(warning),
                None => log.line(Kind::Bare, line),
            },
            ignore_errors: self.ignore_errors,
        };
        // Of a container whose ids are mapped, the kernel lets nobody make devices: tar would only complain.
        let devices = plan.id_map.is_empty() || self.ignore_errors;
        let members = TarMembers { source, limit, devices };
        let left = execute(&plan, &name, Box::new(members), record, &mut tools).map_err(|e| match e {
            ExecuteError::Step(why) => unable(&why),
            other => anyhow::Error::new(other),
        })?;
        if plan.template {
            self.restore.make_template(log);
        }
        Ok(left)
    }
}
