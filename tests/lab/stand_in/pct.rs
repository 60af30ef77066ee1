//! `pct status|start|shutdown|stop|unlock`, and `lxc-info` and `lxc-stop`, which are LXC's own on the node's containers.

use super::config::change_container;
use super::{GuestConfig, Machine, arguments, lxc, vmid};
use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::time::Duration;

pub fn run(machine: &Machine, words: &[String]) -> Result<String> {
    let (plain, options) = arguments(words, &["timeout"])?;
    let option =
        |name: &str| options.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| *value);
    let set = |name: &str| option(name).is_some_and(|value| value != "0");
    let verb = plain.first().copied().unwrap_or_default();
    let id = vmid(plain.get(1))?;
    let config = GuestConfig::load_container(machine, id)?;
    if matches!(verb, "start" | "shutdown" | "stop")
        && !set("skiplock")
        && let Some(lock) = config.get("lock")
    {
        bail!("CT is locked ({lock})");
    }
    // As on a node: who starts a container waits for who is still shutting it down.
    let _turn = if matches!(verb, "start" | "shutdown" | "stop") { Some(turn(machine, id)?) } else { None };
    match verb {
        "status" if lxc::monitor(machine, id).is_some() => return Ok("status: running\n".to_owned()),
        "status" => return Ok("status: stopped\n".to_owned()),
        "start" => lxc::start(machine, id, &config)?,
        "shutdown" => {
            let timeout = option("timeout").and_then(|value| value.parse().ok()).unwrap_or(60);
            lxc::shutdown(machine, id, Duration::from_secs(timeout), set("forceStop"))?;
        }
        "stop" => lxc::stop(machine, id)?,
        "unlock" => change_container(machine, id, |config| {
            config.set("lock", None);
            Ok(())
        })?,
        other => bail!("pct {other}: the stand-in does not know this word"),
    }
    Ok(String::new())
}

/// Runs LXC's own `lxc-info` with the node's containers.
pub fn info(machine: &Machine, words: &[String]) -> Result<String> {
    let output = lxc::program(machine, "lxc-info")?.args(words).output().context("lxc-info cannot be started")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `lxc-stop -n <id> --nokill --timeout <seconds>`, which knows no lock.
pub fn halt(machine: &Machine, words: &[String]) -> Result<String> {
    let after = |name: &str| words.iter().position(|word| word == name).and_then(|at| words.get(at + 1));
    let id = after("-n").and_then(|id| id.parse().ok()).context("lxc-stop: no container")?;
    let timeout = after("--timeout").and_then(|value| value.parse().ok()).unwrap_or(60);
    let _turn = turn(machine, id)?;
    lxc::shutdown(machine, id, Duration::from_secs(timeout), !words.iter().any(|word| word == "--nokill"))?;
    Ok(String::new())
}

fn turn(machine: &Machine, id: u32) -> Result<Flock<File>> {
    let dir = machine.path("/run/lock/lxc");
    std::fs::create_dir_all(&dir)?;
    let path = dir.join(format!("power-{id}"));
    let file = File::create(&path).with_context(|| format!("{} cannot be made", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
}
