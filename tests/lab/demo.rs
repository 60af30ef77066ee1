//! `make demo`: a node, a guest that writes, `vzdump`, `qmrestore`, the checker, a short table; then the same with a
//! container. Everything is gone afterwards, also after Ctrl-C.

use super::run::code;
use super::{Format, Guest, Node, checker, demo_container, leash, mib, programs};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const DISKS: [(&str, Format, u64); 2] = [("scsi0", Format::Qcow2, mib(512)), ("virtio0", Format::Raw, mib(256))];

/// Runs the demo.
///
/// # Errors
/// When a step fails or is interrupted.
pub fn run() -> Result<()> {
    for program in ["qemu-system-x86_64", "qemu-img", "busybox", "rustc"] {
        ensure!(programs::find(program).is_some(), "{program} is missing: run `make setup`");
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let node = Node::new()?;
    let node = if demo_container::missing().is_none() { demo_container::prepare(node)? } else { node };
    let root = node.root().to_owned();
    let done = both(&node, &stop);
    drop(node);
    let left = leash::processes(&root)?;
    ensure!(!root.exists() && left.is_empty(), "left behind: {} {left:?}", root.display());
    if stop.load(Ordering::SeqCst) {
        bail!("interrupted; everything was removed");
    }
    done
}

/// The VM, then the container where there can be one, then what came out.
fn both(node: &Node, stop: &AtomicBool) -> Result<()> {
    let vm = steps(node, stop)?;
    let container = match demo_container::missing() {
        None => Some(demo_container::steps(node, stop)?),
        Some(_) => None,
    };
    for table in [Some(vm), container].into_iter().flatten() {
        println!();
        for (name, value) in table {
            println!("  {name:<14} {value}");
        }
    }
    if let Some(why) = demo_container::missing() {
        println!("\n  no container: {why}");
    }
    Ok(())
}

fn steps(node: &Node, stop: &AtomicBool) -> Result<Vec<(&'static str, String)>> {
    let mut guest = Guest::new(100).name("witness");
    for (key, format, bytes) in DISKS {
        guest = guest.disk(key, format, bytes);
    }
    guest.add_to(node)?;
    step("booting guest 100: a real QEMU; its witness writes numbered records to two disks in turn");
    node.switch_on(100)?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(60) {
        go_on(stop)?;
        if node.witness_within(100, "status", Duration::from_secs(1)).is_ok_and(|report| report.n > 500) {
            break;
        }
    }
    let calm = node.witness(100, "status")?;
    println!("the witness is at record {}; its longest write took {} ms so far", calm.n, calm.stall.as_millis());
    node.witness(100, "reset")?;

    let backup = ["100", "--storage", "backup", "--mode", "snapshot", "--compress", "zstd"];
    step(&format!("vzdump {}", backup.join(" ")));
    let watch = node.watch(100)?;
    let begun = Instant::now();
    live(node, "vzdump", &backup, stop)?;
    let seconds_backup = begun.elapsed().as_secs_f64();
    let standstill = watch.finish()?;
    let busy = node.witness(100, "status")?;
    node.assert_clean(100);
    let archives = node.archives("backup", 100)?;
    let archive = archives.last().context("vzdump left no archive")?;
    let size = archive.metadata()?.len();

    let words = [&archive.display().to_string(), "101", "--storage", "local"];
    step(&format!("qmrestore {}", words.join(" ")));
    let begun = Instant::now();
    live(node, "qmrestore", &words, stop)?;
    let seconds_restore = begun.elapsed().as_secs_f64();
    go_on(stop)?;

    step("checking the restored disks");
    let disks = DISKS.iter().map(|(key, _, _)| node.raw_disk(101, key)).collect::<Result<Vec<PathBuf>>>()?;
    let verdict = checker::check(&disks)?;
    println!("{verdict}");
    let later = node.witness(100, "status")?;
    ensure!(later.errors == 0, "the guest saw {} I/O errors", later.errors);
    ensure!(later.n > busy.n, "the guest does not write any more");

    let end = verdict.heads.first().copied().unwrap_or_default();
    Ok(vec![
        ("guest", "100 witness, running, one processor, TCG".to_owned()),
        ("disks", DISKS.map(|(key, format, bytes)| format!("{key} {} {} MiB", format.name(), bytes >> 20)).join(", ")),
        ("archive", format!("{:.1} MiB, {}", size as f64 / 1_048_576.0, file_name(archive))),
        ("backup", format!("{seconds_backup:.1} s, while records {} to {} were written", calm.n, busy.n)),
        ("restore", format!("{seconds_restore:.1} s")),
        (
            "longest stall",
            format!(
                "{} ms a write (before: {} ms), {} ms without a new record",
                busy.since_reset.as_millis(),
                calm.stall.as_millis(),
                standstill.as_millis()
            ),
        ),
        (
            "checks",
            format!("{} records intact; both disks at one instant (record {end}); nothing left", verdict.records),
        ),
    ])
}

pub(super) fn step(what: &str) {
    println!("\n\x1b[1m== {what}\x1b[0m");
}

pub(super) fn go_on(stop: &AtomicBool) -> Result<()> {
    ensure!(!stop.load(Ordering::SeqCst), "interrupted");
    Ok(())
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Runs a command with its output on the terminal.
pub(super) fn live(node: &Node, program: &str, words: &[&str], stop: &AtomicBool) -> Result<()> {
    let mut command: Command = node.command(program);
    let mut child =
        command.args(words).stdin(Stdio::null()).spawn().with_context(|| format!("{program} cannot be started"))?;
    let mut interrupted = None;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if stop.load(Ordering::SeqCst) && interrupted.is_none() {
            // It may not have got the signal itself; let it clean up behind itself for a moment.
            let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
            interrupted = Some(Instant::now());
        }
        if interrupted.is_some_and(|since| since.elapsed() > Duration::from_secs(10)) {
            child.kill()?;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    go_on(stop)?;
    ensure!(status.success(), "{program} ended with exit code {}", code(status));
    Ok(())
}
