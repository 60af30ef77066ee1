//! The loop that runs due jobs on a machine without the node's scheduler. It looks once a minute, by the clock on the wall; each
//! job is a process of its own (`vzkeep jobs run`), which gets the job's properties as they were when it became due. Several due
//! at once wait for one another at the lock all backups take.
//!
//! TERM ends the loop and leaves running backups to end by themselves: restarting a service must not break a backup that has
//! run for hours. INT, what a terminal sends, also asks them to stop and waits until they have cleaned up.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::state::{JobState, JobStates, StateError};
use super::{CalendarError, CalendarEvent, ClaimError, Source, cron_runs_its_own, other_scheduler};
use crate::config::{BackupJob, JobsCfg};
use crate::host::{Host, files};

const LOCK: &str = "/run/vzkeep/jobs.lock";
/// How often signals, children and the clock are looked at.
const TICK: Duration = Duration::from_millis(500);

/// The daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The node has a scheduler already.
    #[error(
        "{0}: it runs the jobs of this node, and a second scheduler would back up every guest twice. To let vzkeep run them, \
         stop and disable pvescheduler, and give --even-with-pvescheduler"
    )]
    OtherScheduler(String),
    /// The other one is ours.
    #[error("another 'vzkeep jobs daemon' runs here: it holds '{0}'")]
    Twice(String),
    /// The machine does not let us.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// The scheduler.
pub struct Daemon<'a> {
    host: &'a Host,
    source: Source,
    states: JobStates,
    program: PathBuf,
    say: &'a dyn Fn(&str),
    /// What was said of each thing last, so that it is not said again every minute.
    said: HashMap<String, String>,
    /// The jobs as last read without a complaint.
    good: Option<JobsCfg>,
    children: Vec<(String, Child)>,
    /// From when on each job's times count for us, should its state not be writable.
    runs: HashMap<String, i64>,
    /// Jobs whose missed times were decided on.
    seen: HashSet<String>,
}

