//! Questions to a guest's QEMU: one connection, one question, away again. The tests' own eye on the monitor, apart from
//! the engine's client on purpose.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Runs one command and returns its `return`.
///
/// # Errors
/// When QEMU cannot be reached, does not answer within 20 seconds, or answers with an error.
pub fn ask(socket: &Path, command: &str, arguments: &Value) -> Result<Value> {
    let wait = Duration::from_secs(20);
    let stream = UnixStream::connect(socket).with_context(|| format!("no QEMU at {}", socket.display()))?;
    stream.set_read_timeout(Some(wait))?;
    let deadline = Instant::now() + wait;
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut to = stream;
    let mut line = String::new();
    for (id, (command, arguments)) in [("qmp_capabilities", &json!({})), (command, arguments)].into_iter().enumerate() {
        let mut question = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        question.push('\n');
        to.write_all(question.as_bytes()).with_context(|| format!("{command} to {}", socket.display()))?;
        loop {
            line.clear();
            let read = lines.read_line(&mut line).with_context(|| format!("no answer to {command}"))?;
            if read == 0 || Instant::now() > deadline {
                bail!("{}: QEMU hung up on {command}", socket.display());
            }
            let answer: Value = serde_json::from_str(&line)?;
            if answer.get("id") != Some(&json!(id)) {
                continue;
            }
            if let Some(error) = answer.get("error") {
                bail!("{command}: {}", error["desc"].as_str().unwrap_or("unknown error"));
            }
            if id == 1 {
                return Ok(answer["return"].clone());
            }
            break;
        }
    }
    bail!("no answer to {command}")
}

/// Runs one command of the guest agent and returns its `return`.
///
/// # Errors
/// As [`ask`].
pub fn ask_agent(socket: &Path, command: &str, arguments: &Value) -> Result<Value> {
    let wait = Duration::from_secs(20);
    let mut stream = UnixStream::connect(socket).with_context(|| format!("no agent at {}", socket.display()))?;
    stream.set_read_timeout(Some(wait))?;
    let sync = json!({"execute": "guest-sync", "arguments": {"id": std::process::id()}});
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    for question in [sync, json!({"execute": command, "arguments": arguments})] {
        stream.write_all(format!("{question}\n").as_bytes())?;
        let line = lines.next().with_context(|| format!("the agent hung up on {command}"))??;
        let answer: Value = serde_json::from_str(&line)?;
        if let Some(error) = answer.get("error") {
            bail!("{command}: {}", error["desc"].as_str().unwrap_or("unknown error"));
        }
        if question["execute"] == command {
            return Ok(answer["return"].clone());
        }
    }
    bail!("no answer to {command}")
}
