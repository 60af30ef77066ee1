//! `/etc/pve/notifications.cfg` and its private part: endpoints and matchers, with the two that are there unless the file says
//! otherwise. What cannot be read is said in `warnings` and left out; the rest counts.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use super::matcher::{Directive, Matcher, MatcherMode};
use crate::config::{CfgSection, Fault, Sections};
use crate::host::Host;
use crate::schema::parse_bool;
use crate::schema::words::split_list;

/// The endpoint that is there unless the file says otherwise.
const BUILT_IN_ENDPOINT: &str = "mail-to-root";
/// The matcher that is there unless the file says otherwise.
const BUILT_IN_MATCHER: &str = "default-matcher";
/// With and without padding: people write both.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Whom to tell what.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The ways to somebody.
    pub endpoints: Vec<Endpoint>,
    /// What goes which way.
    pub matchers: Vec<Matcher>,
    /// What could not be read, one sentence each.
    pub warnings: Vec<String>,
}

/// One way to somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name, the target of matchers.
    pub name: String,
    /// Switched off.
    pub disabled: bool,
    /// Whether it is there although nobody configured it.
    pub built_in: bool,
    /// How it goes.
    pub kind: EndpointKind,
}

/// The kinds of endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointKind {
    /// Mail, through the program `sendmail`.
    Sendmail(MailSettings),
    /// Mail, to an SMTP server.
    Smtp(MailSettings, Smtp),
    /// A gotify server.
    Gotify {
        /// `https://gotify.example.com`
        server: String,
        /// The application's token.
        token: String,
    },
    /// Any HTTP request.
    Webhook(Webhook),
    /// It is there but cannot be used, for this reason.
    Unusable(String),
}

/// Who writes to whom.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MailSettings {
    /// Addresses, or names of local users.
    pub mailto: Vec<String>,
    /// Users of the node (`root@pam`), whose addresses it knows.
    pub mailto_user: Vec<String>,
    /// The sender's address.
    pub from: Option<String>,
    /// The sender's name.
    pub author: Option<String>,
}

/// How a server is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Smtp {
    /// Its name or address.
    pub server: String,
    /// Its port, if not the usual one.
    pub port: Option<u16>,
    /// How the connection is protected.
    pub mode: SmtpMode,
    /// Who we are for it.
    pub username: Option<String>,
    /// The password for that.
    pub password: Option<String>,
}

/// How a connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmtpMode {
    /// Not at all (port 25).
    Insecure,
    /// By an upgrade that is demanded (port 587).
    StartTls,
    /// From the first byte (port 465).
    Tls,
}

/// A request with templates in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// `POST`, `PUT`, `GET`
    pub method: &'static str,
    /// Template of the address.
    pub url: String,
    /// Names and templates of the values.
    pub headers: Vec<(String, String)>,
    /// Template of the body.
    pub body: String,
    /// What templates see as `secrets`.
    pub secrets: Vec<(String, String)>,
}

impl Config {
    /// Where the file lies.
    pub const PATH: &'static str = "/etc/pve/notifications.cfg";
    /// Where tokens, passwords and secrets lie.
    pub const PRIVATE_PATH: &'static str = "/etc/pve/priv/notifications.cfg";

