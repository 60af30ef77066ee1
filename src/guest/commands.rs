//! Commands of the node that work on guests and their volumes. Those whose effect is noted in the guest's record before they run
//! (what they make, a container's shutdown) are marked: if we are killed meanwhile they go on without us. Whoever undoes the note
//! waits for them; else it would find nothing, strike the note out, and the command would have its effect a moment later.
//!
//! The mark is a lock that such a command holds as its standard input, so that the kernel lets go of it when the last process that
//! works on the thing is gone. Standard input, because LVM's programs close every other file they were given.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::record::DIRECTORY;
use crate::host::{Host, bridge, child, files};

/// How long what a killed run has begun to make is waited for before what it made is removed; whoever undoes comes again later.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a command of the node and returns what it wrote to stdout.
///
/// # Errors
/// The command, and what it wrote to stderr or how it ended.
pub fn output(host: &Host, program: &str, args: &[&str]) -> Result<String, String> {
    child::said(host.command(program).args(args), Stdio::null(), None)
}

/// As [`output`], for a command that makes what was noted for guest `vmid`; ended after `limit`, if there is one.
///
/// # Errors
/// As [`output`], and when it cannot be marked; then it is not run.
pub fn make(host: &Host, vmid: u32, limit: Option<Duration>, command: &mut Command) -> Result<String, String> {
    let marked = mark(host, vmid).map_err(|e| format!("marking what is made for guest {vmid} failed: {e}"))?;
    child::said(command, marked.into(), limit)
}

/// As [`make`], for a verb of the bridge: the marked file holds the request.
///
/// # Errors
/// What the bridge said, and when it cannot be marked; then it is not called.
pub fn make_by_bridge(host: &Host, vmid: u32, limit: Duration, verb: &str, request: &Value) -> Result<Value, String> {
    let written = mark(host, vmid).and_then(|mut marked| {
        marked.set_len(0)?;
        marked.write_all(request.to_string().as_bytes())?;
        marked.rewind()?;
        Ok(marked)
    });
    let marked = written.map_err(|e| format!("marking what is made for guest {vmid} failed: {e}"))?;
    bridge::call_with(host, verb, marked, limit).map_err(|e| e.to_string())
}

/// Waits until nothing is made for guest `vmid` any more.
///
/// # Errors
/// When a command of a killed run goes on, or nobody can tell.
pub fn wait_for_makers(host: &Host, vmid: u32) -> Result<(), String> {
    match files::lock(&path(host, vmid), PATIENCE) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err("a command of the killed run is still making it".into()),
        Err(e) => Err(format!("whether a command of the killed run is still making it cannot be told: {e}")),
    }
}

/// Whether a command that was marked for guest `vmid` is at work. Yes, when nobody can tell.
pub fn is_at_work(host: &Host, vmid: u32) -> bool {
    !matches!(files::lock(&path(host, vmid), Duration::ZERO), Ok(Some(_)))
}

/// The mark of a command for guest `vmid`: its standard input. Many may be at work at once, but nobody while somebody undoes. The
/// lock belongs to the open file, not to us: it is the command's as well.
///
/// # Errors
/// When it cannot be made.
pub fn mark(host: &Host, vmid: u32) -> io::Result<File> {
    let path = path(host, vmid);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
    file.lock_shared()?;
    Ok(file)
}

fn path(host: &Host, vmid: u32) -> PathBuf {
    host.path(DIRECTORY).join(format!("{vmid}.at-work"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn what_is_still_made_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::with_root(dir.path().to_owned());
        assert_eq!(wait_for_makers(&host, 100), Ok(()));
        // The command ends at once, and a child of its in the background makes on.
        let (made, go) = (dir.path().join("made"), dir.path().join("go"));
        let script = format!(
            "exec 3<&0; (until [ -e '{}' ]; do sleep 0.05; done; sleep 0.3; touch '{}') <&3 >/dev/null 2>&1 & echo begun",
            go.display(),
            made.display()
        );
        let said = make(&host, 100, None, host.command("sh").args(["-c", &script])).unwrap();
        assert_eq!(said, "begun\n");
        assert!(is_at_work(&host, 100) && !is_at_work(&host, 101) && !made.exists());
        std::fs::write(go, "").unwrap();
        assert_eq!((wait_for_makers(&host, 101), wait_for_makers(&host, 100)), (Ok(()), Ok(())));
        assert!(made.exists());
    }

    #[test]
    fn a_command_that_fails_or_hangs_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::with_root(dir.path().to_owned());
        let failed = output(&host, "sh", &["-c", "echo 'no space' >&2; echo left >&2; exit 3"]).unwrap_err();
        assert!(failed.starts_with("command 'sh -c ") && failed.ends_with("failed: no space; left"), "{failed}");
        assert!(output(&host, "sh", &["-c", "exit 3"]).unwrap_err().ends_with("failed: exit status: 3"));
        let begun = Instant::now();
        let limit = Some(Duration::from_millis(50));
        let late = make(&host, 100, limit, host.command("sleep").arg("60")).unwrap_err();
        assert!(
            late == "command 'sleep 60' failed: got timeout" && begun.elapsed() < Duration::from_secs(50),
            "{late}"
        );
        assert_eq!(wait_for_makers(&host, 100), Ok(()));
    }
}
