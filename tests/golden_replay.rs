//! Replays recorded runs of the stock programs on a node of the lab and compares, after normalisation: exit code, terminal,
//! task log, the guests' log files, hook calls with arguments, environment and what they found, and the files left.
//! `GOLDEN_DIR` names the folder of recordings; any case found there is run, or named as pending.

#![expect(clippy::unwrap_used, reason = "tests")]

mod lab;
mod replay {
    pub mod case;
    pub mod normalise;
    pub mod pending;
}

use std::path::{Path, PathBuf};

use lab::Node;
use replay::case::{Case, calls};
use replay::normalise::lines;
use replay::pending;

fn golden() -> Option<PathBuf> {
    let dir = std::env::var_os("GOLDEN_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden"), PathBuf::from);
    if dir.is_dir() {
        return Some(dir);
    }
    assert!(std::env::var_os("CI").is_none(), "GOLDEN_DIR: {} is missing", dir.display());
    println!("SKIPPED golden_replay: {} missing", dir.display());
    None
}

#[test]
fn recorded_runs_replay_equal() {
    let Some(golden) = golden() else { return };
    if !lab::programs::require_guest("golden_replay") || !lab::require("golden_replay", &["perl", "lzop", "zstd"]) {
        return;
    }
    let cases = Case::all(&golden.join("vzdump"));
    assert!(!cases.is_empty(), "no cases below {}", golden.display());
    let mut differing = Vec::new();
    let mut replayed = 0;
    let node = Node::like(&golden.join("node")).unwrap();
    for case in &cases {
        // `REPLAY=23,54-` runs the cases whose names begin so, pending or not; `REPLAY=all` shows which pending ones pass by now.
        let wanted = std::env::var("REPLAY").unwrap_or_default();
        if !wanted.is_empty() && wanted != "all" && !wanted.split(',').any(|start| case.name.starts_with(start)) {
            continue;
        }
        if let Some(reason) = pending::reason(&case.name).filter(|_| wanted.is_empty()) {
            println!("PENDING {}: {reason}", case.name);
            continue;
        }
        if let Some(special) = case.special() {
            println!("PENDING {}: needs a node with {special}", case.name);
            continue;
        }
        if case.running().contains(&200) {
            println!("PENDING {}: containers", case.name);
            continue;
        }
        replayed += 1;
        let differences = replay_case(&node, case);
        println!("{} {}", if differences.is_empty() { "EQUAL" } else { "DIFFERS" }, case.name);
        if !differences.is_empty() {
            differing.push(format!("{}:\n{}", case.name, differences.join("\n")));
        }
    }
    assert!(replayed > 0, "every case below {} is pending", golden.display());
    assert!(differing.is_empty(), "{} of {replayed} differ\n\n{}", differing.len(), differing.join("\n\n"));
}

fn replay_case(node: &Node, case: &Case) -> Vec<String> {
    let root = node.root().to_str().unwrap().to_owned();
    prepare(node, case);
    let argv: Vec<String> = case.argv().into_iter().map(|word| below(&root, &word)).collect();
    let words: Vec<&str> = argv[1..].iter().map(String::as_str).collect();
    let output = node.run(&argv[0], &words).unwrap();

    let mut differences = Vec::new();
    let mut compare = |what: &str, recorded: Vec<String>, fresh: Vec<String>| {
        if recorded != fresh {
            differences.push(difference(what, &recorded, &fresh));
        }
    };
    compare("exit code", vec![case.rc().to_string()], vec![output.code.to_string()]);
    if case.binary_stdout() {
        assert!(!output.stdout.is_empty(), "{}: no archive on standard output", case.name);
    } else {
        compare("stdout", lines(&case.text("stdout.txt"), ""), lines(&output.stdout, &root));
    }
    compare("stderr", lines(&case.text("stderr.txt"), ""), lines(&output.stderr, &root));
    // The recordings carry the task's id as a heading of their own.
    let recorded_task: String = case.text("tasklog.txt").lines().skip(1).map(|l| format!("{l}\n")).collect();
    compare("task log", lines(&recorded_task, ""), lines(&newest_task_log(node), &root));
    let recorded_logs = case.guest_logs();
    for (guest, text) in &recorded_logs {
        compare(&format!("{guest}.log"), lines(text, ""), lines(&fresh_log(node, guest), &root));
    }
    let hook_log = std::fs::read_to_string(node.path("/root/hook.jsonl")).unwrap_or_default();
    let show = |calls: Vec<serde_json::Value>| calls.iter().map(ToString::to_string).collect();
    compare("hook calls", show(case.hook_calls()), show(calls(&hook_log, &root)));
    compare("files", recorded_files(case), fresh_files(node));
    differences
}

