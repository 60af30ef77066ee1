//! Moves the disks of a guest from where it was started to where they belong, while it runs: one job a disk, by QEMU itself.
//!
//! What the guest writes meanwhile reaches the volumes as well (mirrors are write-blocking), so that an end comes however much
//! it writes. No job is completed before all are ready: until then everything can be given up. Each question is a short
//! connection of its own, because others need the monitor, too.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::{QemuError, Qmp};
use crate::host::Cancel;

/// How long the monitor may be in use by somebody else.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much a mirror reads ahead. What the guest waits for queues behind that, so it is little.
const AHEAD: u64 = 2 << 20;
/// How long an answer may take when all data has arrived: as long as it takes. QEMU says nothing while it drains onto slow
/// storage, and nothing may be sent twice: at a second `job-complete` with `replaces` it aborts.
const AT_LAST: Duration = Duration::from_secs(365 * 24 * 3600);

/// How a disk gets to its volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// `block-stream`: `node` writes to the volume already and takes over what it does not have.
    Stream,
    /// `blockdev-mirror`: what `node` shows is copied to `target`, which takes the place of `replaces` in the end.
    Mirror {
        /// The node of the volume.
        target: String,
        /// What it replaces; `node` itself if that is none.
        replaces: Option<String>,
    },
}

/// One disk to be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Its key in the config: `scsi0`.
    pub disk: String,
    /// The node the job works on.
    pub node: String,
    /// The kind of job.
    pub way: Way,
    /// Nodes that are of no use any more when the job is done, in the order in which they can be removed.
    pub remove: Vec<String>,
}

impl Move {
    /// Reads what the bridge says about a disk: `{"job": "stream", "node": .., "remove": [..]}`, or `"mirror"` with `target`
    /// and perhaps `replaces`.
    pub fn parse(disk: &str, answer: &Value) -> Option<Self> {
        let text = |key: &str| answer[key].as_str().map(str::to_owned);
        let way = match answer["job"].as_str()? {
            "stream" => Way::Stream,
            "mirror" => Way::Mirror { target: text("target")?, replaces: text("replaces") },
            _ => return None,
        };
        let nodes = answer["remove"].as_array()?.iter().map(|node| node.as_str().map(str::to_owned));
        Some(Self { disk: disk.to_owned(), node: text("node")?, way, remove: nodes.collect::<Option<_>>()? })
    }

    fn job(&self) -> String {
        format!("vzkeep-live-{}", self.disk)
    }
}

/// Why disks could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// The job of a disk failed; QEMU's own words.
    #[error("moving {disk} failed: {why}")]
    Failed {
        /// The disk.
        disk: String,
        /// QEMU's words.
        why: String,
    },
    /// Somebody ended the job of a disk.
    #[error("moving {0} was ended by somebody else")]
    Ended(String),
    /// The guest was stopped by QEMU because a disk did not answer.
    #[error("the guest stands still because one of its disks could not be read or written")]
    StandsStill,
    /// There is no guest any more.
    #[error("the guest's QEMU has ended")]
    Gone,
    /// The monitor failed.
    #[error(transparent)]
    Qemu(QemuError),
}

impl MoveError {
    /// Whether only the monitor could not be had in time: nothing is known, and nothing lost.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Qemu(QemuError::Busy { .. } | QemuError::Timeout { .. }))
    }
}

impl From<QemuError> for MoveError {
    fn from(error: QemuError) -> Self {
        if error.is_gone() { Self::Gone } else { Self::Qemu(error) }
    }
}

/// How far all disks are together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are where they belong.
    pub done: u64,
    /// All of them, and what the guest has written since.
    pub total: u64,
    /// Whether every job waits only for its completion.
    pub ready: bool,
}

/// The disks of one guest on their way.
pub struct Moving {
    socket: PathBuf,
    moves: Vec<Move>,
    /// Bytes a second for all of them together.
    limit: Option<u64>,
    /// Among how many the limit was divided last.
    share: u64,
    cancel: Cancel,
}

