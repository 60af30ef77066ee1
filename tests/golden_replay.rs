//! Replays recorded runs of the stock programs on a node of the lab and compares, after normalisation: exit code, terminal,
//! task log, the guests' log files, notes, hook calls with arguments, environment and what they found, what the notification
//! system was given, the files left, the line in the index of tasks and those in the system log.
//! `GOLDEN_DIR` names the folder of recordings; any case found there is run, and one whose circumstances are not understood
//! fails.

#![expect(clippy::unwrap_used, reason = "tests")]

mod lab;
mod peers {
    #[expect(dead_code, reason = "headers are of interest elsewhere")]
    pub mod http;
}
mod replay {
    pub mod case;
    pub mod during;
    pub mod files;
    pub mod jobs;
    pub mod normalise;
    pub mod notify;
    pub mod record;
    pub mod restores;
    pub mod scene;
}

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use lab::Node;
use replay::case::{Case, calls, guest_of};
use replay::during::{self, During};
use replay::normalise::lines;
use replay::record::{SystemLog, index, recorded_syslog, task_log};
use replay::scene::Scene;
use replay::{files, jobs, notify, restores};

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
    fill(&node);
    let mut notifications = notify::Listener::start(&node);
    for case in &cases {
        // `REPLAY=23,54-` runs the cases whose names begin so.
        let wanted = std::env::var("REPLAY").unwrap_or_default();
        if !wanted.split(',').any(|start| case.name.starts_with(start)) {
            continue;
        }
        replayed += 1;
        // A recording that is not like the others, or a machine that fails: the other cases still have their turn.
        let replayed = catch_unwind(AssertUnwindSafe(|| replay_case(&node, case, &mut notifications)));
        let differences = replayed.unwrap_or_else(|panic| vec![format!("  cannot be replayed: {}", message(&*panic))]);
        println!("{} {}", if differences.is_empty() { "EQUAL" } else { "DIFFERS" }, case.name);
        differences.iter().for_each(|difference| println!("{difference}"));
        if !differences.is_empty() {
            differing.push(format!("{}:\n{}", case.name, differences.join("\n")));
        }
    }
    assert!(replayed > 0, "no case below {} is named as REPLAY says", golden.display());
    assert!(differing.is_empty(), "{} of {replayed} differ\n\n{}", differing.len(), differing.join("\n\n"));
}

/// As much on the disks as the recorded guests had, so that small targets fill up and there is time for what happens during a
/// run: guest, key, MiB.
const CONTENT: [(u32, &str, u64); 2] = [(100, "virtio0", 110), (101, "scsi0", 48)];

fn fill(node: &Node) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for (vmid, key, size) in CONTENT {
        let disk = std::fs::File::options().write(true).open(node.disk(vmid, key).unwrap().0).unwrap();
        for at in 16..16 + size {
            // Bytes that do not compress.
            let word = |_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()
            };
            let block: Vec<u8> = (0..1 << 17).flat_map(word).collect();
            std::os::unix::fs::FileExt::write_all_at(&disk, &block, at << 20).unwrap();
        }
    }
}

fn replay_case(node: &Node, case: &Case, notifications: &mut notify::Listener<'_>) -> Vec<String> {
    let root = node.root().to_str().unwrap().to_owned();
    let during = match During::of(case) {
        Ok(during) => during,
        Err(error) => return vec![format!("  {error}")],
    };
    let scene = match Scene::set(node, case) {
        Ok(scene) => scene,
        Err(error) => return vec![format!("  {error}")],
    };
    if restores::is_restore(case) {
        restores::prepare(node, case);
    }
    let found = files::fresh(node, case, &scene.seeds);
    let argv = jobs::command(node, case).or_else(|| restores::command(case)).unwrap_or_else(|| case.argv());
    let argv: Vec<String> = argv.into_iter().map(|word| below(&root, &word)).collect();
    notifications.forget();
    let syslog = SystemLog::listen(node);
    let (output, pid) = during::run(node, case, &argv, &during);
    let syslog = syslog.end(&root);

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
    if !restores::is_restore(case) {
        compare("task log", lines(&case.task_log(), ""), lines(&task_log(node, pid), &root));
    }
    let recorded = recorded_syslog(&case.text("syslog.txt"));
    // A run that began no task was recorded with the line of the task before it.
    let began = recorded.iter().any(|line| line.contains(" starting task "));
    let line = if began { lines(&case.text("taskindex.txt"), "") } else { Vec::new() };
    compare("task index", line, lines(&index(node, pid), &root));
    let ours: Vec<String> = syslog.iter().filter(|(from, _)| *from == pid).map(|(_, line)| line.clone()).collect();
    if during.has_second() || recorded.iter().filter(|line| line.contains(" starting task ")).count() > 1 {
        // Lines of another run are among the recorded ones, as many as there were when the recording ended.
        let missing = |line: &&String| !recorded.contains(line);
        compare("system log", Vec::new(), ours.iter().filter(missing).cloned().collect());
    } else {
        compare("system log", recorded, ours);
    }
    for (guest, text) in &case.guest_logs() {
        let fresh = files::content(node, case, &scene.seeds, guest, ".log");
        compare(&format!("{guest}.log"), lines(text, ""), lines(&fresh, &root));
    }
    for (name, text) in case.files(|name| name.ends_with(".notes").then(|| name.to_owned())) {
        let fresh = files::content(node, case, &scene.seeds, &guest_of(&name), ".notes");
        compare(&name, vec![text], vec![fresh]);
    }
    for (guest, text) in
        case.files(|name| name.strip_prefix("var-log-vzdump.")?.strip_suffix(".log").map(str::to_owned))
    {
        // One that an earlier run left is there, too.
        let vmid = guest.rsplit('-').next().unwrap_or_default();
        if case.task_log().contains(&format!("Starting Backup of VM {vmid} (")) {
            let path = format!("/var/log/vzdump/{guest}.log");
            let fresh = std::fs::read_to_string(node.path(&path)).unwrap_or_default();
            compare(&path, lines(&text, ""), lines(&fresh, &root));
        }
    }
    let hook_log = std::fs::read_to_string(node.path("/root/hook.jsonl")).unwrap_or_default();
    let show = |calls: Vec<serde_json::Value>| calls.iter().map(ToString::to_string).collect();
    compare("hook calls", show(case.hook_calls()), show(calls(&hook_log, &root)));
    let told = notify::recorded(case);
    let ours = notifications.told(&told);
    compare("notification", told, ours);
    // A restore leaves the backups as they are.
    let left = if restores::is_restore(case) { found } else { files::recorded(case, &scene.seeds) };
    if !matches!(during, During::Second(_)) {
        compare("files", left, files::fresh(node, case, &scene.seeds));
    }
    differences
}

/// What a panic said.
fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}

/// A word of the recorded command line with absolute paths moved below the root.
fn below(root: &str, word: &str) -> String {
    if word.starts_with('/') { format!("{root}{word}") } else { word.to_owned() }
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
