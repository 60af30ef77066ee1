//! What the kernel says about processes: start times and the boot id. Together they name one run of one process, so that
//! a recycled process id is never taken for the process it once was.

use std::io;

/// The id of this boot; another one means that everything in memory back then is gone.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// When process `pid` started, in clock ticks since boot (field 22 of `/proc/<pid>/stat`).
///
/// # Errors
/// When there is no such process or `/proc` cannot be read.
pub fn start_time(pid: u32) -> io::Result<u64> {
    parse_start_time(&std::fs::read_to_string(format!("/proc/{pid}/stat"))?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time")))
}

/// Whether the process `pid` that started at `start` still works. One that was killed does not from the moment on at which
/// the kernel begins to take it apart, though it is listed until its parent has asked how it ended.
pub fn is_alive(pid: u32, start: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    parse_start_time(&stat) == Some(start) && !is_exiting(&stat)
}

/// The processes of a process group.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn members(group: u32) -> io::Result<Vec<u32>> {
    let of_group = |pid: &u32| {
        // One that has ended meanwhile is no member any more.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        fields(&stat).get(2).and_then(|field| field.parse().ok()) == Some(group)
    };
    let names = std::fs::read_dir("/proc")?.flatten().map(|entry| entry.file_name());
    Ok(names.filter_map(|name| name.to_str()?.parse().ok()).filter(of_group).collect())
}

/// The fields of `/proc/<pid>/stat` from the third on. The program name in field 2 may hold blanks and brackets; what follows
/// the last bracket is plain.
fn fields(stat: &str) -> Vec<&str> {
    stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace().collect()
}

/// The state (field 3) of a zombie, or the flag (field 9) of a process on its way there.
fn is_exiting(stat: &str) -> bool {
    const PF_EXITING: u64 = 4;
    let fields = fields(stat);
    let flags = fields.get(6).and_then(|flags| flags.parse::<u64>().ok());
    matches!(fields.first(), Some(&("Z" | "X"))) || flags.is_some_and(|flags| flags & PF_EXITING != 0)
}

fn parse_start_time(stat: &str) -> Option<u64> {
    fields(stat).get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_survives_a_nasty_program_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1 1";
        assert_eq!(parse_start_time(stat), Some(4242));
        assert!(start_time(std::process::id()).unwrap() > 0);
    }

    #[test]
    fn a_killed_process_is_dead_before_anybody_asked() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let start = start_time(child.id()).unwrap();
        assert!(is_alive(child.id(), start) && !is_alive(child.id(), start + 1));
        let group = nix::unistd::getpgrp().as_raw() as u32;
        assert!(members(group).unwrap().contains(&child.id()));
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while is_alive(child.id(), start) {
            assert!(std::time::Instant::now() < deadline);
        }
        assert_eq!(start_time(child.id()).unwrap(), start);
        child.wait().unwrap();
    }
}
