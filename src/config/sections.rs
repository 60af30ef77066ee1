//! The section format of the cluster's files (`storage.cfg`, `jobs.cfg`, `notifications.cfg`, `ha/resources.cfg`): `type: id`,
//! then indented `key value` lines. Every property is kept as text, known or not. Line ends of DOS and missing empty lines between
//! sections are accepted: a section that is not seen would be a storage or a guest that is forgotten.

use std::collections::HashSet;

/// A file of sections.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sections {
    /// In the order of the file.
    pub sections: Vec<CfgSection>,
    /// What was left out, in the order of the file.
    pub faults: Vec<Fault>,
}

/// One section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CfgSection {
    /// `dir`, `vm`, ...
    pub kind: String,
    /// Its name.
    pub id: String,
    /// Where it begins, counted from one; zero for one that no file has.
    pub line: usize,
    properties: Vec<(String, String)>,
}

/// A line that was left out. Each file has its own words for it: lines of a private one must not be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Counted from one.
    pub line: usize,
    /// What it is.
    pub text: String,
    /// The name of the section that begins here, if there is one of that name already.
    pub twice: Option<String>,
}

/// What an indented line belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    Nothing,
    Section,
    Skipped,
}

impl Sections {
    /// Reads `text`. Of two sections for which `key` is the same the first counts.
    pub fn parse<K: std::hash::Hash + Eq>(text: &str, key: impl Fn(&str, &str) -> K) -> Self {
        let mut all = Self::default();
        let mut seen = HashSet::new();
        let mut open = Open::Nothing;
        for (number, line) in text.lines().enumerate() {
            let number = number + 1;
            let trimmed = line.trim();
            let fault = |twice| Fault { line: number, text: trimmed.to_owned(), twice };
            if trimmed.is_empty() {
                open = Open::Nothing;
            } else if trimmed.starts_with('#') {
            } else if !line.starts_with([' ', '\t']) {
                open = match header(trimmed) {
                    Some((kind, id)) if seen.insert(key(&kind, id)) => {
                        let section = CfgSection { kind, id: id.to_owned(), line: number, properties: Vec::new() };
                        all.sections.push(section);
                        Open::Section
                    }
                    Some((_, id)) => {
                        all.faults.push(fault(Some(id.to_owned())));
                        Open::Skipped
                    }
                    None => {
                        all.faults.push(fault(None));
                        Open::Nothing
                    }
                };
            } else if let (Open::Section, Some(section)) = (open, all.sections.last_mut()) {
                let (key, value) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
                section.properties.push((key.to_owned(), value.trim().to_owned()));
            } else if open == Open::Nothing {
                all.faults.push(fault(None));
            }
        }
        all
    }
}

/// `type: id`, the type in small letters.
fn header(line: &str) -> Option<(String, &str)> {
    let (kind, id) = line.split_once(':')?;
    let id = id.trim();
    let word = |text: &str| !text.is_empty() && !text.contains(char::is_whitespace);
    (word(kind) && word(id)).then(|| (kind.to_lowercase(), id))
}

impl CfgSection {
    /// A section that no file has.
    pub fn new(kind: &str, id: &str, properties: Vec<(String, String)>) -> Self {
        Self { kind: kind.to_owned(), id: id.to_owned(), line: 0, properties }
    }

    /// The value of a property; empty for one that stands alone. Of several the last counts.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.properties.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// All values of a property that may repeat.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.properties().filter(move |(k, _)| *k == key).map(|(_, value)| value)
    }

    /// All properties in the order of the file.
    pub fn properties(&self) -> impl Iterator<Item = (&str, &str)> {
        self.properties.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}
