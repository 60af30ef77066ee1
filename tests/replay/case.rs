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
        // A word that the shell of the recording read as $'a\nb' is written down without its quotes.
        let word = |word: &String| word.strip_prefix('$').map_or(word.clone(), |w| w.replace("\\n", "\n"));
        strings(&self.json["argv"]).iter().map(word).collect()
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

    /// A text of `before`, empty if there is none.
    pub fn before(&self, key: &str) -> String {
        self.json["before"][key].as_str().unwrap_or_default().to_owned()
    }

    /// Names of `before` that a replay does not know what to do about.
    pub fn not_understood(&self) -> Vec<String> {
        const KNOWN: &[&str] =
            &["running", "hook_fails", "vzdump_conf", "storage", "change", "during", "after_cases_of", "order"];
        let before = self.json["before"].as_object().into_iter().flatten();
        before.filter(|(key, _)| !KNOWN.contains(&key.as_str())).map(|(key, value)| format!("{key}: {value}")).collect()
    }

    /// Storages that were made for this run, and how.
    pub fn storages(&self) -> Vec<(String, String)> {
        let map = self.json["before"]["storage"].as_object().into_iter().flatten();
        map.map(|(name, how)| (name.clone(), how.as_str().unwrap_or_default().to_owned())).collect()
    }

    /// What was changed on the node for this run.
    pub fn changes(&self) -> Vec<String> {
        match &self.json["before"]["change"] {
            Value::String(one) => vec![one.clone()],
            many => strings(many),
        }
    }

    /// The phases in which the hook failed, one a line with the exit code.
    pub fn hook_fails(&self) -> String {
        let map = self.json["before"]["hook_fails"].as_object().into_iter().flatten();
        let from_json: String = map.map(|(phase, code)| format!("{phase} {code}\n")).collect();
        // The file has every phase, the description may name but the first.
        let file = self.text("hook.fail");
        if file.is_empty() { from_json } else { file }
    }

    /// The configuration file that the run found.
    pub fn conf(&self) -> String {
        let name = self.before("vzdump_conf");
        self.text(if name.is_empty() { "vzdump.conf" } else { &name })
    }

    /// Everything the run said, in whatever way, but for the names of the backups it removed.
    pub fn said(&self) -> String {
        let all = ["stdout.txt", "stderr.txt", "hook.jsonl", "tasklog.txt"].map(|name| self.text(name)).concat();
        all.lines()
            .filter(|line| !line.contains("removing backup '") && !line.contains("delete old backup '"))
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// The log of the task: of this run's, where the recording has those of several, each below its task's id.
    pub fn task_log(&self) -> String {
        let text = self.text("tasklog.txt");
        let index = self.text("taskindex.txt");
        let own = index.split(' ').next().filter(|upid| !upid.is_empty());
        let sections = text.split("# UPID:").filter(|section| !section.is_empty());
        let all: Vec<&str> = sections.collect();
        let found = all.iter().find(|section| own.is_some_and(|upid| section.starts_with(&upid["UPID:".len()..])));
        let section = found.or(all.first()).copied().unwrap_or_default();
        section.split_once('\n').map(|(_, log)| log.to_owned()).unwrap_or_default()
    }

    /// The process that was recorded; `None` if it began no task.
    pub fn pid(&self) -> Option<i64> {
        let index = self.text("taskindex.txt");
        i64::from_str_radix(index.strip_prefix("UPID:")?.split(':').nth(1)?, 16).ok()
    }

    /// Files of the recording whose names `wanted` knows what to make of.
    pub fn files<T>(&self, wanted: impl Fn(&str) -> Option<T>) -> Vec<(T, String)> {
        let names = std::fs::read_dir(&self.dir).expect("case");
        let mut names: Vec<String> = names.filter_map(|e| e.expect("entry").file_name().into_string().ok()).collect();
        names.sort();
        names.into_iter().filter_map(|name| Some((wanted(&name)?, self.text(&name)))).collect()
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
        self.files(|name| (name.starts_with("vzdump-") && name.ends_with(".log")).then(|| guest_of(name)))
    }

    /// Each hook call as (argv, cwd, environment, state), comparable.
    pub fn hook_calls(&self) -> Vec<Value> {
        calls(&self.text("hook.jsonl"), "")
    }
}

/// `vzdump-qemu-100` of an archive's name, or of a file's beside it.
pub fn guest_of(name: &str) -> String {
    name.split('-').take(3).collect::<Vec<_>>().join("-")
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
