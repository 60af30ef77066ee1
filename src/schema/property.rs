//! Property strings: `enabled=1,storage=local`, where one key may lose its name: `1,storage=local`.

use std::fmt;

use super::PropertyString;
use super::check::check_value;

/// The pairs of a property string that was checked against its shape; booleans are `0` or `1`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Properties {
    /// Sorted by key.
    pairs: Vec<(String, String)>,
    default_key: Option<&'static str>,
}

impl Properties {
    /// Reads `text` against `shape`.
    ///
    /// # Errors
    /// The sentence(s) that follow `invalid format - `; `name` is the option's name in them.
    pub fn parse(name: &str, text: &str, shape: &'static PropertyString) -> Result<Self, String> {
        let mut pairs = Vec::new();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            pairs.push(match (part.split_once('='), shape.default_key) {
                (Some((key, value)), _) => (key.trim().to_owned(), value.to_owned()),
                (None, Some(key)) => (key.to_owned(), part.to_owned()),
                (None, None) => {
                    return Err("value without key, but schema does not define a default key".into());
                }
            });
        }
        Self::from_pairs(name, pairs, shape)
    }

    /// Checks `pairs` against `shape`.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn from_pairs(
        name: &str,
        mut pairs: Vec<(String, String)>,
        shape: &'static PropertyString,
    ) -> Result<Self, String> {
        pairs.sort();
        if let Some(twice) = pairs.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("duplicate key in comma-separated list property: {}", twice[0].0));
        }
        let mut given = Self { pairs, default_key: shape.default_key };
        let mut errors = String::new();
        for (key, value) in &mut given.pairs {
            let checked = match shape.key(key) {
                Some(opt) => check_value(opt, value),
                None => {
                    Err("property is not defined in schema and the schema does not allow additional properties".into())
                }
            };
            match checked {
                Ok(clean) => *value = clean,
                Err(reason) => errors += &format!("\n{name}.{key}: {reason}"),
            }
        }
        if !errors.is_empty() {
            return Err(format!("format error{errors}"));
        }
        if let Some(check) = shape.check {
            check(&given)?;
        }
        Ok(given)
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// Whether the boolean `key` is given and true.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key) == Some("1")
    }

    /// The whole number under `key`.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.parse().ok()
    }

    /// All pairs, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// The canonical text: the nameless key first, then the others by name.
impl fmt::Display for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = self.default_key.and_then(|key| self.get(key)).map(str::to_owned);
        let named =
            self.iter().filter(|(key, _)| Some(*key) != self.default_key).map(|(key, value)| format!("{key}={value}"));
        f.write_str(&default.into_iter().chain(named).collect::<Vec<_>>().join(","))
    }
}
