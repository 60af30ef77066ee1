//! `vzdump {<vmid> ...} [options]`: backs up guests of this node.

use std::ffi::OsString;
use std::process::ExitCode;

use super::{FAILED, complain, words};
use crate::config::VzdumpConf;
use crate::host::{Cancel, Host};
use crate::job::{self, log::LogSink, log::Terminal, tasklog::Outcome, upid::Upid};
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
    if request.params().flag("stop") {
        if let Err(error) = job::stop_running(&host) {
            complain(&format!("{error}\n"));
            return ExitCode::from(FAILED);
        }
        // Without a selection that was all.
        let selection = ["vmid", "all", "pool", "exclude"];
        if !selection.iter().any(|name| request.params().has(name)) {
            return ExitCode::SUCCESS;
        }
    }
    backup(&host, &request)
}

fn backup(host: &Host, request: &VzdumpRequest) -> ExitCode {
    exit_code(task(host, request, &mut |_| ()).as_ref())
}

/// The exit code of a task, `None` for one that could not be started.
pub(super) fn exit_code(outcome: Option<&Outcome>) -> ExitCode {
    let good = matches!(outcome, Some(Outcome::Ok | Outcome::Warnings(_)));
    ExitCode::from(if good { 0 } else { FAILED })
}

/// Runs `request` as a task of this node; `started` hears its name first. `None` when it could not be started.
pub(super) fn task(host: &Host, request: &VzdumpRequest, started: &mut dyn FnMut(&str)) -> Option<Outcome> {
    let vmids = request.params().items(&tables::VZDUMP, "vmid");
    let id = if let [one] = vmids.as_slice() { one.as_str() } else { "" };
    let terminal = match (request.params().flag("stdout"), request.params().flag("quiet")) {
        (_, true) => Terminal::Quiet,
        (true, false) => Terminal::Stderr,
        (false, false) => Terminal::Stdout,
    };
    let cancel = Cancel::new();
    let record = cancel
        .on_signals()
        .and_then(|()| Upid::for_us(host, "vzdump", id, USER))
        .and_then(|upid| Ok((upid.to_string(), LogSink::start(host, terminal, Some(upid))?)));
    let (upid, log) = match record {
        Ok(record) => record,
        Err(error) => {
            complain(&format!("cannot start the task: {error}\n"));
            return None;
        }
    };
    started(&upid);
    let result = run_job(host, request, &upid, &log, &cancel);
    let outcome = match result {
        Err(error) => Outcome::Error(error),
        Ok(()) if log.warnings() > 0 => Outcome::Warnings(log.warnings()),
        Ok(()) => Outcome::Ok,
    };
    match &outcome {
        Outcome::Ok => {}
        Outcome::Warnings(count) => complain(&format!("Task finished with {count} warning(s)!\n")),
        Outcome::Error(error) => complain(&format!("{error}\n")),
    }
    if let Err(error) = log.finish(&outcome) {
        complain(&format!("the task's record is incomplete: {error}\n"));
    }
    Some(outcome)
}

fn run_job(host: &Host, request: &VzdumpRequest, upid: &str, log: &LogSink, cancel: &Cancel) -> Result<(), String> {
    let text = match std::fs::read(host.path(VzdumpConf::PATH)) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(format!("cannot read '{}': {error}", VzdumpConf::PATH)),
    };
    let conf = VzdumpConf::parse(&text);
    conf.warnings.iter().for_each(|warning| complain(&format!("{warning}\n")));
    let options = VzdumpOptions::merge(request, &conf.params).map_err(|e| e.to_string())?;
    job::run(host, &options, upid, log, cancel).map_err(|e| e.to_string())
}