/// The node as the recording found it: these guests run and no others, the hook is there, nothing is left of the case before.
fn prepare(node: &Node, case: &Case) {
    for vmid in [100, 101, 102, 103, 110] {
        let running = node.run("qm", &["status", &vmid.to_string()]).unwrap().stdout.contains("running");
        match (running, case.running().contains(&vmid)) {
            (false, true) => drop(node.start(vmid).unwrap()),
            (true, false) => drop(node.ok("qm", &["stop", &vmid.to_string(), "--skiplock"]).unwrap()),
            _ => {}
        }
    }
    for vmid in case.running() {
        // A guest that is still booting after the case before does not listen to its power button.
        node.witness(vmid, "status").unwrap();
    }
    for dir in dump_dirs(node) {
        for entry in std::fs::read_dir(dir).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
    std::fs::remove_dir_all(node.path("/var/log/pve/tasks")).unwrap();
    std::fs::create_dir_all(node.path("/var/log/pve/tasks")).unwrap();
    let dir = node.path("/root");
    std::fs::create_dir_all(&dir).unwrap();
    let hook = dir.join("hook.pl");
    std::fs::write(&hook, include_str!("replay/hook.pl")).unwrap();
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for name in ["hook.jsonl", "hook.fail"] {
        if dir.join(name).exists() {
            std::fs::remove_file(dir.join(name)).unwrap();
        }
    }
    let fail = case.text("hook.fail");
    if !fail.is_empty() {
        std::fs::write(dir.join("hook.fail"), fail).unwrap();
    }
    std::fs::write(node.path("/etc/vzdump.conf"), case.text("vzdump.conf")).unwrap();
}

/// A word of the recorded command line with absolute paths moved below the root.
fn below(root: &str, word: &str) -> String {
    if word.starts_with('/') { format!("{root}{word}") } else { word.to_owned() }
}

fn dump_dirs(node: &Node) -> Vec<PathBuf> {
    ["/mnt/bk/dump", "/mnt/keep2/dump", "/mnt/prot1/dump", "/var/lib/vz/dump"]
        .map(|d| node.path(d))
        .into_iter()
        .filter(|d| d.is_dir())
        .collect()
}

fn newest_task_log(node: &Node) -> String {
    let mut logs = Vec::new();
    for dir in std::fs::read_dir(node.path("/var/log/pve/tasks")).unwrap() {
        let dir = dir.unwrap().path();
        if dir.is_dir() {
            logs.extend(std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()));
        }
    }
    let vzdump = logs.iter().find(|p| p.to_string_lossy().contains(":vzdump:"));
    vzdump.map(|p| std::fs::read_to_string(p).unwrap()).unwrap_or_default()
}

fn fresh_log(node: &Node, guest: &str) -> String {
    let logs: Vec<PathBuf> = dump_dirs(node)
        .iter()
        .flat_map(|d| std::fs::read_dir(d).unwrap().map(|e| e.unwrap().path()))
        .filter(|p| p.extension().is_some_and(|e| e == "log"))
        .filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with(&format!("{guest}-")))
        .collect();
    logs.first().map(|p| std::fs::read_to_string(p).unwrap()).unwrap_or_default()
}

/// Names of the files that the recorded run itself left, times made equal: the recording also lists those of runs before it,
/// which carry other times than the run's own log.
fn recorded_files(case: &Case) -> Vec<String> {
    let stamp = regex::Regex::new(r"\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d").unwrap();
    let text =
        case.text("stdout.txt") + &case.text("stderr.txt") + &case.text("hook.jsonl") + &case.text("tasklog.txt");
    let own: Vec<String> = stamp.find_iter(&text).map(|m| m.as_str().to_owned()).collect();
    let listing = case.text("files.txt");
    let mut names: Vec<String> = listing
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .filter(|name| name.starts_with("vzdump-"))
        .filter(|name| stamp.find(name).is_some_and(|m| own.iter().any(|o| o == m.as_str())))
        .map(|name| stamp.replace(name, "STAMP").into_owned())
        .collect();
    if own.is_empty() {
        // A run that names no file: only its log tells the time.
        names = case.guest_logs().iter().map(|(guest, _)| format!("{guest}-STAMP.log")).collect();
    }
    names.sort();
    names.dedup();
    names
}

fn fresh_files(node: &Node) -> Vec<String> {
    let stamp = regex::Regex::new(r"\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d").unwrap();
    let mut names: Vec<String> = dump_dirs(node)
        .iter()
        .flat_map(|d| std::fs::read_dir(d).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()))
        .map(|name| stamp.replace(&name, "STAMP").into_owned())
        .collect();
    names.sort();
    // Two backups of a guest in one second have two names here; the original overwrote the first.
    names.dedup();
    names
}

fn difference(what: &str, recorded: &[String], fresh: &[String]) -> String {
    let mut text = format!("  {what}:");
    for line in recorded.iter().filter(|l| !fresh.contains(l)) {
        text += &format!("\n    - {line}");
    }
    for line in fresh.iter().filter(|l| !recorded.contains(l)) {
        text += &format!("\n    + {line}");
    }
    if !text.contains('\n') {
        text += &format!("\n    same lines, other order or number:\n    recorded {recorded:#?}\n    fresh {fresh:#?}");
    }
    text
}
