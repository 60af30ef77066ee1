//! Times whole commands: wall-clock and processor seconds of interleaved runs, their medians, and a command's peak memory.

use nix::sys::resource::{Usage, UsageWho, getrusage};
use std::fmt::{self, Display};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The runs of one side of a comparison.
#[derive(Debug, Clone, Default)]
pub struct Runs {
    wall: Vec<f64>,
    cpu: Vec<f64>,
}

impl Runs {
    /// Seconds that passed.
    pub fn wall(&self) -> f64 {
        median(&self.wall)
    }

    /// Seconds that processors worked, for the command and its children.
    pub fn cpu(&self) -> f64 {
        median(&self.cpu)
    }
}

impl Display for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} s (CPU {:.2} s)", self.wall(), self.cpu())
    }
}

/// The middle value.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// One side of a comparison: makes the command of one run.
pub type Side<'a> = &'a dyn Fn() -> Command;

/// Runs every side in turn, `rounds` times. `before` runs untimed before every run and removes what the run before left.
pub fn interleaved<const N: usize>(rounds: usize, before: &dyn Fn(), sides: [Side<'_>; N]) -> [Runs; N] {
    let mut all: [Runs; N] = std::array::from_fn(|_| Runs::default());
    for _ in 0..rounds {
        for (side, runs) in sides.iter().zip(&mut all) {
            before();
            let (wall, cpu) = once(side());
            runs.wall.push(wall);
            runs.cpu.push(cpu);
        }
    }
    all
}

/// Wall-clock and processor seconds of one run of a command that must succeed.
pub fn once(mut command: Command) -> (f64, f64) {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let (begun, cpu) = (Instant::now(), children_cpu());
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let wall = begun.elapsed().as_secs_f64();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    (wall, children_cpu() - cpu)
}

fn children_cpu() -> f64 {
    let seconds = |usage: &Usage| {
        let (user, system) = (usage.user_time(), usage.system_time());
        (user.tv_sec() + system.tv_sec()) as f64 + (user.tv_usec() + system.tv_usec()) as f64 / 1e6
    };
    seconds(&getrusage(UsageWho::RUSAGE_CHILDREN).unwrap())
}

/// Peak resident memory in MiB of a command, or of that of its children which has most: run below a fresh process of
/// this program, because the kernel only tells the maximum over all children a process ever had.
pub fn peak_memory(command: &Command) -> f64 {
    let mut outer = Command::new(std::env::current_exe().unwrap());
    outer.arg("--peak-memory").arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        outer.env(key, value.unwrap_or_default());
    }
    let output = outer.stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim().parse::<f64>().unwrap() / 1024.0
}

/// The inner half of [`peak_memory`]: runs the words as a command, prints the peak in KiB.
pub fn print_peak_memory(words: &[String]) {
    let status = Command::new(&words[0]).args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{words:?}: {status}");
    println!("{}", getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss());
}
