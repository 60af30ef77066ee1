//! `qmrestore <archive> <vmid>`.
use std::ffi::OsString;
use std::process::ExitCode;
/// Runs `qmrestore`.
pub fn run(_args: &[OsString]) -> ExitCode {
    ExitCode::SUCCESS
}
