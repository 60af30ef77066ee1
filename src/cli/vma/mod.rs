//! `vma`: the words, output and behaviour of the stock program for machines that have none. Reads compressed archives, too.
//!
//! The stock program ends on any error by a signal (`g_error`); here it is exit code 1, with the same text.

mod create;
mod extract;
mod map;
mod read;
mod words;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use super::{complain, say};
use crate::archive::{ArchiveError, Source};
use crate::host::{Cancel, Host};
use crate::image::Target;
use crate::schema::Shell;
use crate::transfer::{RestoreProgress, RestoreSummary, TransferError};
use words::Words;

const USAGE: &str = "usage: vma command [command options]

vma list <filename>
vma config <filename> [-c <config>]
vma create <filename> [-c <config>] [-d format=<format>:<device name>=<path> [-d ...]]
vma extract <filename> [-d <drive-list>] [-r <fifo>] <targetdir>
vma verify <filename> [-v]
";

/// The man page.
pub(super) fn man(version: &str) -> String {
    include_str!("texts/vma.roff").replace("@VERSION@", version)
}

/// The completion script for a shell there is one for.
pub(super) fn completion(shell: Shell) -> &'static str {
    match shell {
        Shell::Bash => include_str!("texts/vma.bash"),
        Shell::Zsh => include_str!("texts/vma.zsh"),
        Shell::Fish => include_str!("texts/vma.fish"),
    }
}

/// How a command ended, if not well.
enum Failure {
    /// It was not called as it should be.
    Usage,
    /// An error, in the words of the stock program.
    Fatal(String),
    /// `config` found nothing of the name.
    NoConfig(String),
}

/// Makes an error of a text and a cause.
fn fatal(text: impl Into<String>) -> Failure {
    Failure::Fatal(text.into())
}

/// Runs `vma` with the arguments after its name.
pub fn run(args: &[OsString]) -> ExitCode {
    let words = match super::words(args) {
        Ok(words) => words,
        Err(_) => return ExitCode::from(1),
    };
    match command(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage) => {
            say(USAGE);
            ExitCode::from(1)
        }
        Err(Failure::Fatal(text)) => {
            log("ERROR", &text);
            ExitCode::from(1)
        }
        Err(Failure::NoConfig(name)) => {
            complain(&format!("unable to find configuration data '{name}'\n"));
            ExitCode::from(255)
        }
    }
}

fn command(words: &[String]) -> Result<(), Failure> {
    let (name, rest) = words.split_first().ok_or(Failure::Usage)?;
    let tools = Tools { host: Host::from_env(), cancel: Cancel::new() };
    let parse = |options| Words::parse(name, rest, options);
    if ["list", "config", "create", "extract", "verify"].contains(&name.as_str()) {
        tools.cancel.on_signals().map_err(|e| fatal(format!("signals cannot be handled: {e}")))?;
    }
    match name.as_str() {
        "list" => read::list(&tools, &parse("h")?),
        "config" => read::config(&tools, &parse("hc:")?),
        "verify" => read::verify(&tools, &parse("hv")?),
        "create" => create::create(&tools, &parse("hvc:d:")?),
        "extract" => extract::extract(&tools, &parse("hvd:r:")?),
        _ => Err(Failure::Usage),
    }
}

/// Writes a line as GLib does, which the stock program leaves its messages to.
fn log(level: &str, text: &str) {
    let time = jiff::Zoned::now().strftime("%H:%M:%S%.3f").to_string();
    complain(&format!("\n** (process:{}): {level} **: {time}: {text}\n", std::process::id()));
}

/// What the commands work with.
struct Tools {
    host: Host,
    cancel: Cancel,
}

impl Tools {
    /// Where a file named by the user really lies.
    fn path(&self, name: &str) -> PathBuf {
        let path = Path::new(name);
        self.host.path(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
    }

    /// Opens the archive; `-` is standard input.
    fn open(&self, name: &str) -> Result<Source, Failure> {
        let source = if name == "-" {
            let fd = std::io::stdin().as_fd().try_clone_to_owned();
            let fd = fd.map_err(|e| fatal(format!("standard input cannot be read: {e}")))?;
            Source::from_fd(&self.host, "stdin", fd, &self.cancel)
        } else {
            Source::open(&self.host, &self.path(name), &self.cancel)
        };
        let source = source.map_err(|e: ArchiveError| fatal(e.to_string()))?;
        if let Some(note) = source.note() {
            log("WARNING", note);
        }
        Ok(source)
    }

    /// Restores into `targets` and shows with `verbose` how far it is and what it came to.
    fn restore(
        &self,
        source: Source,
        targets: &BTreeMap<u8, Arc<dyn Target>>,
        verbose: bool,
    ) -> Result<(), TransferError> {
        let (start, mut shown) = (Instant::now(), 0);
        let mut progress = |p: &RestoreProgress| {
            let percent = p.done.saturating_mul(100).checked_div(p.total).unwrap_or(0);
            if verbose && percent > shown {
                shown = percent;
                let seconds = start.elapsed().as_secs();
                say(&format!("progress {percent}% (read {} bytes, duration {seconds} sec)\n", p.done));
            }
        };
        let summary = crate::transfer::restore(source, targets, None, &mut progress, &self.cancel)?;
        if verbose {
            say(&if summary == RestoreSummary::default() {
                "vma archive contains no image data\n".to_owned()
            } else {
                format!("{summary}\n")
            });
        }
        Ok(())
    }
}