impl<'a> Daemon<'a> {
    /// Runs until a signal ends it; `say` hears what happens. `even_with_another` skips the look for the node's scheduler.
    ///
    /// # Errors
    /// [`DaemonError`].
    pub fn run(
        host: &'a Host,
        source: Source,
        even_with_another: bool,
        say: &'a dyn Fn(&str),
    ) -> Result<(), DaemonError> {
        if let Some(other) = other_scheduler(host).filter(|_| !even_with_another) {
            return Err(DaemonError::OtherScheduler(other));
        }
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| DaemonError::Io { what, source }
        };
        let lock = host.path(LOCK);
        let _lock = files::lock(&lock, Duration::ZERO)
            .map_err(failed(&format!("cannot lock '{LOCK}'")))?
            .ok_or_else(|| DaemonError::Twice(LOCK.to_owned()))?;
        let program = std::env::current_exe().map_err(failed("cannot find our own program"))?;
        let [leave, stop, look] = std::array::from_fn(|_| Arc::new(AtomicBool::new(false)));
        use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
        for (signal, flag) in [(SIGTERM, &leave), (SIGQUIT, &leave), (SIGINT, &stop), (SIGHUP, &look)] {
            signal_hook::flag::register(signal, Arc::clone(flag)).map_err(failed("cannot wait for signals"))?;
        }
        let mut daemon = Self {
            host,
            source,
            states: JobStates::new(host),
            program,
            say,
            said: HashMap::new(),
            good: None,
            children: Vec::new(),
            runs: HashMap::new(),
            seen: HashSet::new(),
        };
        say("looking after the backup jobs");
        let mut minute = None;
        loop {
            daemon.reap();
            if stop.load(Ordering::SeqCst) {
                daemon.stop_children();
                say("ended");
                return Ok(());
            }
            if leave.load(Ordering::SeqCst) {
                daemon.leave_children();
                say("ended");
                return Ok(());
            }
            // A clock that jumps, in whatever direction, is another minute, too.
            let now = host.now().timestamp().as_second().div_euclid(60);
            if minute.replace(now) != Some(now) || look.swap(false, Ordering::SeqCst) {
                daemon.round();
            }
            std::thread::sleep(TICK);
        }
    }

    /// Says `text` about `topic`, unless that was the last thing said about it; an empty text ends the topic.
    fn tell(&mut self, topic: &str, text: &str) {
        if text.is_empty() {
            self.said.remove(topic);
        } else if self.said.insert(topic.to_owned(), text.to_owned()).as_deref() != Some(text) {
            (self.say)(text);
        }
    }

    /// What was read or written of a job's state, or a word about why not.
    fn told<T>(&mut self, job: &BackupJob, result: Result<T, StateError>) -> Option<T> {
        let topic = format!("state {}", job.id());
        match result {
            Ok(value) => {
                self.tell(&topic, "");
                Some(value)
            }
            Err(error) => {
                self.tell(&topic, &error.to_string());
                None
            }
        }
    }

    /// Looks at all jobs once.
    fn round(&mut self) {
        let Some(cfg) = self.load() else { return };
        for job in &cfg.jobs {
            let topic = format!("job {}", job.id());
            match self.look_at(job) {
                Ok(()) => self.tell(&topic, ""),
                Err(why) => self.tell(&topic, &format!("job '{}': {why}", job.id())),
            }
        }
    }

    /// The jobs as they are now, or as they were when they could be read last.
    fn load(&mut self) -> Option<JobsCfg> {
        let loaded = self.source.load(self.host, None);
        let complaint = match &loaded {
            // The cluster's file system is gone for a moment, or somebody replaces the file: no reason to forget what is due.
            Ok(cfg) if cfg.absent && self.good.as_ref().is_some_and(|good| !good.absent) => {
                Some(format!("'{}' is not there", JobsCfg::PATH))
            }
            Ok(cfg) => cfg.warnings.first().map(|first| match cfg.warnings.len() {
                1 => first.clone(),
                more => format!("{first} (and {} more)", more - 1),
            }),
            Err(error) => Some(error.to_string()),
        };
        let Some(complaint) = complaint else {
            self.tell("jobs", "");
            let cfg = loaded.ok()?;
            if let Err(error) = self.states.forget_others(|id| cfg.get(id).is_some()) {
                self.tell("states", &format!("cannot remove the states of former jobs: {error}"));
            }
            self.good = Some(cfg.clone());
            return Some(cfg);
        };
        match &self.good {
            Some(good) => {
                let good = good.clone();
                self.tell("jobs", &format!("{complaint}; going on with the jobs as they were before"));
                Some(good)
            }
            // At the start there is nothing to fall back to: what can be read is better than nothing.
            None => {
                self.tell("jobs", &complaint);
                loaded.ok()
            }
        }
    }

    /// Starts a job if its time has come.
    fn look_at(&mut self, job: &BackupJob) -> Result<(), String> {
        if job.node().is_some_and(|node| node != self.host.node()) {
            return Ok(());
        }
        if job.id().starts_with("cron-") && cron_runs_its_own(self.host) {
            return Ok(());
        }
        let now = self.host.now();
        let second = now.timestamp().as_second();
        // A full disk must not keep backups from being made: what cannot be noted is kept in mind.
        let state = self.states.follow(job, second);
        let state = self.told(job, state).or_else(|| self.states.read(job.id()).ok().flatten()).unwrap_or_default();
        if self.seen.insert(job.id().to_owned()) && !job.repeats_missed() {
            self.runs.insert(job.id().to_owned(), second);
            let skipped = self.states.skip_missed(job.id(), second);
            self.told(job, skipped);
        }
        if !job.is_enabled() {
            return Ok(());
        }
        let Some(schedule) = job.schedule() else { return Err("it has no schedule, so it never runs".into()) };
        let event: CalendarEvent = schedule.parse().map_err(|e: CalendarError| e.to_string())?;
        if state.last_run().is_none() {
            self.runs.entry(job.id().to_owned()).or_insert(second);
        }
        if let Some(run) = self.runs.get_mut(job.id()) {
            // The clock may have been put back.
            *run = second.min(*run);
        }
        let last = state.last_run().max(self.runs.get(job.id()).copied()).unwrap_or(second);
        let next = Timestamp::from_second(last).ok().and_then(|last| event.next(last, now.time_zone()));
        if next.is_none_or(|next| next > now.timestamp()) || self.is_running(job.id(), &state) {
            return Ok(());
        }
        self.start(job, second)
    }

    fn is_running(&self, id: &str, state: &JobState) -> bool {
        state.running().is_some() || self.children.iter().any(|(running, _)| running == id)
    }

    fn start(&mut self, job: &BackupJob, second: i64) -> Result<(), String> {
        match self.states.claim(job.id(), second) {
            Err(ClaimError::Running { .. }) => return Ok(()),
            Err(ClaimError::State(error)) => drop(self.told::<()>(job, Err(error))),
            Ok(()) => {}
        }
        self.runs.insert(job.id().to_owned(), second);
        let child = self.spawn(job);
        match child {
            Ok(child) => {
                (self.say)(&format!("job '{}' started (process {})", job.id(), child.id()));
                self.children.push((job.id().to_owned(), child));
                Ok(())
            }
            Err(error) => {
                let why = format!("cannot be started: {error}");
                self.states.stopped(job.id(), &why, second).map_err(|e| format!("{why}; {e}"))?;
                Err(why)
            }
        }
    }

    fn spawn(&self, job: &BackupJob) -> std::io::Result<Child> {
        let program = self.program.to_str().ok_or_else(|| std::io::Error::other("our own path is not UTF-8"))?;
        let mut command = self.host.command(program);
        command.args(["jobs", "run", job.id(), "--stdin", "--claimed"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let written = child.stdin.take().map_or(Ok(()), |mut to| to.write_all(job.to_json().to_string().as_bytes()));
        if let Err(error) = written {
            // It may be gone already; either way it has to be waited for.
            child.kill().and_then(|()| child.wait())?;
            return Err(error);
        }
        Ok(child)
    }

    /// Says how jobs ended.
    fn reap(&mut self) {
        let say = self.say;
        let states = &self.states;
        let now = self.host.now().timestamp().as_second();
        self.children.retain_mut(|(id, child)| match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                say(&format!("job '{id}' ended: {}", if status.success() { "OK".into() } else { status.to_string() }));
                // One that was killed could not write down its end.
                if let Ok(Some(state)) = states.read(id)
                    && state.state == super::Phase::Starting
                    && let Err(error) = states.stopped(id, &status.to_string(), now)
                {
                    say(&error.to_string());
                }
                false
            }
            Err(error) => {
                say(&format!("job '{id}': {error}"));
                false
            }
        });
    }

    fn stop_children(&mut self) {
        for (id, child) in &self.children {
            (self.say)(&format!("job '{id}' is asked to stop"));
            if let Ok(pid) = i32::try_from(child.id())
                && let Err(error) = kill(Pid::from_raw(pid), Signal::SIGTERM)
            {
                (self.say)(&format!("job '{id}': {error}"));
            }
        }
        while !self.children.is_empty() {
            std::thread::sleep(TICK);
            self.reap();
        }
    }

    fn leave_children(&self) {
        for (id, child) in &self.children {
            (self.say)(&format!("job '{id}' goes on without us (process {})", child.id()));
        }
    }
}
