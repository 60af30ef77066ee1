//! `/etc/pve/datacenter.cfg`: `key: value` lines for the whole cluster. Everything is kept as text; what is used has a getter.

use std::collections::BTreeMap;

use super::Storage;

/// The settings of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DatacenterCfg {
    values: BTreeMap<String, String>,
}

impl DatacenterCfg {
    /// Where the file lies.
    pub const PATH: &'static str = "/etc/pve/datacenter.cfg";

    /// Reads the text of the file; an absent file is an empty one. Lines that mean nothing are skipped.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let pair = |line: &str| {
            let (key, value) = line.split_once(':')?;
            (!key.is_empty() && !key.contains(char::is_whitespace)).then(|| (key.to_owned(), value.trim().to_owned()))
        };
        Self { values: lines.filter_map(pair).collect() }
    }

    /// The first half of new MAC addresses: `BC:24:11`.
    pub fn mac_prefix(&self) -> Option<&str> {
        self.get("mac_prefix")
    }

    /// The sender of the cluster's mails.
    pub fn email_from(&self) -> Option<&str> {
        self.get("email_from")
    }

    /// The proxy for HTTP.
    pub fn http_proxy(&self) -> Option<&str> {
        self.get("http_proxy")
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// The limit in KiB a second for `operation` (`restore`, ...) on `storage`: its own, else the cluster's; `None` without limit.
/// What a user asks for stands above both.
pub fn bandwidth_limit(operation: &str, storage: Option<&Storage>, datacenter: &DatacenterCfg) -> Option<u64> {
    let own = storage.and_then(|storage| limit(storage.get("bwlimit")?, operation));
    // Zero on the storage is its answer, too: no limit there, whatever holds elsewhere.
    own.or_else(|| limit(datacenter.get("bwlimit")?, operation)).filter(|limit| *limit > 0)
}

/// `operation`'s number in `default=100,restore=50`, else the default's.
fn limit(text: &str, operation: &str) -> Option<u64> {
    let number = |key: &str| {
        let mut pairs = text.split(',').filter_map(|pair| pair.trim().split_once('='));
        let (_, number) = pairs.find(|(k, _)| *k == key)?;
        number.parse::<f64>().ok().filter(|number| *number >= 0.0)
    };
    // A fraction of a KiB is a limit still.
    number(operation).or_else(|| number("default")).map(|limit| limit.ceil() as u64)
}
