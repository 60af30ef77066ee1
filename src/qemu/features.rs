//! What a QEMU can do for a point in time, from its `query-qmp-schema`.
//!
//! We put a copy-before-write filter over each disk and read through `snapshot-access`. The other construction, backup
//! jobs with `sync=none` in one transaction, needs fewer nodes, but up to QEMU 10.0 a failing fleecing write stops the
//! guest, and since 10.1, where the job knows `on-cbw-error`, it still has no timeout: a fleecing store that hangs would
//! hold the guest's writes for ever. The guest comes first, so the filter is used wherever it exists.

use serde_json::Value;

use super::{QemuError, Qmp};

/// Checks that the filter exists with everything we rely on (QEMU 7.1 and newer).
pub(super) fn require_filter(qmp: &mut Qmp, vmid: u32) -> Result<(), QemuError> {
    let schema = qmp.execute("query-qmp-schema", serde_json::json!({}))?;
    let reason = match missing(&schema) {
        Some(missing) => Some(format!("it lacks {missing}; QEMU 7.1 or newer has it")),
        None => unsafe_iothreads(qmp)?,
    };
    match reason {
        None => Ok(()),
        Some(reason) => Err(QemuError::Unsupported { vmid, version: qmp.version_text(), reason }),
    }
}

/// Before QEMU 9.0 removed the AioContext lock, adding a filter over a node in an I/O thread aborts the process
/// (`qemu_mutex_unlock_impl: Operation not permitted`, seen on 7.2): better no backup than a dead guest.
fn unsafe_iothreads(qmp: &mut Qmp) -> Result<Option<String>, QemuError> {
    if qmp.version().0 >= 9 {
        return Ok(None);
    }
    let threads = qmp.execute("query-iothreads", serde_json::json!({}))?;
    Ok(threads.as_array().is_some_and(|t| !t.is_empty()).then(|| {
        "its disks use I/O threads, with which QEMU before 9.0 can crash when a filter is added; \
         switch off 'iothread' for the disks or upgrade QEMU"
            .to_owned()
    }))
}

/// The first thing in our way, if any.
fn missing(schema: &Value) -> Option<&'static str> {
    let by_name = |name: &str| schema.as_array().into_iter().flatten().find(|entry| entry["name"] == name);
    let variant = |driver: &str| {
        let options = by_name(by_name("blockdev-add")?["arg-type"].as_str()?)?;
        let case = options["variants"].as_array()?.iter().find(|v| v["case"] == driver)?;
        by_name(case["type"].as_str()?)
    };
    let has = |entry: Option<&Value>, member: &str| {
        entry.and_then(|e| e["members"].as_array()).is_some_and(|m| m.iter().any(|m| m["name"] == member))
    };
    let filter = variant("copy-before-write");
    if !has(filter, "on-cbw-error") {
        return Some("the copy-before-write filter with 'on-cbw-error'");
    }
    if !has(filter, "cbw-timeout") {
        return Some("the copy-before-write filter's 'cbw-timeout'");
    }
    if variant("snapshot-access").is_none() {
        return Some("the snapshot-access driver");
    }
    if variant("throttle").is_none() {
        return Some("the throttle filter");
    }
    let commands = ["x-debug-query-block-graph", "blockdev-reopen", "block-export-add"];
    commands.into_iter().find(|command| by_name(command).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema(filter: &[&str], snapshot: bool) -> Value {
        let members: Vec<Value> = filter.iter().map(|m| json!({"name": m})).collect();
        let mut variants = vec![json!({"case": "copy-before-write", "type": "7"})];
        if snapshot {
            variants.push(json!({"case": "snapshot-access", "type": "8"}));
            variants.push(json!({"case": "throttle", "type": "8"}));
        }
        json!([
            {"name": "blockdev-add", "arg-type": "1", "meta-type": "command"},
            {"name": "1", "variants": variants},
            {"name": "7", "members": members},
            {"name": "8", "members": []},
            {"name": "x-debug-query-block-graph"},
            {"name": "blockdev-reopen"},
            {"name": "block-export-add"},
        ])
    }

    #[test]
    fn tells_what_is_missing() {
        assert_eq!(missing(&schema(&["file", "on-cbw-error", "cbw-timeout"], true)), None);
        assert!(missing(&schema(&["file"], true)).unwrap().contains("on-cbw-error"));
        assert!(missing(&schema(&["on-cbw-error"], true)).unwrap().contains("cbw-timeout"));
        assert!(missing(&schema(&["on-cbw-error", "cbw-timeout"], false)).unwrap().contains("snapshot-access"));
        assert!(missing(&json!([])).is_some());
        assert!(missing(&json!("nonsense")).is_some());
    }
}
