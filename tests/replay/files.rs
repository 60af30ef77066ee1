//! The files in the directories of backups: those a recording lists, those a replay leaves, and the backups of earlier runs
//! that have to be there for a run that removes or counts them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::LazyLock;

use jiff::civil::DateTime;
use regex::Regex;

use super::case::{Case, guest_of};
use crate::lab::Node;

const FORMAT: &str = "%Y_%m_%d-%H_%M_%S";
static STAMP: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d").unwrap());

/// The directories that the recording lists, and those of the node's storages, in the test's world.
pub fn dump_dirs(node: &Node, case: &Case) -> Vec<PathBuf> {
    let config = std::fs::read_to_string(node.path("/etc/pve/storage.cfg")).unwrap();
    let storages = config.lines().filter_map(|line| line.trim().strip_prefix("path ")).map(|p| format!("{p}/dump"));
    let listed = listing(case).into_keys();
    let all: BTreeSet<PathBuf> = storages.chain(listed).map(|dir| node.path(&dir)).collect();
    all.into_iter().collect()
}

/// What the recording lists: directory, names.
fn listing(case: &Case) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut dir = String::new();
    let extra = case.files(|name| name.strip_prefix("ls-").map(|storage| format!("/mnt/{storage}/dump")));
    let extra: String = extra.iter().map(|(dir, text)| format!("{dir}:\n{text}\n")).collect();
    for line in (case.text("files.txt") + "\n" + &extra).lines() {
        if let Some(head) = line.strip_suffix(':').filter(|head| head.starts_with('/')) {
            dir = head.to_owned();
            found.entry(dir.clone()).or_default();
        } else if let Some(name) = line.split_whitespace().last().filter(|name| name.starts_with("vzdump-")) {
            found.entry(dir.clone()).or_default().push(name.to_owned());
        }
    }
    found
}

fn stamp_of(name: &str) -> Option<String> {
    STAMP.find(name).map(|m| m.as_str().to_owned())
}

/// The times in the names of the files that the run itself made.
fn own_stamps(case: &Case) -> BTreeSet<String> {
    let own: BTreeSet<String> = STAMP.find_iter(&case.said()).map(|m| m.as_str().to_owned()).collect();
    if !own.is_empty() {
        return own;
    }
    // A run that names no file: only its log tells the time.
    case.files(|name| if name.starts_with("vzdump-") { stamp_of(name) } else { None })
        .into_iter()
        .map(|f| f.0)
        .collect()
}

/// Backups of earlier runs: the time in their names, as it is now and as it was then.
#[derive(Default)]
pub struct Seeds {
    then: BTreeMap<String, String>,
    guests: BTreeSet<String>,
}

