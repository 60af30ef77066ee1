//! `qm status|start|shutdown|stop|suspend|resume|showcmd|unlock`.

use super::{GuestConfig, Machine, arguments, command_line, config, power, vmid};
use anyhow::{Result, bail};
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
        "showcmd" => return Ok(format!("{}\n", command_line::build(machine, id, &guest)?.join(" "))),
        "unlock" => config::change(machine, id, |guest| {
            guest.set("lock", None);
            Ok(())
        })?,
        other => bail!("qm {other}: the stand-in does not know this word"),
    }
    Ok(String::new())
}
