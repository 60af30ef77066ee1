//! `vzkeep jobs`, the program itself on a small node: all three sources, what a run leaves, and the daemon.

mod lab;

use anyhow::{Context, Result, ensure};
use lab::run::Running;
use lab::{Guest, Node};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);
/// No process began at that tick, so this task is gone.
const GONE: &str = "UPID:pve1:00000001:7FFFFFFFFFFF:6B02BAFB:vzdump::root@pam:";

const JOBS: &str = "vzdump: nightly\n\tschedule mon..fri 21:00\n\tcomment every%0Anight\n\tvmid 102\n\tstorage backup\n\
    \tmode snapshot\n\tcompress zstd\n\tnotes-template {{guestname}} nightly\n\tprune-backups keep-last=3\n\tall 0\n\
    \tenabled 0\n\nrealm-sync: ad\n\tschedule daily\n\nvzdump: elsewhere\n\tschedule daily\n\tall 1\n\tnode pve2\n\n\
    vzdump: wrong\n\tschedule 8:60\n\tvmid 102\n\tmode never\n";

/// A node with a guest without disks and these jobs.
fn node(jobs: &str) -> Result<Node> {
    let node = Node::new()?.guest(Guest::new(102).name("diskless"))?;
    std::fs::write(node.path("/etc/pve/jobs.cfg"), jobs)?;
    Ok(node)
}

fn script(node: &Node, name: &str, text: &str) -> Result<()> {
    let file = node.root().join("bin").join(name);
    std::fs::write(&file, format!("#!/bin/sh\n{text}\n"))?;
    Ok(std::fs::set_permissions(file, PermissionsExt::from_mode(0o755))?)
}

/// `vzkeep jobs` with `input` on standard input: exit code, standard output, standard error.
fn piped(node: &Node, words: &[&str], input: &str) -> Result<(i32, String, String)> {
    let file = node.path("/tmp/input");
    std::fs::write(&file, input)?;
    let mut command = node.command("vzkeep");
    command.arg("jobs").args(words).stdin(std::fs::File::open(&file)?).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = command.output()?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((lab::run::code(output.status), text(output.stdout), text(output.stderr)))
}

fn archives(node: &Node) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(node.path("/mnt/backup/dump"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".vma") || name.ends_with(".vma.zst") {
            names.push(name);
        }
    }
    Ok(names)
}

fn state(node: &Node, id: &str) -> Result<Value> {
    let file = node.path(&format!("/var/lib/pve-manager/jobs/vzdump-{id}.json"));
    Ok(serde_json::from_slice(&std::fs::read(file)?)?)
}

fn put_state(node: &Node, id: &str, state: &Value) -> Result<()> {
    let dir = node.path("/var/lib/pve-manager/jobs");
    std::fs::create_dir_all(&dir)?;
    Ok(std::fs::write(dir.join(format!("vzdump-{id}.json")), state.to_string())?)
}

