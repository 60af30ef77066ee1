//! Times whole commands: wall-clock seconds of interleaved runs, their medians, and a command's peak memory.

use std::process::{Command, Stdio};
use std::time::Instant;

/// Runs of each side of a comparison.
pub const RUNS: usize = 5;

/// Seconds of the runs of one command.
#[derive(Debug, Clone, Default)]
pub struct Seconds(Vec<f64>);

impl Seconds {
    /// The middle value.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }
}

/// Runs every side in turn, [`RUNS`] rounds, and gives back the seconds of each. `before` runs untimed before every run and
/// removes what the run before left.
pub fn interleaved<const N: usize>(mut before: impl FnMut(), sides: [&dyn Fn() -> Command; N]) -> [Seconds; N] {
    let mut seconds: [Seconds; N] = std::array::from_fn(|_| Seconds::default());
    for _ in 0..RUNS {
        for (side, seconds) in sides.iter().zip(&mut seconds) {
            before();
            seconds.0.push(once(side()));
        }
    }
    seconds
}

/// Seconds of one run of a command that must succeed.
pub fn once(mut command: Command) -> f64 {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let start = Instant::now();
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let seconds = start.elapsed().as_secs_f64();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    seconds
}

/// Peak resident memory of a command and its children in MiB: run below a fresh process of this program, because the
/// kernel only tells the maximum over all children of a process.
pub fn peak_memory(command: &Command) -> f64 {
    let me = std::env::current_exe().unwrap();
    let mut outer = Command::new(me);
    outer.arg("--peak-memory").arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        outer.env(key, value.unwrap_or_default());
    }
    let output = outer.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().last().and_then(|l| l.trim().parse::<f64>().ok()).unwrap() / 1024.0
}

/// The inner half of [`peak_memory`]: runs the words as a command, prints the peak in KiB.
pub fn print_peak_memory(words: Vec<String>) {
    let status = Command::new(&words[0]).args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{words:?}: {status}");
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN).unwrap();
    println!("{}", usage.max_rss());
}