    /// The node's configuration. A file that cannot be read counts as absent, with a warning.
    pub fn load(host: &Host) -> Self {
        let mut warnings = Vec::new();
        let mut read = |path: &str| match std::fs::read(host.path(path)) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => {
                warnings.push(format!("cannot read '{path}': {e}"));
                String::new()
            }
        };
        let (public, private) = (read(Self::PATH), read(Self::PRIVATE_PATH));
        let mut config = Self::parse(&public, &private);
        config.warnings.splice(0..0, warnings);
        config
    }

    /// Reads the text of the two files; an absent file is an empty one.
    pub fn parse(public: &str, private: &str) -> Self {
        // All endpoints share their names, whatever type they are.
        let public = Sections::parse(public, |kind, name| (kind == "matcher", name.to_owned()));
        let private = Sections::parse(private, |kind, name| (kind.to_owned(), name.to_owned()));
        let mut config = Self { warnings: told(Self::PATH, &public.faults), ..Self::default() };
        config.warnings.extend(told(Self::PRIVATE_PATH, &private.faults));
        let mut names = BTreeSet::new();
        for section in &public.sections {
            let (kind, name) = (section.kind.as_str(), section.id.as_str());
            names.insert((kind == "matcher", name));
            let secret = private.sections.iter().find(|s| s.kind == kind && s.id == name);
            let read = match kind {
                "matcher" => {
                    config.matchers.push(matcher(section, &mut config.warnings));
                    continue;
                }
                "sendmail" => Ok(EndpointKind::Sendmail(mail_settings(section))),
                "smtp" => smtp(section, secret),
                "gotify" => gotify(section, secret),
                "webhook" => webhook(section, secret),
                _ => Err(format!("endpoints of type '{kind}' are not known")),
            };
            let disabled = flag(section, "disable", &mut config.warnings);
            let kind = read.unwrap_or_else(EndpointKind::Unusable);
            config.endpoints.push(Endpoint { name: name.into(), disabled, built_in: false, kind });
        }
        config.add_built_in(&names);
        config
    }

    fn add_built_in(&mut self, names: &BTreeSet<(bool, &str)>) {
        if !names.contains(&(false, BUILT_IN_ENDPOINT)) {
            let mail = MailSettings { mailto_user: vec!["root@pam".into()], ..MailSettings::default() };
            self.endpoints.push(Endpoint {
                name: BUILT_IN_ENDPOINT.into(),
                disabled: false,
                built_in: true,
                kind: EndpointKind::Sendmail(mail),
            });
        }
        if !names.contains(&(true, BUILT_IN_MATCHER)) {
            let targets = vec![BUILT_IN_ENDPOINT.into()];
            self.matchers.push(Matcher { name: BUILT_IN_MATCHER.into(), targets, ..Matcher::default() });
        }
    }

    /// Everything as mail to `receivers` through `sendmail`, from `author`, whatever the node's configuration says.
    pub fn mail_to(receivers: &[String], author: &str) -> Self {
        // No file can hold such a name, so it is nobody else's.
        let name = format!("<{}>", receivers.join(","));
        let mail =
            MailSettings { mailto: receivers.to_vec(), author: Some(author.to_owned()), ..MailSettings::default() };
        let kind = EndpointKind::Sendmail(mail);
        let matcher = Matcher { name: format!("<matcher-{name}>"), targets: vec![name.clone()], ..Matcher::default() };
        Self {
            endpoints: vec![Endpoint { name, disabled: false, built_in: false, kind }],
            matchers: vec![matcher],
            warnings: Vec::new(),
        }
    }
}

/// What was left out of `file`. Never more than the first word of a line, and of the private file, which holds passwords,
/// nothing but the number: a secret that an editor wrapped is a line of one word.
fn told(file: &str, faults: &[Fault]) -> Vec<String> {
    let sentence = |fault: &Fault| match &fault.twice {
        _ if file == Config::PRIVATE_PATH => format!("{file}: line {} is ignored", fault.line),
        Some(name) => format!("{file}: '{name}' is there twice, the first one counts"),
        None => {
            let word = fault.text.split(char::is_whitespace).next().unwrap_or_default();
            format!("{file}: line {} is ignored: '{}'", fault.line, word.chars().take(40).collect::<String>())
        }
    };
    faults.iter().map(sentence).collect()
}

fn flag(section: &CfgSection, key: &str, warnings: &mut Vec<String>) -> bool {
    let Some(value) = section.get(key) else { return false };
    if value.is_empty() {
        return true;
    }
    parse_bool(value).unwrap_or_else(|| {
        warnings.push(format!("{}: {key} of '{}' is neither true nor false: '{value}'", Config::PATH, section.id));
        false
    })
}

/// The items of all lines of a property.
fn list(section: &CfgSection, key: &str) -> Vec<String> {
    section.all(key).flat_map(split_list).collect()
}

fn text(section: &CfgSection, key: &str) -> Option<String> {
    section.get(key).filter(|value| !value.is_empty()).map(str::to_owned)
}

