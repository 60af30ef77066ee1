//! What `tar` and `rsync` complain about: read while they run, told to the log, and kept for the error that names the file.
//! Sockets are no complaint: nothing of them can be kept, so each is named, a few of them one by one, and then they are counted.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::tree::TreeError;
use crate::host::child;

/// Lines of complaints that an error shows; all of them are in the log.
const SHOWN: usize = 3;
/// How long the reading of what a program said may take after its end: an error should have all of it, and a busy node be waited
/// for.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Sockets that are named.
const SOCKETS: usize = 20;

/// Collects what a program complains about while it runs.
#[derive(Debug)]
pub struct Complaints {
    lines: Arc<Mutex<Vec<String>>>,
    thread: JoinHandle<()>,
}

impl Complaints {
    /// Reads `pipe` to its end; each line is told to `line`, too. Of many sockets their number is.
    pub fn collect(pipe: impl Read + Send + 'static, line: impl Fn(&str) + Send + 'static) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        let thread = std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let (mut bytes, mut sockets) = (Vec::new(), 0_usize);
            while matches!(pipe.read_until(b'\n', &mut bytes), Ok(1..)) {
                // Names of files may be in any encoding.
                let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
                bytes.clear();
                if text.ends_with(": socket ignored") {
                    sockets += 1;
                    if sockets <= SOCKETS {
                        line(&text);
                    }
                    continue;
                }
                {
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    // The first ones are the causes.
                    if kept.len() < 100 {
                        kept.push(text.clone());
                    }
                }
                // Only then: a terminal may take its time.
                line(&text);
            }
            if let Some(more @ 1..) = sockets.checked_sub(SOCKETS) {
                line(&format!("tar: and {more} more sockets ignored"));
            }
        });
        Self { lines, thread }
    }

    /// All that was said, once the program has ended; a grandchild that keeps the pipe is not waited for.
    pub fn end(self) -> Vec<String> {
        let give_up = Instant::now() + LAST_WORDS;
        while !self.thread.is_finished() && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::mem::take(&mut *self.lines.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How `program` ended, as an error if not well. Any exit code but zero is a failure, as with the original: a file that changed or
/// went away while it was read is not in the archive as it ever was.
///
/// # Errors
/// [`TreeError::Failed`] with the first complaints that name a file.
pub fn verdict(program: &'static str, ended: ExitStatus, said: &[String]) -> Result<(), TreeError> {
    if ended.success() {
        return Ok(());
    }
    let how = ended.code().map_or_else(|| ended.to_string(), |code| format!("exit code {code}"));
    let summary = |line: &&String| {
        let idle = ["Exiting with failure status", "Error is not recoverable", "Total bytes written"];
        !line.trim().is_empty() && !idle.iter().any(|words| line.contains(words))
    };
    let causes: Vec<&str> = said.iter().filter(summary).map(String::as_str).collect();
    let more = causes.len().saturating_sub(SHOWN);
    let mut text = causes.iter().take(SHOWN).copied().collect::<Vec<_>>().join("; ");
    if more > 0 {
        text += &format!("; and {more} more, see the log");
    }
    let said = if text.is_empty() { "it gave no reason".to_owned() } else { text };
    Err(TreeError::Failed { program, how, said })
}

/// Waits for a child with a process group of its own that has closed its output; one that does not end is killed, with all it
/// started.
///
/// # Errors
/// When it cannot be waited for, or not even be killed: a device that it waits for does not answer.
pub fn wait(child: &mut Child, patience: Duration) -> std::io::Result<ExitStatus> {
    let give_up = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > give_up {
            child::signal_group(child::group(child)?, Signal::SIGKILL)?;
            child::reap(child);
            let waits = "it does not even end when it is killed: what it waits for does not answer";
            return child.try_wait()?.ok_or_else(|| std::io::Error::new(std::io::ErrorKind::TimedOut, waits));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    #[test]
    fn a_failure_names_the_file() {
        let end = |script: &str| {
            let mut command = Command::new("sh");
            let mut child = command.args(["-c", script]).stderr(Stdio::piped()).process_group(0).spawn().unwrap();
            let said = Complaints::collect(child.stderr.take().unwrap(), |_| {});
            let status = wait(&mut child, Duration::from_secs(30)).unwrap();
            verdict("tar", status, &said.end()).map_err(|error| error.to_string())
        };
        assert_eq!(end("echo tar: ./x: Something odd >&2"), Ok(()));
        assert_eq!(
            end("echo 'tar: ./log: file changed as we read it' >&2; echo 'Total bytes written: 1 (1KiB)' >&2; exit 1"),
            Err("command 'tar' failed: exit code 1: tar: ./log: file changed as we read it".to_owned())
        );
        let many = end("for i in 1 2 3 4 5; do echo tar: $i: Cannot open >&2; done; exit 2").unwrap_err();
        assert!(many.ends_with("3: Cannot open; and 2 more, see the log"), "{many}");
        assert!(end("exit 2").unwrap_err().ends_with("exit code 2: it gave no reason"));
    }

    #[test]
    fn sockets_are_named_and_counted_and_no_cause() {
        let script = "for i in $(seq 150); do echo \"tar: ./s$i: socket ignored\" >&2; done; \
                      echo 'tar: ./x: Cannot open' >&2; exit 2";
        let mut command = Command::new("sh");
        let mut child = command.args(["-c", script]).stderr(Stdio::piped()).process_group(0).spawn().unwrap();
        let (told, lines) = std::sync::mpsc::channel();
        let said = Complaints::collect(child.stderr.take().unwrap(), move |line| told.send(line.to_owned()).unwrap());
        let status = wait(&mut child, Duration::from_secs(30)).unwrap();
        let error = verdict("tar", status, &said.end()).unwrap_err().to_string();
        assert_eq!(error, "command 'tar' failed: exit code 2: tar: ./x: Cannot open");
        let lines: Vec<String> = lines.iter().collect();
        assert_eq!(lines.len(), 22);
        assert_eq!(
            lines[19..],
            ["tar: ./s20: socket ignored", "tar: ./x: Cannot open", "tar: and 130 more sockets ignored"]
        );
    }
}
