//! The command lines: picks one by `argv[0]` or by the first word, parses, prints, returns the exit code.

mod compare;
mod complete;
mod convert;
mod guard;
mod index;
mod jobs;
mod list;
mod live;
mod look;
mod map;
mod mount;
mod native;
mod pct;
mod place;
mod probe;
mod qmrestore;
mod restore;
mod restoring;
mod shelf;
mod show;
mod unlock;
mod verify;
mod vma;
mod vzdump;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use crate::guest::monitor::QemuMonitor;
use crate::host::Host;

/// Exit code of everything that failed, as the original has it.
const FAILED: u8 = 255;

/// Runs the command line named by `argv[0]` (`vzdump`, `qmrestore`, `pct`, `vma`) or, when called as `vzkeep`, by the first word.
pub fn run(argv: Vec<OsString>) -> ExitCode {
    let name = argv.first().and_then(|word| Path::new(word).file_name()?.to_str()).unwrap_or_default();
    let args = argv.get(1..).unwrap_or_default();
    if let Some(code) = drop_in(name, args) {
        return code;
    }
    let word = args.first().and_then(|word| word.to_str()).unwrap_or_default();
    drop_in(word, args.get(1..).unwrap_or_default()).unwrap_or_else(|| native::run(args))
}

/// The command lines that are another program's, and what those programs start.
fn drop_in(name: &str, args: &[OsString]) -> Option<ExitCode> {
    match name {
        "vzdump" => Some(vzdump::run(args)),
        "qmrestore" => Some(qmrestore::run(args)),
        "vma" => Some(vma::run(args)),
        "pct" => Some(pct::run_as_pct(args)),
        "pct-restore" => Some(pct::run(args)),
        crate::storage::probe::WORD => Some(probe::run(args)),
        "guard" => Some(guard::run(args, &QemuMonitor::new(&Host::from_env()))),
        _ => None,
    }
}

/// The arguments as text.
fn words(args: &[OsString]) -> Result<Vec<String>, ExitCode> {
    let word = |arg: &OsString| {
        arg.clone().into_string().map_err(|raw| {
            complain(&format!("argument {raw:?} is not valid UTF-8\n"));
            ExitCode::from(FAILED)
        })
    };
    args.iter().map(word).collect()
}

/// What went wrong, as one sentence: a cause is added where the sentence does not have it already.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        let bare = cause.split(" (os error").next().unwrap_or_default();
        if !text.contains(bare) {
            text += &format!(": {cause}");
        }
    }
    text
}

/// Writes to standard output. A reader that went away is no reason to end in the middle of something, as `print!` does.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).unwrap_or_default();
}

/// The same for standard error.
fn complain(text: &str) {
    std::io::stderr().lock().write_all(text.as_bytes()).unwrap_or_default();
}
