//! `vzkeep-pve-bridge <verb>`: JSON on standard input and output. What each verb takes and answers is in
//! `docs/BRIDGE.md`.

use super::{GuestConfig, Machine, Storages, config, live::Live, power};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::Read;
use std::process::ExitCode;

#[derive(Deserialize)]
struct Guest {
    vmid: u32,
}

#[derive(Deserialize)]
struct Lock {
    vmid: u32,
    lock: String,
}

#[derive(Deserialize)]
struct Volumes {
    volids: Vec<String>,
}

#[derive(Deserialize)]
struct OneVolume {
    volid: String,
    snapshot: Option<String>,
}

#[derive(Deserialize)]
struct Fleecing {
    vmid: u32,
    volids: Vec<String>,
}

/// Runs one verb and prints its answer.
pub fn run(words: &[String]) -> ExitCode {
    match call(words) {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{}", json!({"error": format!("{error:#}")}));
            ExitCode::FAILURE
        }
    }
}

fn call(words: &[String]) -> Result<Value> {
    let machine = Machine::from_env()?;
    let [verb] = words else { bail!("one verb expected, got {}", words.len()) };
    let mut question = String::new();
    std::io::stdin().read_to_string(&mut question)?;
    let question: Value =
        serde_json::from_str(&question).with_context(|| format!("{verb}: no JSON on standard input"))?;
    answer(&machine, verb, question)
}

fn answer(machine: &Machine, verb: &str, question: Value) -> Result<Value> {
    match verb {
        "vm-start-paused" => {
            let Guest { vmid } = serde_json::from_value(question)?;
            let guest = GuestConfig::load(machine, vmid)?;
            power::start(machine, vmid, &guest, true)?;
        }
        "vm-start-live" => {
            let Guest { vmid } = Guest::deserialize(&question)?;
            let guest = GuestConfig::load(machine, vmid)?;
            let live = Live::prepare(machine, &guest, &question)?;
            power::start_with(machine, vmid, &guest, true, Some(&live))?;
            return Ok(live.answer());
        }
        "vm-stop" => {
            let Guest { vmid } = serde_json::from_value(question)?;
            GuestConfig::load(machine, vmid)?;
            power::stop(machine, vmid)?;
        }
        "lock" => {
            let Lock { vmid, lock } = serde_json::from_value(question)?;
            config::change(machine, vmid, |guest| {
                guest.refuse_locked()?;
                guest.set("lock", Some(&lock));
                Ok(())
            })?;
        }
        "unlock" => {
            let Lock { vmid, lock } = serde_json::from_value(question)?;
            config::change(machine, vmid, |guest| match guest.get("lock") {
                None => bail!("no lock found trying to remove '{lock}' lock"),
                Some(held) if held != lock => bail!("found lock '{held}' trying to remove '{lock}' lock"),
                Some(_) => {
                    guest.set("lock", None);
                    Ok(())
                }
            })?;
        }
        "volume-activate" | "volume-deactivate" => {
            let Volumes { volids } = serde_json::from_value(question)?;
            let storages = Storages::load(machine)?;
            for volid in volids {
                let volume = storages.volume(&volid)?;
                if verb == "volume-activate" && !volume.path.exists() {
                    bail!("volume '{volid}' does not exist");
                }
            }
        }
        "volume-path" => {
            let OneVolume { volid, snapshot } = serde_json::from_value(question)?;
            if let Some(snapshot) = snapshot {
                bail!("volume '{volid}': no path to snapshot '{snapshot}' in a directory");
            }
            let volume = Storages::load(machine)?.volume(&volid)?;
            return Ok(json!({"path": volume.path, "format": volume.format}));
        }
        "record-fleecing" => {
            let Fleecing { vmid, volids } = serde_json::from_value(question)?;
            config::change(machine, vmid, |guest| {
                let line = (!volids.is_empty()).then(|| format!("fleecing-images: {}", volids.join(",")));
                guest.set_section("special:fleecing", line.as_slice());
                Ok(())
            })?;
        }
        other => bail!("unknown verb '{other}'"),
    }
    Ok(json!({}))
}
