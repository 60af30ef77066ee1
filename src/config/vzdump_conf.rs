//! `/etc/vzdump.conf`: `key: value` lines. A bad line or value is warned about and ignored; an unknown key is kept.

use std::collections::BTreeMap;

use crate::schema::tables::VZDUMP;
use crate::schema::words::split_words;
use crate::schema::{Kind, Params, check_value};

/// The file's contents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VzdumpConf {
    /// Options of `vzdump`, checked.
    pub params: Params,
    /// Keys that are no options of `vzdump`.
    pub unknown: BTreeMap<String, String>,
    /// What was ignored, one message each, without a line feed at the end.
    pub warnings: Vec<String>,
}

impl VzdumpConf {
    /// Where the file lies; also its name in messages.
    pub const PATH: &'static str = "/etc/vzdump.conf";

    /// Reads the text of the file.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        let mut given: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let Some((key, value)) = key_value(line) else {
                conf.warnings.push(format!("ignore config line: {line}"));
                continue;
            };
            match VZDUMP.option(key) {
                None => drop(conf.unknown.insert(key.to_owned(), value.to_owned())),
                Some(opt) if matches!(opt.kind, Kind::Array) => {
                    given.entry(opt.name).or_default().extend(split_words(value));
                }
                Some(opt) => drop(given.insert(opt.name, vec![value.to_owned()])),
            }
        }
        for (name, values) in given {
            let Some(opt) = VZDUMP.option(name) else { continue };
            match values.iter().map(|value| check_value(opt, value)).collect::<Result<Vec<_>, _>>() {
                Ok(values) => conf.params.set(name, values),
                Err(reason) => {
                    conf.warnings.push(format!("parse error in '{}' - '{name}': {}", Self::PATH, reason.trim_end()));
                }
            }
        }
        if conf.params.has("storage") && conf.params.has("dumpdir") {
            conf.params.remove("dumpdir");
            conf.warnings
                .push(format!("both 'storage' and 'dumpdir' defined in '{}' - ignoring 'dumpdir'", Self::PATH));
        }
        conf
    }
}

/// `key: value`; the colon follows the key at once.
pub(super) fn key_value(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once(':')?;
    (!key.is_empty() && !key.contains(char::is_whitespace)).then(|| (key, value.trim_start()))
}
