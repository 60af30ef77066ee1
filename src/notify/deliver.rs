//! Delivery: asks the matchers, puts the notification into words once, and sends it all ways at the same time, each in a thread
//! that is left behind when its time is over. Looking up a server's name, for one, cannot be interrupted.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::config::{Config, Endpoint, EndpointKind};
use super::mail::{Mail, receivers};
use super::people::People;
use super::template::{self, Rendered};
use super::{Notification, http};
use crate::host::Host;

/// What a thread may take after the time of its delivery is over, to say so itself.
const GRACE: Duration = Duration::from_secs(1);

/// Why a target was not reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeliveryError {
    #[error("there is no such target")]
    NoSuchTarget,
    #[error("it cannot be used: {0}")]
    Unusable(String),
    #[error("user '{}' has no mail address", .0.join("', '"))]
    UnknownUsers(Vec<String>),
    #[error("it names nobody to write to")]
    Nobody,
    #[error("'{0}' is no mail address")]
    Address(String),
    #[error("the mail cannot be made: {0}")]
    Message(String),
    #[error("the program 'sendmail' is not installed")]
    NoSendmail,
    #[error("sendmail: {0}")]
    Sendmail(String),
    #[error("{0}")]
    Smtp(String),
    #[error("the server answered with HTTP status {0}")]
    Status(u16),
    #[error("{0}")]
    Http(String),
    #[error("{0}")]
    Template(String),
    #[error("no answer within {0} s")]
    Timeout(u64),
}

/// What became of a notification.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The targets that took it.
    pub sent: Vec<String>,
    /// What somebody may want to know.
    pub hints: Vec<String>,
    /// What went wrong, one sentence each.
    pub warnings: Vec<String>,
}

impl Report {
    fn failed(&mut self, target: &str, error: &DeliveryError) {
        self.warnings.push(format!("notification via target '{target}' failed: {error}"));
    }
}

/// Sends `notification` to whom `config` says. No target may take longer than `limit`.
pub fn send(host: &Host, config: &Config, notification: &Notification, limit: Duration) -> Report {
    let mut report = Report { warnings: config.warnings.clone(), ..Report::default() };
    let mut targets: Vec<&str> = Vec::new();
    for matcher in config.matchers.iter().filter(|m| !m.disabled && m.matches(notification)) {
        let fresh = matcher.targets.iter().map(String::as_str).filter(|target| !targets.contains(target));
        let fresh: Vec<&str> = fresh.collect();
        targets.extend(fresh);
    }
    if targets.is_empty() {
        return report;
    }
    let (said, warnings) = template::render(host, notification);
    report.warnings.extend(warnings);
    let all = Arc::new((host.clone(), People::load(host), said, notification.clone()));
    let (sender, answers) = channel();
    let mut waiting = Vec::new();
    for target in targets {
        let Some(endpoint) = config.endpoints.iter().find(|endpoint| endpoint.name == target) else {
            report.failed(target, &DeliveryError::NoSuchTarget);
            continue;
        };
        if endpoint.disabled {
            continue;
        }
        let (sender, all, work) = (sender.clone(), Arc::clone(&all), endpoint.clone());
        let run = move || {
            let (host, people, said, notification) = &*all;
            let result = deliver(host, people, &work, said, notification, limit);
            // Whoever stopped waiting does not want to know.
            sender.send((work.name, result)).unwrap_or_default();
        };
        match std::thread::Builder::new().name("notification".into()).spawn(run) {
            Ok(_) => waiting.push(endpoint),
            Err(e) => report.failed(target, &DeliveryError::Unusable(e.to_string())),
        }
    }
    drop(sender);
    let give_up = Instant::now() + limit + GRACE;
    while !waiting.is_empty() {
        let Ok((target, result)) = answers.recv_timeout(give_up.saturating_duration_since(Instant::now())) else {
            break;
        };
        let built_in = waiting.iter().any(|endpoint| endpoint.name == target && endpoint.built_in);
        waiting.retain(|endpoint| endpoint.name != target);
        match result {
            Ok(unknown) => {
                if !unknown.is_empty() {
                    report.failed(&target, &DeliveryError::UnknownUsers(unknown));
                }
                report.sent.push(target);
            }
            // A machine on which nobody ever said who wants mail.
            Err(error @ DeliveryError::UnknownUsers(_)) if built_in => {
                report.hints.push(format!("no notification was sent: {error}"));
            }
            Err(error) => report.failed(&target, &error),
        }
    }
    for endpoint in waiting {
        report.failed(&endpoint.name, &DeliveryError::Timeout(limit.as_secs()));
    }
    report
}

/// One delivery; the users of whom nobody knows an address, if others got it.
fn deliver(
    host: &Host,
    people: &People,
    endpoint: &Endpoint,
    said: &Rendered,
    notification: &Notification,
    limit: Duration,
) -> Result<Vec<String>, DeliveryError> {
    let settings = match &endpoint.kind {
        EndpointKind::Unusable(reason) => return Err(DeliveryError::Unusable(reason.clone())),
        EndpointKind::Gotify { server, token } => {
            http::send(&http::gotify(server, token, said, notification), people, limit)?;
            return Ok(Vec::new());
        }
        EndpointKind::Webhook(hook) => {
            let request = template::request(hook, said, notification).map_err(DeliveryError::Template)?;
            http::send(&request, people, limit)?;
            return Ok(Vec::new());
        }
        EndpointKind::Sendmail(settings) | EndpointKind::Smtp(settings, _) => settings,
    };
    let (to, unknown) = receivers(settings, people);
    if to.is_empty() {
        return Err(if unknown.is_empty() { DeliveryError::Nobody } else { DeliveryError::UnknownUsers(unknown) });
    }
    let mail = Mail::new(settings, to, said, people)?;
    match &endpoint.kind {
        EndpointKind::Smtp(_, smtp) => mail.by_smtp(smtp)?,
        _ => mail.by_sendmail(host, limit)?,
    }
    Ok(unknown)
}
