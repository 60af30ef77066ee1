//! A run is killed at each of its steps; its guardian undoes what it did, at once, without anybody's help.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vzkeep::guest::guard::Guard;
use vzkeep::guest::record::{Intent, Opened, Record};
use vzkeep::host::Host;

const CONFIG: &str = "name: web01\nscsi0: local:100/vm-100-disk-0.raw,size=1G\n";
const VZKEEP: &str = env!("CARGO_BIN_EXE_vzkeep");

fn intents() -> Vec<Intent> {
    vec![
        Intent::ConfigLock { lock: "backup".into() },
        Intent::File { path: "/mnt/bk/dump/a.dat".into(), in_qemu: false },
        Intent::Paused,
        Intent::Volume { volid: "local:100/vm-100-fleece-0.raw".into(), in_qemu: true },
        Intent::ShutDown { qemu: None },
    ]
}

/// A monitor that writes down what it is asked for, and says that the guest is paused.
fn monitor(socket: &Path, calls: PathBuf) {
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let greeting =
                r#"{"QMP":{"version":{"qemu":{"micro":2,"minor":0,"major":10},"package":""},"capabilities":[]}}"#;
            writeln!(stream, "{greeting}").unwrap();
            for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                let Ok(line) = line else { break };
                let asked: serde_json::Value = serde_json::from_str(&line).unwrap();
                if asked["execute"] == "cont" {
                    let mut log = fs::OpenOptions::new().create(true).append(true).open(&calls).unwrap();
                    log.write_all(b"monitor cont\n").unwrap();
                }
                let answer = serde_json::json!({
                    "return": {"running": false, "status": "paused", "singlestep": false}, "id": asked["id"],
                });
                if writeln!(stream, "{answer}").is_err() {
                    break;
                }
            }
        }
    });
}

/// A node whose `qm`, `pvesm` and monitor write down what they are asked for.
struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let node = Self { dir: tempfile::tempdir().unwrap() };
        for dir in ["etc/pve/nodes/pve1/qemu-server", "mnt/bk/dump", "bin"] {
            fs::create_dir_all(node.path(dir)).unwrap();
        }
        fs::write(node.path("etc/hostname"), "pve1\n").unwrap();
        fs::write(node.path("mnt/bk/dump/a.dat"), "half").unwrap();
        fs::write(node.config(), format!("lock: backup\n{CONFIG}")).unwrap();
        node.program(
            "qm",
            r#"case $1 in status) echo "status: running";; *) echo "qm $*" >> "$VZKEEP_ROOT/calls";; esac"#,
        );
        node.program("pvesm", r#"case $1 in path) echo "/dev/$2";; *) echo "pvesm $*" >> "$VZKEEP_ROOT/calls";; esac"#);
        monitor(&node.path("var/run/qemu-server/100.qmp"), node.path("calls"));
        node
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn config(&self) -> PathBuf {
        self.path("etc/pve/nodes/pve1/qemu-server/100.conf")
    }

    fn program(&self, name: &str, body: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Starts a run that takes its first `steps` steps, then waits to be killed (or ends, with `steps` negative).
    fn run(&self, steps: i32) -> Child {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["the_run_itself", "--exact", "--ignored"])
            .env("VZKEEP_ROOT", self.dir.path())
            .env("TEST_STEPS", steps.to_string())
            .env("PATH", path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_for(|| self.path("here").exists());
        child
    }

    fn calls(&self) -> Vec<String> {
        fs::read_to_string(self.path("calls")).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

fn wait_for(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Not a test: the process that the others kill.
#[test]
#[ignore = "started by the other tests"]
fn the_run_itself() {
    let Ok(steps) = std::env::var("TEST_STEPS") else { return };
    let steps: i32 = steps.parse().unwrap();
    let host = Host::from_env();
    let Opened::Fresh(mut record) = Record::open(&host, 100, "vzdump").unwrap() else { panic!("orphan") };
    let mut command = Command::new(VZKEEP);
    command.args(["guard", "100"]).env(Host::ROOT_VAR, host.root());
    let guard = Guard::spawn_command(command).unwrap();
    for intent in intents().iter().take(steps.unsigned_abs() as usize) {
        record.note(intent).unwrap();
    }
    fs::write(host.path("/here"), "").unwrap();
    if steps >= 0 {
        std::thread::sleep(Duration::from_secs(60));
    }
    record.clear().unwrap();
    guard.done().unwrap();
}

#[test]
fn killed_at_each_step() {
    for steps in 1..=intents().len() {
        let node = Node::new();
        let mut run = node.run(i32::try_from(steps).unwrap());
        run.kill().unwrap();
        let killed = Instant::now();
        run.wait().unwrap();
        let record = node.path("var/lib/vzkeep/100.json");
        wait_for(|| !record.exists());
        println!("{steps} steps: all undone {:?} after the kill", killed.elapsed());
        assert_eq!(fs::read_to_string(node.config()).unwrap(), CONFIG, "{steps} steps");
        assert_eq!(node.path("mnt/bk/dump/a.dat").exists(), steps < 2);
        let all = [(3, "monitor cont"), (5, "monitor cont"), (4, "pvesm free local:100/vm-100-fleece-0.raw")];
        let expected: Vec<_> = all.iter().filter(|(at, _)| *at <= steps).map(|(_, call)| (*call).to_owned()).collect();
        assert_eq!(node.calls(), expected, "{steps} steps");
        wait_for(|| node.path("var/log/vzdump/qemu-100.log").exists());
    }
}

#[test]
fn a_run_that_ends_in_order_sends_its_guardian_home() {
    let node = Node::new();
    let mut run = node.run(-5);
    assert!(run.wait().unwrap().success());
    assert!(node.calls().is_empty());
    assert!(!Path::new(&node.path("var/lib/vzkeep/100.json")).exists());
    assert!(!node.path("var/log/vzdump/qemu-100.log").exists());
}
