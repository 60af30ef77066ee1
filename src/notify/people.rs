//! What the node's own files know for a delivery: mail addresses of its users, the sender of its mails, its proxy.

use crate::config::{DatacenterCfg, UserCfg};
use crate::host::Host;

/// The node's knowledge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct People {
    users: UserCfg,
    datacenter: DatacenterCfg,
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
        let (users, datacenter) = (read(UserCfg::PATH), read(DatacenterCfg::PATH));
        Self { users: UserCfg::parse(&users), datacenter: DatacenterCfg::parse(&datacenter), fqdn: host.fqdn() }
    }

    /// The mail address of user `name` (`root@pam`).
    pub(super) fn address_of(&self, name: &str) -> Option<String> {
        self.users.email(name).map(str::to_owned)
    }

    /// Who mails come from, as far as the node's administrator said.
    pub(super) fn email_from(&self) -> Option<String> {
        self.datacenter.email_from().map(str::to_owned)
    }

    /// The proxy for HTTP.
    pub(super) fn http_proxy(&self) -> Option<String> {
        self.datacenter.http_proxy().map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_settings() {
        let people = People {
            users: UserCfg::parse(
                "user:root@pam:1:0:::root@example.com:::\r\nuser:a@pve:1:0:A:B::c::\nuser:x\ngroup:user:root@pam::\n",
            ),
            datacenter: DatacenterCfg::parse(
                "keyboard: en-us\nemail_from: pve@example.com\r\nhttp_proxy: http://proxy:3128\n",
            ),
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
