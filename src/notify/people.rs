//! What the node's own files know for a delivery: mail addresses of its users, the sender of its mails, its proxy.

use crate::host::Host;

const USERS: &str = "/etc/pve/user.cfg";
const DATACENTER: &str = "/etc/pve/datacenter.cfg";

/// The node's knowledge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct People {
    users: String,
    datacenter: String,
    /// The node's full name: the domain of local users.
    pub(super) fqdn: String,
}

impl People {
    /// Reads the node's files; an absent one knows nothing.
    pub(super) fn load(host: &Host) -> Self {
        let read = |path: &str| {
            let bytes = std::fs::read(host.path(path)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Self { users: read(USERS), datacenter: read(DATACENTER), fqdn: host.fqdn() }
    }

    /// The mail address of user `name` (`root@pam`).
    pub(super) fn address_of(&self, name: &str) -> Option<String> {
        // user:<name>:<enabled>:<expires>:<first name>:<last name>:<address>:<comment>:<keys>:
        let user = |line: &str| {
            let fields: Vec<&str> = line.split(':').map(str::trim).collect();
            let found = fields.first() == Some(&"user") && fields.get(1) == Some(&name);
            found.then(|| fields.get(6).copied().unwrap_or_default().to_owned())
        };
        self.users.lines().find_map(user).filter(|address| !address.is_empty())
    }

    /// Who mails come from, as far as the node's administrator said.
    pub(super) fn email_from(&self) -> Option<String> {
        self.setting("email-from")
    }

    /// The proxy for HTTP.
    pub(super) fn http_proxy(&self) -> Option<String> {
        self.setting("http_proxy")
    }

    fn setting(&self, key: &str) -> Option<String> {
        let value = |line: &str| {
            let (k, value) = line.split_once(':')?;
            (k.trim() == key).then(|| value.trim().to_owned())
        };
        self.datacenter.lines().find_map(value).filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_settings() {
        let people = People {
            users:
                "user:root@pam:1:0:::root@example.com:::\r\nuser:a@pve:1:0:A:B::c::\nuser:x\ngroup:user:root@pam::\n"
                    .into(),
            datacenter: "keyboard: en-us\nemail-from: pve@example.com\r\nhttp_proxy: http://proxy:3128\n".into(),
            fqdn: "pve1.example.com".into(),
        };
        assert_eq!(people.address_of("root@pam").as_deref(), Some("root@example.com"));
        for nobody in ["a@pve", "x", "b@pam", "", "user"] {
            assert_eq!(people.address_of(nobody), None);
        }
        assert_eq!(people.email_from().as_deref(), Some("pve@example.com"));
        assert_eq!(people.http_proxy().as_deref(), Some("http://proxy:3128"));
        assert_eq!(People::default().email_from(), None);
    }
}
