//! Puts a notification into words: subject, text and HTML from Handlebars templates. The administrator's own, below
//! `/etc/pve/notification-templates/default`, come first; one that fails is replaced by the built-in one.

use serde_json::{Value, json};

use super::Notification;
use super::config::Webhook;
use super::helpers::{Medium, engine};
use crate::host::Host;

/// Where the administrator's templates lie.
pub const OVERRIDES: &str = "/etc/pve/notification-templates/default";
/// What is in a mail that has no template.
const NO_TEMPLATE: &str = "{{json this}}";

const BUILT_IN: &[(&str, &str)] = &[
    ("vzdump-subject.txt.hbs", include_str!("../../templates/vzdump-subject.txt.hbs")),
    ("vzdump-body.txt.hbs", include_str!("../../templates/vzdump-body.txt.hbs")),
    ("vzdump-body.html.hbs", include_str!("../../templates/vzdump-body.html.hbs")),
];

/// A notification in words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rendered {
    /// One line.
    pub subject: String,
    /// Plain text.
    pub text: String,
    /// The same for browsers.
    pub html: Option<String>,
}

/// Puts `notification` into words; and what is wrong with the administrator's templates, one sentence each.
pub fn render(host: &Host, notification: &Notification) -> (Rendered, Vec<String>) {
    let mut warnings = Vec::new();
    let mut part = |part: &str, medium: Medium| {
        let name = format!("{}-{part}.hbs", notification.template);
        let own = format!("{OVERRIDES}/{name}");
        let text = match std::fs::read_to_string(host.path(&own)) {
            Ok(text) => Some(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => {
                warnings.push(format!("cannot read the template '{own}': {e}"));
                None
            }
        };
        let rendered = text.map(|text| engine(medium).render_template(&text, &notification.data));
        if let Some(Err(e)) = &rendered {
            warnings
                .push(format!("the template '{own}' cannot be rendered, the built-in one is used: {}", one_line(e)));
        }
        rendered.and_then(Result::ok).or_else(|| {
            let (_, text) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name)?;
            // The built-in ones are tested; data they do not expect is shown as it is.
            engine(medium).render_template(text, &notification.data).ok()
        })
    };
    let subject = part("subject.txt", Medium::Text);
    let text = part("body.txt", Medium::Text);
    let html = part("body.html", Medium::Html);
    let bare = || engine(Medium::Text).render_template(NO_TEMPLATE, &notification.data).unwrap_or_default();
    let rendered = Rendered {
        subject: subject.map_or_else(|| notification.template.clone(), |text| header_text(&text)),
        text: text.unwrap_or_else(bare),
        html: html.filter(|html| !html.trim().is_empty()),
    };
    (rendered, warnings)
}

/// Some text on one line, without control characters: what may stand in a header.
fn header_text(text: &str) -> String {
    let spaced: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    spaced.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

fn one_line(error: &impl std::fmt::Display) -> String {
    header_text(&error.to_string())
}

/// The request that a webhook's templates make of a notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: &'static str,
    pub(super) url: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

/// Fills in the templates of `hook`.
///
/// # Errors
/// Which one is wrong. The reason is left out: it may show what the secrets are.
pub(super) fn request(hook: &Webhook, said: &Rendered, notification: &Notification) -> Result<Request, String> {
    let secrets = hook.secrets.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
    let variables = json!({
        "title": said.subject,
        "message": said.text,
        "severity": notification.severity.as_str(),
        "timestamp": notification.timestamp.timestamp().as_second(),
        "fields": notification.fields,
        "secrets": Value::Object(secrets),
    });
    let engine = engine(Medium::Text);
    let fill = |what: &str, template: &str| {
        engine
            .render_template(template, &variables)
            .map_err(|_| format!("the template of its {what} cannot be rendered"))
    };
    let header = |(name, value): &(String, String)| {
        fill(&format!("header '{name}'"), value).map(|value| (name.clone(), value.trim().to_owned()))
    };
    Ok(Request {
        method: hook.method,
        url: fill("url", &hook.url)?.trim().to_owned(),
        headers: hook.headers.iter().map(header).collect::<Result<_, _>>()?,
        body: fill("body", &hook.body)?,
    })
}