impl Moving {
    /// Begins to move the disks and lets the guest run, which must stand still. `limit` is for all disks together, in bytes a
    /// second.
    ///
    /// # Errors
    /// When QEMU refuses. What was begun until then goes on.
    pub fn begin(socket: &Path, moves: Vec<Move>, limit: Option<u64>, cancel: &Cancel) -> Result<Self, MoveError> {
        let share = moves.len() as u64;
        let moving = Self { socket: socket.to_owned(), moves, limit, share, cancel: cancel.clone() };
        let mut qmp = moving.connect()?;
        for job in &moving.moves {
            let speed = moving.speed();
            // What fails ends the job; its end stays to be seen until it is dismissed.
            let mut arguments =
                json!({ "job-id": job.job(), "device": job.node, "speed": speed, "auto-dismiss": false });
            let command = match &job.way {
                Way::Stream => {
                    arguments["auto-finalize"] = false.into();
                    "block-stream"
                }
                Way::Mirror { target, replaces } => {
                    arguments["target"] = target.as_str().into();
                    arguments["sync"] = "full".into();
                    arguments["copy-mode"] = "write-blocking".into();
                    arguments["buf-size"] = AHEAD.into();
                    if let Some(node) = replaces {
                        arguments["replaces"] = node.as_str().into();
                    }
                    "blockdev-mirror"
                }
            };
            qmp.execute(command, arguments)?;
        }
        qmp.execute("cont", json!({}))?;
        Ok(moving)
    }

    fn connect(&self) -> Result<Qmp, QemuError> {
        Qmp::connect_unless(&self.socket, PATIENCE, &self.cancel)
    }

    fn speed(&self) -> u64 {
        // Zero means no limit to QEMU.
        self.limit.map_or(0, |limit| (limit / self.share.max(1)).max(1))
    }

    /// How far they are.
    ///
    /// # Errors
    /// When a job failed, or QEMU or the guest did.
    pub fn progress(&mut self) -> Result<Progress, MoveError> {
        let mut qmp = self.connect()?;
        let jobs = self.states(&qmp.execute("query-jobs", json!({}))?, false)?;
        // What a job cannot read the guest may not have needed yet, and the other way round.
        if qmp.execute("query-status", json!({}))?["status"] == "io-error" {
            return Err(MoveError::StandsStill);
        }
        let sum = |key: &str| jobs.iter().filter_map(|job| job[key].as_u64()).sum();
        let (done, total) = (sum("current-progress"), sum("total-progress"));
        let under_way = jobs.iter().filter(|job| !is_ready(job)).count() as u64;
        if self.limit.is_some() && (1..self.share).contains(&under_way) {
            self.share = under_way;
            for (job, _) in self.moves.iter().zip(&jobs).filter(|(_, state)| !is_ready(state)) {
                let faster = json!({ "device": job.job(), "speed": self.speed() });
                match qmp.execute("block-job-set-speed", faster) {
                    // It has ended meanwhile: seen next time.
                    Err(e) if !e.is_refusal() => return Err(e.into()),
                    _ => {}
                }
            }
        }
        Ok(Progress { done, total, ready: under_way == 0 })
    }

    /// The states of our jobs among all that are `known`, in the order of the disks. None is over before it was completed,
    /// unless somebody else ended it.
    fn states(&self, known: &Value, completed: bool) -> Result<Vec<Value>, MoveError> {
        let mut states = Vec::new();
        for job in &self.moves {
            let found = known.as_array().into_iter().flatten().find(|state| state["id"] == job.job().as_str());
            let state = found.ok_or_else(|| MoveError::Ended(job.disk.clone()))?;
            if let Some(why) = state["error"].as_str() {
                return Err(MoveError::Failed { disk: job.disk.clone(), why: why.to_owned() });
            }
            if !completed && matches!(state["status"].as_str(), Some("aborting" | "concluded" | "null")) {
                return Err(MoveError::Ended(job.disk.clone()));
            }
            states.push(state.clone());
        }
        Ok(states)
    }

    /// As [`Self::connect`], for what has to be done however long others use the monitor.
    fn connect_at_last(&self) -> Result<Qmp, MoveError> {
        loop {
            match self.connect().map_err(MoveError::from) {
                Err(e) if e.is_busy() => {}
                other => return other,
            }
        }
    }

