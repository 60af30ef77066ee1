//! A container's configuration file (`pct.conf`): its volumes and mount points, its map of ids, the text that goes into an
//! archive. Kept byte by byte as a VM's is ([`GuestConfig`]), whose sections and locks it shares; what is its own are the lines
//! `lxc.<key>: <value>`, which go to LXC as they are, and the name of the section of pending changes.
//!
//! A line about a volume that cannot be understood is an error, never left out: it may hold the data.

use std::fmt;

use super::blob::is_transient;
use super::guest::{header, key_value, pairs};
use super::{GuestConfig, Section};
use crate::schema::parse_bool;
use crate::schema::size::{parse_size, print_size};

/// How many `mpN` there may be.
pub const MOUNT_POINTS: u32 = 256;
/// The ids of an unprivileged container begin here on the node, unless the config says otherwise.
const FIRST_ID: u32 = 100_000;
/// How many there are.
const IDS: u32 = 65_536;

/// What is wrong with a container's config.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContainerError {
    /// There is nothing to start from.
    #[error("the container's config has no 'rootfs'")]
    NoRoot,
    /// A mount point cannot be understood.
    #[error("the container's config has '{key}: {value}', which cannot be used: {why}")]
    MountPoint {
        /// `rootfs`, `mp0`.
        key: String,
        /// The rest of the line.
        value: String,
        /// Why not, and what would be right.
        why: &'static str,
    },
    /// A map of ids cannot be understood.
    #[error(
        "the container's config has '{key}: {value}', which is no map of ids like 'u 0 100000 65536' (kind, first id in the container, first id on the node, count)"
    )]
    IdMap {
        /// `lxc.idmap`.
        key: String,
        /// The rest of the line.
        value: String,
    },
}

/// Where a mount point's files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A volume of a storage: `local:200/vm-200-disk-0.raw`.
    Volume(String),
    /// A directory of the node.
    Bind(String),
    /// A block device of the node.
    Device(String),
}

impl Source {
    /// By the text in the config.
    pub fn parse(text: &str) -> Self {
        match text {
            text if text.starts_with("/dev/") => Self::Device(text.to_owned()),
            text if text.starts_with('/') => Self::Bind(text.to_owned()),
            text => Self::Volume(text.to_owned()),
        }
    }

    /// As the logs call it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Volume(_) => "volume",
            Self::Bind(_) => "bind",
            Self::Device(_) => "device",
        }
    }

    /// The text in the config.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Volume(text) | Self::Bind(text) | Self::Device(text) => text,
        }
    }
}

/// `rootfs` or `mpN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// `rootfs`, `mp0`, ...
    pub key: String,
    /// What is mounted.
    pub source: Source,
    /// Where, in the container: an absolute path without `.`, `..`, double or trailing slashes; `/` for `rootfs`.
    pub mp: String,
    /// All other settings, in the order of the line.
    pub options: Vec<(String, String)>,
}

impl MountPoint {
    /// Reads the value of the line `key`.
    ///
    /// # Errors
    /// When it names no volume, or no directory that can be one in a container.
    pub fn parse(key: &str, value: &str) -> Result<Self, ContainerError> {
        let wrong = |why| ContainerError::MountPoint { key: key.to_owned(), value: value.to_owned(), why };
        let mut options = pairs(value, "volume");
        let mut take = |name: &str| {
            let at = options.iter().position(|(option, _)| option == name)?;
            Some(options.remove(at).1)
        };
        let volume = take("volume").filter(|volume| !volume.is_empty());
        let volume = volume.ok_or_else(|| wrong("it names no volume"))?;
        let mp = take("mp");
        let known = |name: &str| matches!(name, "volume" | "mp");
        let earlier = |at: usize, name: &str| options[..at].iter().any(|(other, _)| other == name);
        if options.iter().enumerate().any(|(at, (name, _))| known(name) || earlier(at, name)) {
            return Err(wrong("it has the same setting twice"));
        }
        let mp = match mp {
            // Whatever it says: the root is the root.
            _ if key == "rootfs" => "/".to_owned(),
            Some(mp) => clean(&mp).ok_or_else(|| {
                wrong("'mp' has to be an absolute path in the container below '/', without '..' and line feeds")
            })?,
            None => return Err(wrong("it has no 'mp=<path in the container>'")),
        };
        Ok(Self { key: key.to_owned(), source: Source::parse(&volume), mp, options })
    }

