//! Requests of gotify and webhooks. Redirections are not followed: they turn a message into a question without one.

use std::time::Duration;

use serde_json::json;
use ureq::http;
use ureq::tls::{RootCerts, TlsConfig};

use super::deliver::DeliveryError;
use super::people::People;
use super::template::{Rendered, Request};
use super::{Notification, Severity};

/// How long a request may take, from the server's name to the end of the answer's head.
const LIMIT: Duration = Duration::from_secs(10);

/// The request that tells a gotify server.
pub(super) fn gotify(server: &str, token: &str, said: &Rendered, notification: &Notification) -> Request {
    let priority = match notification.severity {
        Severity::Info => 1,
        Severity::Notice | Severity::Unknown => 3,
        Severity::Warning => 5,
        Severity::Error => 9,
    };
    let body = json!({ "title": said.subject, "message": said.text, "priority": priority });
    Request {
        method: "POST",
        url: format!("{}/message", server.trim_end_matches('/')),
        headers: vec![("Content-Type".into(), "application/json".into()), ("X-Gotify-Key".into(), token.to_owned())],
        body: body.to_string(),
    }
}

/// Sends `request`, in no longer than `limit`.
///
/// # Errors
/// Why it did not arrive. Never with the address, which may hold a secret.
pub(super) fn send(request: &Request, people: &People, limit: Duration) -> Result<(), DeliveryError> {
    let limit = limit.min(LIMIT);
    let failed = |why: &str| DeliveryError::Http(why.to_owned());
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(limit))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("vzkeep/", env!("CARGO_PKG_VERSION")))
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build());
    let proxy = people.http_proxy().map(|proxy| ureq::Proxy::new(&proxy)).transpose();
    let proxy = proxy.map_err(|_| failed("http_proxy of datacenter.cfg is no address"))?;
    let mut head = http::Request::builder().method(request.method).uri(&request.url);
    for (name, value) in &request.headers {
        let name = http::HeaderName::from_bytes(name.as_bytes()).map_err(|_| failed("a header's name is not valid"))?;
        let wrong = |_| DeliveryError::Http(format!("the value of header '{name}' is not valid"));
        let value = http::HeaderValue::from_bytes(value.as_bytes()).map_err(wrong)?;
        head = head.header(name, value);
    }
    let agent = config.proxy(proxy).build().new_agent();
    let invalid = |_| failed("the url is not valid");
    let answer = if request.body.is_empty() {
        agent.run(head.body(()).map_err(invalid)?)
    } else {
        agent.run(head.body(request.body.as_bytes()).map_err(invalid)?)
    };
    let status = answer.map_err(|e| reason(&e, limit))?.status();
    if status.is_success() { Ok(()) } else { Err(DeliveryError::Status(status.as_u16())) }
}

fn reason(error: &ureq::Error, limit: Duration) -> DeliveryError {
    match error {
        ureq::Error::BadUri(_) => DeliveryError::Http("the url is not valid".to_owned()),
        ureq::Error::Timeout(_) => DeliveryError::Timeout(limit.as_secs()),
        other => DeliveryError::Http(other.to_string().replace(['\n', '\r'], " ")),
    }
}
