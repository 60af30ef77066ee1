//! Runs a case's command line, and does to it meanwhile what was done to the recorded run.

use std::fs::File;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use regex::Regex;

use super::case::Case;
use crate::lab::{Node, Output};

const LONG: Duration = Duration::from_secs(300);

/// What happened during a run.
pub enum During {
    /// Nothing.
    Nothing,
    /// The process got a signal.
    Signal(Signal, Duration),
    /// Another command was run to its end.
    Command(Vec<String>, Duration),
    /// Another command was started, which waited.
    Second(Vec<String>),
    /// Somebody held the lock of all jobs.
    Locked(Option<Duration>),
}

impl During {
    /// Reads the description.
    ///
    /// # Errors
    /// When it is not understood.
    pub fn of(case: &Case) -> Result<Self, String> {
        let text = case.before("during");
        let find = |pattern: &str| Regex::new(pattern).unwrap().captures(&text);
        let seconds = find(r"(\d+) s\b").map(|m| Duration::from_secs(m[1].parse().unwrap()));
        let after = seconds.unwrap_or(Duration::from_secs(5));
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        if text.is_empty() {
            return Ok(Self::Nothing);
        }
        if let Some(found) = find(r"gets (?:SIG)?(TERM|INT|HUP|QUIT)\b") {
            let signal = match &found[1] {
                "TERM" => Signal::SIGTERM,
                "INT" => Signal::SIGINT,
                "HUP" => Signal::SIGHUP,
                _ => Signal::SIGQUIT,
            };
            return Ok(Self::Signal(signal, after));
        }
        if let Some(found) = find(r"`(vzdump [^`]*)` .*(after the start|later)") {
            return Ok(Self::Command(words(&found[1]), after));
        }
        if let Some(found) = find(r"`(vzdump [^`]*)` .*(waits|meanwhile)") {
            let mut command = words(&found[1]);
            let argv = case.argv();
            // It went to the same storage, which its description leaves out.
            if let Some(at) = argv.iter().position(|word| word == "--storage")
                && !command.contains(&argv[at])
            {
                command.extend_from_slice(&argv[at..at + 2]);
            }
            return Ok(Self::Second(command));
        }
        if find(r"\b(holds|held|has|had)\b.*\block\b|\block\b.*\bheld\b").is_some() {
            return Ok(Self::Locked(seconds));
        }
        // However it was put: somebody else had the lock.
        let said = case.said();
        if said.contains("trying to get global lock") || said.contains("(wait = 0)") {
            return Ok(Self::Locked(said.contains("got global lock").then_some(after)));
        }
        Err(format!("during: '{text}' is not understood"))
    }

    /// Whether lines of another run are mixed with those of this one.
    pub fn has_second(&self) -> bool {
        matches!(self, Self::Command(..) | Self::Second(_))
    }
}

/// Runs `argv` as the recording's run went. The output, and the process id.
pub fn run(node: &Node, case: &Case, argv: &[String], during: &During) -> (Output, i32) {
    let words = |argv: &[String]| argv[1..].to_vec();
    let spawn = |argv: &[String]| {
        let words = words(argv);
        node.spawn(&argv[0], &words.iter().map(String::as_str).collect::<Vec<_>>()).unwrap()
    };
    let locked = matches!(during, During::Locked(_)).then(|| {
        let file = File::options().create(true).append(true).open(node.path("/var/run/vzdump.lock")).unwrap();
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).unwrap()
    });
    let began = Instant::now();
    let mut running = spawn(argv);
    let pid = running.pid();
    let recorded = case.text("stdout.txt");
    let mut reach = |text: &str| {
        if recorded.contains(text) {
            running.wait_for(text, Duration::from_secs(120)).unwrap();
        }
    };
    let wait_until = |after: Duration| std::thread::sleep(after.saturating_sub(began.elapsed()));
    let mut second = None;
    match during {
        During::Nothing => {}
        During::Signal(_, after) | During::Command(_, after) => {
            reach("started backup task");
            // In the middle of the copy, if the recording was there: its disks were as full, but its machine another.
            if recorded.contains("% (") { reach("% (") } else { wait_until(*after) }
        }
        During::Second(command) => {
            reach("started backup task");
            second = Some(spawn(command));
        }
        During::Locked(_) => reach("waiting..."),
    }
    match during {
        During::Signal(signal, _) => running.signal(*signal).unwrap(),
        During::Command(command, _) => {
            let words = words(command);
            node.ok(&command[0], &words.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        }
        During::Locked(Some(seconds)) => {
            wait_until(*seconds);
            drop(locked);
        }
        _ => {}
    }
    let output = running.wait(LONG).unwrap();
    if let Some(second) = second {
        let output = second.wait(LONG).unwrap();
        assert_eq!(output.code, 0, "the second run: {}{}", output.stdout, output.stderr);
    }
    (output, pid)
}
