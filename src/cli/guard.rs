//! `vzkeep guard <vmid>`: the guardian process of a run; started by the run itself, never by people. What it undid after a
//! killed run it writes into the guest's own log, since nobody is there to be told.

use crate::guest::actions::{Monitor, NodeActions};
use crate::guest::conffile::Kind;
use crate::guest::guard;
use crate::host::Host;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::process::ExitCode;

/// Runs the guardian with the arguments after `guard`; `monitor` is its way into QEMU.
pub fn run(args: &[OsString], monitor: &dyn Monitor) -> ExitCode {
    let vmid = args.first().and_then(|a| a.to_str()).and_then(|a| a.parse().ok());
    let (Some(vmid), 1) = (vmid, args.len()) else {
        super::complain("vzkeep guard is started by vzdump itself, with the id of a guest\n");
        return ExitCode::from(255);
    };
    let host = Host::from_env();
    let actions = NodeActions { host: &host, monitor, leaving: None };
    let (lines, code) = match guard::stand(&host, vmid, &actions) {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(report)) => {
            let code = if report.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) };
            let done = report.done.iter().map(|l| format!("INFO: the run was killed: {l}"));
            let failed = report.failed.iter().map(|l| format!("ERROR: the run was killed: {l}"));
            (done.chain(failed).collect(), code)
        }
        Err(e) => (vec![format!("ERROR: the run was killed: {e}")], ExitCode::from(1)),
    };
    match write_log(&host, vmid, &lines) {
        Ok(()) => code,
        Err(_) => ExitCode::from(1),
    }
}

fn write_log(host: &Host, vmid: u32, lines: &[String]) -> std::io::Result<()> {
    let path = host.path(Kind::of(host, vmid).log_path(vmid));
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let now = host.now().strftime("%Y-%m-%d %H:%M:%S").to_string();
    let text: String = lines.iter().map(|line| format!("{now} {line}\n")).collect();
    OpenOptions::new().create(true).append(true).open(path)?.write_all(text.as_bytes())
}
