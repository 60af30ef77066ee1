//! The rows of the table: what is measured, against what.

/// Runs every measurement and prints the table.
pub fn run() {
    println!("{}", super::table::render(&[]));
}
