//! `qm status|start|shutdown|stop|suspend|resume|showcmd|unlock`.

use super::{GuestConfig, Machine, arguments, command_line, config, power, vmid};
use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::time::Duration;

pub fn run(machine: &Machine, words: &[String]) -> Result<String> {
    let (plain, options) = arguments(words, &["timeout", "skiplock-timeout"])?;
    let option =
        |name: &str| options.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| *value);
    let verb = plain.first().copied().unwrap_or_default();
    let id = vmid(plain.get(1))?;
    let guest = GuestConfig::load(machine, id)?;
    if matches!(verb, "start" | "shutdown" | "stop" | "suspend" | "resume")
        && option("skiplock").is_none_or(|v| v == "0")
    {
        guest.refuse_locked()?;
    }
    // As on a node: who starts a guest waits for who is still shutting it down.
    let _turn = if matches!(verb, "start" | "shutdown" | "stop") { Some(turn(machine, id)?) } else { None };
    let timeout = option("timeout").and_then(|value| value.parse().ok()).map(Duration::from_secs);
    match verb {
        "status" if power::is_running(machine, id) => return Ok("status: running\n".to_owned()),
        "status" => return Ok("status: stopped\n".to_owned()),
        "start" => power::start(machine, id, &guest, false)?,
        "shutdown" => {
            let force = option("forceStop").is_some_and(|value| value != "0");
            power::shutdown(machine, id, timeout.unwrap_or(Duration::from_secs(60)), force)?;
        }
        "stop" => power::stop(machine, id)?,
        "suspend" => power::monitor(machine, id, "stop")?,
        "resume" => power::monitor(machine, id, "cont")?,
        "showcmd" => return Ok(format!("{}\n", command_line::build(machine, id, &guest, None)?.join(" "))),
        "unlock" => config::change(machine, id, |guest| {
            guest.set("lock", None);
            Ok(())
        })?,
        other => bail!("qm {other}: the stand-in does not know this word"),
    }
    Ok(String::new())
}

fn turn(machine: &Machine, id: u32) -> Result<Flock<File>> {
    let path = machine.path(&format!("/var/lock/qemu-server/power-{id}"));
    let file = File::create(&path).with_context(|| format!("{} cannot be made", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
}
