//! The table of results, for the terminal and for `docs/BENCHMARKS.md`.

/// One line: what was done, what came out, what it may be at most.
pub struct Row {
    /// The work and its yardstick, in words.
    pub work: String,
    /// The figures behind the ratio.
    pub figures: String,
    /// Ratio or absolute value that is bounded.
    pub value: f64,
    /// The bound.
    pub at_most: f64,
    /// Unit of the value: `x` for ratios, `MiB`, `s`.
    pub unit: &'static str,
}

/// The rows as a Markdown table; a value over its bound is marked with the word MISS.
pub fn render(rows: &[Row]) -> String {
    let mut text = String::from("| work | measured | result | at most | |\n|---|---|---|---|---|\n");
    for row in rows {
        let verdict = if row.value <= row.at_most { "ok" } else { "MISS" };
        text += &format!(
            "| {} | {} | {:.2} {} | {} {} | {verdict} |\n",
            row.work, row.figures, row.value, row.unit, row.at_most, row.unit
        );
    }
    text
}
