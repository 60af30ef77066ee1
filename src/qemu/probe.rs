//! Why did a read from the snapshot fail? NBD says `Invalid argument` when the snapshot broke and the same for a block
//! that was given back; QEMU itself knows better. We ask it by a job that copies one sector of the snapshot to nowhere.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::names::PROBE_JOB;
use super::{QemuError, Qmp};

const SLICE_NODE: &str = "vzkeep-probe-slice";
const NULL_NODE: &str = "vzkeep-probe-null";
const SECTOR: u64 = 512;

/// A snapshot that broke: QEMU gave it up so that the guest could go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The disk, as the caller named it.
    pub device: String,
    /// The fleecing image.
    pub fleecing: PathBuf,
    /// Bytes free on the file system of the fleecing image, where that is known.
    pub free: Option<u64>,
    /// Seconds after which a write to the fleecing image counts as failed.
    pub timeout: Duration,
}

/// Below this the file system counts as full: QEMU writes clusters of 64 KiB and more, several at a time.
const FULL: u64 = 1 << 20;

impl Broken {
    /// Whether the fleecing space ran out, as far as we can know.
    pub fn is_full(&self) -> bool {
        self.free.is_some_and(|free| free < FULL)
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fleecing = self.fleecing.display();
        write!(f, "the snapshot of {} broke, the guest goes on: ", self.device)?;
        if self.is_full() {
            write!(f, "no space left for fleecing in {fleecing}")
        } else {
            write!(
                f,
                "writing old data to the fleecing image {fleecing} failed or took longer than {} s",
                self.timeout.as_secs()
            )
        }
    }
}

/// Reads the sector at `offset` of `snapshot` inside QEMU. Returns the error's text, none if it can be read.
pub(super) fn read_sector(qmp: &mut Qmp, snapshot: &str, offset: u64) -> Result<Option<String>, QemuError> {
    let result = run(qmp, snapshot, offset / SECTOR * SECTOR);
    // Whatever happened, nothing of it may stay; a later sweep would also find it.
    for (command, arguments) in [
        ("job-dismiss", json!({ "id": PROBE_JOB })),
        ("blockdev-del", json!({ "node-name": SLICE_NODE })),
        ("blockdev-del", json!({ "node-name": NULL_NODE })),
    ] {
        match qmp.execute(command, arguments) {
            Err(e) if !e.is_refusal() => return Err(e),
            _ => {}
        }
    }
    result
}

fn run(qmp: &mut Qmp, snapshot: &str, offset: u64) -> Result<Option<String>, QemuError> {
    let slice = json!({
        "driver": "raw", "node-name": SLICE_NODE, "file": snapshot, "offset": offset, "size": SECTOR, "read-only": true,
    });
    qmp.execute("blockdev-add", slice)?;
    qmp.execute("blockdev-add", json!({ "driver": "null-co", "node-name": NULL_NODE, "size": SECTOR }))?;
    let job = json!({
        "job-id": PROBE_JOB, "device": SLICE_NODE, "target": NULL_NODE, "sync": "full", "auto-dismiss": false,
    });
    qmp.execute("blockdev-backup", job)?;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let jobs = qmp.execute("query-jobs", json!({}))?;
        let job = jobs.as_array().into_iter().flatten().find(|j| j["id"] == PROBE_JOB);
        match job {
            Some(job) if job["status"] == "concluded" => {
                return Ok(job.get("error").and_then(Value::as_str).map(str::to_owned));
            }
            Some(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            // A read that takes this long is a source that hangs, not a broken snapshot.
            Some(_) => {
                qmp.execute("job-cancel", json!({ "id": PROBE_JOB }))?;
                return Ok(Some("the source does not answer".into()));
            }
            None => return Ok(None),
        }
    }
}
