//! What is known of each job's last run: `/var/lib/pve-manager/jobs/vzdump-<id>.json`, in the node's own form and under the
//! node's own lock, so that its scheduler and we see the same. A job is `created`, `starting`, `started` (a task runs), or
//! `stopped` (with how it ended).

use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::BackupJob;
use crate::host::{Host, files};
use crate::job::upid::Upid;

const STATES: &str = "/var/lib/pve-manager/jobs";
const LOCKS: &str = "/var/lock/pve-manager";
/// How long another program may take to edit a state.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longer than the last line of any task's log.
const TAIL: u64 = 16 << 10;

/// For how many seconds a claim counts without a task: starting one takes less, and a claimer that died must not block it.
const STARTING: i64 = 60;

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Never ran since it was made.
    #[default]
    Created,
    /// Somebody has decided to run it.
    Starting,
    /// Its task runs, or did when this was written.
    Started,
    /// Its task has ended.
    Stopped,
}

/// The state of one job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobState {
    /// Where it is in its life.
    pub state: Phase,
    /// When it got there, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<i64>,
    /// Its last task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upid: Option<String>,
    /// How that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub msg: Option<String>,
    /// From when on times that pass count, when that is later than its last run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated: Option<i64>,
    /// The properties whose change starts a new count.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
}

impl JobState {
    /// From when on the next time of the job's schedule is looked for.
    pub fn last_run(&self) -> Option<i64> {
        self.updated.or_else(|| self.task().map(|task| task.start)).or(self.time)
    }

    /// Its last task.
    pub fn task(&self) -> Option<Upid> {
        self.upid.as_deref()?.parse().ok()
    }

    /// The task that runs now.
    pub fn running(&self) -> Option<Upid> {
        self.task().filter(|task| self.state == Phase::Started && task.is_alive())
    }
}

/// A state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file or its lock.
    #[error("the state of job '{id}' ('{}'): {source}", path.display())]
    Io {
        /// The job.
        id: String,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Somebody else edits it all the time.
    #[error("the state of job '{0}' is locked by another program")]
    Locked(String),
}

/// A job may not be run now.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// It runs already.
    #[error("job '{id}' runs already, {how}")]
    Running {
        /// The job.
        id: String,
        /// Its task, or that this is about to start.
        how: String,
    },
    /// Nobody can tell.
    #[error(transparent)]
    State(#[from] StateError),
}

/// The states of all jobs of a node.
#[derive(Debug, Clone)]
pub struct JobStates {
    host: Host,
}

impl JobStates {
    /// Those of the node `host`.
    pub fn new(host: &Host) -> Self {
        Self { host: host.clone() }
    }

    fn file(&self, id: &str) -> PathBuf {
        self.host.path(format!("{STATES}/vzdump-{id}.json"))
    }

