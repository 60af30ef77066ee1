//! Switches guests on and off: starts QEMU in the background, presses its power button, ends it.

use super::live::Live;
use super::{GuestConfig, Machine, command_line};
use crate::lab::qmp;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The process of a running guest.
pub fn pid(machine: &Machine, vmid: u32) -> Option<Pid> {
    let text = std::fs::read_to_string(machine.run_file(vmid, "pid")).ok()?;
    let pid = text.trim().parse::<i32>().ok()?;
    // A pid file outlives a killed QEMU, and its number may belong to somebody else by now.
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let ours = String::from_utf8_lossy(&command).contains(&machine.root.display().to_string());
    ours.then(|| Pid::from_raw(pid))
}

/// Whether guest `vmid` runs; paused guests run as well.
pub fn is_running(machine: &Machine, vmid: u32) -> bool {
    pid(machine, vmid).is_some()
}

/// Starts a guest, with `paused` without letting its processors run.
pub fn start(machine: &Machine, vmid: u32, guest: &GuestConfig, paused: bool) -> Result<()> {
    start_with(machine, vmid, guest, paused, None)
}

/// As [`start`]; disks of `live` show an archive.
pub fn start_with(machine: &Machine, vmid: u32, guest: &GuestConfig, paused: bool, live: Option<&Live>) -> Result<()> {
    if is_running(machine, vmid) {
        bail!("VM {vmid} already running");
    }
    std::fs::create_dir_all(machine.path("/run/qemu-server"))?;
    let words = command_line::build(machine, vmid, guest, live)?;
    let (program, words) = words.split_first().context("empty command line")?;
    let errors = machine.run_file(vmid, "start-errors");
    let mut command = Command::new(program);
    command.args(words).env("VZKEEP_ROOT", &machine.root).current_dir(&machine.root);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(&errors)?);
    if paused {
        command.arg("-S");
    }
    let status = command.status().with_context(|| format!("{program} cannot be started"))?;
    let said = std::fs::read_to_string(&errors).unwrap_or_default();
    std::fs::remove_file(&errors)?;
    if !status.success() {
        bail!("start failed: QEMU exited with {status}: {}", said.trim());
    }
    Ok(())
}

/// Runs a monitor command without arguments.
pub fn monitor(machine: &Machine, vmid: u32, command: &str) -> Result<()> {
    if !is_running(machine, vmid) {
        bail!("VM {vmid} not running");
    }
    qmp::ask(&machine.run_file(vmid, "qmp"), command, &json!({}))?;
    Ok(())
}

/// Presses the power button and waits for the guest to switch itself off.
pub fn shutdown(machine: &Machine, vmid: u32, timeout: Duration, force: bool) -> Result<()> {
    if !is_running(machine, vmid) {
        return Ok(());
    }
    let socket = machine.run_file(vmid, "qmp");
    let deadline = Instant::now() + timeout;
    qmp::ask(&socket, "system_powerdown", &json!({}))?;
    while Instant::now() < deadline {
        if !is_running(machine, vmid) {
            return Ok(());
        }
        // QEMU runs with -no-shutdown, as on a node: it stays until somebody ends it.
        let status = qmp::ask(&socket, "query-status", &json!({}));
        if status.is_ok_and(|status| status["status"] == "shutdown") {
            return stop(machine, vmid);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    if force {
        return stop(machine, vmid);
    }
    bail!("VM quit/powerdown failed - got timeout")
}

/// Ends QEMU: asks, then terminates, then kills.
pub fn stop(machine: &Machine, vmid: u32) -> Result<()> {
    let Some(pid) = pid(machine, vmid) else { return Ok(()) };
    let asked = qmp::ask(&machine.run_file(vmid, "qmp"), "quit", &json!({}));
    let signals = if asked.is_ok() { [None, Some(Signal::SIGTERM)] } else { [Some(Signal::SIGTERM), None] };
    for signal in signals.into_iter().chain([Some(Signal::SIGKILL)]) {
        if let Some(signal) = signal {
            // It may have ended by itself in between.
            if kill(pid, signal).is_err() {
                break;
            }
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline && is_running(machine, vmid) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if !is_running(machine, vmid) {
            break;
        }
    }
    for left in ["pid", "qmp", "serial0", "qga"] {
        let path = machine.run_file(vmid, left);
        if path.exists() {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}
