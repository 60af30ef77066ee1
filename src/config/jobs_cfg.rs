//! `/etc/pve/jobs.cfg`: sections `vzdump: id` with indented properties; and the same jobs as the node's interface prints them
//! (`pvesh get /cluster/backup --output-format json`). Properties that are not known here are kept, jobs of other kinds are
//! named and left alone.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::sections::{CfgSection, Fault, Sections};
use crate::schema::tables::VZDUMP;
use crate::schema::words::split_list;
use crate::schema::{Kind, VzdumpRequest, parse_bool};

/// A backup job: its name and its properties as the file has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupJob {
    section: CfgSection,
}

/// All jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobsCfg {
    /// Backup jobs in the order of the file.
    pub jobs: Vec<BackupJob>,
    /// Kind and name of each other job (`realm-sync`).
    pub others: Vec<(String, String)>,
    /// What could not be read, one message each.
    pub warnings: Vec<String>,
    /// Whether there was no file at all. An administrator's last job that goes leaves an empty one.
    pub absent: bool,
}

/// A text is not what the node's interface prints about jobs.
#[derive(Debug, thiserror::Error)]
pub enum JobsJsonError {
    /// It is no JSON.
    #[error("the jobs are no valid JSON: {0}")]
    Syntax(#[from] serde_json::Error),
    /// It is some other JSON.
    #[error(
        "the jobs are not of the form 'pvesh get /cluster/backup --output-format json' prints: expected a list of objects \
         or one object with an 'id'"
    )]
    Form,
}

/// A job's properties are no request for a backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("job '{id}' cannot run: {reasons}")]
pub struct JobError {
    id: String,
    /// Name and reason of each bad property.
    reasons: String,
}

impl JobsCfg {
    /// Where the file lies.
    pub const PATH: &'static str = "/etc/pve/jobs.cfg";

    /// Reads the text of the file; an absent file is an empty one.
    pub fn parse(text: &str) -> Self {
        let mut cfg = Self::default();
        let Sections { sections, faults } = Sections::parse(text, |kind, id| (kind.to_owned(), id.to_owned()));
        let told = |fault: Fault| match &fault.twice {
            Some(id) => (fault.line, format!("line {}: job '{}' is ignored: defined twice", fault.line, short(id))),
            None => (fault.line, format!("line {} is ignored: '{}'", fault.line, short(&fault.text))),
        };
        let mut warnings: Vec<_> = faults.into_iter().map(told).collect();
        for section in sections {
            let line = section.line;
            if section.kind != "vzdump" {
                cfg.others.push((section.kind, section.id));
            } else if Self::is_valid_id(&section.id) {
                let job = BackupJob { section };
                warnings.extend(job.bad_flags().map(|warning| (line, format!("line {line}: {warning}"))));
                cfg.jobs.push(job);
            } else {
                let id = short(&section.id);
                warnings.push((line, format!("line {line}: job '{id}' is ignored: not a valid name")));
            }
        }
        warnings.sort_by_key(|(line, _)| *line);
        cfg.warnings = warnings.into_iter().map(|(_, warning)| warning).collect();
        cfg
    }

    /// Reads jobs as the node's interface prints them: a list, one job, or an object of jobs by name.
    ///
    /// # Errors
    /// [`JobsJsonError`].
    pub fn from_json(text: &str) -> Result<Self, JobsJsonError> {
        let entries: Vec<(Option<String>, Map<String, Value>)> = match serde_json::from_str(text)? {
            Value::Array(list) => list
                .into_iter()
                .map(|entry| if let Value::Object(job) = entry { Ok((None, job)) } else { Err(JobsJsonError::Form) })
                .collect::<Result<_, _>>()?,
            Value::Object(job) if job.contains_key("id") => vec![(None, job)],
            Value::Object(jobs) => jobs
                .into_iter()
                .map(
                    |(id, job)| {
                        if let Value::Object(job) = job { Ok((Some(id), job)) } else { Err(JobsJsonError::Form) }
                    },
                )
                .collect::<Result<_, _>>()?,
            _ => return Err(JobsJsonError::Form),
        };
        let mut cfg = Self::default();
        let mut known = HashSet::new();
        for (name, job) in entries {
            let id = name.or_else(|| job.get("id").map(text_of)).ok_or(JobsJsonError::Form)?;
            let kind = job.get("type").map_or_else(|| "vzdump".to_owned(), text_of);
            if kind != "vzdump" {
                cfg.others.push((kind, id));
            } else if !Self::is_valid_id(&id) || !known.insert(id.clone()) {
                let why = if Self::is_valid_id(&id) { "defined twice" } else { "not a valid name" };
                cfg.warnings.push(format!("job '{}' is ignored: {why}", short(&id)));
            } else {
                let properties = job.iter().filter(|(key, _)| !matches!(key.as_str(), "id" | "type"));
                let job = BackupJob::new(&id, properties.flat_map(|(k, v)| property(k, v)).collect());
                cfg.warnings.extend(job.bad_flags());
                cfg.jobs.push(job);
            }
        }
        Ok(cfg)
    }

    /// Whether `id` may name a job, which becomes part of a file's name.
    pub fn is_valid_id(id: &str) -> bool {
        let inner = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        id.len() <= 128 && id.starts_with(|c: char| c.is_ascii_alphanumeric()) && id.chars().all(inner)
    }