    /// The state of a job; `None` for one that nobody has seen yet. A file that holds no state (one a crash left empty, say)
    /// counts as none.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn read(&self, id: &str) -> Result<Option<JobState>, StateError> {
        match std::fs::read(self.file(id)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.io_error(id, source)),
        }
    }

    fn io_error(&self, id: &str, source: io::Error) -> StateError {
        StateError::Io { id: id.to_owned(), path: self.file(id), source }
    }

    /// Edits a state under its lock; nothing is written when `edit` returns `None`.
    fn edit<T>(&self, id: &str, edit: impl FnOnce(Option<JobState>) -> (Option<JobState>, T)) -> Result<T, StateError> {
        let io_error = |source| self.io_error(id, source);
        let lock = self.host.path(format!("{LOCKS}/vzdump-{id}.lck"));
        let _lock = files::lock(&lock, PATIENCE).map_err(io_error)?.ok_or_else(|| StateError::Locked(id.to_owned()))?;
        let (new, answer) = edit(self.read(id)?);
        if let Some(state) = new {
            let file = self.file(id);
            let made = file.parent().map_or(Ok(()), std::fs::create_dir_all);
            let text = serde_json::to_vec(&state).map_err(io::Error::from);
            made.and(text).and_then(|text| files::replace(&file, &text)).map_err(io_error)?;
        }
        Ok(answer)
    }

    /// Brings the state of a job up to date: makes one for a new job, begins to count anew when its schedule was changed or it
    /// was switched on, and notes the end of a task that is gone, however it went. Returns it.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn follow(&self, job: &BackupJob, now: i64) -> Result<JobState, StateError> {
        let mut config = Map::new();
        for key in ["enabled", "schedule"] {
            let value = if key == "schedule" { job.schedule() } else { job.get(key).map(str::to_owned) };
            config.extend(value.map(|value| (key.to_owned(), Value::from(value))));
        }
        self.edit(job.id(), |old| {
            let Some(old) = old else {
                let state = JobState { time: Some(now), config, ..JobState::default() };
                return (Some(state.clone()), state);
            };
            let mut state = old.clone();
            if !same(&state.config, &config) {
                state = JobState { config, updated: Some(now), ..state };
            }
            if state.last_run().is_some_and(|last| last > now) && state.running().is_none() {
                // The clock was put back: without this the job would wait until it has caught up.
                state.updated = Some(now);
            }
            if state.state == Phase::Started && state.running().is_none() {
                let msg = state.task().map(|task| self.end_of(&task)).unwrap_or_else(|| "unknown task".into());
                state = JobState { state: Phase::Stopped, msg: Some(msg), time: None, ..state };
            }
            ((state != old).then(|| state.clone()), state)
        })
    }

    /// How a task ended, from the last line of its log.
    fn end_of(&self, task: &Upid) -> String {
        let tail = || {
            let mut file = std::fs::File::open(self.host.path(task.log_path()))?;
            let length = file.seek(SeekFrom::End(0))?;
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
            let mut text = Vec::new();
            file.take(TAIL).read_to_end(&mut text)?;
            Ok::<_, io::Error>(String::from_utf8_lossy(&text).into_owned())
        };
        let text = tail().unwrap_or_default();
        let last = text.trim_end().lines().last().and_then(|line| line.strip_prefix("TASK "));
        last.map_or("unexpected status", |end| end.strip_prefix("ERROR: ").unwrap_or(end)).to_owned()
    }

    /// Lets what was missed be missed: times count from `now` on.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn skip_missed(&self, id: &str, now: i64) -> Result<(), StateError> {
        self.edit(id, |old| (Some(JobState { updated: Some(now), ..old.unwrap_or_default() }), ()))
    }

    /// Takes the right to run a job.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub fn claim(&self, id: &str, now: i64) -> Result<(), ClaimError> {
        let running = self.edit(id, |old| {
            let old = old.unwrap_or_default();
            // Somebody claimed it a moment ago, and its task is about to begin.
            let fresh =
                old.state == Phase::Starting && old.time.is_some_and(|time| (0..STARTING).contains(&(now - time)));
            let running = old.running().map(|task| format!("as task {task}"));
            match running.or_else(|| fresh.then(|| "its task is about to start".to_owned())) {
                Some(how) => (None, Some(how)),
                None => {
                    let state =
                        JobState { state: Phase::Starting, time: Some(now), config: old.config, ..JobState::default() };
                    (Some(state), None)
                }
            }
        })?;
        running.map_or(Ok(()), |how| Err(ClaimError::Running { id: id.to_owned(), how }))
    }

    /// Notes that task `upid` runs the job now.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn started(&self, id: &str, upid: &str) -> Result<(), StateError> {
        self.edit(id, |old| {
            let config = old.unwrap_or_default().config;
            let upid = Some(upid.to_owned());
            (Some(JobState { state: Phase::Started, upid, config, ..JobState::default() }), ())
        })
    }

    /// Notes how the job ended; without a task when there never was one.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn stopped(&self, id: &str, msg: &str, now: i64) -> Result<(), StateError> {
        self.edit(id, |old| {
            let JobState { upid, config, updated, .. } = old.unwrap_or_default();
            let time = upid.is_none().then_some(now);
            (Some(JobState { state: Phase::Stopped, msg: Some(msg.to_owned()), upid, config, updated, time }), ())
        })
    }

    /// Removes the states of jobs that are no more: a new job of the same name has missed nothing.
    ///
    /// # Errors
    /// When the directory cannot be read or a file not removed.
    pub fn forget_others(&self, is_known: impl Fn(&str) -> bool) -> io::Result<()> {
        let entries = match std::fs::read_dir(self.host.path(STATES)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name();
            let id = name.to_str().and_then(|name| name.strip_prefix("vzdump-")?.strip_suffix(".json"));
            if let Some(id) = id.filter(|id| !is_known(id)) {
                std::fs::remove_file(self.file(id))?;
            }
        }
        Ok(())
    }
}

/// Whether two sets of properties are the same as text: one writer has numbers where another has strings.
fn same(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    let text = |map: &Map<String, Value>| {
        let value = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        ["enabled", "schedule"].map(|key| map.get(key).map(value))
    };
    text(a) == text(b)
}

#[cfg(test)]
#[path = "state/tests.rs"]
mod tests;
