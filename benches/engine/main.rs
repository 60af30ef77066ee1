//! `make bench`: speed and memory of the whole programs against the stock tools, as ratios of medians of interleaved runs.
//!
//! Every row runs our command and its yardstick in turn, five times each, on the same data in the same minutes; a machine that is
//! slow today is slow for both. A ratio over its bound carries the word MISS. The table goes to the terminal and to
//! `docs/BENCHMARKS.md`. Needs about 12 GiB of disk space; `VZKEEP_BENCH_DIR` names where (default: the system's temporary directory
//! for files that may be large, `/var/tmp`), `VZKEEP_BENCH_MIB` shrinks the data for a quick look.

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first surprise")]

#[path = "../../tests/lab/mod.rs"]
#[allow(dead_code, reason = "the lab serves several programs")]
mod lab;
mod measure;
mod table;
mod works;

fn main() {
    // `cargo test --benches` starts every benchmark with `--test`: building it is all that is asked for then.
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    if std::env::args().nth(1).as_deref() == Some("--peak-memory") {
        measure::print_peak_memory(std::env::args().skip(2).collect());
        return;
    }
    works::run();
}
