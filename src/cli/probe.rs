//! `vzkeep probe look|make|list <directory>`: the helper process that touches file systems which may not answer.

use std::ffi::OsString;
use std::process::ExitCode;

use super::say;

/// Answers and ends.
pub fn run(args: &[OsString]) -> ExitCode {
    say(&crate::storage::probe::serve(args));
    ExitCode::SUCCESS
}
