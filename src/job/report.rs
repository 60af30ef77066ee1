//! What became of a job and its guests: collected while it runs, folded at its end into one outcome, and told as a
//! [`Notification`]. Sending it is [`super::notification`]'s.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};

use super::JobError;
use super::log::LogText;
use crate::notify::{Notification, Severity};
use crate::schema::{Vmid, VzdumpOptions};

/// More than this is not sent.
const MOST_LOGS: usize = LogText::MOST;
/// What is sent instead; the words of the original.
const TOO_LONG: &str = "Log output was too long to be sent. See Task History for details!\n";

/// What became of one guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuestState {
    /// Its turn has not come.
    Todo,
    /// Its archive is complete.
    Done,
    /// There is no archive; the log says why.
    Failed,
}

impl GuestState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Todo => "todo",
            Self::Done => "ok",
            Self::Failed => "err",
        }
    }
}

/// One guest's part of the report.
#[derive(Debug, Clone)]
pub(crate) struct GuestReport {
    pub(super) vmid: Vmid,
    pub(super) state: GuestState,
    /// Its name, as far as its config was read.
    pub(super) name: Option<String>,
    pub(super) seconds: u64,
    /// Bytes of the archive.
    pub(super) size: u64,
    /// The archive; `-` for standard output.
    pub(super) target: Option<String>,
    /// Its log; none if it was never begun.
    pub(super) log: Option<LogText>,
    /// What its archive does not have, in the words of the log.
    pub(super) left_out: Vec<String>,
}

impl GuestReport {
    fn todo(vmid: Vmid) -> Self {
        Self {
            vmid,
            state: GuestState::Todo,
            name: None,
            seconds: 0,
            size: 0,
            target: None,
            log: None,
            left_out: Vec::new(),
        }
    }

    /// Whether it has a backup now.
    fn is_done(&self) -> bool {
        self.state == GuestState::Done
    }

    fn row(&self) -> Value {
        json!({
            "vmid": self.vmid.get(),
            "name": self.name.clone().unwrap_or_else(|| format!("VM {}", self.vmid)),
            "status": self.state.as_str(),
            "time": self.seconds,
            "size": if self.is_done() { self.size } else { 0 },
            "filename": self.target.as_ref().filter(|_| self.is_done()),
        })
    }
}

/// What became of a job.
#[derive(Debug, Clone)]
pub(crate) struct JobReport {
    command_line: String,
    job_id: Option<String>,
    /// When the guests' turn came; before, there was only a problem.
    begun: Option<Instant>,
    /// In the order of their turns.
    guests: Vec<GuestReport>,
    /// What hooks said before the first guest and after the last.
    pub(super) before: LogText,
    pub(super) after: LogText,
    /// Why it ended early.
    error: Option<String>,
    seconds: u64,
}

impl JobReport {
    /// The report of a job that has not begun.
    pub(super) fn new(options: &VzdumpOptions) -> Self {
        Self {
            command_line: options.command_line.clone(),
            job_id: options.job_id.clone(),
            begun: None,
            guests: Vec::new(),
            before: LogText::default(),
            after: LogText::default(),
            error: None,
            seconds: 0,
        }
    }

    /// The guests' turn comes.
    pub(super) fn begin(&mut self, vmids: &[Vmid]) {
        self.begun = Some(Instant::now());
        self.guests = vmids.iter().copied().map(GuestReport::todo).collect();
    }

    /// One guest's turn is over.
    pub(super) fn guest_ended(&mut self, guest: GuestReport) {
        let next = self.guests.iter_mut().find(|g| g.state == GuestState::Todo && g.vmid == guest.vmid);
        if let Some(place) = next {
            *place = guest;
        }
    }

    /// Whether every guest has its backup.
    pub(super) fn all_done(&self) -> bool {
        self.guests.iter().all(GuestReport::is_done)
    }

    /// The job is over, early for a reason or not.
    pub(super) fn end(&mut self, result: &Result<(), JobError>) {
        self.seconds = self.begun.map_or(0, |begun| begun.elapsed().as_secs());
        self.error = match result {
            // What failed is in the table.
            Ok(()) | Err(JobError::Guests) => None,
            // The original keeps the end of the line here, and takes it for the end of the first of several problems.
            Err(JobError::Lock(error)) => Some(format!("{error}\n")),
            Err(error) => Some(error.to_string().trim_end().to_owned()),
        };
    }

