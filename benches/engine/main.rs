//! `make bench`: speed and memory of the real programs on a lab node against the stock tools, as ratios of medians of
//! interleaved runs.
//!
//! Every row runs our command and its yardstick in turn, five times each, on the same data in the same minutes; a machine
//! that is slow today is slow for both. A ratio over its bound carries the word MISS. The table goes to the terminal and,
//! for data of the full size, to `docs/BENCHMARKS.md`. Needs about 12 GiB in `TMPDIR`; see `scripts/bench`.
//!
//!     VZKEEP_BENCH_MIB=256 make bench      a quick look: less data, three rounds
//!     scripts/bench stopped restore        only these works: stopped plain running restore memory start container open

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first surprise")]

mod container;
mod data;
#[path = "../../tests/lab/mod.rs"]
mod lab;
mod measure;
mod open;
mod scene;
mod table;
mod works;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    // `cargo test --benches` starts every benchmark with `--test`: building it is all that is asked for then.
    if words.iter().any(|word| word == "--test") {
        return;
    }
    match words.split_first() {
        Some((first, rest)) if first == "--peak-memory" => measure::print_peak_memory(rest),
        Some((first, rest)) if first == "--pack-tar" => container::pack(rest),
        Some((first, rest)) if first == "--unpack-tar" => container::unpack(rest),
        _ => works::run(&words),
    }
}
