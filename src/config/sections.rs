//! The section format of the cluster's files (`storage.cfg`, `ha/resources.cfg`): `type: id`, then indented `key value` lines.
//! Every property is kept as text, known or not. Line ends of DOS and missing empty lines between sections are accepted: a
//! section that is not seen would be a storage or a guest that is forgotten.

use std::collections::HashSet;

/// A file of sections.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sections {
    /// In the order of the file.
    pub sections: Vec<CfgSection>,
    /// One message for each line that means nothing, with file and line number.
    pub warnings: Vec<String>,
}

/// One section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CfgSection {
    /// `dir`, `vm`, ...
    pub kind: String,
    /// Its name.
    pub id: String,
    properties: Vec<(String, String)>,
}

impl Sections {
    /// Reads `text`; `path` is the file's name in warnings. Of two sections for which `key` is the same the first counts.
    pub fn parse<K: std::hash::Hash + Eq>(text: &str, path: &str, key: impl Fn(&str, &str) -> K) -> Self {
        let mut all = Self::default();
        let mut seen = HashSet::new();
        let mut open = false;
        for (number, line) in text.lines().enumerate() {
            let trimmed = line.trim();
            let ignored = || format!("file {path} line {} - ignore config line: {trimmed}", number + 1);
            if trimmed.is_empty() {
                open = false;
            } else if trimmed.starts_with('#') {
            } else if !line.starts_with([' ', '\t']) {
                open = false;
                match header(trimmed) {
                    Some((kind, id)) if seen.insert(key(&kind, id)) => {
                        open = true;
                        all.sections.push(CfgSection { kind, id: id.to_owned(), properties: Vec::new() });
                    }
                    Some((_, id)) => {
                        all.warnings.push(format!(
                            "file {path} line {} (skip section '{id}'): there is one of this name already",
                            number + 1
                        ));
                    }
                    None => all.warnings.push(ignored()),
                }
            } else if let (true, Some(section)) = (open, all.sections.last_mut()) {
                let (key, value) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
                section.properties.push((key.to_owned(), value.trim().to_owned()));
            } else {
                all.warnings.push(ignored());
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
    pub fn new(kind: &str, id: &str, properties: &[(&str, &str)]) -> Self {
        let properties = properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self { kind: kind.to_owned(), id: id.to_owned(), properties }
    }

    /// The value of a property; empty for one that stands alone. Of several the last counts.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.properties.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// All properties in the order of the file.
    pub fn properties(&self) -> impl Iterator<Item = (&str, &str)> {
        self.properties.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}
