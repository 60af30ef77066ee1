//! `/etc/vzkeep.conf`: what goes beyond the original, all of it off until it is switched on here. `key: value` lines as in
//! `/etc/vzdump.conf`: `#` begins a comment, a bad line or value is warned about and ignored, an unknown key is warned about
//! and kept.

use std::collections::BTreeMap;
use std::time::Duration;

use super::vzdump_conf::key_value;
use crate::schema::Format::Any;
use crate::schema::Kind::{Bool, Integer, Property, Text};
use crate::schema::{Kind, Opt, Properties, PropertyString, check_value};

/// A day: no hook works longer on purpose.
const LONGEST: i64 = 86_400;
/// A file that is no configuration at all must not flood the log of a backup.
const MOST_WARNINGS: usize = 20;
/// How much of a bad line and of what is wrong with it is shown, in characters.
const SHOWN: (usize, usize) = (80, 160);

const fn seconds(phase: &'static str) -> Opt {
    Opt::new(phase, Integer { min: Some(0), max: Some(LONGEST) }, "Seconds a hook may take in this phase; 0: no limit.")
        .typetext("<seconds>")
}

/// `hook-timeout`: one number for all phases, or `default=300,job-init=60`.
pub static HOOK_TIMEOUT: PropertyString = PropertyString {
    default_key: Some("default"),
    keys: &[
        seconds("default"),
        seconds("backup-abort"),
        seconds("backup-end"),
        seconds("backup-start"),
        seconds("job-abort"),
        seconds("job-end"),
        seconds("job-init"),
        seconds("job-start"),
        seconds("log-end"),
        seconds("post-restart"),
        seconds("pre-restart"),
        seconds("pre-stop"),
    ],
    check: None,
};

/// All keys of the file.
pub static KEYS: &[Opt] = &[
    Opt::new("hook-json", Bool, "Give hooks a JSON description of the job on standard input.").default("0"),
    Opt::new("hook-legacy-env", Bool, "Set TARFILE and PATH for hooks, as versions before 6.2 did.").default("0"),
    Opt::new("hook-timeout", Property(&HOOK_TIMEOUT), "How long a hook may take, per phase."),
    Opt::new("hooks-dir", Text(Any), "Run the programs of this directory as hooks, too.").typetext("<path>"),
];

/// The file's contents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VzkeepConf {
    /// Directory of further hooks, a path of the node.
    pub hooks_dir: Option<String>,
    /// Whether hooks see `TARFILE` and `PATH`.
    pub hook_legacy_env: bool,
    /// Whether hooks are told about the job in JSON.
    pub hook_json: bool,
    /// Keys that are none of ours.
    pub unknown: BTreeMap<String, String>,
    /// What was ignored, one message each.
    pub warnings: Vec<String>,
    timeouts: Properties,
}

impl VzkeepConf {
    /// Where the file lies; also its name in messages.
    pub const PATH: &'static str = "/etc/vzkeep.conf";

    /// Reads the text of the file.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        let mut ignored = 0;
        let mut warn = |warnings: &mut Vec<String>, what: String| {
            if warnings.len() < MOST_WARNINGS {
                warnings.push(format!("'{}': {what}", Self::PATH))
            } else {
                ignored += 1
            }
        };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let Some((key, value)) = key_value(line) else {
                warn(&mut conf.warnings, format!("ignoring the line '{}': expected 'key: value'", shortened(line)));
                continue;
            };
            match KEYS.iter().find(|opt| opt.name == key) {
                None => {
                    let known: Vec<&str> = KEYS.iter().map(|opt| opt.name).collect();
                    let (key_shown, known) = (shortened(key), known.join(", "));
                    warn(&mut conf.warnings, format!("unknown key '{key_shown}'; the keys are {known}"));
                    conf.unknown.insert(key.to_owned(), value.to_owned());
                }
                Some(opt) => {
                    if let Err(reason) = conf.set(opt, value) {
                        let (value, reason, right) = (shortened(value), cut(&reason, SHOWN.1), right(opt));
                        warn(&mut conf.warnings, format!("ignoring {key}: '{value}': {reason}; {right}"));
                    }
                }
            }
        }
        if ignored > 0 {
            conf.warnings.push(format!("'{}': {ignored} more of this kind", Self::PATH));
        }
        conf
    }

    fn set(&mut self, opt: &'static Opt, value: &str) -> Result<(), String> {
        let clean = check_value(opt, value).map_err(|reason| reason.trim_end().replace('\n', ": "))?;
        match (opt.name, opt.kind) {
            ("hook-json", _) => self.hook_json = clean == "1",
            ("hook-legacy-env", _) => self.hook_legacy_env = clean == "1",
            ("hooks-dir", _) if !clean.starts_with('/') || clean.contains('\0') => {
                return Err("not an absolute path".into());
            }
            ("hooks-dir", _) => self.hooks_dir = Some(clean),
            (_, Kind::Property(shape)) => self.timeouts = Properties::parse(opt.name, &clean, shape)?,
            _ => {}
        }
        Ok(())
    }

    /// How long a hook may take in `phase`; `None`: for ever.
    pub fn hook_timeout(&self, phase: &str) -> Option<Duration> {
        let seconds = self.timeouts.number(phase).or_else(|| self.timeouts.number("default"));
        seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs)
    }
}

