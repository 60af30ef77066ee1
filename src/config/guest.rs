//! A VM's configuration file, kept byte by byte: lines we do not know survive every edit. `key: value` lines, `#` lines
//! of description, then sections `[PENDING]`, `[snapshot]`, `[special:...]`.

use crate::schema::parse_bool;

/// Which part of the file a line belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Section {
    /// What holds now.
    Main,
    /// Changes that wait for the next start.
    Pending,
    /// `[special:...]`: state of PVE's own.
    Special(String),
    /// What held when the snapshot of this name was taken.
    Snapshot(String),
}

/// A configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuestConfig {
    /// Each with its line feed, if it has one.
    lines: Vec<Vec<u8>>,
}

/// The guest agent's settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Agent {
    /// Whether the VM has the agent's channel.
    pub enabled: bool,
    /// Whether the file systems are frozen for a backup.
    pub freeze_fs_on_backup: bool,
    /// The device of the channel: `virtio` or `isa`.
    pub kind: String,
}

impl GuestConfig {
    /// Reads a file.
    pub fn parse(text: &[u8]) -> Self {
        Self { lines: text.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect() }
    }

    /// The file again; unchanged if nothing was edited.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.lines.concat()
    }

    /// The lines (with their line feeds) and the sections they belong to; a section's header belongs to it.
    pub fn lines(&self) -> impl Iterator<Item = (Section, &[u8])> {
        let mut section = Section::Main;
        self.lines.iter().map(move |line| {
            if let Some(name) = header(line) {
                section = match name {
                    name if name.eq_ignore_ascii_case("pending") => Section::Pending,
                    name if name.starts_with("special:") => Section::Special(name["special:".len()..].to_owned()),
                    name => Section::Snapshot(name),
                };
            }
            (section.clone(), line.as_slice())
        })
    }

    /// The names of all snapshots, in the order of the file.
    pub fn snapshots(&self) -> Vec<String> {
        let mut names = Vec::new();
        for (section, _) in self.lines() {
            if let Section::Snapshot(name) = section
                && names.last() != Some(&name)
            {
                names.push(name);
            }
        }
        names
    }

    /// The keys and values of one section; what is not text is shown with replacement characters.
    pub fn properties(&self, section: &Section) -> Vec<(String, String)> {
        self.lines().filter(|(at, _)| at == section).filter_map(|(_, line)| key_value(line)).collect()
    }

    /// The value of a key that holds now. Of several the last counts.
    pub fn get(&self, key: &str) -> Option<String> {
        self.properties(&Section::Main).into_iter().rev().find(|(k, _)| k == key).map(|(_, value)| value)
    }

    /// The operation that holds the guest: `backup`, `migrate`, ...
    pub fn lock(&self) -> Option<String> {
        self.get("lock")
    }

    /// The VM's name.
    pub fn name(&self) -> Option<String> {
        self.get("name")
    }

    /// Whether it is a template.
    pub fn is_template(&self) -> bool {
        self.get("template").as_deref().and_then(parse_bool) == Some(true)
    }

    /// The settings of the guest agent.
    pub fn agent(&self) -> Agent {
        let text = self.get("agent").unwrap_or_default();
        let pairs = pairs(&text, "enabled");
        let get = |key: &str| pairs.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
        Agent {
            enabled: get("enabled").and_then(parse_bool) == Some(true),
            freeze_fs_on_backup: get("freeze-fs-on-backup").and_then(parse_bool) != Some(false),
            kind: get("type").unwrap_or("virtio").to_owned(),
        }
    }

    /// Sets `lock: <operation>`, in its alphabetical place.
    pub fn set_lock(&mut self, operation: &str) {
        self.remove_lock();
        let line = format!("lock: {operation}\n").into_bytes();
        let main = self.lines().take_while(|(section, _)| *section == Section::Main).count();
        let greater = |line: &Vec<u8>| key_value(line).is_some_and(|(key, _)| key.as_str() > "lock");
        let at = self.lines[..main].iter().position(greater);
        // At the end of the main part the line goes behind its last one that has text.
        let last = self.lines[..main].iter().rposition(|line| !line.trim_ascii().is_empty());
        let at = at.unwrap_or_else(|| last.map_or(0, |last| last + 1));
        if let Some(before) = at.checked_sub(1)
            && !self.lines[before].ends_with(b"\n")
        {
            self.lines[before].push(b'\n');
        }
        self.lines.insert(at, line);
    }

    /// Removes the lock; whether there was one.
    pub fn remove_lock(&mut self) -> bool {
        let main = self.lines().take_while(|(section, _)| *section == Section::Main).count();
        let before = self.lines.len();
        let mut at = 0;
        self.lines.retain(|line| {
            at += 1;
            at > main || key_value(line).is_none_or(|(key, _)| key != "lock")
        });
        self.lines.len() != before
    }
}

/// The name in `[name]`.
pub(super) fn header(line: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
    text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).map(str::to_owned)
}

/// `key: value`, the key being letters, digits, dashes and underscores.
pub(super) fn key_value(line: &[u8]) -> Option<(String, String)> {
    let text = String::from_utf8_lossy(line);
    let (key, value) = text.trim_end().split_once(':')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (key.starts_with(|c: char| c.is_ascii_alphabetic()) && key.chars().all(plain))
        .then(|| (key.to_owned(), value.trim().to_owned()))
}

/// The pairs of a property string we do not check: unknown keys are kept, a part without `=` belongs to `default`.
pub(super) fn pairs(text: &str, default: &str) -> Vec<(String, String)> {
    let pair = |part: &str| match part.split_once('=') {
        Some((key, value)) => (key.trim().to_owned(), value.to_owned()),
        None => (default.to_owned(), part.to_owned()),
    };
    text.split(',').filter(|part| !part.is_empty()).map(pair).collect()
}