    /// Whether it is the container's root.
    pub fn is_root(&self) -> bool {
        self.key == "rootfs"
    }

    /// A setting: `size`, `mountoptions`, ...
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Sets it, or takes it away.
    pub fn set_option(&mut self, name: &str, value: Option<&str>) {
        let at = self.options.iter().position(|(key, _)| key == name);
        match (at, value) {
            (Some(at), Some(value)) => value.clone_into(&mut self.options[at].1),
            (Some(at), None) => drop(self.options.remove(at)),
            (None, Some(value)) => self.options.push((name.to_owned(), value.to_owned())),
            (None, None) => {}
        }
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.option(name).and_then(parse_bool)
    }

    /// The volume, if it is one of a storage.
    pub fn volid(&self) -> Option<&str> {
        match &self.source {
            Source::Volume(volid) => Some(volid),
            Source::Bind(_) | Source::Device(_) => None,
        }
    }

    /// The size in bytes that the line notes.
    pub fn size(&self) -> Option<u64> {
        parse_size(self.option("size")?)
    }

    /// Notes another size.
    pub fn set_size(&mut self, bytes: u64) {
        self.set_option("size", Some(&print_size(bytes)));
    }

    /// Whether the container may not write to it.
    pub fn is_read_only(&self) -> bool {
        self.flag("ro") == Some(true)
    }

    /// Whether it has quotas.
    pub fn has_quota(&self) -> bool {
        self.flag("quota") == Some(true)
    }

    /// Whether ACLs are switched on or off; none if it is left to the file system.
    pub fn acl(&self) -> Option<bool> {
        self.flag("acl")
    }

    /// Options of its mount: `noatime`, `nosuid`, ...
    pub fn mount_options(&self) -> Vec<&str> {
        self.option("mountoptions").unwrap_or_default().split(';').filter(|option| !option.is_empty()).collect()
    }

    /// Why it is not backed up; `None` if it is. The root always is, other volumes only if the line says so, and what is no
    /// volume never.
    pub fn excluded(&self) -> Option<&'static str> {
        match self.source {
            _ if self.is_root() => None,
            Source::Bind(_) | Source::Device(_) => Some("not a volume"),
            Source::Volume(_) if self.flag("backup") == Some(true) => None,
            Source::Volume(_) => Some("disabled"),
        }
    }

    /// The log's line about it.
    pub fn log_line(&self) -> String {
        let Self { key, mp, source, .. } = self;
        match self.excluded() {
            None => format!("including mount point {key} ('{mp}') in backup"),
            Some(why) => format!("excluding {} mount point {key} ('{mp}') from backup ({why})", source.kind()),
        }
    }
}

/// The value of the line again.
impl fmt::Display for MountPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.source.as_str())?;
        if !self.is_root() {
            write!(f, ",mp={}", self.mp)?;
        }
        self.options.iter().try_for_each(|(key, value)| write!(f, ",{key}={value}"))
    }
}

/// `/a//./b/` as `/a/b`; `None` for what leads nowhere or out of the container.
fn clean(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    // An `mp` that is not absolute is one below the root for the original, too.
    let wrong = path.contains(['\n', '\0']) || parts.is_empty() || parts.contains(&"..");
    (!wrong).then(|| format!("/{}", parts.join("/")))
}

/// User or group ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdKind {
    /// `u`
    User,
    /// `g`
    Group,
}

/// A range of ids of the container and the range of the node that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMap {
    /// Users or groups.
    pub kind: IdKind,
    /// The first one in the container.
    pub inside: u32,
    /// The first one on the node.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl IdMap {
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [kind, inside, outside, count] = words.as_slice() else { return None };
        let kind = match *kind {
            "u" => IdKind::User,
            "g" => IdKind::Group,
            _ => return None,
        };
        let number = |text: &str| text.parse::<u32>().ok();
        let map = Self { kind, inside: number(inside)?, outside: number(outside)?, count: number(count)? };
        let fits = |first: u32| first.checked_add(map.count).is_some();
        (map.count > 0 && fits(map.inside) && fits(map.outside)).then_some(map)
    }
}