impl Seeds {
    /// Puts the backups there that the run found, if it did anything about earlier ones: those that its listing shows to be older
    /// than it, and those it says it removed. They are as old as they were then.
    pub fn sow(node: &Node, case: &Case) -> Self {
        let said = case.said();
        let counts = ["prune older backups", "max backup limit", "protected backups per guest"];
        if case.before("after_cases_of").is_empty() && !counts.iter().any(|words| said.contains(words)) {
            return Self::default();
        }
        let date = Regex::new(r" at (\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)").unwrap();
        let began = own_stamps(case).into_iter().next().or_else(|| {
            let at = date.captures(&said)?;
            Some(format!("{}_{}_{}-{}_{}_{}", &at[1], &at[2], &at[3], &at[4], &at[5], &at[6]))
        });
        let Some(began) = began else { return Self::default() };
        let guests: BTreeSet<String> =
            Regex::new(r"VM (\d+)").unwrap().captures_iter(&said).map(|m| format!("vzdump-qemu-{}", &m[1])).collect();
        let mut earlier: Vec<(String, String)> = Vec::new();
        for (dir, names) in listing(case) {
            let older = names.into_iter().filter(|n| stamp_of(n).is_some_and(|s| s < began));
            earlier.extend(older.map(|name| (dir.clone(), name)));
        }
        let removed = Regex::new(r"(?:removing|delete old) backup '(?:([\w-]+):backup/|(/.*)/)([^/']+)'").unwrap();
        for found in removed.captures_iter(&case.text("tasklog.txt")) {
            let dir = found.get(2).map_or_else(|| storage_dir(node, &found[1]), |dir| dir.as_str().to_owned());
            let log = format!("{}-{}.log", guest_of(&found[3]), stamp_of(&found[3]).unwrap());
            earlier.extend([(dir.clone(), found[3].to_owned()), (dir, log)]);
        }
        let parse = |stamp: &str| DateTime::strptime(FORMAT, stamp).unwrap();
        let now = jiff::Zoned::now().datetime();
        let mut seeds = BTreeMap::new();
        for (dir, name) in earlier.iter().filter(|(_, name)| guests.contains(&guest_of(name))) {
            let then = stamp_of(name).unwrap();
            let fresh = now.checked_sub(parse(&began).since(parse(&then)).unwrap()).unwrap();
            let fresh = fresh.strftime(FORMAT).to_string();
            std::fs::write(node.path(dir).join(name.replace(&then, &fresh)), "earlier").unwrap();
            seeds.insert(fresh, then);
        }
        Self { then: seeds, guests }
    }

    /// A file's name with the time it had in the recording; without one if the run itself made it.
    fn as_recorded(&self, name: &str) -> String {
        let Some(stamp) = stamp_of(name) else { return name.to_owned() };
        name.replace(&stamp, self.then.get(&stamp).map_or("STAMP", String::as_str))
    }
}

fn storage_dir(node: &Node, storage: &str) -> String {
    let config = std::fs::read_to_string(node.path("/etc/pve/storage.cfg")).unwrap();
    let mut lines = config.lines().skip_while(|line| !line.ends_with(&format!(": {storage}")));
    let path = lines.find_map(|line| line.trim().strip_prefix("path ")).unwrap();
    format!("{path}/dump")
}

/// Names of the files that the recorded run left, times made equal: also those that it found, if it did anything about them.
pub fn recorded(case: &Case, seeds: &Seeds) -> Vec<String> {
    let own = own_stamps(case);
    let then: BTreeSet<&String> = seeds.then.values().collect();
    let mut names = BTreeSet::new();
    for (dir, listed) in listing(case) {
        for name in listed {
            let Some(stamp) = stamp_of(&name) else { continue };
            if own.contains(&stamp) {
                names.insert(format!("{dir}/{}", name.replace(&stamp, "STAMP")));
            } else if then.contains(&stamp) && seeds.guests.contains(&guest_of(&name)) {
                names.insert(format!("{dir}/{name}"));
            }
        }
    }
    names.into_iter().collect()
}

/// The same of the files that are there now.
pub fn fresh(node: &Node, case: &Case, seeds: &Seeds) -> Vec<String> {
    let listed = listing(case);
    let mut names = BTreeSet::new();
    for dir in dump_dirs(node, case) {
        let shown = format!("/{}", dir.strip_prefix(node.root()).unwrap().display());
        for entry in std::fs::read_dir(&dir).into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            // A directory that the recording does not show: a log is nothing to wonder about there.
            if listed.contains_key(&shown) || !name.ends_with(".log") {
                names.insert(format!("{shown}/{}", seeds.as_recorded(&name)));
            }
        }
    }
    names.into_iter().collect()
}

/// The content of the file that this run left for `guest` with the ending `end`; empty if there is none.
pub fn content(node: &Node, case: &Case, seeds: &Seeds, guest: &str, end: &str) -> String {
    let mut found = dump_dirs(node, case).into_iter().flat_map(|dir| {
        std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    });
    let path = found.find(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        guest_of(name) == guest && name.ends_with(end) && seeds.as_recorded(name).contains("STAMP")
    });
    path.map(|path| std::fs::read_to_string(path).unwrap()).unwrap_or_default()
}
