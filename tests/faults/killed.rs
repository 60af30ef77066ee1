//! Runs that are killed, alone and together with the guardian that stands beside them.

use super::{KEYS, SOON, VMID, copying, node, random};
use crate::lab::run::Running;
use crate::lab::{Guest, Node};
use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const MODES: [&str; 3] = ["snapshot", "suspend", "stop"];
/// So that copying takes about as long as everything else together.
const LIMIT: &str = "15000";

fn seed() -> Result<u64> {
    let given = std::env::var("VZKEEP_SEED").ok().and_then(|text| text.parse().ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
    Ok(given.unwrap_or(u64::from(now) | 1))
}

#[test]
fn killed_at_ten_random_moments() -> Result<()> {
    let Some(node) = node("killed_at_ten_random_moments", |_| Ok(()), Guest::new(VMID))? else { return Ok(()) };
    let seed = seed()?;
    println!("seed: VZKEEP_SEED={seed}");
    let mut state = seed;
    let begun = Instant::now();
    node.ok("vzdump", &["100", "--storage", "backup", "--compress", "zstd", "--bwlimit", LIMIT])?;
    let whole = begun.elapsed();
    println!("undisturbed: {:.2} s", whole.as_secs_f64());
    for round in 0..10 {
        let mode = MODES[round % 3];
        let most = if mode == "stop" { whole.mul_f64(1.3) } else { whole };
        let after = most.mul_f64((random(&mut state) >> 11) as f64 / (1_u64 << 53) as f64);
        let wait = |_: &mut Running| {
            std::thread::sleep(after);
            Ok(())
        };
        round_of_kill(&node, mode, wait).map_err(|error| error.context(format!("{mode}, killed after {after:?}")))?;
    }
    // The worst moment: the guest was told to shut down, and goes down after its run is gone.
    round_of_kill(&node, "stop", |run| {
        run.wait_for("stopping virtual guest", SOON)?;
        std::thread::sleep(Duration::from_millis(60));
        Ok(())
    })?;
    let log = std::fs::read_to_string(node.path("/var/log/vzdump/qemu-100.log"))?;
    ensure!(log.contains("INFO: the run was killed: started VM 100 again"), "{log}");
    println!("{}", node.backup_is_good(VMID, &KEYS)?);
    Ok(())
}

fn round_of_kill(node: &Node, mode: &str, wait: impl FnOnce(&mut Running) -> Result<()>) -> Result<()> {
    let before = node.archives("backup", VMID)?.len();
    let watch = if mode == "stop" { None } else { Some(node.watch(VMID)?) };
    let words = ["100", "--storage", "backup", "--mode", mode, "--compress", "zstd", "--bwlimit", LIMIT];
    let mut run = node.spawn_vzdump(&words)?;
    let begun = Instant::now();
    wait(&mut run)?;
    let after = begun.elapsed();
    let alive = run.is_running()?;
    let said = run.stdout_so_far()?;
    if alive {
        run.signal(Signal::SIGKILL)?;
    }
    let output = run.wait(SOON)?;
    ensure!(output.code == if alive { 137 } else { 0 }, "exit {}: {}{}", output.code, output.stdout, output.stderr);
    let undone = node.wait_for_guardian()?;
    let stood = watch.map(|watch| {
        std::thread::sleep(Duration::from_millis(300));
        watch.finish()
    });
    let stood = stood
        .transpose()?
        .map_or(String::new(), |time| format!(", guest stood still for {} ms at most", time.as_millis()));
    let last = said.lines().last().unwrap_or("nothing");
    println!(
        "{mode}, killed after {:.2} s at '{last}': guardian done after {} ms{stood}",
        after.as_secs_f64(),
        undone.as_millis()
    );
    node.unharmed(VMID)?;
    let archives = node.archives("backup", VMID)?.len();
    ensure!(archives == before || said.contains("100%"), "an archive of a run that was killed while it copied");
    Ok(())
}

/// The guest may stand still then, and stays locked: until the next run, which makes everything good.
#[test]
fn killed_together_with_its_guardian() -> Result<()> {
    let Some(node) = node("killed_together_with_its_guardian", |_| Ok(()), Guest::new(VMID))? else { return Ok(()) };
    let end = |run: Running| -> Result<()> {
        let guardians = node.guardians()?;
        ensure!(guardians.len() == 1, "guardians: {guardians:?}");
        kill(Pid::from_raw(guardians[0]), Signal::SIGKILL)?;
        run.signal(Signal::SIGKILL)?;
        run.wait(SOON)?;
        let left = node.leftovers(VMID)?;
        println!("left behind:\n  {}", left.join("\n  "));
        for what in ["lock: backup", ".dat"] {
            ensure!(left.iter().any(|line| line.contains(what)), "no {what}");
        }
        Ok(())
    };
    end(copying(&node, &["--mode", "snapshot"])?)?;
    let session = node.leftovers(VMID)?;
    ensure!(session.iter().any(|line| line.contains("reads through vzkeep-")), "{session:?}");
    println!("{}", node.backup_is_good(VMID, &KEYS)?);

    let mut run = node.spawn_vzdump(&["100", "--storage", "backup", "--mode", "suspend", "--bwlimit", "300"])?;
    run.wait_for("suspending guest", SOON)?;
    let deadline = Instant::now() + SOON;
    while node.qmp(VMID, "query-status", &serde_json::json!({}))?["status"] != "paused" && Instant::now() < deadline {}
    run.wait_for("creating vzdump archive", SOON)?;
    end(run)?;
    println!("{}", node.backup_is_good(VMID, &KEYS)?);
    Ok(())
}
