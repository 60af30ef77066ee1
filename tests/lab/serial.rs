//! Talks to the witness through the guest's serial socket.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the witness says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// The last record that is durable on all disks.
    pub n: u64,
    /// The longest durable write since boot, by the guest's clock.
    pub stall: Duration,
    /// The same since the last `reset`.
    pub since_reset: Duration,
    /// Files written by the variant with a file system.
    pub files: u64,
    /// The longest durable file write since boot.
    pub file_stall: Duration,
    /// Failed writes.
    pub errors: u64,
    /// Whether it is writing.
    pub writing: bool,
}

impl Report {
    fn parse(line: &str) -> Option<(String, Self)> {
        let mut words = line[line.find("witness: ")?..].split_whitespace().skip(1);
        let about = words.next()?.to_owned();
        let mut report = Self::default();
        let mut complete = false;
        for word in words {
            let (key, value) = word.split_once('=')?;
            let number = value.parse::<u64>();
            let ms = number.clone().map(Duration::from_millis);
            match key {
                "n" => report.n = number.ok()?,
                "stall" => report.stall = ms.ok()?,
                "since" => report.since_reset = ms.ok()?,
                "files" => report.files = number.ok()?,
                "fstall" => report.file_stall = ms.ok()?,
                "errors" => report.errors = number.ok()?,
                "state" => {
                    report.writing = value == "writing";
                    complete = matches!(value, "writing" | "idle");
                }
                _ => {}
            }
        }
        complete.then_some((about, report))
    }
}

/// Sends a command (`status`, `reset`, `stop`, `go`, `pulse <ms>`) and waits for its answer.
///
/// # Errors
/// When the guest has no serial socket or the witness does not answer in time.
pub fn ask(socket: &Path, command: &str, timeout: Duration) -> Result<Report> {
    let deadline = Instant::now() + timeout;
    let stream = UnixStream::connect(socket).with_context(|| format!("no guest at {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut to = stream;
    let word = command.split_whitespace().next().unwrap_or_default();
    let mut said = Vec::new();
    while Instant::now() < deadline {
        to.write_all(format!("{command}\n").as_bytes())?;
        // A guest that is still booting forgets what it is told; ask again each second.
        let again = Instant::now() + Duration::from_secs(1);
        while Instant::now() < again {
            match lines.read_until(b'\n', &mut said) {
                Ok(0) => bail!("the guest at {} is gone", socket.display()),
                Ok(_) => {
                    let line = String::from_utf8_lossy(&said).into_owned();
                    said.clear();
                    match Report::parse(&line) {
                        Some((about, report)) if about == word => return Ok(report),
                        _ => {}
                    }
                }
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    bail!("the witness at {} did not answer '{command}' within {timeout:?}", socket.display())
}

/// Watches from outside how long the guest's records stand still, pauses included, which the guest's own clock does not
/// see. Holds the serial socket until [`Watch::finish`].
pub struct Watch {
    end: Arc<AtomicBool>,
    thread: JoinHandle<Result<Duration>>,
}

impl Watch {
    /// Begins to watch; the witness reports every 20 ms from now on.
    ///
    /// # Errors
    /// When the guest has no serial socket.
    pub fn start(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("no guest at {}", socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        let end = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&end);
        let thread = std::thread::spawn(move || watch(&stream, &flag));
        Ok(Self { end, thread })
    }

    /// Stops watching; returns the longest time without a new record, some 20 ms too long.
    ///
    /// # Errors
    /// When the guest went away.
    pub fn finish(self) -> Result<Duration> {
        self.end.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| anyhow::anyhow!("the watching thread panicked"))?
    }
}

fn watch(mut stream: &UnixStream, end: &AtomicBool) -> Result<Duration> {
    stream.write_all(b"pulse 20\n")?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let (mut said, mut last, mut longest) = (Vec::new(), None::<(u64, Instant)>, Duration::ZERO);
    while !end.load(Ordering::SeqCst) {
        let more = match lines.read_until(b'\n', &mut said) {
            Ok(0) => bail!("the guest went away"),
            Ok(_) => true,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                false
            }
            Err(error) => return Err(error.into()),
        };
        if let Some((_, since)) = last {
            longest = longest.max(since.elapsed());
        }
        if more {
            let line = String::from_utf8_lossy(&said).into_owned();
            said.clear();
            if let Some((_, report)) = Report::parse(&line)
                && last.is_none_or(|(n, _)| report.n > n)
            {
                last = Some((report.n, Instant::now()));
            }
        }
    }
    // The pulse stays as fast: one that is slowed down here is slow when the next watch begins, and looks like a standstill.
    Ok(longest)
}
