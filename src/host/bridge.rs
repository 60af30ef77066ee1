//! The bridge: the one program through which we do what vzdump does inside PVE's own Perl and no command offers.
//! `vzkeep-pve-bridge <verb>`, a JSON object on standard input, a JSON value on standard output; errors are
//! `{"error": "..."}` and a non-zero exit.

use std::fs::File;
use std::io::{self, Write};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::Host;
use super::child::{self, Ended};

/// Name of the bridge program, found through `PATH`.
pub const PROGRAM: &str = "vzkeep-pve-bridge";

/// A call of the bridge failed.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// The program could not be run.
    #[error("cannot run '{PROGRAM} {verb}': {source}")]
    Run {
        /// What was asked for.
        verb: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The bridge refused; its own words.
    #[error("{message}")]
    Refused {
        /// What was asked for.
        verb: String,
        /// The bridge's sentence.
        message: String,
    },
    /// The bridge printed something that is not the JSON expected.
    #[error("'{PROGRAM} {verb}' gave no usable answer: {detail}")]
    Answer {
        /// What was asked for.
        verb: String,
        /// What it printed instead.
        detail: String,
    },
}

/// Whether this machine has the bridge.
pub fn available(host: &Host) -> bool {
    host.has_command(PROGRAM)
}

/// Calls `verb` with `request` and returns the answer.
///
/// # Errors
/// When the program cannot be run, refuses, or prints no JSON.
pub fn call(host: &Host, verb: &str, request: &Value) -> Result<Value, BridgeError> {
    let run = |source| BridgeError::Run { verb: verb.to_owned(), source };
    let mut child = host
        .command(PROGRAM)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(run)?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(request.to_string().as_bytes()) {
            // The bridge may refuse without reading its input; its answer says why.
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => return Err(run(e)),
            _ => {}
        }
    }
    let output = child.wait_with_output().map_err(run)?;
    answer(verb, output.status, &output.stdout, &output.stderr)
}

/// As [`call`], with the request in a file that the bridge gets as its standard input and keeps open as long as it is at work.
///
/// # Errors
/// As [`call`], and when it takes longer than `limit`; then it is ended.
pub fn call_with(host: &Host, verb: &str, request: File, limit: Duration) -> Result<Value, BridgeError> {
    match child::fed(host.command(PROGRAM).arg(verb), request.into(), limit) {
        Ok(Ended::Exited(output)) => answer(verb, output.status, &output.stdout, &output.stderr),
        Ok(Ended::Late(_) | Ended::Cancelled) => {
            Err(BridgeError::Answer { verb: verb.to_owned(), detail: "got timeout".into() })
        }
        Err(source) => Err(BridgeError::Run { verb: verb.to_owned(), source }),
    }
}

/// What the bridge's output says.
fn answer(verb: &str, status: ExitStatus, stdout: &[u8], stderr: &[u8]) -> Result<Value, BridgeError> {
    let answer: Option<Value> = serde_json::from_slice(stdout).ok();
    if let Some(message) = answer.as_ref().and_then(|a| a.get("error")).and_then(Value::as_str) {
        return Err(BridgeError::Refused { verb: verb.to_owned(), message: message.trim_end().to_owned() });
    }
    match answer {
        Some(value) if status.success() => Ok(value),
        _ => {
            let stderr = String::from_utf8_lossy(stderr);
            let stdout = String::from_utf8_lossy(stdout);
            let detail = [stderr.trim(), stdout.trim()].into_iter().find(|t| !t.is_empty()).unwrap_or("no output");
            let detail = format!("{} ({})", detail.lines().last().unwrap_or_default(), status);
            Err(BridgeError::Answer { verb: verb.to_owned(), detail })
        }
    }
}
