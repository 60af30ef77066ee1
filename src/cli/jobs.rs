//! `vzkeep jobs list|show|next|run|daemon`: the backup jobs of the node's configuration.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use jiff::{Timestamp, Zoned};
use serde_json::{Value, json};

use super::{FAILED, complain, say, vzdump};
use crate::config::{BackupJob, JobsCfg};
use crate::host::Host;
use crate::job::tasklog::Outcome;
use crate::schedule::{Daemon, JobState, JobStates, Source, next_run, upcoming};

/// More complaints about a file than this are not read by anybody.
const MOST_WARNINGS: usize = 10;

/// What to do with the backup jobs.
#[derive(Debug, Args)]
pub struct Jobs {
    #[command(subcommand)]
    verb: Verb,
    /// Take the jobs from 'pvesh get /cluster/backup' instead of /etc/pve/jobs.cfg
    #[arg(long, global = true, conflicts_with = "stdin")]
    pvesh: bool,
    /// Take the jobs from standard input: the JSON that 'pvesh get /cluster/backup[/<id>] --output-format json' prints
    /// (a single '-' means the same)
    #[arg(long, global = true)]
    stdin: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the jobs: when each runs next and what it backs up
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one job: its properties, its last run, and the vzdump command line it means
    Show {
        /// The job
        id: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print when jobs run next
    Next {
        /// The job; without it, all that are enabled
        id: Option<String>,
        /// How many times of each
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
        count: u16,
    },
    /// Run a job now, as the scheduler would, also one that is disabled
    Run {
        /// The job
        id: String,
        /// The daemon has noted in the job's state that it runs
        #[arg(long, hide = true)]
        claimed: bool,
    },
    /// Run jobs when they are due, until TERM; for machines without pvescheduler
    Daemon {
        /// Also where pvescheduler is installed, which runs the same jobs unless it is stopped
        #[arg(long)]
        even_with_pvescheduler: bool,
    },
}

/// Runs one of the verbs.
pub fn run(jobs: &Jobs) -> ExitCode {
    match verb(jobs, &Host::from_env()) {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("{error:#}\n"));
            ExitCode::from(FAILED)
        }
    }
}

fn verb(jobs: &Jobs, host: &Host) -> anyhow::Result<ExitCode> {
    let source = match (jobs.pvesh, jobs.stdin) {
        (true, _) => Source::Pvesh,
        (_, true) => Source::Stdin,
        _ => Source::Files,
    };
    match &jobs.verb {
        Verb::List { json } => list(host, &load(host, source, None)?, *json),
        Verb::Show { id, json } => show(host, find(&load(host, source, Some(id))?, id)?, *json),
        Verb::Next { id, count } => next(host, &load(host, source, id.as_deref())?, id.as_deref(), *count),
        Verb::Run { id, claimed } => run_job(host, find(&load(host, source, Some(id))?, id)?, *claimed),
        Verb::Daemon { even_with_pvescheduler } => {
            anyhow::ensure!(
                source != Source::Stdin,
                "the daemon reads the jobs again and again: not from standard input"
            );
            Daemon::run(host, source, *even_with_pvescheduler, &|text| complain(&format!("{text}\n")))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn load(host: &Host, source: Source, id: Option<&str>) -> anyhow::Result<JobsCfg> {
    if let Some(id) = id.filter(|id| !JobsCfg::is_valid_id(id)) {
        anyhow::bail!("'{}' is not the name of a job: expected letters, digits, '-', '_', '.' and ':'", plain(id));
    }
    let cfg = source.load(host, id)?;
    cfg.warnings.iter().take(MOST_WARNINGS).for_each(|warning| complain(&format!("{}\n", plain(warning))));
    if let Some(more) = cfg.warnings.len().checked_sub(MOST_WARNINGS + 1) {
        complain(&format!("... and {} more\n", more + 1));
    }
    Ok(cfg)
}

fn find<'a>(cfg: &'a JobsCfg, id: &str) -> anyhow::Result<&'a BackupJob> {
    cfg.get(id).ok_or_else(|| {
        let other = cfg.others.iter().find(|(_, other)| other == id);
        match other {
            Some((kind, _)) => anyhow::anyhow!("job '{id}' is of type '{}', not a backup job", plain(kind)),
            None => anyhow::anyhow!("there is no backup job '{id}'; 'vzkeep jobs list' shows all"),
        }
    })
}

/// Without characters that would do something to a terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn shown(at: Timestamp, now: &Zoned) -> String {
    at.to_zoned(now.time_zone().clone()).strftime("%a %Y-%m-%d %H:%M:%S %Z").to_string()
}

