//! `/etc/pve/user.cfg`: of its records the pools, `pool:name:comment:guests:storages:`, which are nested by their names
//! (`customers/acme` lies in `customers`), and the mail addresses of users,
//! `user:name:enabled:expires:first name:last name:address:comment:keys:`.

use std::collections::{BTreeMap, BTreeSet};

use crate::schema::Vmid;
use crate::schema::words::split_list;

/// The pools and users of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserCfg {
    pools: BTreeMap<String, Pool>,
    emails: BTreeMap<String, String>,
    /// What was ignored, one message each.
    pub warnings: Vec<String>,
}

/// A pool of guests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pool {
    /// Its own guests. Those of the pools in it are not among them: the original's `--pool` does not count them either.
    pub vmids: BTreeSet<Vmid>,
    /// Whether the file ends in the middle of its line, so that nobody knows which guests are missing.
    pub cut: bool,
}

impl UserCfg {
    /// Where the file lies.
    pub const PATH: &'static str = "/etc/pve/user.cfg";

    /// Reads the text of the file; an absent file is an empty one.
    pub fn parse(text: &str) -> Self {
        let mut cfg = Self::default();
        let mut homes: BTreeSet<u32> = BTreeSet::new();
        let count = text.lines().count();
        for (number, line) in text.lines().enumerate() {
            let fields: Vec<&str> = line.split(':').map(str::trim).collect();
            if let ["user", name, _, _, _, _, address, ..] = fields.as_slice() {
                // The first record of a name counts, also when it has no address.
                cfg.emails.entry((*name).to_owned()).or_insert_with(|| (*address).to_owned());
            }
            let ["pool", name, rest @ ..] = fields.as_slice() else { continue };
            if !is_pool_name(name) {
                cfg.warnings.push(format!("user config - ignore pool '{name}' - invalid characters in pool name"));
                continue;
            }
            // A pool in a pool that has no line of its own makes that one, too.
            for (end, _) in name.match_indices('/') {
                cfg.pools.entry(name[..end].to_owned()).or_default();
            }
            let pool = cfg.pools.entry((*name).to_owned()).or_default();
            // Written whole, a line ends with a colon behind the storages.
            pool.cut |= number + 1 == count && !text.ends_with('\n') && rest.len() < 4;
            for item in rest.get(1).map(|guests| split_list(guests)).unwrap_or_default() {
                let digits = item.bytes().all(|byte| byte.is_ascii_digit());
                match item.parse::<u32>() {
                    Ok(id) if digits && homes.insert(id) => pool.vmids.extend(Vmid::new(id)),
                    Ok(id) if digits => {
                        cfg.warnings.push(format!("user config - ignore duplicate vmid '{id}' in pool '{name}'"));
                    }
                    _ => cfg.warnings.push(format!("user config - ignore invalid vmid '{item}' in pool '{name}'")),
                }
            }
        }
        cfg
    }

    /// The mail address of user `name` (`root@pam`).
    pub fn email(&self, name: &str) -> Option<&str> {
        self.emails.get(name).map(String::as_str).filter(|address| !address.is_empty())
    }

    /// The pool of this name: `customers/acme`.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.get(name)
    }
}

/// Up to three names of letters, digits, dots, dashes and underscores, separated by slashes.
fn is_pool_name(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
    };
    name.split('/').count() <= 3 && name.split('/').all(part)
}
