//! Switches containers on and off: real ones, by LXC's own programs. As on a node the volumes are mounted by a hook in the
//! monitor's own mount namespace, so nothing is mounted any more when the monitor has ended, however it did.

use super::{GuestConfig, Machine, Storages};
use anyhow::{Context, Result, bail, ensure};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Where LXC keeps the containers of a node.
pub const LXC_PATH: &str = "/var/lib/lxc";

fn dir(machine: &Machine, vmid: u32) -> PathBuf {
    machine.path(LXC_PATH).join(vmid.to_string())
}

/// The monitor of a running container.
pub fn monitor(machine: &Machine, vmid: u32) -> Option<i32> {
    let pid = std::fs::read_to_string(dir(machine, vmid).join("pid")).ok()?.trim().parse::<i32>().ok()?;
    // A pid file outlives a killed monitor, and its number may belong to somebody else by now.
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let ours = format!("VZKEEP_ROOT={}", machine.root.display());
    environment.split(|b| *b == 0).any(|line| line == ours.as_bytes()).then_some(pid)
}

/// One of LXC's programs, for this node's containers.
pub fn program(machine: &Machine, name: &str) -> Result<Command> {
    // The stand-in of this name comes first in PATH.
    let own = machine.path("/bin").join(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain([PathBuf::from("/usr/bin")]).map(|dir| dir.join(name));
    let real = dirs.into_iter().find(|file| *file != own && file.is_file());
    let mut command = Command::new(real.with_context(|| format!("{name} is not installed"))?);
    command.arg("-P").arg(machine.path(LXC_PATH)).env("VZKEEP_ROOT", &machine.root);
    Ok(command)
}

/// Starts a container and waits until its first process runs.
pub fn start(machine: &Machine, vmid: u32, config: &GuestConfig) -> Result<()> {
    ensure!(monitor(machine, vmid).is_none(), "CT {vmid} already running");
    let dir = dir(machine, vmid);
    std::fs::create_dir_all(dir.join("rootfs"))?;
    std::fs::write(dir.join("mounts"), mounts(machine, &dir, config)?)?;
    std::fs::write(dir.join("config"), lxc_config(machine, &dir, config)?)?;
    let mut command = program(machine, "lxc-start")?;
    command.args(["-n", &vmid.to_string(), "-d", "-l", "INFO", "-o"]).arg(dir.join("log"));
    command.arg("-p").arg(dir.join("pid"));
    let status = command.status().context("lxc-start cannot be started")?;
    if !status.success() {
        let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        let bad: Vec<&str> = log.lines().filter(|line| line.contains(" ERROR ")).collect();
        bail!("startup for container '{vmid}' failed\n{}", bad.join("\n"));
    }
    Ok(())
}

/// Asks the container to shut itself down and waits for it.
pub fn shutdown(machine: &Machine, vmid: u32, timeout: Duration, force: bool) -> Result<()> {
    let seconds = timeout.as_secs().to_string();
    let kind: &[&str] = if force { &[] } else { &["--nokill"] };
    stop_by(machine, vmid, &[kind, &["--timeout", &seconds]].concat())
}

/// Ends the container at once.
pub fn stop(machine: &Machine, vmid: u32) -> Result<()> {
    stop_by(machine, vmid, &["--kill"])
}

fn stop_by(machine: &Machine, vmid: u32, words: &[&str]) -> Result<()> {
    let Some(pid) = monitor(machine, vmid) else { return Ok(()) };
    let mut command = program(machine, "lxc-stop")?;
    command.args(["-n", &vmid.to_string()]).args(words);
    let status = command.status().context("lxc-stop cannot be started")?;
    ensure!(status.success(), "command 'lxc-stop -n {vmid} {}' failed: {status}", words.join(" "));
    // Its mounts are there as long as the monitor is.
    let deadline = Instant::now() + Duration::from_secs(10);
    while Path::new(&format!("/proc/{pid}")).exists() {
        ensure!(Instant::now() < deadline, "the monitor of CT {vmid} (process {pid}) does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The hook that mounts the volumes, the root file system first.
fn mounts(machine: &Machine, dir: &Path, config: &GuestConfig) -> Result<String> {
    let storages = Storages::load(machine)?;
    let mut points = Vec::new();
    for (key, value) in config.entries() {
        let point = match key.strip_prefix("mp").map(str::parse::<u32>) {
            Some(Ok(_)) => property(value, "mp").with_context(|| format!("{key} has no mp=: {value}"))?,
            _ if key == "rootfs" => "/",
            _ => continue,
        };
        points.push((point, value));
    }
    points.sort_unstable();
    let mut script = "set -e\n".to_owned();
    for (point, value) in points {
        let source = value.split(',').next().unwrap_or_default();
        let read_only = if property(value, "ro") == Some("1") { "ro" } else { "rw" };
        let (path, how) = if source.starts_with('/') {
            (machine.path(source), format!("--bind -o {read_only}"))
        } else {
            let volume = storages.volume(source)?;
            let how = match (volume.format.as_str(), &volume.group) {
                ("subvol", _) => format!("--bind -o {read_only}"),
                (_, Some(_)) => {
                    // As a node does, which switches its volumes on with the guest.
                    writeln!(script, "lvchange -ay '{}'", volume.path.display())?;
                    format!("-o {read_only}")
                }
                _ => format!("-o loop,{read_only}"),
            };
            (volume.path, how)
        };
        let at = dir.join("rootfs").join(point.trim_start_matches('/'));
        writeln!(script, "mkdir -p '{0}'\nmount {how} '{1}' '{0}'", at.display(), path.display())?;
    }
    Ok(script)
}

fn lxc_config(machine: &Machine, dir: &Path, config: &GuestConfig) -> Result<String> {
    let mut text = format!(
        "lxc.uts.name = {}\n\
         lxc.rootfs.path = dir:{dir}/rootfs\n\
         lxc.monitor.unshare = 1\n\
         lxc.hook.pre-start = /bin/sh {dir}/mounts\n\
         lxc.environment = VZKEEP_ROOT={}\n\
         lxc.net.0.type = empty\n\
         lxc.mount.auto = proc:mixed sys:mixed\n\
         lxc.autodev = 1\n\
         lxc.pty.max = 0\n\
         lxc.tty.max = 0\n\
         lxc.apparmor.profile = unconfined\n",
        config.get("hostname").unwrap_or("localhost"),
        machine.root.display(),
        dir = dir.display(),
    );
    let maps: Vec<&str> = config.entries().filter(|(key, _)| *key == "lxc.idmap").map(|(_, value)| value).collect();
    for map in &maps {
        writeln!(text, "lxc.idmap = {map}")?;
    }
    if maps.is_empty() && config.get("unprivileged") == Some("1") {
        text.push_str("lxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 100000 65536\n");
    }
    Ok(text)
}

fn property<'a>(value: &'a str, name: &str) -> Option<&'a str> {
    value.split(',').find_map(|property| property.strip_prefix(name)?.strip_prefix('='))
}
