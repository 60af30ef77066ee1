//! Recorded cases whose behaviour belongs to later work, by name and with the reason. Every other case must replay.

/// Case names, or prefixes ending in `*`, and what they wait for.
const PENDING: &[(&str, &str)] = &[
    ("11-all-exclude", "selection of guests by --all, --exclude and --pool"),
    ("30-*", "selection of guests: unknown ones among known ones"),
    ("31-*", "storages that cannot be used: error texts"),
    ("32-*", "dumpdir, tmpdir and their error texts"),
    ("33-*", "every option's own behaviour and error text"),
    ("34-*", "notes templates: error texts"),
    ("35-*", "retention given on the command line"),
    ("36-*", "selection of guests"),
    ("37-*", "hook scripts that cannot be run"),
    ("38-*", "max-protected-backups"),
    ("39-*", "retention"),
    ("4[0-2]*", "failures: full target, missing image, foreign lock"),
    ("44-*", "help, mail, node, quiet"),
    ("50-*", "signals"),
    ("52-*", "vzdump --stop"),
    ("53-*", "waiting for the global lock"),
    ("55-*", "a guest agent that is configured but absent"),
    ("6*", "vzdump.conf and jobs"),
    ("7*", "containers"),
    ("8*", "the exact words of qmrestore"),
    ("90-*", "containers"),
];

/// Why the case named `name` is not replayed yet.
pub fn reason(name: &str) -> Option<&'static str> {
    PENDING.iter().find(|(pattern, _)| matches(pattern, name)).map(|(_, why)| *why)
}

fn matches(pattern: &str, name: &str) -> bool {
    let pattern =
        regex::escape(pattern).replace(r"\*", ".*").replace(r"\[", "[").replace(r"\]", "]").replace(r"\-", "-");
    regex::Regex::new(&format!("^{pattern}$")).expect("pattern").is_match(name)
}
