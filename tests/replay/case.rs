//! A recorded run of the stock program: what was asked, what the node was like, what came out.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// One folder of `golden/vzdump`.
pub struct Case {
    /// The folder's name.
    pub name: String,
    dir: PathBuf,
    json: Value,
}

impl Case {
    /// All cases below `dir`, by name.
    pub fn all(dir: &Path) -> Vec<Self> {
        let mut cases: Vec<Self> = std::fs::read_dir(dir)
            .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
            .map(|entry| entry.expect("directory entry").path())
            .filter(|path| path.join("case.json").is_file())
            .map(|dir| {
                let text = std::fs::read_to_string(dir.join("case.json")).expect("case.json");
                let json = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
                Self { name: dir.file_name().unwrap_or_default().to_string_lossy().into_owned(), dir, json }
            })
            .collect();
        cases.sort_by(|a, b| a.name.cmp(&b.name));
        cases
    }

    /// The command line, program first.
    pub fn argv(&self) -> Vec<String> {
        strings(&self.json["argv"])
    }

    /// The exit code.
    pub fn rc(&self) -> i64 {
        self.json["rc"].as_i64().expect("rc")
    }

    /// Guests that ran before.
    pub fn running(&self) -> Vec<u32> {
        let list = self.json["before"]["running"].as_array().cloned().unwrap_or_default();
        list.iter().filter_map(|v| v.as_u64().and_then(|n| u32::try_from(n).ok())).collect()
    }

    /// Something about the node or the run that a replay must bring about, beyond running guests and failing hooks.
    pub fn special(&self) -> Option<String> {
        let before = self.json["before"].as_object()?;
        before
            .iter()
            .find(|(key, _)| !["running", "hook_fails", "vzdump_conf"].contains(&key.as_str()))
            .map(|(k, v)| format!("{k}: {v}"))
    }

    /// A file of the recording, empty if there is none.
    pub fn text(&self, name: &str) -> String {
        std::fs::read(self.dir.join(name)).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// Whether standard output was an archive rather than text.
    pub fn binary_stdout(&self) -> bool {
        strings(&self.json["binary"]).iter().any(|b| b == "stdout")
    }

    /// The log files that stood beside the archives after the run: guest type and number, content.
    pub fn guest_logs(&self) -> Vec<(String, String)> {
        let mut logs: Vec<(String, String)> = std::fs::read_dir(&self.dir)
            .expect("case")
            .filter_map(|entry| entry.expect("entry").file_name().into_string().ok())
            .filter(|name| name.starts_with("vzdump-") && name.ends_with(".log"))
            .map(|name| (name.split('-').take(3).collect::<Vec<_>>().join("-"), self.text(&name)))
            .collect();
        logs.sort();
        logs
    }

    /// Each hook call as (argv, cwd, environment, state), comparable.
    pub fn hook_calls(&self) -> Vec<Value> {
        calls(&self.text("hook.jsonl"), "")
    }
}

/// The calls in a hook's log, with `root` taken out and times made equal.
pub fn calls(jsonl: &str, root: &str) -> Vec<Value> {
    let jsonl = if root.is_empty() { jsonl.to_owned() } else { jsonl.replace(root, "") };
    let stamp = regex::Regex::new(r"\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d").expect("pattern");
    jsonl
        .lines()
        .map(|line| {
            let line = stamp.replace_all(line, "STAMP");
            let call: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line}: {e}"));
            let sorted = |v: &Value| -> std::collections::BTreeMap<String, Value> {
                v.as_object().map(|o| o.iter().map(|(k, v)| (k.clone(), v.clone())).collect()).unwrap_or_default()
            };
            serde_json::json!({
                "argv": call["argv"], "cwd": call["cwd"], "env": sorted(&call["env"]), "state": sorted(&call["state"]),
            })
        })
        .collect()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}
