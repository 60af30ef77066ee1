//! Matchers: which notifications go to which targets. A matcher asks for severities, fields and times; all or any of its
//! questions have to be answered with yes, and the answer can be turned around.

use regex::Regex;

use super::daily::DailyDuration;
use super::{Notification, Severity};

/// How the answers to a matcher's questions are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MatcherMode {
    /// All have to be yes.
    #[default]
    All,
    /// One yes is enough.
    Any,
}

impl MatcherMode {
    fn join(self, mut answers: impl Iterator<Item = bool>) -> bool {
        match self {
            Self::All => answers.all(|yes| yes),
            Self::Any => answers.any(|yes| yes),
        }
    }
}

/// One question.
#[derive(Debug, Clone)]
pub enum Directive {
    /// `match-severity info,notice`: one of these.
    Severity(Vec<Severity>),
    /// `match-field exact:hostname=pve1,pve2`: the field has one of these values.
    Exact(String, Vec<String>),
    /// `match-field regex:hostname=^pve`: the field's value matches.
    Regex(String, Regex),
    /// `match-calendar mon..fri 8-17`: it happened then.
    Calendar(DailyDuration),
}

impl Directive {
    /// Reads the value of `match-severity`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn severity(text: &str) -> Result<Self, String> {
        let word = |word: &str| Severity::from_word(word).ok_or_else(|| format!("'{word}' is no severity"));
        Ok(Self::Severity(text.split(',').map(str::trim).map(word).collect::<Result<_, _>>()?))
    }

    /// Reads the value of `match-field`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn field(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is neither 'exact:FIELD=VALUE' nor 'regex:FIELD=EXPRESSION'");
        let (kind, rest) = text.split_once(':').ok_or_else(wrong)?;
        let (field, value) = rest.split_once('=').filter(|(field, _)| !field.trim().is_empty()).ok_or_else(wrong)?;
        let field = field.trim().to_owned();
        match kind.trim() {
            "exact" => Ok(Self::Exact(field, value.split(',').map(|value| value.trim().to_owned()).collect())),
            "regex" => Regex::new(value)
                .map(|regex| Self::Regex(field, regex))
                .map_err(|e| format!("'{value}' is no regular expression: {}", last_line(&e.to_string()))),
            _ => Err(wrong()),
        }
    }

    /// Reads the value of `match-calendar`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn calendar(text: &str) -> Result<Self, String> {
        DailyDuration::parse(text).map(Self::Calendar)
    }

    fn answer(&self, notification: &Notification) -> bool {
        match self {
            Self::Severity(severities) => severities.contains(&notification.severity),
            Self::Exact(field, values) => notification.fields.get(field).is_some_and(|value| values.contains(value)),
            Self::Regex(field, regex) => notification.fields.get(field).is_some_and(|value| regex.is_match(value)),
            Self::Calendar(times) => times.contains(&notification.timestamp),
        }
    }
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default().trim()
}

/// A matcher.
#[derive(Debug, Clone, Default)]
pub struct Matcher {
    /// Its name.
    pub name: String,
    /// Switched off.
    pub disabled: bool,
    /// How its answers are put together.
    pub mode: MatcherMode,
    /// Whether it means the opposite.
    pub invert: bool,
    /// Its questions.
    pub directives: Vec<Directive>,
    /// Questions that cannot be read, and why. Such a matcher matches everything: one message too many is better than a failure that
    /// nobody hears of.
    pub unreadable: Vec<String>,
    /// The names of the endpoints.
    pub targets: Vec<String>,
}

impl Matcher {
    /// Whether its targets get `notification`. Without questions it matches everything, also when turned around.
    pub fn matches(&self, notification: &Notification) -> bool {
        if self.directives.is_empty() || !self.unreadable.is_empty() {
            return true;
        }
        self.mode.join(self.directives.iter().map(|directive| directive.answer(notification))) != self.invert
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::tests::notification;

    fn matcher(mode: MatcherMode, invert: bool, words: &[&str]) -> Matcher {
        let directive = |word: &&str| match word.split_once(' ').unwrap() {
            ("severity", text) => Directive::severity(text).unwrap(),
            ("field", text) => Directive::field(text).unwrap(),
            (_, text) => Directive::calendar(text).unwrap(),
        };
        Matcher { mode, invert, directives: words.iter().map(directive).collect(), ..Matcher::default() }
    }

    #[test]
    fn every_combination() {
        // It has severity error, hostname pve1, type vzdump, and happened on Monday at 9:30.
        let (yes, no) = ("severity error,warning", "severity info");
        let questions = [
            (yes, true),
            (no, false),
            ("field exact:hostname=pve1", true),
            ("field exact:hostname=pve", false),
            ("field exact:type=fencing, vzdump", true),
            ("field exact:job-id=", false),
            ("field regex:hostname=^p.e\\d$", true),
            ("field regex:hostname=^x", false),
            ("field regex:job-id=.*", false),
            ("calendar mon..fri 8-10", true),
            ("calendar sat 8-10", false),
        ];
        for (question, answer) in questions {
            for mode in [MatcherMode::All, MatcherMode::Any] {
                for invert in [false, true] {
                    let with = |words: &[&str]| matcher(mode, invert, words).matches(&notification());
                    assert_eq!(with(&[question]), answer != invert, "{question} {invert}");
                    let all = mode == MatcherMode::All;
                    assert_eq!(with(&[question, yes]), (answer || !all) != invert, "{question} {mode:?} {invert}");
                    assert_eq!(with(&[no, question]), (answer && !all) != invert, "{question} {mode:?} {invert}");
                    assert!(with(&[]), "a matcher that asks nothing matches everything");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_explained_and_matches() {
        assert_eq!(Directive::severity("info,fatal").unwrap_err(), "'fatal' is no severity");
        for text in ["hostname=pve1", "exact:hostname", "exact:=x", "glob:hostname=*", ""] {
            assert!(Directive::field(text).unwrap_err().contains("is neither"), "{text}");
        }
        assert!(Directive::field("regex:hostname=(").unwrap_err().contains("unclosed group"));
        let broken = Matcher { unreadable: vec!["x".into()], ..matcher(MatcherMode::All, false, &["severity info"]) };
        assert!(broken.matches(&notification()));
    }
}
