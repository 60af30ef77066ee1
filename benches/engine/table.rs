//! The table of results, for the terminal and for `docs/BENCHMARKS.md`.

use std::process::Command;

/// One line: what was done, what came out, what it may be at most.
#[derive(Debug)]
pub struct Row {
    /// The work and its yardstick, in words.
    pub work: String,
    /// The figures behind the result.
    pub figures: String,
    /// The result, a ratio or an amount.
    pub value: f64,
    /// Its unit: `R`, `C`, `MiB`, `s` ...
    pub unit: &'static str,
    /// What it may be at most, if there is a bound.
    pub at_most: Option<f64>,
}

impl Row {
    fn verdict(&self) -> &'static str {
        match self.at_most {
            None => "",
            Some(bound) if self.value <= bound => "ok",
            Some(_) => "MISS",
        }
    }
}

/// The rows as a Markdown table; a value over its bound is marked with the word MISS.
pub fn render(rows: &[Row]) -> String {
    let mut lines = vec![["work", "result", "at most", "", "medians"].map(str::to_owned)];
    for row in rows {
        let bound = row.at_most.map_or(String::new(), |bound| format!("{bound} {}", row.unit));
        let digits = if row.unit == "MiB" || row.unit == "ms" { 0 } else { 2 };
        let value = format!("{:.digits$} {}", row.value, row.unit);
        let cells = [row.work.clone(), value, bound, row.verdict().to_owned(), row.figures.clone()];
        // A bar would end a cell.
        lines.push(cells.map(|cell| cell.replace('|', "\\|")));
    }
    let mut widths = [0; 5];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for (i, line) in lines.iter().enumerate() {
        for (cell, width) in line.iter().zip(widths) {
            text += &format!("| {cell:<width$} ");
        }
        text += "|\n";
        if i == 0 {
            text += &widths.map(|width| format!("|{}", "-".repeat(width + 2))).concat();
            text += "|\n";
        }
    }
    text
}

/// What the figures were measured on and with, as a list. No names of hosts, no paths.
pub fn surroundings(mib: usize, rounds: usize) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let cpu =
        cpuinfo.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map_or("unknown", |(_, m)| m);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = read("/proc/loadavg").split_whitespace().take(3).collect::<Vec<_>>().join(" ");
    let first_line = |program: &str| {
        let said = Command::new(program).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&said).lines().next().unwrap_or("unknown").trim_matches([' ', '*']).to_owned()
    };
    format!(
        "- {} UTC, {mib} MiB of data, medians of {rounds}\n- {cpu}, {cores} cores, Linux {}; load at the end {load}\n\
         - vzkeep {}; {}; {}; {}\n",
        jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M"),
        read("/proc/sys/kernel/osrelease").trim(),
        env!("CARGO_PKG_VERSION"),
        first_line("zstd"),
        first_line("cp"),
        first_line("qemu-system-x86_64"),
    )
}
