//! Parts around a run that do not do their duty: a disk with a bad sector, a guest agent, a monitor in use.

use super::{KEYS, VMID, node, sentence};
use crate::lab::{Guest, Node};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// In the middle of the disk that the witness leaves alone.
const BAD: u64 = 600 << 10;

#[test]
fn a_bad_sector_a_mute_agent_a_busy_monitor() -> Result<()> {
    let bad = |node: &Node| {
        let (path, _) = node.disk(VMID, "scsi1")?;
        Ok(std::fs::write(path.with_added_extension("bad-sector"), BAD.to_string())?)
    };
    let guest = Guest::new(VMID).line("agent", "1");
    let Some(node) = node("a_bad_sector_a_mute_agent_a_busy_monitor", bad, guest)? else { return Ok(()) };
    bad_sector(&node)?;
    // As an administrator would: the broken disk is left out until it is replaced.
    let config = std::fs::read_to_string(node.config_path(VMID))?;
    std::fs::write(node.config_path(VMID), config.replace("scsi1: local:", "scsi1: backup=0,file=local:"))?;
    mute_agent(&node)?;
    busy_monitor(&node)?;
    println!("{}", node.backup_is_good(VMID, &KEYS)?);
    Ok(())
}

fn bad_sector(node: &Node) -> Result<()> {
    let output = node.vzdump(&["100", "--storage", "backup"])?;
    println!("bad sector at {BAD}: {}", sentence(&output));
    output.failed_with(&["ERROR: ", "INFO: aborting backup job", "ERROR: Backup of VM 100 failed - "])?;
    let said = sentence(&output);
    assert!(said.contains("VM 100") && said.contains("drive-scsi1") && said.contains("read"), "{said}");
    let words: Vec<&str> = said.split_whitespace().collect();
    let number = |after: &[&str]| {
        let at = words.windows(2).rposition(|pair| pair == after)?;
        words.get(at + 2)?.parse::<u64>().ok()
    };
    let offset = number(&["at", "offset"]).context("no offset")?;
    assert!(offset <= BAD && BAD - offset < 256 << 10, "{BAD} is not near {offset}: {said}");
    assert!(node.archives("backup", VMID)?.is_empty());
    node.unharmed(VMID)
}

/// The guest has the agent's device but no agent; then one that answers until it is asked about file systems.
fn mute_agent(node: &Node) -> Result<()> {
    let begun = Instant::now();
    let output = node.ok("vzdump", &["100", "--storage", "backup"])?;
    println!("agent mute: backup after {:.1} s", begun.elapsed().as_secs_f64());
    output.says(&[
        "INFO: skipping guest filesystem freeze - agent configured but not running?",
        "INFO: Finished Backup",
    ])?;
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    node.unharmed(VMID)?;

    let socket = node.path("/run/qemu-server/100.qga");
    let aside = socket.with_extension("aside");
    std::fs::rename(&socket, &aside)?;
    let listener = UnixListener::bind(&socket)?;
    std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| half_an_agent(&stream)));
    let begun = Instant::now();
    let output = node.ok("vzdump", &["100", "--storage", "backup"])?;
    println!("agent hangs: backup after {:.1} s", begun.elapsed().as_secs_f64());
    output.says(&["WARN: guest agent socket", "INFO: Finished Backup"])?;
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    std::fs::rename(&aside, &socket)?;
    node.unharmed(VMID)
}

/// Answers synchronisation and ping, and then nothing any more.
fn half_an_agent(stream: &UnixStream) {
    let mut to = stream;
    for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
        let from = line.iter().position(|b| *b == b'{').unwrap_or(line.len());
        let question: Value = serde_json::from_slice(&line[from..]).unwrap_or_default();
        let answer = match question["execute"].as_str() {
            Some("guest-sync-delimited") => format!("\u{00ff}{}\n", json!({"return": question["arguments"]["id"]})),
            Some("guest-ping") => "{\"return\": {}}\n".to_owned(),
            _ => return std::thread::sleep(Duration::from_secs(90)),
        };
        // The mark is one byte, not a character.
        let bytes: Vec<u8> = answer.chars().map(|c| c as u8).collect();
        if to.write_all(&bytes).is_err() {
            return;
        }
    }
}

/// Takes the only place at the monitor.
fn hold(socket: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    let mut greeting = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut greeting).context("no greeting")?;
    Ok(stream)
}

fn busy_monitor(node: &Node) -> Result<()> {
    let held = hold(&node.qmp_socket(VMID))?;
    let mut run = node.spawn_vzdump(&["100", "--storage", "backup"])?;
    run.wait_for("starting backup via QMP command", Duration::from_secs(30))?;
    std::thread::sleep(Duration::from_secs(2));
    assert!(run.is_running()? && !run.stdout_so_far()?.contains("started backup task"));
    drop(held);
    let output = run.wait(Duration::from_secs(60))?;
    assert_eq!(output.code, 0, "{}{}", output.stdout, output.stderr);
    node.unharmed(VMID)?;

    let held = hold(&node.qmp_socket(VMID))?;
    let begun = Instant::now();
    let mut run = node.spawn_vzdump(&["100", "--storage", "backup"])?;
    run.wait_for("failed - ", Duration::from_secs(100))?;
    println!("monitor busy: failed after {:.1} s", begun.elapsed().as_secs_f64());
    drop(held);
    let output = run.wait(Duration::from_secs(60))?;
    println!("monitor busy: {}", sentence(&output));
    output.failed_with(&["ERROR: Backup of VM 100 failed - "])?;
    assert!(sentence(&output).contains("busy: another program is connected, waited 30 s"), "{}", sentence(&output));
    node.unharmed(VMID)
}