fn wait_until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while !holds()? {
        ensure!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn list_show_and_next() -> Result<()> {
    let node = node(JOBS)?;
    let list = node.run("vzkeep", &["jobs", "list"])?;
    let lines: Vec<&str> = list.stdout.lines().collect();
    ensure!(list.code == 0 && lines.len() == 4, "{list:?}");
    let nightly: Vec<&str> = lines[1].split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    ensure!(nightly == ["nightly", "no", "mon..fri 21:00", "-", "102", "backup", "-", "every"], "{nightly:?}");
    ensure!(lines[3].contains("bad schedule") && list.stderr.contains("job 'wrong': schedule '8:60'"), "{list:?}");

    let json = node.ok("vzkeep", &["jobs", "list", "--json"])?;
    let json: Value = serde_json::from_str(&json.stdout)?;
    ensure!(json[0]["enabled"] == false && json[1]["node"] == "pve2" && json[1]["guests"] == "all", "{json}");

    let show = node.ok("vzkeep", &["jobs", "show", "nightly"])?;
    let command = "command: vzdump 102 --all 0 --compress zstd --job-id nightly --mode snapshot \
        --notes-template '{{guestname}} nightly' --prune-backups 'keep-last=3' --quiet 1 --storage backup\n";
    ensure!(show.stdout.contains(command) && show.stdout.contains("comment: every night\n"), "{show:?}");
    let wrong = node.ok("vzkeep", &["jobs", "show", "wrong"])?;
    ensure!(wrong.stderr.contains("mode: value 'never'"), "{wrong:?}");

    let next = node.ok("vzkeep", &["jobs", "next", "nightly", "--count", "3"])?;
    ensure!(next.stdout.lines().count() == 3 && next.stdout.lines().all(|l| l.contains(" 21:00:00 ")), "{next:?}");
    let all = node.run("vzkeep", &["jobs", "next"])?;
    ensure!(all.code == 255 && all.stdout.is_empty() && all.stderr.contains("8:60"), "{all:?}");

    for (words, said) in [
        (&["jobs", "show", "nosuch"][..], "there is no backup job 'nosuch'"),
        (&["jobs", "run", "nosuch"], "there is no backup job 'nosuch'"),
        (&["jobs", "run", "ad"], "job 'ad' is of type 'realm-sync', not a backup job"),
        (&["jobs", "run", "../nightly"], "'../nightly' is not the name of a job"),
        (&["jobs", "run", "wrong"], "job 'wrong' cannot run: mode: value"),
        (&["jobs", "next", "nightly", "--count", "0"], "--count"),
        (&["jobs", "daemon", "--stdin"], "not from standard input"),
        (&["jobs", "list", "--stdin"], "the jobs are no valid JSON"),
        (&["jobs", "list", "--pvesh"], "cannot run 'pvesh'"),
    ] {
        let output = node.run("vzkeep", words)?;
        ensure!(output.code == 255 && output.stderr.contains(said), "{words:?}: {output:?}");
    }
    Ok(())
}

#[test]
fn a_run_leaves_what_a_run_of_the_scheduler_leaves() -> Result<()> {
    let node = node(JOBS)?;
    script(
        &node,
        "pvesh",
        r#"[ "$1 $2 $3 $4" = "get /cluster/backup/p --output-format json" ] || { echo "no such job" >&2; exit 2; }
echo '{"id":"p","type":"vzdump","schedule":"daily","vmid":"102","storage":"backup","prune-backups":{"keep-last":"3"}}'"#,
    )?;
    let run = node.run("vzkeep", &["jobs", "run", "nightly"])?;
    ensure!(run.code == 0 && run.stdout.is_empty() && run.stderr.is_empty(), "{run:?}");
    let state_now = state(&node, "nightly")?;
    ensure!(state_now["state"] == "stopped" && state_now["msg"] == "OK", "{state_now}");
    let upid = state_now["upid"].as_str().context("no task")?;
    let index = std::fs::read_to_string(node.path("/var/log/pve/tasks/index"))?;
    ensure!(index.contains(upid) && upid.contains(":vzdump:102:root@pam:"), "{upid}\n{index}");
    let log = node.path(&upid.parse::<vzkeep::job::upid::Upid>()?.log_path().display().to_string());
    let log = std::fs::read_to_string(log)?;
    let call = "starting new backup job: vzdump 102 --all 0 --compress zstd --job-id nightly --mode snapshot --notes-template \
        '{{guestname}} nightly' --prune-backups 'keep-last=3' --quiet 1 --storage backup\n";
    ensure!(log.contains(call) && log.ends_with("TASK OK\n"), "{log}");
    let [archive] = archives(&node)?.try_into().map_err(|all| anyhow::anyhow!("{all:?}"))?;
    let notes = std::fs::read_to_string(node.path(&format!("/mnt/backup/dump/{archive}.notes")))?;
    ensure!(notes == "diskless nightly", "{notes}");
    let shown = node.ok("vzkeep", &["jobs", "show", "nightly"])?;
    ensure!(shown.stdout.contains(&format!(", OK ({upid})")), "{shown:?}");

    let other = node.run("vzkeep", &["jobs", "run", "elsewhere"])?;
    ensure!(other.code == 0 && other.stderr.contains("is for node 'pve2'"), "{other:?}");
    std::thread::sleep(Duration::from_millis(1100));
    node.ok("vzkeep", &["jobs", "run", "p", "--pvesh"])?;
    ensure!(archives(&node)?.len() == 2);
    let unknown = node.run("vzkeep", &["jobs", "run", "q", "--pvesh"])?;
    ensure!(unknown.code == 255 && unknown.stderr.contains("no such job"), "{unknown:?}");
    std::thread::sleep(Duration::from_millis(1100));
    let input =
        json!([{"id": "s", "vmid": 102, "storage": "backup", "enabled": false, "schedule": "daily"}]).to_string();
    let (code, _, said) = piped(&node, &["run", "s", "-"], &input)?;
    ensure!(code == 0 && archives(&node)?.len() == 3, "{said}");
    // A job that fails says so, and its state, too.
    let input = r#"{"id":"f","vmid":"999","storage":"backup"}"#;
    let (code, _, said) = piped(&node, &["run", "f", "--stdin"], input)?;
    ensure!(code == 255 && said.contains("job errors") && state(&node, "f")?["msg"] == "job errors", "{said}");
    Ok(())
}

fn daemon(node: &Node) -> Result<Running> {
    let mut command = node.command("sh");
    // What a daemon says goes to standard error; the lab looks at standard output.
    command.args(["-c", "exec vzkeep jobs daemon 2>&1"]);
    Running::start(command, &node.path("/tmp"))
}

fn missed(id: &str, vmid: u32, more: &str) -> String {
    format!("vzdump: {id}\n\tschedule *-*-01 00:00\n\trepeat-missed 1\n\tvmid {vmid}\n\tstorage backup\n{more}\n")
}

fn long_ago(schedule: &str) -> Value {
    json!({"state": "created", "time": 1_600_000_000, "config": {"schedule": schedule}})
}

#[test]
fn the_daemon_makes_up_for_what_was_missed_and_for_nothing_else() -> Result<()> {
    let jobs =
        missed("due", 102, "") + &missed("late", 102, "\trepeat-missed 0\n") + &missed("off", 102, "\tenabled 0\n");
    let jobs = jobs + &missed("there", 102, "\tnode pve2\n") + "vzdump: wrong\n\tschedule never\n\tvmid 102\n";
    let node = node(&jobs)?;
    for id in ["late", "off", "there", "former"] {
        put_state(&node, id, &long_ago("*-*-01 00:00"))?;
    }
    // This one ran when the machine lost power.
    put_state(
        &node,
        "due",
        &json!({"state": "started", "upid": GONE.replace("6B02BAFB", "5F5E1000"),
        "config": {"schedule": "*-*-01 00:00"}}),
    )?;
    let mut running = daemon(&node)?;
    running.wait_for("job 'due' started", SOON)?;
    running.wait_for("job 'due' ended: OK", SOON)?;
    running.wait_for("job 'wrong': schedule 'never' cannot be read", SOON)?;
    ensure!(archives(&node)?.len() == 1 && state(&node, "due")?["msg"] == "OK");
    ensure!(state(&node, "former").is_err(), "the state of a job that is no more is kept");
    ensure!(state(&node, "late")?["updated"].is_i64(), "a missed time still counts");

    let second = node.run("vzkeep", &["jobs", "daemon"])?;
    ensure!(second.code == 255 && second.stderr.contains("another 'vzkeep jobs daemon' runs here"), "{second:?}");

    // A file that is cut in the middle does not make the jobs before it go away.
    std::fs::write(node.path("/etc/pve/jobs.cfg"), "vzdump: du")?;
    std::fs::write(node.path("/etc/pve/vzdump.cron"), "0 2 * *")?;
    running.signal(Signal::SIGHUP)?;
    running.wait_for("going on with the jobs as they were before", SOON)?;
    running.signal(Signal::SIGTERM)?;
    let output = running.wait(SOON)?;
    ensure!(output.code == 0 && output.stdout.matches("as they were before").count() == 1, "{output:?}");
    ensure!(archives(&node)?.len() == 1, "a job ran twice");
    Ok(())
}

/// A job whose hook waits for the file `/tmp/go`.
fn slow() -> Result<Node> {
    let node = node(&missed("slow", 102, "\tscript /hook\n"))?;
    let text = format!(
        "[ $1 = backup-start ] || exit 0\nwhile [ ! -e {} ]; do sleep 0.1; done",
        node.path("/tmp/go").display()
    );
    std::fs::write(node.path("/hook"), format!("#!/bin/sh\nPATH=/bin:/usr/bin\n{text}\n"))?;
    std::fs::set_permissions(node.path("/hook"), PermissionsExt::from_mode(0o755))?;
    put_state(&node, "slow", &long_ago("*-*-01 00:00"))?;
    Ok(node)
}

#[test]
fn term_leaves_a_running_backup_and_the_next_daemon_does_not_run_it_twice() -> Result<()> {
    let node = slow()?;
    let mut first = daemon(&node)?;
    first.wait_for("job 'slow' started", SOON)?;
    wait_until("the task", || Ok(state(&node, "slow")?["state"] == "started"))?;
    let twice = node.run("vzkeep", &["jobs", "run", "slow"])?;
    ensure!(twice.code == 255 && twice.stderr.contains("job 'slow' runs already, as task UPID:"), "{twice:?}");
    first.signal(Signal::SIGTERM)?;
    let first = first.wait(SOON)?;
    ensure!(first.code == 0 && first.stdout.contains("job 'slow' goes on without us"), "{first:?}");
    let mut second = daemon(&node)?;
    second.wait_for("looking after", SOON)?;
    std::thread::sleep(Duration::from_millis(1200));
    ensure!(!second.stdout_so_far()?.contains("started"), "{}", second.stdout_so_far()?);
    std::fs::write(node.path("/tmp/go"), "")?;
    wait_until("the backup", || Ok(state(&node, "slow")?["msg"] == "OK"))?;
    ensure!(archives(&node)?.len() == 1);
    second.signal(Signal::SIGTERM)?;
    ensure!(second.wait(SOON)?.code == 0);
    Ok(())
}

#[test]
fn int_stops_a_running_backup_cleanly() -> Result<()> {
    let node = slow()?;
    let mut running = daemon(&node)?;
    wait_until("the task", || Ok(state(&node, "slow")?["state"] == "started"))?;
    running.wait_for("job 'slow' started", SOON)?;
    running.signal(Signal::SIGINT)?;
    let output = running.wait(SOON)?;
    ensure!(output.code == 0 && output.stdout.contains("job 'slow' is asked to stop"), "{output:?}");
    ensure!(state(&node, "slow")?["state"] == "stopped" && archives(&node)?.is_empty());
    let left = node.leftovers_on_disk(102)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn on_a_node_the_daemon_refuses() -> Result<()> {
    let node = node("")?;
    std::fs::create_dir_all(node.path("/usr/bin"))?;
    std::fs::write(node.path("/usr/bin/pvescheduler"), "")?;
    let refused = node.run("vzkeep", &["jobs", "daemon"])?;
    ensure!(refused.code == 255 && refused.stderr.contains("--even-with-pvescheduler"), "{refused:?}");
    let mut command = node.command("sh");
    command.args(["-c", "exec vzkeep jobs daemon --even-with-pvescheduler 2>&1"]);
    let mut told = Running::start(command, &node.path("/tmp"))?;
    told.wait_for("looking after the backup jobs", SOON)?;
    told.signal(Signal::SIGTERM)?;
    ensure!(told.wait(SOON)?.code == 0);
    Ok(())
}
