//! Recorded cases whose behaviour belongs to later work, by name and with the reason. Every other case must replay.

use super::case::Case;

/// Case names, or prefixes ending in `*`, and what they wait for.
const PENDING: &[(&str, &str)] = &[("7*", "containers"), ("90-*", "containers")];

/// Why `case` is not replayed yet.
pub fn reason(case: &Case) -> Option<&'static str> {
    let by_name = PENDING.iter().find(|(pattern, _)| matches(pattern, &case.name)).map(|(_, why)| *why);
    // Whatever its name: among its guests is a container.
    let has_container = case.task_log().contains(" (lxc)\n") || case.argv().iter().any(|word| word == "pct");
    by_name.or(has_container.then_some("containers"))
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
}