fn guests(job: &BackupJob) -> String {
    let given = |key: &str| job.get(key).filter(|value| !value.is_empty());
    let all = match (given("vmid"), given("pool")) {
        (Some(vmids), _) => vmids.to_owned(),
        (None, Some(pool)) => format!("pool {pool}"),
        (None, None) => "all".to_owned(),
    };
    given("exclude").map_or(all.clone(), |excluded| format!("{all} but {excluded}"))
}

/// What `list` and `show` say about a job.
struct Summary {
    state: Option<JobState>,
    /// Not for a disabled job or one of another node.
    next: Result<Option<Timestamp>, String>,
}

impl Summary {
    fn of(job: &BackupJob, host: &Host, now: &Zoned) -> Self {
        // Who may not read the states still sees the schedules.
        let state = JobStates::new(host).read(job.id()).ok().flatten();
        let runs = job.is_enabled() && job.node().is_none_or(|node| node == host.node());
        let next = if runs { next_run(job, state.as_ref(), now).map_err(|e| e.to_string()) } else { Ok(None) };
        Self { state, next }
    }

    fn next(&self, now: &Zoned) -> String {
        match &self.next {
            Err(_) => "bad schedule".into(),
            Ok(None) => "-".into(),
            Ok(Some(at)) if *at <= now.timestamp() => "due".into(),
            Ok(Some(at)) => shown(*at, now),
        }
    }

    fn last(&self, now: &Zoned) -> Option<String> {
        let state = self.state.as_ref()?;
        let task = state.task()?;
        let at = Timestamp::from_second(task.start).map(|at| shown(at, now)).unwrap_or_default();
        let how = match (state.running(), &state.msg) {
            (Some(_), _) => "runs",
            (None, Some(msg)) => msg,
            (None, None) => "unexpected status",
        };
        Some(format!("{at}, {how} ({task})"))
    }

    fn json(&self, job: &BackupJob) -> Value {
        json!({
            "id": job.id(),
            "enabled": job.is_enabled(),
            "schedule": job.schedule(),
            "next-run": self.next.as_ref().ok().copied().flatten().map(Timestamp::as_second),
            "last-run": self.state.as_ref().and_then(JobState::task).map(|task| task.start),
            "last-status": self.state.as_ref().and_then(|state| state.msg.clone()),
            "guests": guests(job),
            "storage": job.get("storage"),
            "node": job.node(),
            "comment": job.comment(),
            "properties": job.to_json(),
        })
    }
}