    /// Whether somebody has to do something.
    pub(super) fn has_failed(&self) -> bool {
        self.error.is_some() || !self.all_done()
    }

    /// The report as a notification of the node `hostname`, whose full name is `fqdn`.
    pub(super) fn notification(&self, hostname: &str, fqdn: &str, now: jiff::Zoned) -> Notification {
        let status = if self.has_failed() { "backup failed" } else { "backup successful" };
        // A single problem fits into the subject, and then it is nowhere else.
        let (status, error) = match &self.error {
            None => (status.to_owned(), Value::from("")),
            Some(error) if error.contains('\n') => {
                (format!("{status}: multiple problems"), Value::from(error.as_str()))
            }
            Some(error) => (format!("{status}: {error}"), Value::Null),
        };
        let rows: Vec<Value> = self.guests.iter().map(GuestReport::row).collect();
        let total: u64 = self.guests.iter().filter(|g| g.is_done()).map(|g| g.size).sum();
        let mut fields =
            BTreeMap::from([("type".to_owned(), "vzdump".to_owned()), ("hostname".to_owned(), hostname.to_owned())]);
        if let Some(id) = &self.job_id {
            fields.insert("job-id".to_owned(), id.clone());
        }
        Notification {
            severity: if self.has_failed() { Severity::Error } else { Severity::Info },
            fields,
            timestamp: now,
            template: "vzdump".to_owned(),
            data: json!({
                "hostname": hostname,
                "fqdn": fqdn,
                "error": error,
                "guest-table": { "schema": { "columns": columns() }, "data": rows },
                "logs": self.logs(),
                "status-text": status,
                "total-time": self.seconds,
                "total-size": total,
            }),
        }
    }

    /// One sentence in place of logs that are too long; what the archives do not have is said all the same.
    fn too_long(&self) -> String {
        let line = |guest: &GuestReport, line: &String| format!("{}: {line}\n", guest.vmid);
        let lines = self.guests.iter().flat_map(|guest| guest.left_out.iter().map(move |text| line(guest, text)));
        lines.fold(TOO_LONG.to_owned(), |text, line| text + &line)
    }

    /// The command line, what hooks said, the guests' logs; or one sentence if that is too much.
    fn logs(&self) -> String {
        let mut text = format!("{}\n\n", self.command_line);
        if self.begun.is_none() {
            return text;
        }
        let logs = self.guests.iter().filter_map(|guest| guest.log.as_ref());
        if logs.chain([&self.before, &self.after]).any(LogText::is_cut) {
            return self.too_long();
        }
        text += self.before.as_str();
        text.push('\n');
        for guest in &self.guests {
            match &guest.log {
                Some(log) => log.as_str().lines().for_each(|line| text += &format!("{}: {line}\n", guest.vmid)),
                None => text += &format!("{}: no log available\n", guest.vmid),
            }
            text.push('\n');
            if text.len() > MOST_LOGS {
                return self.too_long();
            }
        }
        text += self.after.as_str();
        if text.len() > MOST_LOGS { self.too_long() } else { text }
    }
}

