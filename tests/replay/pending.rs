//! Recorded cases whose behaviour belongs to later work, by name and with the reason. Every other case must replay.

/// Case names, or prefixes ending in `*`, and what they wait for.
const PENDING: &[(&str, &str)] = &[
    ("11-all-exclude", "selection of guests by --all, --exclude and --pool"),
    ("36-pool-unknown", "selection of guests by --all, --exclude and --pool"),
    ("38-protected-2", "max-protected-backups"),
    ("39-keep2-*", "the words and limits of retention"),
    ("61-conf-prune-dumpdir*", "the words of retention in a directory"),
    ("62-job-run", "vzkeep jobs"),
    ("7*", "containers"),
    ("90-*", "containers"),
];

/// Why the case named `name` is not replayed yet.
pub fn reason(name: &str) -> Option<&'static str> {
    PENDING.iter().find(|(pattern, _)| matches(pattern, name)).map(|(_, why)| *why)
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
}
