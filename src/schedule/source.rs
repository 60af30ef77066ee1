//! Where jobs come from: the node's files, its interface through `pvesh`, or standard input.

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use crate::config::{JobsCfg, JobsJsonError, VzdumpCron};
use crate::host::child::{self, Ended};
use crate::host::{Cancel, Host};

/// More than this is no list of jobs.
const LONGEST: u64 = 64 << 20;
/// How long `pvesh` may take; a node that is busy needs seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A place jobs are read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `/etc/pve/jobs.cfg`, and `/etc/pve/vzdump.cron` where it exists.
    Files,
    /// `pvesh get /cluster/backup`.
    Pvesh,
    /// The JSON that `pvesh` would print, on standard input.
    Stdin,
}

/// Jobs cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file.
    #[error("cannot read '{path}': {source}")]
    File {
        /// Its path on the node.
        path: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Standard input.
    #[error("cannot read the jobs from standard input: {0}")]
    Stdin(#[source] io::Error),
    /// `pvesh` could not be run.
    #[error("cannot run 'pvesh': {0}")]
    NoPvesh(#[source] io::Error),
    /// `pvesh` failed.
    #[error("'{command}' failed: {said}")]
    Pvesh {
        /// The call.
        command: String,
        /// What it said.
        said: String,
    },
    /// What came is not what was expected.
    #[error(transparent)]
    Json(#[from] JobsJsonError),
}

impl Source {
    /// Reads all jobs, or with `id` at least that one.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn load(self, host: &Host, id: Option<&str>) -> Result<JobsCfg, SourceError> {
        match self {
            Self::Files => files(host),
            Self::Stdin => {
                let mut bytes = Vec::new();
                io::stdin().take(LONGEST).read_to_end(&mut bytes).map_err(SourceError::Stdin)?;
                Ok(JobsCfg::from_json(&String::from_utf8_lossy(&bytes))?)
            }
            Self::Pvesh => {
                let path = id.map_or_else(|| "/cluster/backup".to_owned(), |id| format!("/cluster/backup/{id}"));
                let words = ["get", &path, "--output-format", "json"];
                let shown = || format!("pvesh {}", words.join(" "));
                let ended = child::run(host.command("pvesh").args(words), None, PATIENCE, &Cancel::new());
                let output = match ended.map_err(SourceError::NoPvesh)? {
                    Ended::Exited(output) if output.status.success() => output,
                    Ended::Exited(output) => {
                        return Err(SourceError::Pvesh { command: shown(), said: output.complaint() });
                    }
                    // Nobody but the deadline ends it.
                    Ended::Late(_) | Ended::Cancelled => {
                        let said = format!("not finished after {} seconds", PATIENCE.as_secs());
                        return Err(SourceError::Pvesh { command: shown(), said });
                    }
                };
                Ok(JobsCfg::from_json(&String::from_utf8_lossy(&output.stdout))?)
            }
        }
    }
}

/// The text of a file of the node, and whether all of it is text; an absent file is an empty one.
fn text(host: &Host, path: &'static str) -> Result<(String, bool), SourceError> {
    match std::fs::read(host.path(Path::new(path))) {
        Ok(bytes) => Ok(match String::from_utf8(bytes) {
            Ok(text) => (text, true),
            Err(e) => (String::from_utf8_lossy(e.as_bytes()).into_owned(), false),
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok((String::new(), true)),
        Err(source) => Err(SourceError::File { path, source }),
    }
}

fn files(host: &Host) -> Result<JobsCfg, SourceError> {
    let (jobs, jobs_are_text) = text(host, JobsCfg::PATH)?;
    let (cron, cron_is_text) = text(host, VzdumpCron::PATH)?;
    let mut cfg = JobsCfg::parse(&jobs);
    cfg.absent = jobs.is_empty() && !host.path(JobsCfg::PATH).exists();
    let cron = VzdumpCron::parse(&cron);
    let told = |path: &str, warnings: Vec<String>| warnings.into_iter().map(|w| format!("{path}: {w}")).collect();
    cfg.warnings = told(JobsCfg::PATH, std::mem::take(&mut cfg.warnings));
    cfg.warnings.extend::<Vec<String>>(told(VzdumpCron::PATH, cron.warnings));
    for (path, is_text) in [(JobsCfg::PATH, jobs_are_text), (VzdumpCron::PATH, cron_is_text)] {
        if !is_text {
            cfg.warnings.push(format!("{path}: not all of it is UTF-8"));
        }
    }
    let fresh: Vec<_> = cron.jobs.into_iter().filter(|job| cfg.get(job.id()).is_none()).collect();
    cfg.jobs.extend(fresh);
    Ok(cfg)
}

/// Whether cron itself runs the lines of `vzdump.cron`: then they are none of the daemon's.
pub fn cron_runs_its_own(host: &Host) -> bool {
    host.path("/etc/cron.d/vzdump").exists()
}
