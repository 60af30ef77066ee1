//! `vzkeep complete <what>`: the candidates that the completion scripts cannot know themselves. One a line, with a
//! description after a tab where there is one. What cannot be read is left out: nobody wants an error under the cursor.

use clap::ValueEnum;

use crate::config::{GuestConfig, StorageCfg};
use crate::host::Host;
use crate::schema::Source;
use crate::storage::{ArchiveName, GuestKind};

/// What can be asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidates(Source);

impl ValueEnum for Candidates {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self(Source::Guests),
            Self(Source::Storages),
            Self(Source::Pools),
            Self(Source::Nodes),
            Self(Source::Archives),
            Self(Source::ContainerArchives),
        ]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.0.as_str()))
    }
}

/// The lines to print.
pub(super) fn candidates(host: &Host, what: Candidates) -> String {
    let mut found = match what.0 {
        Source::Guests => guests(host),
        Source::Storages => storages(host).storages.iter().map(|s| format!("{}\t{}", s.id, s.kind)).collect(),
        Source::Pools => pools(&read(host, "/etc/pve/user.cfg")),
        Source::Nodes => names(host, "/etc/pve/nodes"),
        Source::Archives => archives(host, GuestKind::Qemu),
        Source::ContainerArchives => archives(host, GuestKind::Lxc),
    };
    found.sort();
    found.retain(|line| !line.contains('\n'));
    found.into_iter().map(|line| line + "\n").collect()
}

fn read(host: &Host, path: &str) -> String {
    std::fs::read(host.path(path)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn names(host: &Host, dir: &str) -> Vec<String> {
    let entries = std::fs::read_dir(host.path(dir)).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The guests of this node with their names.
fn guests(host: &Host) -> Vec<String> {
    let mut found = Vec::new();
    for kind in ["qemu-server", "lxc"] {
        let dir = format!("/etc/pve/nodes/{}/{kind}", host.node());
        for name in names(host, &dir) {
            let Some(vmid) = name.strip_suffix(".conf").filter(|id| id.bytes().all(|b| b.is_ascii_digit())) else {
                continue;
            };
            let config = GuestConfig::parse(read(host, &format!("{dir}/{name}")).as_bytes());
            let title = config.name().or_else(|| config.get("hostname"));
            found.push(title.map_or_else(|| vmid.to_owned(), |title| format!("{vmid}\t{title}")));
        }
    }
    found
}

fn storages(host: &Host) -> StorageCfg {
    StorageCfg::parse(&read(host, "/etc/pve/storage.cfg"))
}

/// `pool:name:comment:guests:storages:` lines.
fn pools(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| Some(line.strip_prefix("pool:")?.split(':').next()?.to_owned())).collect()
}

/// Archives of guests of this kind on the storages of this node, as volumes. A storage that does not answer would block the
/// shell, so that only directories of the machine itself are looked into.
fn archives(host: &Host, kind: GuestKind) -> Vec<String> {
    let cfg = storages(host);
    let mut found = Vec::new();
    for storage in cfg.storages.iter().filter(|storage| matches!(storage.kind.as_str(), "dir" | "btrfs")) {
        let Some(dir) = storage.dump_dir().filter(|_| cfg.usable(&storage.id, host.node()).is_ok()) else { continue };
        let archives = names(host, &dir.to_string_lossy()).into_iter().filter_map(|name| ArchiveName::parse(&name));
        let wanted = archives.filter(|archive| archive.kind == kind);
        found.extend(wanted.map(|archive| format!("{}:backup/{archive}", storage.id)));
    }
    found
}
