//! A recorded run of a job of the node: the recording's own program read `jobs.cfg` and ran the job as the scheduler does.

use serde_json::Value;

use super::case::Case;
use crate::lab::Node;

/// The command line that runs the same job, which is written to the node's `jobs.cfg`; `None` for any other case.
pub fn command(node: &Node, case: &Case) -> Option<Vec<String>> {
    let recorded = case.text("stdout.txt");
    let json = recorded.lines().find_map(|line| line.strip_prefix("PARSED "))?;
    let jobs: Value = serde_json::from_str(json).unwrap();
    let (id, job) = jobs.as_object().unwrap().iter().next().unwrap();
    let mut text = format!("{}: {id}\n", job["type"].as_str().unwrap());
    for (key, value) in job.as_object().unwrap().iter().filter(|(key, _)| *key != "type") {
        let value = match value {
            Value::String(text) => text.clone(),
            Value::Object(parts) => {
                let part = |(key, value): (&String, &Value)| format!("{key}={}", value.as_str().unwrap());
                parts.iter().map(part).collect::<Vec<_>>().join(",")
            }
            other => other.to_string(),
        };
        text += &format!("\t{key} {value}\n");
    }
    std::fs::write(node.path("/etc/pve/jobs.cfg"), text).unwrap();
    Some(["vzkeep", "jobs", "run", id].map(str::to_owned).to_vec())
}
