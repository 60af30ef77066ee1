//! From a command line to checked parameters.

use std::collections::BTreeMap;

use super::words::split_list;
use super::{Command, Kind, Positional, Properties, check_value, getopt, parse_bool, usage_line};

/// The parameters of one call: only what was given, every value checked and cleaned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params {
    /// Arrays keep one entry per value; everything else has exactly one.
    values: BTreeMap<&'static str, Vec<String>>,
}

impl Params {
    /// Whether the parameter was given.
    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The value of a parameter that has one.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name)?.first().map(String::as_str)
    }

    /// The items of a list, or the values of an array.
    pub fn items(&self, command: &Command, name: &str) -> Vec<String> {
        let Some(values) = self.values.get(name) else { return Vec::new() };
        match command.option(name).map(|opt| opt.kind) {
            Some(Kind::Array) => values.clone(),
            _ => values.iter().flat_map(|value| split_list(value)).collect(),
        }
    }

    /// Whether the boolean was given and is true.
    pub fn flag(&self, name: &str) -> bool {
        self.text(name) == Some("1")
    }

    /// The pairs of a property string.
    pub fn properties(&self, command: &Command, name: &'static str) -> Option<Properties> {
        let Kind::Property(shape) = command.option(name)?.kind else { return None };
        Properties::parse(name, self.text(name)?, shape).ok()
    }

    /// Checks and cleans every value, and that what options require is there.
    pub(super) fn verified(mut self, command: &'static Command) -> Result<Self, UsageError> {
        let mut errors = Vec::new();
        for (name, values) in &mut self.values {
            let Some(opt) = command.option(name) else { continue };
            for value in values {
                match check_value(opt, value) {
                    Ok(clean) => *value = clean,
                    Err(reason) => errors.push(((*name).to_owned(), reason)),
                }
            }
        }
        for opt in command.options {
            if let Some(other) = opt.requires.filter(|other| self.has(opt.name) && !self.has(other)) {
                let reason = format!("missing property required by '{}'", opt.name);
                if !errors.iter().any(|(name, _)| name == other) {
                    errors.push((other.to_owned(), reason));
                }
            }
        }
        if errors.is_empty() { Ok(self) } else { Err(UsageError::params(command, &errors)) }
    }

    /// Sets a parameter to values that were checked with [`check_value`].
    pub(crate) fn set(&mut self, name: &'static str, values: Vec<String>) {
        self.values.insert(name, values);
    }

    /// Adds an unchecked value.
    pub(super) fn push(&mut self, name: &'static str, value: String) {
        self.values.entry(name).or_default().push(value);
    }

    /// Forgets a parameter.
    pub(crate) fn remove(&mut self, name: &str) {
        self.values.remove(name);
    }

    /// All parameters by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &[String])> {
        self.values.iter().map(|(name, values)| (*name, values.as_slice()))
    }
}

/// A command line that cannot be run. Its text goes to standard error as it is; the exit code is 255.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct UsageError {
    text: String,
    reasons: Vec<(String, String)>,
}

impl UsageError {
    pub(super) fn new(command: &Command, what: &str) -> Self {
        Self { text: format!("400 {what}\n{}\n", usage_line(command)), reasons: Vec::new() }
    }

    fn unparsable(command: &Command, complaints: &[String]) -> Self {
        let complaints: String = complaints.iter().map(|line| format!("{line}\n")).collect();
        Self { text: complaints + &Self::new(command, "unable to parse option").text, reasons: Vec::new() }
    }

    /// Parameters that fail their checks: name and reason of each.
    pub(super) fn params(command: &Command, errors: &[(String, String)]) -> Self {
        let lines: String = errors.iter().map(|(name, reason)| format!("\n{name}: {reason}")).collect();
        Self { reasons: errors.to_vec(), ..Self::new(command, &format!("Parameter verification failed.{lines}")) }
    }

    /// Name and reason of each parameter that failed its check; for a place that is no terminal, where the usage line
    /// says nothing. Empty when the words could not be read as options at all.
    pub fn reasons(&self) -> impl Iterator<Item = (&str, &str)> {
        self.reasons.iter().map(|(name, reason)| (name.as_str(), reason.trim_end()))
    }

    pub(super) fn param(command: &Command, name: &str, reason: &str) -> Self {
        Self::params(command, &[(name.to_owned(), reason.to_owned())])
    }
}

/// Parses and checks the arguments (without the program's name) of `command`.
///
/// # Errors
/// The complete text for standard error.
pub fn parse(command: &'static Command, args: &[String]) -> Result<Params, UsageError> {
    let given = getopt::split(command, args);
    if !given.complaints.is_empty() {
        return Err(UsageError::unparsable(command, &given.complaints));
    }
    let mut params = Params::default();
    for (opt, value) in given.options {
        let values = params.values.entry(opt.name).or_default();
        match opt.kind {
            Kind::Array => values.push(value),
            Kind::List(_) if !values.is_empty() => values[0] = format!("{},{value}", values[0]),
            Kind::Bool if value.is_empty() => *values = vec!["1".to_owned()],
            _ => *values = vec![value],
        }
    }
    positional(command, given.words, &mut params)?;
    let unclear = |name: &str| {
        let is_bool = command.option(name).is_some_and(|opt| matches!(opt.kind, Kind::Bool));
        is_bool && params.text(name).and_then(parse_bool).is_none()
    };
    if params.values.keys().any(|name| unclear(name)) {
        return Err(UsageError::new(command, "unable to parse boolean option"));
    }
    params.verified(command)
}

fn positional(command: &'static Command, words: Vec<String>, params: &mut Params) -> Result<(), UsageError> {
    match command.positional {
        Positional::Rest(opt) => {
            if !words.is_empty() {
                params.values.insert(opt.name, vec![words.join(",")]);
            }
        }
        Positional::Words(names) => {
            if words.len() != names.len() {
                let what = if words.len() < names.len() { "not enough arguments" } else { "too many arguments" };
                return Err(UsageError::new(command, what));
            }
            for (opt, word) in names.iter().zip(words) {
                params.values.insert(opt.name, vec![word]);
            }
        }
    }
    Ok(())
}
