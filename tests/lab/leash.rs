//! The leash: nothing of a node outlives the process that made it, even when that is killed. A keeper process holds the
//! other end of a pipe; when the pipe closes, it kills every process that carries the node's root in its environment,
//! unmounts what is mounted below the root and removes it.

use super::{cgroup, programs};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How the directory of a node begins. The keeper removes nothing else.
pub const PREFIX: &str = "vzkeep-lab-";

/// Holds a node; letting go of it ends everything below its root.
#[derive(Debug)]
pub struct Leash {
    keeper: Child,
}

impl Leash {
    /// Starts the keeper of `root`.
    ///
    /// # Errors
    /// When the lab's program cannot be built or started.
    pub fn hold(root: &Path) -> Result<Self> {
        let mut command = Command::new(programs::lab()?);
        // In a process group of its own: Ctrl-C on the terminal is not for the keeper.
        command.arg("keep").arg(root).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let keeper = command.spawn().context("the node's keeper cannot be started")?;
        Ok(Self { keeper })
    }

    /// The keeper's process id.
    pub fn pid(&self) -> u32 {
        self.keeper.id()
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        if let Err(error) = self.keeper.wait() {
            eprintln!("lab: the node's keeper is lost: {error}");
        }
    }
}

/// What the keeper does: waits for the end of standard input, then removes everything.
///
/// # Errors
/// When something cannot be killed or removed.
pub fn keep(root: &Path) -> Result<()> {
    let named = root.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    ensure!(root.is_absolute() && named, "{} is no directory of a lab node", root.display());
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest)?;
    end(root)
}

fn end(root: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut groups = Vec::new();
    loop {
        let left = processes(root)?;
        if left.is_empty() {
            break;
        }
        for pid in &left {
            // A frozen process does not even die.
            cgroup::thaw(*pid)?;
            groups.extend(cgroup::dirs(*pid).into_iter().map(|(_, dir)| dir));
        }
        ensure!(Instant::now() < deadline, "processes {left:?} of {} do not end", root.display());
        for pid in left {
            // It may have ended by itself in between.
            kill(Pid::from_raw(pid), Signal::SIGKILL).or_else(|error| match error {
                nix::errno::Errno::ESRCH => Ok(()),
                other => Err(other),
            })?;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    cgroup::remove(&groups);
    for mount in mounts(root)?.iter().rev() {
        Command::new("umount").args(["-l", mount]).status().with_context(|| format!("{mount} cannot be unmounted"))?;
    }
    if root.exists() {
        std::fs::remove_dir_all(root).with_context(|| format!("{} cannot be removed", root.display()))?;
    }
    Ok(())
}

/// Processes that were started with this root in their environment, except ourselves.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn processes(root: &Path) -> Result<Vec<i32>> {
    let wanted = format!("VZKEEP_ROOT={}", root.display());
    let ours = std::process::id();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(environment) = std::fs::read(entry.path().join("environ")) else { continue };
        if i64::from(pid) != i64::from(ours) && environment.split(|b| *b == 0).any(|line| line == wanted.as_bytes()) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The loop devices that show a file below `root`: the devices and their files.
///
/// # Errors
/// When the devices cannot be listed.
pub fn loops(root: &Path) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?;
        let file = std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(file.trim()).starts_with(root) {
            found.push((entry.file_name().to_string_lossy().into_owned(), file.trim().to_owned()));
        }
    }
    Ok(found)
}

/// What is mounted below `root`, as everybody sees it.
///
/// # Errors
/// When the table cannot be read.
pub fn mounts(root: &Path) -> Result<Vec<String>> {
    let table = std::fs::read_to_string("/proc/self/mounts")?;
    let below =
        table.lines().filter_map(|line| line.split_whitespace().nth(1)).filter(|at| Path::new(at).starts_with(root));
    Ok(below.map(str::to_owned).collect())
}