fn matcher(section: &CfgSection, warnings: &mut Vec<String>) -> Matcher {
    let mut matcher = Matcher {
        name: section.id.clone(),
        disabled: flag(section, "disable", warnings),
        invert: flag(section, "invert-match", warnings),
        targets: list(section, "target"),
        ..Matcher::default()
    };
    let severities = section.all("match-severity").map(Directive::severity);
    let fields = section.all("match-field").map(Directive::field);
    let times = section.all("match-calendar").map(Directive::calendar);
    for directive in severities.chain(fields).chain(times) {
        match directive {
            Ok(directive) => matcher.directives.push(directive),
            Err(reason) => matcher.unreadable.push(reason),
        }
    }
    match section.get("mode") {
        None | Some("all") => {}
        Some("any") => matcher.mode = MatcherMode::Any,
        Some(mode) => matcher.unreadable.push(format!("mode '{mode}' is neither 'all' nor 'any'")),
    }
    if !matcher.disabled {
        let name = &matcher.name;
        let say = |reason: &String| format!("notification matcher '{name}' matches everything: {reason}");
        warnings.extend(matcher.unreadable.iter().map(say));
    }
    matcher
}

fn mail_settings(section: &CfgSection) -> MailSettings {
    MailSettings {
        mailto: list(section, "mailto"),
        mailto_user: list(section, "mailto-user"),
        from: text(section, "from-address"),
        author: text(section, "author"),
    }
}

fn smtp(section: &CfgSection, secret: Option<&CfgSection>) -> Result<EndpointKind, String> {
    let port = section.get("port").map(|port| port.parse().map_err(|_| format!("'{port}' is no port")));
    let smtp = Smtp {
        server: text(section, "server").ok_or("server is missing")?,
        port: port.transpose()?,
        mode: match section.get("mode") {
            None | Some("tls") => SmtpMode::Tls,
            Some("starttls") => SmtpMode::StartTls,
            Some("insecure") => SmtpMode::Insecure,
            Some(mode) => return Err(format!("mode '{mode}' is none of 'insecure', 'starttls', 'tls'")),
        },
        username: text(section, "username"),
        password: secret.and_then(|s| text(s, "password")),
    };
    Ok(EndpointKind::Smtp(mail_settings(section), smtp))
}

fn gotify(section: &CfgSection, secret: Option<&CfgSection>) -> Result<EndpointKind, String> {
    let token = secret.and_then(|s| text(s, "token"));
    Ok(EndpointKind::Gotify {
        server: text(section, "server").ok_or("server is missing")?,
        token: token.ok_or_else(|| format!("its token is not in '{}'", Config::PRIVATE_PATH))?,
    })
}

fn webhook(section: &CfgSection, secret: Option<&CfgSection>) -> Result<EndpointKind, String> {
    let pairs = |section: &CfgSection, key: &str| -> Result<Vec<(String, String)>, String> {
        section.all(key).map(|value| named(key, value)).collect()
    };
    Ok(EndpointKind::Webhook(Webhook {
        method: match section.get("method").map(str::to_ascii_lowercase).as_deref() {
            None | Some("post") => "POST",
            Some("put") => "PUT",
            Some("get") => "GET",
            Some(method) => return Err(format!("method '{method}' is none of 'post', 'put', 'get'")),
        },
        url: text(section, "url").ok_or("url is missing")?,
        headers: pairs(section, "header")?,
        body: section.get("body").map(|body| decode("body", body)).transpose()?.unwrap_or_default(),
        secrets: secret.map(|s| pairs(s, "secret")).transpose()?.unwrap_or_default(),
    }))
}

/// `name=X,value=<base64>`
fn named(key: &str, text: &str) -> Result<(String, String), String> {
    let pair = |wanted: &str| {
        let mut pairs = text.split(',').filter_map(|pair| pair.trim().split_once('='));
        pairs.find(|(k, _)| k.trim() == wanted).map(|(_, value)| value.trim())
    };
    let name = pair("name").filter(|name| !name.is_empty()).ok_or_else(|| format!("a {key} has no name"))?;
    Ok((name.to_owned(), decode(&format!("{key} '{name}'"), pair("value").unwrap_or_default())?))
}

fn decode(what: &str, text: &str) -> Result<String, String> {
    let bytes = BASE64.decode(text.trim()).map_err(|_| format!("{what} is not base64"))?;
    String::from_utf8(bytes).map_err(|_| format!("{what} is not UTF-8"))
}