fn list(host: &Host, cfg: &JobsCfg, json: bool) -> anyhow::Result<ExitCode> {
    let now = host.now();
    let summaries: Vec<_> = cfg.jobs.iter().map(|job| (job, Summary::of(job, host, &now))).collect();
    if json {
        let all: Vec<Value> = summaries.iter().map(|(job, summary)| summary.json(job)).collect();
        say(&format!("{}\n", serde_json::to_string_pretty(&all)?));
        return Ok(ExitCode::SUCCESS);
    }
    let head = ["ID", "ENABLED", "SCHEDULE", "NEXT RUN", "GUESTS", "STORAGE", "NODE", "COMMENT"].map(str::to_owned);
    let rows = summaries.iter().map(|(job, summary)| {
        let or_dash = |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".into());
        [
            job.id().to_owned(),
            if job.is_enabled() { "yes" } else { "no" }.to_owned(),
            or_dash(job.schedule()),
            summary.next(&now),
            guests(job),
            or_dash(job.get("storage").or(job.get("dumpdir")).map(str::to_owned)),
            or_dash(job.node().map(str::to_owned)),
            job.comment().unwrap_or_default().lines().next().unwrap_or_default().to_owned(),
        ]
        .map(|cell| plain(&cell))
    });
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let widths: [usize; 8] =
        std::array::from_fn(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or_default());
    for row in &rows {
        let line: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        say(&format!("{}\n", line.join("  ").trim_end()));
    }
    for (job, summary) in &summaries {
        if let Err(error) = &summary.next {
            complain(&format!("job '{}': {}\n", job.id(), plain(error)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(host: &Host, job: &BackupJob, json: bool) -> anyhow::Result<ExitCode> {
    let now = host.now();
    let summary = Summary::of(job, host, &now);
    let request = job.request();
    let command = request.as_ref().ok().map(crate::schema::VzdumpRequest::command_line);
    if json {
        let mut all = summary.json(job);
        all["command"] = command.into();
        say(&format!("{}\n", serde_json::to_string_pretty(&all)?));
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!("job: {}\n", job.id());
    for (key, value) in job.properties() {
        let value = if key == "comment" { job.comment().unwrap_or_default() } else { value.to_owned() };
        text += &format!("{}: {}\n", plain(key), plain(&value));
    }
    text += &format!("next run: {}\n", summary.next(&now));
    text += &format!("last run: {}\n", summary.last(&now).unwrap_or_else(|| "-".into()));
    text += &command.map(|command| format!("command: {}\n", plain(&command))).unwrap_or_default();
    say(&text);
    if let Err(error) = &summary.next {
        complain(&format!("{}\n", plain(error)));
    }
    if let Err(error) = request {
        complain(&format!("{}\n", plain(&error.to_string())));
    }
    Ok(ExitCode::SUCCESS)
}

fn next(host: &Host, cfg: &JobsCfg, id: Option<&str>, count: u16) -> anyhow::Result<ExitCode> {
    let now = host.now();
    let jobs: Vec<&BackupJob> = match id {
        Some(id) => vec![find(cfg, id)?],
        None => {
            let here = |job: &&BackupJob| job.is_enabled() && job.node().is_none_or(|node| node == host.node());
            cfg.jobs.iter().filter(here).collect()
        }
    };
    let mut times = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for job in jobs {
        match upcoming(job, now.timestamp(), now.time_zone(), count.into()) {
            Ok(found) => times.extend(found.into_iter().map(|at| (at, job.id()))),
            Err(error) => {
                complain(&format!("job '{}': {}\n", job.id(), plain(&error.to_string())));
                code = ExitCode::from(FAILED);
            }
        }
    }
    times.sort();
    times.iter().for_each(|(at, id)| say(&format!("{}  {id}\n", shown(*at, &now))));
    Ok(code)
}

/// Runs a job as a task, and writes its state as the scheduler would.
fn run_job(host: &Host, job: &BackupJob, claimed: bool) -> anyhow::Result<ExitCode> {
    let second = || host.now().timestamp().as_second();
    let states = JobStates::new(host);
    // The backup is worth more than the note about it.
    let note = |noted: Result<(), crate::schedule::StateError>| {
        noted.unwrap_or_else(|error| complain(&format!("{error}\n")));
    };
    let request = match job.request() {
        Ok(request) => request,
        Err(error) => {
            if claimed {
                note(states.stopped(job.id(), &error.to_string(), second()));
            }
            return Err(error.into());
        }
    };
    if let Some(node) = job.node().filter(|node| *node != host.node()) {
        complain(&format!("job '{}' is for node '{node}', this is '{}': nothing to do\n", job.id(), host.node()));
        return Ok(ExitCode::SUCCESS);
    }
    if !claimed {
        match states.follow(job, second()).map_err(Into::into).and_then(|_| states.claim(job.id(), second())) {
            Err(error @ crate::schedule::ClaimError::Running { .. }) => return Err(error.into()),
            Err(crate::schedule::ClaimError::State(error)) => note(Err(error)),
            Ok(()) => {}
        }
    }
    let ended = vzdump::task(host, &request, &mut |upid| note(states.started(job.id(), upid)));
    let status = match &ended {
        Ok(Some(outcome)) => outcome.status(),
        // No guest of the job lives here.
        Ok(None) => Outcome::Ok.status(),
        Err(error) => error.clone(),
    };
    note(states.stopped(job.id(), &status, second()));
    Ok(vzdump::exit_code(&ended))
}
