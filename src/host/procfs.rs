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

/// The program name in field 2 may hold blanks and brackets; what follows the last bracket is plain.
fn parse_start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
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
}