    /// Completes all of them: from here on the guest works on its volumes alone. Only when they are ready. However long QEMU
    /// takes, it is waited for until the wish to stop comes.
    ///
    /// # Errors
    /// When a job failed in the end.
    pub fn complete(&mut self) -> Result<(), MoveError> {
        let mut qmp = self.connect_at_last()?;
        let mut ask = |command: &str, arguments: Value| qmp.execute_unless(command, arguments, AT_LAST, &self.cancel);
        for job in &self.moves {
            let command = match job.way {
                Way::Stream => "job-finalize",
                Way::Mirror { .. } => "job-complete",
            };
            ask(command, json!({ "id": job.job() }))?;
        }
        loop {
            let states = self.states(&ask("query-jobs", json!({}))?, true)?;
            if states.iter().all(|state| state["status"] == "concluded") {
                break;
            }
            if self.cancel.is_set() {
                return Err(QemuError::Cancelled.into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for job in &self.moves {
            // The guest is on its volumes: a job that stays in the list is of no harm.
            let _ = ask("job-dismiss", json!({ "id": job.job() }));
        }
        Ok(())
    }

    /// Makes durable what QEMU itself holds back of the volumes: tables of images. To be called when their data is on disk, for
    /// the guest waits meanwhile.
    ///
    /// # Errors
    /// What QEMU said.
    pub fn flush(&self) -> Result<(), MoveError> {
        let mut qmp = self.connect_at_last()?;
        for job in &self.moves {
            let volume = if let Way::Mirror { target, .. } = &job.way { target } else { &job.node };
            let why = qmp.human(&format!("qemu-io {volume} flush"))?;
            if !why.trim().is_empty() {
                return Err(MoveError::Failed { disk: job.disk.clone(), why: why.trim().to_owned() });
            }
        }
        Ok(())
    }

    /// Removes what is of no use any more.
    ///
    /// # Errors
    /// When QEMU refuses; all others are removed nevertheless.
    pub fn clear(&self) -> Result<(), QemuError> {
        let mut qmp = Qmp::connect(&self.socket, PATIENCE)?;
        let mut first = Ok(());
        for node in self.moves.iter().flat_map(|job| &job.remove) {
            let removed = qmp.execute("blockdev-del", json!({ "node-name": node }));
            first = first.and(removed.map(drop));
        }
        first
    }

    /// Whether the guest has switched itself off meanwhile; its QEMU waits to be ended.
    ///
    /// # Errors
    /// When the monitor cannot be had.
    pub fn is_off(&self) -> Result<bool, QemuError> {
        let mut qmp = Qmp::connect(&self.socket, PATIENCE)?;
        Ok(qmp.execute("query-status", json!({}))?["status"] == "shutdown")
    }
}

/// Whether a job waits only for its completion.
fn is_ready(state: &Value) -> bool {
    matches!(state["status"].as_str(), Some("ready" | "pending"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_bridge_says_is_taken_whole_or_not_at_all() {
        let stream = json!({ "job": "stream", "node": "drive-scsi0", "remove": ["drive-scsi0-restore"] });
        let mirror =
            json!({ "job": "mirror", "node": "d", "target": "v", "replaces": "o", "remove": ["o", "s"], "more": 1 });
        let parsed = Move::parse("scsi0", &stream).unwrap();
        assert_eq!((parsed.node.as_str(), &parsed.way, parsed.remove.len()), ("drive-scsi0", &Way::Stream, 1));
        let way = Way::Mirror { target: "v".into(), replaces: Some("o".into()) };
        assert_eq!(Move::parse("ide0", &mirror).unwrap().way, way);
        for (answer, key) in [(&stream, "job"), (&stream, "node"), (&stream, "remove"), (&mirror, "target")] {
            for wrong in [Value::Null, json!(7), json!({}), json!([7])] {
                let mut answer = answer.clone();
                answer[key] = wrong;
                assert_eq!(Move::parse("scsi0", &answer), None, "{answer}");
            }
        }
        assert_eq!(Move::parse("scsi0", &Value::Null), None);
    }
}
