//! The form of the node's section files: a line `type: name`, then one indented `key value` a line. Whatever is no such line is
//! said and left out.

/// One section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) kind: String,
    pub(super) name: String,
    properties: Vec<(String, String)>,
}

impl Section {
    /// The value of a property; the last one counts.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.properties.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// All values of a property that may repeat.
    pub(super) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.properties.iter().filter(move |(k, _)| k == key).map(|(_, value)| value.as_str())
    }
}

/// Reads a file's text: its sections, and what was left out, one sentence each. `file` names the file in those sentences.
pub(super) fn parse(file: &str, text: &str) -> (Vec<Section>, Vec<String>) {
    let (mut sections, mut warnings) = (Vec::<Section>::new(), Vec::new());
    let mut open = false;
    for (number, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if trimmed.is_empty() {
            open = false;
            continue;
        }
        if trimmed.starts_with('#') {
            continue;
        }
        let mut refuse = || warnings.push(format!("{file}: line {} is ignored: '{}'", number + 1, shown(trimmed)));
        if line.starts_with([' ', '\t']) {
            match sections.last_mut() {
                Some(section) if open => {
                    let (key, value) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
                    section.properties.push((key.to_owned(), value.trim().to_owned()));
                }
                _ => refuse(),
            }
            continue;
        }
        let valid = |word: &str| !word.is_empty() && !word.contains(char::is_whitespace);
        let header = trimmed.split_once(':').map(|(kind, name)| (kind.trim(), name.trim()));
        match header.filter(|(kind, name)| valid(kind) && valid(name)) {
            Some((kind, name)) => {
                open = true;
                sections.push(Section { kind: kind.into(), name: name.into(), properties: Vec::new() });
            }
            None => {
                open = false;
                refuse();
            }
        }
    }
    (sections, warnings)
}

/// The beginning of a line, for a sentence. Never its value: the private file holds passwords.
fn shown(line: &str) -> &str {
    let word = line.split(char::is_whitespace).next().unwrap_or_default();
    word.char_indices().nth(40).map_or(word, |(at, _)| &word[..at])
}