/// What a value should look like, for messages.
fn right(opt: &Opt) -> &'static str {
    match opt.name {
        "hook-timeout" => "right would be: hook-timeout: 300, or hook-timeout: default=300,job-init=60 (seconds)",
        "hooks-dir" => "right would be: hooks-dir: /etc/vzkeep/hooks.d",
        _ => "right would be 0 or 1",
    }
}

fn shortened(text: &str) -> String {
    cut(text, SHOWN.0)
}

fn cut(text: &str, characters: usize) -> String {
    let mut shown: String = text.chars().take(characters).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_off_without_the_file() {
        let conf = VzkeepConf::parse("");
        assert_eq!(conf, VzkeepConf::default());
        assert_eq!(conf.hook_timeout("job-init"), None);
        assert!(conf.hooks_dir.is_none() && !conf.hook_json && !conf.hook_legacy_env);
        assert_eq!(VzkeepConf::parse("# hook-json: 1\n\n").warnings, [""; 0]);
    }

    #[test]
    fn values_of_every_key_also_with_carriage_returns() {
        let conf = VzkeepConf::parse(
            "hook-timeout: 300,job-init=60,log-end=0\r\nhooks-dir: /etc/my hooks\r\nhook-json: yes\r\nhook-legacy-env: 1\r\n",
        );
        assert_eq!(conf.warnings, [""; 0]);
        assert_eq!(conf.hook_timeout("backup-start"), Some(Duration::from_secs(300)));
        assert_eq!(conf.hook_timeout("job-init"), Some(Duration::from_secs(60)));
        assert_eq!(conf.hook_timeout("log-end"), None);
        assert_eq!(conf.hooks_dir.as_deref(), Some("/etc/my hooks"));
        assert!(conf.hook_json && conf.hook_legacy_env);
    }

    #[test]
    fn bad_input_is_named_and_ignored() {
        for (line, wanted) in [
            ("hook-timeout: soon", "ignoring hook-timeout: 'soon': "),
            ("hook-timeout: -1", "default: value must have a minimum value of 0; right would be: hook-timeout: 300"),
            ("hook-timeout: job-inti=5", "hook-timeout.job-inti: property is not defined"),
            ("hook-timeout: 99999999999999999999", "maximum value of 86400"),
            (
                "hook-json: maybe",
                "ignoring hook-json: 'maybe': type check ('boolean') failed - got 'maybe'; right would be 0 or 1",
            ),
            ("hooks-dir: hooks.d", "ignoring hooks-dir: 'hooks.d': not an absolute path; right would be"),
            ("hooks-dir:", "not an absolute path"),
            ("hooks-dir: /a\0b", "contains a NUL character"),
            ("hook-json", "ignoring the line 'hook-json': expected 'key: value'"),
            ("hook json: 1", "expected 'key: value'"),
            ("color: red", "unknown key 'color'; the keys are hook-json, hook-legacy-env, hook-timeout, hooks-dir"),
        ] {
            let conf = VzkeepConf::parse(&format!("{line}\nhook-json: 1\n"));
            assert!(conf.warnings.len() == 1 && conf.warnings[0].contains(wanted), "{line}: {:?}", conf.warnings);
            assert!(conf.warnings[0].starts_with("'/etc/vzkeep.conf': "), "{line}");
            assert!(conf.hook_json && conf.hook_timeout("job-init").is_none() && conf.hooks_dir.is_none(), "{line}");
        }
        assert_eq!(VzkeepConf::parse("color: red\n").unknown["color"], "red");
    }

    #[test]
    fn cut_anywhere_huge_or_not_text() {
        let whole = "# all of it\r\nhook-timeout: default=300,job-init=60\nhooks-dir: /etc/h\u{fc}\nhook-json: 1\n";
        for end in 0..=whole.len() {
            let text = String::from_utf8_lossy(&whole.as_bytes()[..end]).into_owned();
            assert!(VzkeepConf::parse(&text).warnings.len() <= 1, "cut at {end}");
        }
        let line = "x".repeat(100) + "\u{fffd}\0\n";
        let conf = VzkeepConf::parse(&line.repeat((10 << 20) / line.len()));
        assert_eq!(conf.warnings.len(), MOST_WARNINGS + 1);
        assert!(conf.warnings.iter().all(|warning| warning.len() < 300));
        assert!(VzkeepConf::parse(&"hook-json: 1 ".repeat(1 << 20)).warnings[0].len() < 400);
    }
}