/// As `lxc-usernsexec -m` wants it: `u:0:100000:65536`.
impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == IdKind::User { 'u' } else { 'g' };
        write!(f, "{kind}:{}:{}:{}", self.inside, self.outside, self.count)
    }
}

/// A container's configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerConfig {
    lines: GuestConfig,
}

impl ContainerConfig {
    /// Reads a file.
    pub fn parse(text: &[u8]) -> Self {
        Self { lines: GuestConfig::parse(text) }
    }

    /// The file again; unchanged if nothing was edited.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.lines.to_bytes()
    }

    /// The value of a key that holds now. Of several the last counts.
    pub fn get(&self, key: &str) -> Option<String> {
        self.lines.get(key)
    }

    /// The operation that holds the container: `backup`, `migrate`, ...
    pub fn lock(&self) -> Option<String> {
        self.lines.lock()
    }

    /// The container's name.
    pub fn hostname(&self) -> Option<String> {
        self.get("hostname")
    }

    /// Whether it is a template.
    pub fn is_template(&self) -> bool {
        self.lines.is_template()
    }

    /// Whether its root is not the node's.
    pub fn is_unprivileged(&self) -> bool {
        self.get("unprivileged").as_deref().and_then(parse_bool) == Some(true)
    }

    /// The names of its snapshots.
    pub fn snapshots(&self) -> Vec<String> {
        self.lines.snapshots().into_iter().filter(|name| name != "pve:pending").collect()
    }

    /// Root and mount points that hold now: `rootfs`, then `mpN` by number.
    ///
    /// # Errors
    /// When one of them cannot be understood, or there is no root.
    pub fn mount_points(&self) -> Result<Vec<MountPoint>, ContainerError> {
        let properties = self.lines.properties(&Section::Main);
        let value = |key: &str| properties.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value);
        let root = value("rootfs").ok_or(ContainerError::NoRoot)?;
        let mut found = vec![MountPoint::parse("rootfs", root)?];
        // By number, whatever the number: one beyond the limit is a volume all the same.
        let mut numbers: Vec<(u64, &str)> =
            properties.iter().filter_map(|(key, _)| Some((number(key)?, key.as_str()))).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for (_, key) in numbers {
            found.extend(value(key).map(|value| MountPoint::parse(key, value)).transpose()?);
        }
        Ok(found)
    }

    /// Lines for LXC itself, keys with their `lxc.`, in the order of the file.
    pub fn lxc_lines(&self) -> Vec<(String, String)> {
        self.lines.lines().filter(|(at, _)| *at == Section::Main).filter_map(|(_, line)| lxc_line(line)).collect()
    }

    /// How the container's ids are mapped to those of the node; empty if they are the node's.
    ///
    /// # Errors
    /// When a line that says so cannot be understood.
    pub fn id_map(&self) -> Result<Vec<IdMap>, ContainerError> {
        let own = self.lxc_lines().into_iter().filter(|(key, _)| matches!(key.as_str(), "lxc.idmap" | "lxc.id_map"));
        let own = own.map(|(key, value)| IdMap::parse(&value).ok_or(ContainerError::IdMap { key, value }));
        let own: Vec<IdMap> = own.collect::<Result<_, _>>()?;
        if !own.is_empty() || !self.is_unprivileged() {
            return Ok(own);
        }
        Ok([IdKind::User, IdKind::Group].map(|kind| IdMap { kind, inside: 0, outside: FIRST_ID, count: IDS }).to_vec())
    }

    /// The text that goes into the archive as `./etc/vzdump/pct.conf`: what holds now. Left out are snapshots and pending changes,
    /// `lock` and `parent`; volumes in `unusedN` are kept, as the original does.
    pub fn archive_text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        for (_, line) in self.lines.lines() {
            if header(line).is_some() {
                break;
            }
            if !is_transient(line) || line.starts_with(b"unused") {
                text.extend_from_slice(line);
            }
        }
        while text.ends_with(b"\n\n") {
            text.pop();
        }
        if text.last().is_some_and(|last| *last != b'\n') {
            text.push(b'\n');
        }
        text
    }

    /// Sets `key: value` where it stands, else behind the last line that sorts before it and before those for LXC.
    pub fn set(&mut self, key: &str, value: &str) {
        let mut lines: Vec<Vec<u8>> = self.lines.lines().map(|(_, line)| line.to_vec()).collect();
        let main = self.main();
        let line = format!("{key}: {value}\n").into_bytes();
        let is = |line: &[u8]| key_value(line).is_some_and(|(k, _)| k == key);
        if let Some(at) = lines[..main].iter().rposition(|line| is(line)) {
            lines[at] = line;
            let mut before = at;
            lines.retain(|line| {
                let older = before > 0 && is(line);
                before = before.saturating_sub(1);
                !older
            });
        } else {
            let after =
                |line: &Vec<u8>| lxc_line(line).is_some() || key_value(line).is_some_and(|(k, _)| k.as_str() > key);
            let last = lines[..main].iter().rposition(|line| !line.trim_ascii().is_empty()).map_or(0, |last| last + 1);
            let at = lines[..main].iter().position(after).unwrap_or(last);
            if let Some(before) = at.checked_sub(1)
                && !lines[before].ends_with(b"\n")
            {
                lines[before].push(b'\n');
            }
            lines.insert(at, line);
        }
        self.lines = GuestConfig::parse(&lines.concat());
    }

    /// Takes all lines `key` away that hold now; whether there was one.
    pub fn remove(&mut self, key: &str) -> bool {
        self.retain(|line| key_value(line).is_none_or(|(k, _)| k != key))
    }

    /// Takes a snapshot's section away; what came from it comes from its parent then. Whether there was anything of it.
    pub fn remove_snapshot(&mut self, name: &str) -> bool {
        let gone = Section::Snapshot(name.to_owned());
        let parent = self.lines.properties(&gone).into_iter().rev().find(|(key, _)| key == "parent");
        let parent = parent.map(|(_, parent)| format!("parent: {parent}\n").into_bytes()).unwrap_or_default();
        let mut text = Vec::new();
        for (_, line) in self.lines.lines().filter(|(at, _)| *at != gone) {
            let is_child = key_value(line).is_some_and(|(key, value)| key == "parent" && value == name);
            text.extend_from_slice(if is_child { &parent } else { line });
        }
        let changed = text != self.lines.to_bytes();
        self.lines = GuestConfig::parse(&text);
        changed
    }

    /// The volumes that are kept without being used, `unusedN`, and those that a snapshot has.
    pub fn aside(&self, snapshot: &str) -> Vec<String> {
        let of = |section: Section, wanted: fn(&str) -> bool| {
            self.lines.properties(&section).into_iter().filter(move |(key, _)| wanted(key)).map(|(_, value)| value)
        };
        let unused = of(Section::Main, |key| key.starts_with("unused"));
        let in_snapshot = of(Section::Snapshot(snapshot.to_owned()), |key| key == "rootfs" || number(key).is_some());
        let source = |value: String| Some(pairs(&value, "volume").into_iter().find(|(key, _)| key == "volume")?.1);
        unused
            .chain(in_snapshot)
            .filter_map(source)
            .filter(|volid| volid.contains(':') && !volid.starts_with('/'))
            .collect()
    }

    /// Takes all lines for LXC itself away; whether there was one.
    pub fn remove_lxc_lines(&mut self) -> bool {
        self.retain(|line| lxc_line(line).is_none())
    }

    fn main(&self) -> usize {
        self.lines.lines().take_while(|(section, _)| *section == Section::Main).count()
    }

    fn retain(&mut self, keep: impl Fn(&[u8]) -> bool) -> bool {
        let before = self.lines.to_bytes();
        let kept = self.lines.lines().filter(|(at, line)| *at != Section::Main || keep(line));
        let kept: Vec<&[u8]> = kept.map(|(_, line)| line).collect();
        let kept = kept.concat();
        let removed = kept.len() != before.len();
        self.lines = GuestConfig::parse(&kept);
        removed
    }
}

/// The number of `mpN`.
fn number(key: &str) -> Option<u64> {
    let digits = key.strip_prefix("mp")?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// `lxc.key: value` or `lxc.key = value`.
fn lxc_line(line: &[u8]) -> Option<(String, String)> {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end();
    let end = text.find([':', '=', ' ', '\t'])?;
    let (key, rest) = text.split_at(end);
    let value = rest.strip_prefix(':').or_else(|| rest.trim_start().strip_prefix('='))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (key.starts_with("lxc.") && key.chars().all(plain)).then(|| (key.to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests;
