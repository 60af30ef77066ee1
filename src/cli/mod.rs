//! The command lines: picks one by `argv[0]` or by the first word, parses, prints, returns the exit code.

mod guard;
mod qmrestore;
mod vzdump;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use crate::guest::monitor::QemuMonitor;
use crate::host::Host;

/// Exit code of everything that failed, as the original has it.
const FAILED: u8 = 255;

/// Runs the command line named by `argv[0]` (`vzdump`, `qmrestore`) or, when called as `vzkeep`, by the first word.
pub fn run(argv: Vec<OsString>) -> ExitCode {
    let name = argv.first().and_then(|word| Path::new(word).file_name()?.to_str()).unwrap_or_default();
    let args = argv.get(1..).unwrap_or_default();
    if let Some(code) = command(name, args) {
        return code;
    }
    let word = args.first().and_then(|word| word.to_str()).unwrap_or_default();
    if let Some(code) = command(word, args.get(1..).unwrap_or_default()) {
        return code;
    }
    match word {
        "help" | "--help" | "-h" => {
            say(USAGE);
            ExitCode::SUCCESS
        }
        "version" | "--version" | "-V" => {
            say(&format!("vzkeep {}\n", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
        "" => {
            complain(USAGE);
            ExitCode::from(FAILED)
        }
        other => {
            let known = "vzdump, qmrestore, man, completion, help or version";
            complain(&format!("vzkeep knows no command '{other}': use {known}\n"));
            ExitCode::from(FAILED)
        }
    }
}

const USAGE: &str = "\
vzkeep vzdump {<vmid>} [OPTIONS]        back up guests (also as a program named vzdump)
vzkeep qmrestore <archive> <vmid> [OPTIONS]     restore a virtual machine (also as a program named qmrestore)
vzkeep man vzdump|qmrestore             print the man page
vzkeep completion vzdump|qmrestore      print the completion script for bash
vzkeep version                          print the version

'vzkeep vzdump help' and 'vzkeep qmrestore help' list the options.
";

fn command(name: &str, args: &[OsString]) -> Option<ExitCode> {
    match name {
        "vzdump" => Some(vzdump::run(args)),
        "qmrestore" => Some(qmrestore::run(args)),
        "guard" => Some(guard::run(args, &QemuMonitor::new(&Host::from_env()))),
        "man" => Some(about(args, |command| crate::schema::man_page(command, env!("CARGO_PKG_VERSION")))),
        "completion" => Some(about(args, crate::schema::bash_completion)),
        _ => None,
    }
}

/// Prints a text made from the option table of the command named in `args`.
fn about(args: &[OsString], text: impl Fn(&crate::schema::Command) -> String) -> ExitCode {
    use crate::schema::tables::{QMRESTORE, VZDUMP};
    let wanted = args.first().and_then(|word| word.to_str()).unwrap_or_default();
    match [&VZDUMP, &QMRESTORE].into_iter().find(|command| command.name == wanted) {
        Some(command) => {
            say(&text(command));
            ExitCode::SUCCESS
        }
        None => {
            complain(&format!("'{wanted}' is no command with options: use vzdump or qmrestore\n"));
            ExitCode::from(FAILED)
        }
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

/// Writes to standard output. A reader that went away is no reason to end in the middle of something, as `print!` does.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).unwrap_or_default();
}

/// The same for standard error.
fn complain(text: &str) {
    std::io::stderr().lock().write_all(text.as_bytes()).unwrap_or_default();
}
