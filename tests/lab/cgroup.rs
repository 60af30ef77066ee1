//! The control groups of containers: which a process is in, freezing and thawing them, taking empty ones away. Both
//! versions of control groups, also side by side.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Whether a process belongs to a container or is the monitor of one.
pub fn is_container(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.lines().any(of_lxc))
}

fn of_lxc(line: &str) -> bool {
    line.contains("/lxc.payload.") || line.contains("/lxc.monitor.")
}

/// The directories of the control groups that a process of a container is in, with their controllers (`freezer`; empty for
/// the unified hierarchy).
pub fn dirs(pid: i32) -> Vec<(String, PathBuf)> {
    let own = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut found = Vec::new();
    for line in own.lines().filter(|line| of_lxc(line)) {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        for mount in mounts.lines() {
            let words: Vec<&str> = mount.split(' ').collect();
            let [_, at, kind, options, ..] = words[..] else { continue };
            let first = controllers.split(',').next().unwrap_or_default();
            let fits = if first.is_empty() {
                kind == "cgroup2"
            } else {
                kind == "cgroup" && options.split(',').any(|option| option == first)
            };
            if fits {
                found.push((controllers.to_owned(), Path::new(at).join(path.trim_start_matches('/'))));
                break;
            }
        }
    }
    found
}

/// The file that freezes the processes beside `pid`, what to write to freeze and to thaw.
fn switch(pid: i32) -> Result<(PathBuf, &'static str, &'static str)> {
    let dirs = dirs(pid);
    if let Some((_, dir)) = dirs.iter().find(|(controllers, _)| controllers == "freezer") {
        return Ok((dir.join("freezer.state"), "FROZEN", "THAWED"));
    }
    let unified = dirs.iter().find(|(controllers, dir)| controllers.is_empty() && dir.join("cgroup.freeze").exists());
    match unified {
        Some((_, dir)) => Ok((dir.join("cgroup.freeze"), "1", "0")),
        None => bail!("process {pid} is in no control group of a container that can be frozen"),
    }
}

/// Whether the container of process `pid` is frozen by any of its control groups, or being so.
///
/// # Errors
/// When it is no container's.
pub fn is_frozen(pid: i32) -> Result<bool> {
    switch(pid)?;
    let state = |file: &str| {
        let texts = dirs(pid).into_iter().filter_map(|(_, dir)| std::fs::read_to_string(dir.join(file)).ok());
        texts.map(|text| text.trim().to_owned()).collect::<Vec<_>>()
    };
    let first = state("freezer.state").iter().any(|text| text != "THAWED");
    Ok(first || state("cgroup.freeze").iter().any(|text| text == "1"))
}

/// Freezes the container of process `pid`.
///
/// # Errors
/// When it cannot be.
pub fn freeze(pid: i32) -> Result<()> {
    let (file, word, _) = switch(pid)?;
    std::fs::write(&file, word).with_context(|| format!("{} cannot be written", file.display()))?;
    while file.ends_with("freezer.state") && std::fs::read_to_string(&file)?.trim() == "FREEZING" {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Ok(())
}

/// Thaws the container of process `pid` in every way it may be frozen.
///
/// # Errors
/// When it cannot be.
pub fn thaw(pid: i32) -> Result<()> {
    for (_, dir) in dirs(pid) {
        for (file, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
            let file = dir.join(file);
            if file.exists() {
                std::fs::write(&file, word).with_context(|| format!("{} cannot be written", file.display()))?;
            }
        }
    }
    Ok(())
}

/// Takes away control groups in which nobody is any more. A process that was killed leaves its groups a moment after it is
/// gone from every list; a group that somebody is in for longer is not ours to take.
pub fn remove(dirs: &[PathBuf]) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while dirs.iter().filter(|dir| !gone(dir)).count() > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Removes a control group and those in it; whether it is gone.
fn gone(dir: &Path) -> bool {
    let inner = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    inner.filter(|path| path.is_dir()).for_each(|path| {
        gone(&path);
    });
    std::fs::remove_dir(dir).is_ok() || !dir.exists()
}
