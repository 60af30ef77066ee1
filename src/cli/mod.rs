//! The command lines: picks one by `argv[0]` or by the first word, parses, prints, returns the exit code.

pub mod guard;
pub mod qmrestore;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Runs the command line named by `argv[0]` (`vzdump`, `qmrestore`) or, when called as `vzkeep`, by the first word.
pub fn run(argv: Vec<OsString>) -> ExitCode {
    let name = argv.first().and_then(|a| Path::new(a).file_name()).unwrap_or_default().to_owned();
    let args = argv.get(1..).unwrap_or_default();
    let word = args.first().cloned().unwrap_or_default();
    let rest = args.get(1..).unwrap_or_default();
    let host = crate::host::Host::from_env();
    let monitor = crate::guest::monitor::QmMonitor(&host);
    match (name.to_str(), word.to_str()) {
        (Some("qmrestore"), _) => qmrestore::run(args, &monitor),
        (_, Some("qmrestore")) => qmrestore::run(rest, &monitor),
        (_, Some("guard")) => guard::run(rest, &monitor),
        _ => ExitCode::SUCCESS,
    }
}