fn columns() -> Value {
    json!([
        { "id": "vmid", "label": "VMID" },
        { "id": "name", "label": "Name" },
        { "id": "status", "label": "Status" },
        { "id": "time", "label": "Time", "renderer": "duration" },
        { "id": "size", "label": "Size", "renderer": "human-bytes" },
        { "id": "filename", "label": "Filename" },
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Params, VzdumpRequest};

    fn report(words: &[&str]) -> JobReport {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let request = VzdumpRequest::parse(&words).unwrap();
        JobReport::new(&VzdumpOptions::merge(&request, &Params::default()).unwrap())
    }

    fn text(lines: &str) -> LogText {
        let mut text = LogText::default();
        text.push(lines);
        text
    }

    fn told(report: &JobReport) -> Notification {
        report.notification("pve1", "pve1.example.com", jiff::Zoned::default())
    }

    fn vmid(number: u32) -> Vmid {
        number.to_string().parse().unwrap()
    }

    /// As recorded in 30-unknown-and-known.
    #[test]
    fn one_guest_has_a_backup_and_one_is_unknown() {
        let mut report = report(&["999", "102", "--storage", "bk"]);
        report.before.push("T INFO: job-start\n");
        report.begin(&[vmid(102), vmid(999)]);
        report.guest_ended(GuestReport {
            state: GuestState::Done,
            name: Some("diskless".into()),
            size: 13312,
            target: Some("/mnt/bk/dump/a.vma".into()),
            log: Some(text("T INFO: Starting\nT INFO: Finished\n")),
            ..GuestReport::todo(vmid(102))
        });
        report.guest_ended(GuestReport { state: GuestState::Failed, ..GuestReport::todo(vmid(999)) });
        report.after.push("T INFO: job-end\n");
        report.end(&Err(JobError::Guests));
        let told = told(&report);
        assert_eq!((told.severity, told.template.as_str()), (Severity::Error, "vzdump"));
        assert_eq!(told.data["status-text"], "backup failed");
        assert_eq!(told.data["error"], "");
        assert_eq!(told.data["total-size"], 13312);
        assert_eq!(
            told.data["guest-table"]["data"],
            json!([
                {"vmid": 102, "name": "diskless", "status": "ok", "time": 0, "size": 13312, "filename": "/mnt/bk/dump/a.vma"},
                {"vmid": 999, "name": "VM 999", "status": "err", "time": 0, "size": 0, "filename": null},
            ])
        );
        assert_eq!(
            told.data["logs"],
            "vzdump 999 102 --storage bk\n\nT INFO: job-start\n\n102: T INFO: Starting\n102: T INFO: Finished\n\n\
             999: no log available\n\nT INFO: job-end\n"
        );
        assert_eq!(
            told.fields.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(),
            ["hostname=pve1", "type=vzdump"]
        );
    }

    #[test]
    fn a_job_that_never_began_has_a_problem_or_several() {
        for (error, status, data) in [
            ("one", "backup failed: one", Value::Null),
            ("one\ntwo", "backup failed: multiple problems", Value::from("one\ntwo")),
        ] {
            let mut report = report(&["102", "--job-id", "nightly"]);
            report.before.push("T INFO: job-init\n");
            report.end(&Err(JobError::Hook(super::super::hooks::HookError::Missing(error.into()))));
            report.error = Some(error.into());
            let told = told(&report);
            assert_eq!((told.data["status-text"].as_str().unwrap(), &told.data["error"]), (status, &data));
            assert_eq!(told.data["guest-table"]["data"], json!([]));
            assert!(told.data["logs"].as_str().unwrap().ends_with("\n\n") && told.fields["job-id"] == "nightly");
        }
    }

    #[test]
    fn interrupted_before_the_last_guest() {
        let mut report = report(&["100", "100", "101"]);
        report.begin(&[vmid(100), vmid(100), vmid(101)]);
        report.guest_ended(GuestReport { state: GuestState::Done, ..GuestReport::todo(vmid(100)) });
        report.guest_ended(GuestReport { state: GuestState::Failed, ..GuestReport::todo(vmid(100)) });
        report.end(&Err(JobError::Interrupted));
        let told = told(&report);
        let states: Vec<&Value> =
            told.data["guest-table"]["data"].as_array().unwrap().iter().map(|g| &g["status"]).collect();
        assert_eq!(states, ["ok", "err", "todo"]);
        assert_eq!(told.data["status-text"], "backup failed: interrupted by signal");
    }

    #[test]
    fn logs_that_are_too_long_are_one_sentence() {
        for guests in [1, 3] {
            let mut report = report(&["100", "101", "102"]);
            let vmids: Vec<Vmid> = (100..103).map(vmid).collect();
            report.begin(&vmids);
            for vmid in &vmids {
                let log = text(&"x\n".repeat(LogText::MOST / 2 / guests));
                report.guest_ended(GuestReport { log: Some(log), state: GuestState::Done, ..GuestReport::todo(*vmid) });
            }
            report.end(&Ok(()));
            assert_eq!(told(&report).data["logs"], TOO_LONG);
            report.guests[0].left_out.push("NOT in this backup: mp1".into());
            let told = told(&report);
            assert_eq!(told.data["logs"], format!("{TOO_LONG}100: NOT in this backup: mp1\n"));
            assert_eq!((told.severity, &told.data["status-text"]), (Severity::Info, &Value::from("backup successful")));
        }
    }
}