    /// The job named `id`.
    pub fn get(&self, id: &str) -> Option<&BackupJob> {
        self.jobs.iter().find(|job| job.id() == id)
    }
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

/// One property of a job in JSON as the file would have it.
fn property(key: &str, value: &Value) -> Vec<(String, String)> {
    match value {
        Value::Null => Vec::new(),
        Value::Array(values) if key == "exclude-path" => {
            values.iter().map(|value| (key.to_owned(), text_of(value))).collect()
        }
        value => vec![(key.to_owned(), text_of(value))],
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(flag) => u8::from(*flag).to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(text_of).collect::<Vec<_>>().join(","),
        Value::Object(pairs) => {
            let mut pairs: Vec<_> = pairs.iter().map(|(key, value)| format!("{key}={}", text_of(value))).collect();
            pairs.sort();
            pairs.join(",")
        }
    }
}

impl BackupJob {
    /// A job that stands nowhere yet.
    pub fn new(id: &str, properties: Vec<(String, String)>) -> Self {
        Self { section: CfgSection::new("vzdump", id, properties) }
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.section.id
    }

    /// The value of a property; of several the last.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.section.get(key)
    }

    /// All properties in the order of the file.
    pub fn properties(&self) -> impl Iterator<Item = (&str, &str)> {
        self.section.properties()
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        let given = self.get(key).map(|value| if value.is_empty() { Some(true) } else { parse_bool(value) });
        given.flatten().unwrap_or(default)
    }

    /// What is said of switches that are neither on nor off: a job must not be off, silently, for a slip of the pen.
    fn bad_flags(&self) -> impl Iterator<Item = String> {
        [("enabled", "1"), ("repeat-missed", "0")].into_iter().filter_map(|(key, default)| {
            let value = self.get(key).filter(|value| !value.is_empty() && parse_bool(value).is_none())?;
            let (id, value) = (short(self.id()), short(value));
            Some(format!("job '{id}': {key} is neither 0 nor 1: '{value}'; taken as {default}"))
        })
    }

    /// Whether the scheduler runs it.
    pub fn is_enabled(&self) -> bool {
        self.flag("enabled", true)
    }

    /// Whether a run that was missed is made up for as soon as possible.
    pub fn repeats_missed(&self) -> bool {
        self.flag("repeat-missed", false)
    }

    /// The only node it runs on; without one every node backs up its own guests.
    pub fn node(&self) -> Option<&str> {
        self.get("node").filter(|node| !node.is_empty())
    }

    /// When it runs: `schedule`, or what older jobs have in its place, `dow` and `starttime`.
    pub fn schedule(&self) -> Option<String> {
        if let Some(schedule) = self.get("schedule").filter(|schedule| !schedule.is_empty()) {
            return Some(schedule.to_owned());
        }
        let start = self.get("starttime")?;
        Some(self.get("dow").map_or_else(|| start.to_owned(), |dow| format!("{} {start}", split_list(dow).join(","))))
    }

    /// Its comment, where the file has `%` and two hexadecimal digits for bytes that would not fit on a line.
    pub fn comment(&self) -> Option<String> {
        self.get("comment").map(decode)
    }

    /// The same job as JSON, for [`JobsCfg::from_json`].
    pub fn to_json(&self) -> Value {
        let mut job = Map::new();
        job.insert("id".into(), self.id().into());
        for (key, value) in self.properties() {
            match job.get_mut(key) {
                Some(Value::Array(values)) => values.push(value.into()),
                Some(first) if key == "exclude-path" => *first = Value::Array(vec![first.take(), value.into()]),
                _ => drop(job.insert(key.into(), value.into())),
            }
        }
        Value::Object(job)
    }

    /// The checked request for a backup: its properties that are options of `vzdump`, quiet, under its name. As with the node's
    /// scheduler, a property that is no option changes nothing.
    ///
    /// # Errors
    /// When a property is wrong or the guests are missing.
    pub fn request(&self) -> Result<VzdumpRequest, JobError> {
        let mut given: Vec<(&str, &str)> = Vec::new();
        for (key, value) in self.properties().filter(|(_, value)| !value.is_empty()) {
            let ours = matches!(key, "quiet" | "job-id" | "stdout" | "stop");
            let Some(opt) = VZDUMP.option(key).filter(|_| !ours) else { continue };
            match given.iter_mut().find(|(name, _)| *name == key && !matches!(opt.kind, Kind::Array)) {
                // Of several the last counts.
                Some(earlier) => earlier.1 = value,
                None => given.push((key, value)),
            }
        }
        given.extend([("quiet", "1"), ("job-id", self.id())]);
        VzdumpRequest::from_pairs(given).map_err(|error| {
            let reasons = error.reasons().map(|(name, reason)| format!("{name}: {reason}").replace('\n', "; "));
            JobError { id: self.id().to_owned(), reasons: reasons.collect::<Vec<_>>().join("; ") }
        })
    }
}

/// Undoes percent-encoding; what is none, or makes no UTF-8, stays as it is.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let code = text.get(i + 1..i + 3).filter(|code| code.bytes().all(|c| c.is_ascii_hexdigit()));
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()).filter(|_| bytes[i] == b'%') {
            Some(byte) => {
                decoded.push(byte);
                i += 3;
            }
            None => {
                decoded.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
#[path = "jobs_cfg/tests.rs"]
mod tests;
