//! Mail: makes the message, and hands it to the program `sendmail` or to an SMTP server.

use std::time::Duration;

use lettre::address::Envelope;
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{Address, Message, SmtpTransport, Transport};

use super::config::{MailSettings, Smtp, SmtpMode};
use super::deliver::DeliveryError;
use super::people::People;
use super::template::Rendered;
use crate::host::child::{self, Ended};
use crate::host::{Cancel, Host};

/// Who writes where nobody said.
const AUTHOR: &str = "Proxmox VE";
/// The sender where nobody said: a local user, whose domain the mail system knows.
const FROM: &str = "root";
/// How long one step of a conversation may take.
const STEP: Duration = Duration::from_secs(10);
/// How much of the complaints of `sendmail` is kept.
const COMPLAINTS: usize = 4096;

/// A message and whom it goes to.
#[derive(Debug, Clone)]
pub(super) struct Mail {
    from: String,
    to: Vec<String>,
    bytes: Vec<u8>,
    /// The domain we speak for.
    fqdn: String,
}

/// Whom `settings` mean, and the users of whom the node knows no address.
pub(super) fn receivers(settings: &MailSettings, people: &People) -> (Vec<String>, Vec<String>) {
    let (mut to, mut unknown) = (settings.mailto.clone(), Vec::new());
    for user in &settings.mailto_user {
        match people.address_of(user) {
            Some(address) if to.contains(&address) => {}
            Some(address) => to.push(address),
            None => unknown.push(user.clone()),
        }
    }
    (to, unknown)
}

impl Mail {
    /// The message that says `said` to `to`.
    ///
    /// # Errors
    /// When an address is none.
    pub(super) fn new(
        settings: &MailSettings,
        to: Vec<String>,
        said: &Rendered,
        people: &People,
    ) -> Result<Self, DeliveryError> {
        let from = settings.from.clone().or_else(|| people.email_from()).unwrap_or_else(|| FROM.into());
        let author = settings.author.as_deref().unwrap_or(AUTHOR);
        let wrong = |e: lettre::error::Error| DeliveryError::Message(e.to_string());
        let mut message = Message::builder()
            .from(Mailbox::new(Some(author.to_owned()), full_address(&from, people)?))
            .subject(&said.subject)
            .date_now()
            .message_id(Some(format!("<{}@{}>", uuid::Uuid::new_v4(), people.fqdn)))
            // Nobody's absence note shall answer a backup.
            .raw_header(HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".into()));
        for address in &to {
            message = message.to(Mailbox::new(None, full_address(address, people)?));
        }
        let message = match &said.html {
            Some(html) => message.multipart(MultiPart::alternative_plain_html(said.text.clone(), html.clone())),
            None => message.header(lettre::message::header::ContentType::TEXT_PLAIN).body(said.text.clone()),
        };
        Ok(Self { from, to, bytes: message.map_err(wrong)?.formatted(), fqdn: people.fqdn.clone() })
    }

    /// Hands the message to `sendmail`, which may take as long as `limit`.
    ///
    /// # Errors
    /// Why it did not take it.
    pub(super) fn by_sendmail(&self, host: &Host, limit: Duration) -> Result<(), DeliveryError> {
        let failed = |e: std::io::Error| DeliveryError::Sendmail(e.to_string());
        // Where every node has it; cron's PATH has no sbin.
        let usual = host.path("/usr/sbin/sendmail");
        let mut command = if usual.exists() {
            host.command(&usual.to_string_lossy())
        } else if host.has_command("sendmail") {
            host.command("sendmail")
        } else {
            return Err(DeliveryError::NoSendmail);
        };
        command.args(["-i", "-f", &self.from, "--"]).args(&self.to);
        // Local programs have lines as local programs have them.
        let text = self.bytes.iter().copied().filter(|byte| *byte != b'\r').collect();
        let output = match child::run(&mut command, Some(text), limit, &Cancel::new()).map_err(failed)? {
            Ended::Exited(output) => output,
            Ended::Late(_) | Ended::Cancelled => return Err(DeliveryError::Timeout(limit.as_secs())),
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr[..output.stderr.len().min(COMPLAINTS)]);
            let why = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it did not say why");
            return Err(DeliveryError::Sendmail(format!("{}: {why}", output.status)));
        }
        output.unfed.map_or(Ok(()), |e| Err(failed(e)))
    }

    /// Hands the message to the SMTP server.
    ///
    /// # Errors
    /// Why it did not take it.
    pub(super) fn by_smtp(&self, smtp: &Smtp) -> Result<(), DeliveryError> {
        let failed = |e: lettre::transport::smtp::Error| DeliveryError::Smtp(with_causes(&e));
        let address = |text: &String| text.parse::<Address>().map_err(|_| DeliveryError::Address(text.clone()));
        let to = self.to.iter().map(address).collect::<Result<Vec<_>, _>>()?;
        // A server that is not ours does not know our local users: they come from our domain.
        let from = address(&self.from).or_else(|_| address(&format!("{}@{}", self.from, self.fqdn)))?;
        let envelope = Envelope::new(Some(from), to).map_err(|e| DeliveryError::Message(e.to_string()))?;
        let tls = || TlsParameters::new(smtp.server.clone()).map_err(failed);
        let (tls, port) = match smtp.mode {
            SmtpMode::Insecure => (Tls::None, 25),
            SmtpMode::StartTls => (Tls::Required(tls()?), 587),
            SmtpMode::Tls => (Tls::Wrapper(tls()?), 465),
        };
        let mut server = SmtpTransport::builder_dangerous(&smtp.server)
            .port(smtp.port.unwrap_or(port))
            .tls(tls)
            .hello_name(ClientId::Domain(self.fqdn.clone()))
            .timeout(Some(STEP));
        if let Some(name) = &smtp.username {
            let password = smtp.password.clone().unwrap_or_default();
            server = server.credentials(Credentials::new(name.clone(), password));
        }
        server.build().send_raw(&envelope, &self.bytes).map(drop).map_err(failed)
    }
}

/// An address for the message's head: local users are the node's own.
fn full_address(text: &str, people: &People) -> Result<Address, DeliveryError> {
    let wrong = |_| DeliveryError::Address(text.to_owned());
    if text.contains('@') {
        text.parse().map_err(wrong)
    } else {
        format!("{text}@{}", people.fqdn).parse().map_err(wrong)
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text += &format!(": {more}");
        }
        cause = error.source();
    }
    text.replace(['\n', '\r'], " ")
}
