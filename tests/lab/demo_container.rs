//! The demo's second part: a container beside the VM, backed up while it writes to two volumes, restored and read.

use super::demo::{file_name, go_on, live, step};
use super::{Container, Node, diary_check, mib, programs};
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Why there can be no container on this machine; `None` when there can.
pub fn missing() -> Option<String> {
    let program =
        ["lxc-start", "rsync", "mke2fs", "mkfs.btrfs", "btrfs"].into_iter().find(|p| programs::find(p).is_none());
    let root = (!nix::unistd::geteuid().is_root()).then(|| "LXC needs root".to_owned());
    program.map(|program| format!("{program} is missing: run `make setup`")).or(root)
}

/// Adds container 200 and its storage to the node.
///
/// # Errors
/// When they cannot be made.
pub fn prepare(node: Node) -> Result<Node> {
    let container = Container::new(200).name("diarist").ballast(mib(24)).rootfs(0).on("bt").subvolume();
    node.btrfs_storage("bt", mib(512))?.container(container.mp(0, "/data", mib(32), "backup=1").on("bt"))
}

/// Backs container 200 up, restores it as 201 and reads the diaries; returns the lines of the table.
///
/// # Errors
/// When a step fails or is interrupted.
pub fn steps(node: &Node, stop: &AtomicBool) -> Result<Vec<(&'static str, String)>> {
    step("starting container 200: a real LXC; its diarist writes numbered entries to two volumes in turn");
    node.ct_start(200)?;
    let calm = node.ct_wait(200, 100)?;
    println!("the diaries are at entries {calm:?}");
    go_on(stop)?;

    let backup = ["200", "--storage", "backup", "--mode", "snapshot", "--compress", "zstd"];
    step(&format!("vzdump {}", backup.join(" ")));
    let standstill = watch(node, 200)?;
    let begun = Instant::now();
    live(node, "vzdump", &backup, stop)?;
    let seconds_backup = begun.elapsed().as_secs_f64();
    let standstill = standstill.finish()?;
    let busy = node.ct_entries(200)?;
    node.ct_unharmed(200)?;
    let archive = node.archives("backup", 200)?.pop().context("vzdump left no archive")?;

    let words = ["pct-restore", "201", &node.inner(&archive).display().to_string(), "--storage", "local"];
    step(&format!("vzkeep {}", words.join(" ")));
    let begun = Instant::now();
    live(node, "vzkeep", &words, stop)?;
    let seconds_restore = begun.elapsed().as_secs_f64();
    go_on(stop)?;

    step("reading the restored diaries");
    let found: diary_check::Instant = node.ct_tree(201)?.check()?;
    println!("the restored diaries end with entries {:?}, all before them intact", found.last);
    ensure!(found.last.iter().zip(&calm).all(|(n, least)| n >= least), "older than the backup: {found:?}");
    let size = archive.metadata()?.len() as f64 / 1_048_576.0;
    Ok(vec![
        ("guest", "200 diarist, running, LXC; a subvolume and an image on btrfs".to_owned()),
        ("archive", format!("{size:.1} MiB, {}", file_name(&archive))),
        ("backup", format!("{seconds_backup:.1} s, while entries {} to {} were written", calm[0], busy[0])),
        ("restore", format!("{seconds_restore:.1} s")),
        ("longest stall", format!("{} ms without a new entry", standstill.as_millis())),
        ("checks", format!("both volumes at one instant (entry {}); nothing left", found.last[0])),
    ])
}

/// Watches for how long a container's first diary stands still.
pub struct Watch {
    end: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Duration>,
}

/// Begins to watch a running container.
///
/// # Errors
/// When it does not run.
pub fn watch(node: &Node, vmid: u32) -> Result<Watch> {
    let file = PathBuf::from(format!("/proc/{}/root/diary", node.ct_pid(vmid)?));
    let end = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&end);
    let thread = std::thread::spawn(move || {
        let (mut last, mut since, mut longest) = (0, Instant::now(), Duration::ZERO);
        while !flag.load(Ordering::SeqCst) {
            let len = file.metadata().map_or(0, |meta| meta.len());
            longest = longest.max(since.elapsed());
            if len != last {
                (last, since) = (len, Instant::now());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        longest
    });
    Ok(Watch { end, thread })
}

impl Watch {
    /// Stops watching; returns the longest time without a new entry.
    ///
    /// # Errors
    /// When the watching thread panicked.
    pub fn finish(self) -> Result<Duration> {
        self.end.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| anyhow::anyhow!("the watching thread panicked"))
    }
}
