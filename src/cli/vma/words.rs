//! Options of one letter, as getopt(3) of glibc takes them: anywhere among the other words, bundled, values attached or not.

use super::Failure;
use crate::cli::complain;

/// What was given.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    options: Vec<(char, String)>,
    /// The words that are no options.
    pub(super) rest: Vec<String>,
}

impl Words {
    /// Takes the words behind `command`. `known` are the letters, each with a `:` behind it when it takes a value.
    pub(super) fn parse(command: &str, words: &[String], known: &str) -> Result<Self, Failure> {
        let parsed = Self::take(words, known).map_err(|why| {
            complain(&format!("{command}: {why}\n"));
            Failure::Usage
        })?;
        if parsed.has('h') { Err(Failure::Usage) } else { Ok(parsed) }
    }

    fn take(words: &[String], known: &str) -> Result<Self, String> {
        let mut found = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
                found.rest.push(word.clone());
                continue;
            };
            if letters == "-" {
                found.rest.extend(words.cloned());
                break;
            }
            let mut letters = letters.chars();
            while let Some(letter) = letters.next() {
                let place = known.find(letter).filter(|_| letter != ':');
                let place = place.ok_or_else(|| format!("invalid option -- '{letter}'"))?;
                let mut value = String::new();
                if known[place + letter.len_utf8()..].starts_with(':') {
                    value = letters.by_ref().collect();
                    if value.is_empty() {
                        let next = words.next();
                        value = next.ok_or_else(|| format!("option requires an argument -- '{letter}'"))?.clone();
                    }
                }
                found.options.push((letter, value));
            }
        }
        Ok(found)
    }

    /// Whether the option was given.
    pub(super) fn has(&self, letter: char) -> bool {
        self.options.iter().any(|(given, _)| *given == letter)
    }

    /// All values of the option, in order.
    pub(super) fn all(&self, letter: char) -> impl Iterator<Item = &str> {
        self.options.iter().filter(move |(given, _)| *given == letter).map(|(_, value)| value.as_str())
    }

    /// Its last value.
    pub(super) fn last(&self, letter: char) -> Option<&str> {
        self.all(letter).last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(line: &str, known: &str) -> Result<Words, String> {
        Words::take(&line.split(' ').map(str::to_owned).collect::<Vec<_>>(), known)
    }

    #[test]
    fn options_stand_anywhere() {
        // As qmrestore calls it.
        let words = take("-v -r /tmp/a.fifo - /tmp/dir", "hvd:r:").unwrap();
        assert_eq!((words.has('v'), words.last('r'), words.has('d')), (true, Some("/tmp/a.fifo"), false));
        assert_eq!(words.rest, ["-", "/tmp/dir"]);
        let words = take("a.vma -vdone,two dir -d three -- -v", "hvd:r:").unwrap();
        assert_eq!(words.all('d').collect::<Vec<_>>(), ["one,two", "three"]);
        assert_eq!(words.rest, ["a.vma", "dir", "-v"]);
        assert_eq!(take("-x", "hv").unwrap_err(), "invalid option -- 'x'");
        assert_eq!(take("-:", "hc:").unwrap_err(), "invalid option -- ':'");
        assert_eq!(take("a -c", "hc:").unwrap_err(), "option requires an argument -- 'c'");
    }
}
