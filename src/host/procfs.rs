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

/// Whether some process runs `program` (also as a script of an interpreter) with `words` right behind it.
pub fn command_runs(program: &str, words: &[&str]) -> bool {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter(|e| e.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit)).any(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        is_command(&line, program, words)
    })
}

fn is_command(line: &[u8], program: &str, words: &[&str]) -> bool {
    let given: Vec<_> = line.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
    given.windows(words.len() + 1).any(|w| {
        w[0].rsplit('/').next() == Some(program) && w[1..].iter().zip(words).all(|(given, word)| given == word)
    })
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

    #[test]
    fn a_command_is_known_by_its_words() {
        let line = ["/usr/bin/perl", "-T", "/usr/sbin/qm", "shutdown", "100", "--skiplock", ""].join("\0");
        assert!(is_command(line.as_bytes(), "qm", &["shutdown", "100"]));
        assert!(!is_command(line.as_bytes(), "qm", &["shutdown", "10"]));
        assert!(!is_command(line.as_bytes(), "m", &["shutdown", "100"]));
        assert!(!is_command(b"", "qm", &["shutdown", "100"]));
    }
}
