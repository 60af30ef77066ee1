//! Notifications: whom to tell ([`Config`], its matchers and endpoints), in which words ([`template`]), and how they get there
//! (mail through `sendmail` or SMTP, gotify, webhooks). Knows nothing of backups: it takes a [`Notification`] and delivers it.
//!
//! Files, names and words are those of Proxmox VE's notification system, see `docs/NOTIFICATIONS.md`. A target that cannot be
//! reached is reported to the caller and holds nobody up: every delivery has a deadline.

mod config;
mod daily;
mod deliver;
mod helpers;
mod http;
mod mail;
mod matcher;
mod people;
pub mod template;

#[cfg(test)]
mod tests;

pub use config::{Config, Endpoint, EndpointKind, MailSettings, Smtp, SmtpMode, Webhook};
pub use daily::DailyDuration;
pub use deliver::{Report, send};
pub use matcher::{Directive, Matcher, MatcherMode};

use std::collections::BTreeMap;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// All is well.
    Info,
    /// Worth a look.
    Notice,
    /// Something needs attention.
    Warning,
    /// Something failed.
    Error,
    /// Nobody said.
    Unknown,
}

impl Severity {
    /// The word for it in configurations and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Notice => "notice",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Unknown => "unknown",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::Info, Self::Notice, Self::Warning, Self::Error, Self::Unknown].into_iter().find(|s| s.as_str() == word)
    }
}

/// Something that happened, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct Notification {
    /// How bad it is.
    pub severity: Severity,
    /// What matchers can ask for: `hostname`, `type`, `job-id`.
    pub fields: BTreeMap<String, String>,
    /// When it happened, in the node's time zone.
    pub timestamp: jiff::Zoned,
    /// The name of the templates that put it into words (`vzdump`).
    pub template: String,
    /// What the templates can show; an object.
    pub data: serde_json::Value,
}
