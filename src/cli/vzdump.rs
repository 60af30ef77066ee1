//! `vzdump {<vmid> ...} [options]`: backs up guests of this node.

use std::ffi::OsString;
use std::process::ExitCode;

use super::{FAILED, complain, words};
use crate::config::VzdumpConf;
use crate::host::{Cancel, Host};
use crate::job::selection::{Selection, Wanted};
use crate::job::{self, cluster, log::LogSink, log::Terminal, tasklog::Outcome, upid::Upid};
use crate::schema::{self, VzdumpOptions, VzdumpRequest, tables};

/// Who runs a task that was started on the command line.
const USER: &str = "root@pam";

/// Runs `vzdump` with the arguments after the program's name.
pub fn run(args: &[OsString]) -> ExitCode {
    let args = match words(args) {
        Ok(args) => args,
        Err(code) => return code,
    };
    if args.first().is_some_and(|word| word == "help") {
        complain(&schema::help(&tables::VZDUMP));
        return ExitCode::SUCCESS;
    }
    let request = match VzdumpRequest::parse(&args) {
        Ok(request) => request,
        Err(error) => {
            complain(&error.to_string());
            return ExitCode::from(FAILED);
        }
    };
    let host = Host::from_env();
    if request.params().text("node").is_some_and(|node| node != host.node() && node != "localhost") {
        return ExitCode::SUCCESS;
    }
    exit_code(&task(&host, &request, &mut |_| ()))
}

/// The guests to back up, before there is a task: what fails here leaves no trace but its words. Also stops the running job if
/// that is asked for. `None`: there is nothing to do here, and nothing to say, as when one command line is for all nodes.
fn select(host: &Host, request: &VzdumpRequest) -> Result<Option<Selection>, String> {
    let wanted = Wanted::new(request);
    let selection = cluster::selection(host, &wanted, &mut |warning| complain(&format!("{warning}\n")));
    let selection = selection.map_err(|error| error.to_string())?;
    if request.params().flag("stop") {
        job::stop_running(host).map_err(|error| error.to_string())?;
        if selection.local.is_empty() {
            return Ok(None);
        }
    }
    if !wanted.runs_with(&selection) {
        return Ok(None);
    }
    if request.params().flag("stdout") && selection.local.len() != 1 {
        return Err("you can only backup a single VM with option --stdout".to_owned());
    }
    Ok(Some(selection))
}

/// The exit code of what [`task`] returned; what kept a task from starting is said here.
pub(super) fn exit_code(ended: &Result<Option<Outcome>, String>) -> ExitCode {
    match ended {
        Ok(None | Some(Outcome::Ok | Outcome::Warnings(_))) => ExitCode::SUCCESS,
        Ok(Some(Outcome::Error(_))) => ExitCode::from(FAILED),
        Err(error) => {
            complain(&format!("{error}\n"));
            ExitCode::from(FAILED)
        }
    }
}

/// Runs `request` as a task of this node; `started` hears its name first. `None` when there is nothing to do here.
///
/// # Errors
/// Why no task was started.
pub(super) fn task(
    host: &Host,
    request: &VzdumpRequest,
    started: &mut dyn FnMut(&str),
) -> Result<Option<Outcome>, String> {
    let Some(selection) = select(host, request)? else { return Ok(None) };
    let id = selection.task_id().map(|vmid| vmid.to_string()).unwrap_or_default();
    let terminal = match (request.params().flag("stdout"), request.params().flag("quiet")) {
        (_, true) => Terminal::Quiet,
        (true, false) => Terminal::Stderr,
        (false, false) => Terminal::Stdout,
    };
    let cancel = Cancel::new();
    let record = cancel
        .on_signals()
        .and_then(|()| Upid::for_us(host, "vzdump", &id, USER))
        .and_then(|upid| Ok((upid.to_string(), LogSink::start(host, terminal, Some(upid))?)));
    let (upid, log) = record.map_err(|error| format!("cannot start the task: {error}"))?;
    started(&upid);
    let result = run_job(host, request, &selection, &upid, &log, &cancel);
    let outcome = match result {
        Err(error) => Outcome::Error(error),
        Ok(()) if log.warnings() > 0 => Outcome::Warnings(log.warnings()),
        Ok(()) => Outcome::Ok,
    };
    match &outcome {
        Outcome::Ok => {}
        Outcome::Warnings(count) => complain(&format!("Task finished with {count} warning(s)!\n")),
        // On one line, as in the task lists.
        Outcome::Error(_) => complain(&format!("{}\n", outcome.status())),
    }
    if let Err(error) = log.finish(&outcome) {
        complain(&format!("the task's record is incomplete: {error}\n"));
    }
    Ok(Some(outcome))
}

fn run_job(
    host: &Host,
    request: &VzdumpRequest,
    selection: &Selection,
    upid: &str,
    log: &LogSink,
    cancel: &Cancel,
) -> Result<(), String> {
    let text = match std::fs::read(host.path(VzdumpConf::PATH)) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(format!("cannot read '{}': {error}", VzdumpConf::PATH)),
    };
    let conf = VzdumpConf::parse(&text);
    conf.warnings.iter().for_each(|warning| complain(&format!("{warning}\n")));
    let options = VzdumpOptions::merge(request, &conf.params).map_err(|e| e.to_string())?;
    job::run(host, &options, selection, upid, log, cancel).map_err(|e| e.to_string())
}
