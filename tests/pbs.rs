//! Backups to a Proxmox Backup Server: what QEMU and the client are asked for, in which order, and what is left when that
//! goes wrong. QEMU is played by a monitor that answers as `data/pbs-exchange.json` says, the client by a script.

mod lab;

use anyhow::{Context, Result, ensure};
use lab::{Format, Guest, Node, mib};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const VMID: u32 = 100;
const SOON: Duration = Duration::from_secs(60);

/// How the monitor differs from the one in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Qemu {
    AsWritten,
    /// Knows nothing of all this.
    Stock,
    /// Never gets beyond the first answer.
    Endless,
    /// The server goes away.
    Fails,
}

/// The monitor's memory.
struct Monitor {
    qemu: Qemu,
    exchange: Value,
    status: &'static str,
    asked: Vec<(String, Value)>,
    looks: usize,
    cancelled: bool,
}

impl Monitor {
    fn answer(&mut self, command: &str, arguments: &Value) -> Value {
        if command != "qmp_capabilities" {
            self.asked.push((command.to_owned(), arguments.clone()));
        }
        let mut good = match command {
            "qmp_capabilities" | "cont" => json!({}),
            "query-status" => json!({"status": self.status, "running": self.status == "running"}),
            "backup-cancel" => {
                self.cancelled = true;
                json!({})
            }
            "query-backup" if !self.begun() => json!({"finishing": false}),
            "query-backup" => {
                let answers = self.exchange["query-backup"].as_array().cloned().unwrap_or_default();
                let at = if self.qemu == Qemu::Endless { 0 } else { self.looks.min(answers.len() - 1) };
                self.looks += 1;
                answers[at].clone()
            }
            other => self.exchange[other].clone(),
        };
        if command == "query-backup" && self.begun() && (self.cancelled || self.qemu == Qemu::Fails && self.looks > 1) {
            good["status"] = "error".into();
            good["errmsg"] = "backup write data failed: command error: broken pipe".into();
        }
        let known = ["qmp_capabilities", "query-status", "cont"].contains(&command);
        if good.is_null() || (self.qemu == Qemu::Stock && !known) {
            let desc = format!("The command {command} has not been found");
            return json!({"error": {"class": "CommandNotFound", "desc": desc}});
        }
        json!({"return": good})
    }

    fn begun(&self) -> bool {
        self.asked.iter().any(|(command, _)| command == "backup")
    }
}

/// A node with a storage of type `pbs` and a guest whose QEMU is only a monitor.
struct Server {
    node: Node,
    monitor: Arc<Mutex<Monitor>>,
    qemu: Option<Child>,
}

const CLIENT: &str = r#"#!/bin/sh
echo "$*" >> "$VZKEEP_ROOT/tmp/client"
echo "$PBS_PASSWORD $PBS_FINGERPRINT" >> "$VZKEEP_ROOT/tmp/client-env"
case $1 in
prune) echo '[{"backup-id":"100","keep":true,"protected":false},{"backup-id":"100","keep":false,"protected":false}]';;
upload-log) cp "$3" "$VZKEEP_ROOT/tmp/uploaded";;
esac
"#;

const QM: &str = r#"#!/bin/sh
echo "$*" >> "$VZKEEP_ROOT/tmp/qm"
pid="$VZKEEP_ROOT/run/qemu-server/$2.pid"
case $1 in
status) if [ -e "$pid" ]; then echo "status: running"; else echo "status: stopped"; fi;;
stop) kill "$(cat "$pid")"; rm "$pid";;
esac
"#;

const BRIDGE: &str = r#"#!/bin/sh
cat > /dev/null
echo "$*" >> "$VZKEEP_ROOT/tmp/qm"
pid="$VZKEEP_ROOT/run/qemu-server/100.pid"
perl -e 'sleep 1000' -- -pidfile "$pid" < /dev/null > /dev/null 2>&1 &
echo $! > "$pid"
echo '{}'
"#;

const HOOK: &str = "#!/bin/sh\necho \"HOOK: $1 target=$TARGET dumpdir=$DUMPDIR storeid=$STOREID logfile=$LOGFILE\"\n";

impl Server {
    fn new(qemu: Qemu, guest: Guest, running: bool) -> Result<Self> {
        let node = Node::new()?.guest(guest)?;
        let storages = node.path("/etc/pve/storage.cfg");
        let mut text = std::fs::read_to_string(&storages)?;
        text += "pbs: server\n\tserver 10.0.0.7\n\tdatastore store1\n\tnamespace n\n\tfingerprint aa:bb\n\tprune-backups keep-last=2\n";
        std::fs::write(storages, text)?;
        std::fs::create_dir_all(node.path("/etc/pve/priv/storage"))?;
        std::fs::write(node.path("/etc/pve/priv/storage/server.pw"), "secret\n")?;
        for (name, text) in
            [("proxmox-backup-client", CLIENT), ("qm", QM), ("vzkeep-pve-bridge", BRIDGE), ("hook", HOOK)]
        {
            let path = node.root().join("bin").join(name);
            if path.symlink_metadata().is_ok() {
                std::fs::remove_file(&path)?;
            }
            std::fs::write(&path, text)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        }
        let exchange = serde_json::from_str(include_str!("data/pbs-exchange.json"))?;
        let status = if running { "running" } else { "prelaunch" };
        let (asked, looks, cancelled) = (Vec::new(), 0, false);
        let monitor = Arc::new(Mutex::new(Monitor { qemu, exchange, status, asked, looks, cancelled }));
        let listener = UnixListener::bind(node.qmp_socket(VMID))?;
        let served = Arc::clone(&monitor);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Who hangs up is done, as with QEMU.
                drop(serve(&stream, &served));
            }
        });
        let mut server = Self { node, monitor, qemu: None };
        if running {
            let pid = server.node.path("/run/qemu-server/100.pid");
            let mut command = server.node.command("perl");
            command.args(["-e", "sleep 1000", "--", "-pidfile"]).arg(&pid).stdin(Stdio::null());
            let child = command.spawn()?;
            std::fs::write(pid, child.id().to_string())?;
            server.qemu = Some(child);
        }
        Ok(server)
    }

    fn asked(&self) -> Vec<(String, Value)> {
        self.monitor.lock().map(|monitor| monitor.asked.clone()).unwrap_or_default()
    }

    fn asked_for(&self, command: &str) -> bool {
        self.asked().iter().any(|(asked, _)| asked == command)
    }

    fn wait_until_asked(&self, command: &str) -> Result<()> {
        let deadline = Instant::now() + SOON;
        while !self.asked_for(command) {
            ensure!(Instant::now() < deadline, "'{command}' was never asked: {:?}", self.asked());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn said(&self, file: &str) -> String {
        std::fs::read_to_string(self.node.path("/tmp").join(file)).unwrap_or_default()
    }

    fn nothing_left(&self) -> Result<()> {
        let left = self.node.leftovers_on_disk(VMID)?;
        ensure!(left.is_empty(), "left behind: {left:?}");
        let temporary: Vec<_> = std::fs::read_dir(self.node.path("/var/tmp"))?.flatten().map(|e| e.path()).collect();
        ensure!(temporary.is_empty(), "left behind: {temporary:?}");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(qemu) = &mut self.qemu {
            drop(qemu.kill().and_then(|()| qemu.wait()));
        }
    }
}

fn serve(stream: &UnixStream, monitor: &Mutex<Monitor>) -> std::io::Result<()> {
    let mut out = stream.try_clone()?;
    writeln!(
        out,
        r#"{{"QMP":{{"version":{{"qemu":{{"micro":2,"minor":0,"major":10}},"package":""}},"capabilities":[]}}}}"#
    )?;
    for line in BufReader::new(stream).lines() {
        let asked: Value = serde_json::from_str(&line?)?;
        let Ok(mut monitor) = monitor.lock() else { break };
        let mut answer = monitor.answer(asked["execute"].as_str().unwrap_or_default(), &asked["arguments"]);
        answer["id"] = asked["id"].clone();
        writeln!(out, "{answer}")?;
    }
    Ok(())
}

fn guest() -> Guest {
    Guest::new(VMID).name("web01").disk("scsi0", Format::Raw, mib(1)).disk("virtio0", Format::Raw, mib(1))
}

#[test]
fn a_running_guest_goes_to_the_server() -> Result<()> {
    let server = Server::new(Qemu::AsWritten, guest(), true)?;
    let node = &server.node;
    std::fs::write(node.path("/etc/pve/firewall/100.fw"), "[OPTIONS]\n")?;
    let words =
        ["100", "--storage", "server", "--bwlimit", "1000", "--performance", "max-workers=4", "--protected", "1"];
    let output =
        node.vzdump(&[&words[..], &["--notes-template", "of {{guestname}}", "--script", "/bin/hook"]].concat())?;
    ensure!(output.code == 0, "exit {}:\n{}{}", output.code, output.stdout, output.stderr);
    output.says(&[
        "INFO: HOOK: backup-start target=vm/100/",
        "INFO: creating Proxmox Backup Server archive 'vm/100/",
        "INFO: started backup task '8ac6142f-2f8b-4a6e-80c8-d4610a0f3192'",
        "INFO: resuming VM again",
        "INFO: scsi0: dirty-bitmap status: OK (64.0 MiB of 1.0 GiB dirty)",
        "INFO: virtio0: dirty-bitmap status: created new",
        "INFO: using fast incremental mode (dirty-bitmap), 192.0 MiB dirty of 1.1 GiB total",
        "INFO: Waiting for server to finish backup validation...",
        "INFO: 100% (192.0 MiB of 192.0 MiB) in ",
        "INFO: backup was done incrementally, reused 1008.00 MiB (87%)",
        "INFO: transferred 192.00 MiB in ",
        "INFO: adding notes to backup",
        "INFO: marking backup as protected",
        "INFO: prune older backups with retention: keep-last=2",
        "INFO: running 'proxmox-backup-client prune' for 'vm/100'",
        "INFO: pruned 1 backup(s) not covered by keep-retention policy",
        "INFO: HOOK: backup-end target=vm/100/",
        "INFO: Finished Backup of VM 100 (",
        " dumpdir= storeid=server logfile=",
    ])?;
    let asked = server.asked();
    let (_, backup) = asked.iter().find(|(command, _)| command == "backup").context("no backup was asked for")?;
    for (key, wanted) in [
        ("format", json!("pbs")),
        ("backup-file", json!("root@pam@10.0.0.7:store1")),
        ("backup-id", json!("100")),
        ("backup-ns", json!("n")),
        ("fingerprint", json!("aa:bb")),
        ("password", json!("secret")),
        ("devlist", json!("drive-scsi0,drive-virtio0")),
        ("encrypt", json!(false)),
        ("speed", json!(1_024_000)),
        ("max-workers", json!(4)),
        ("use-dirty-bitmap", json!(true)),
    ] {
        ensure!(backup[key] == wanted, "{key}: {} instead of {wanted}", backup[key]);
    }
    ensure!(backup["config-file"].is_string() && backup["firewall-file"].is_string(), "{backup}");
    ensure!(!server.asked_for("backup-cancel"), "cancelled");
    let client = server.said("client");
    for (line, wanted) in client.lines().zip([
        "snapshot notes update vm/100/",
        "snapshot protected update",
        "prune vm/100 --keep-last 2",
        "upload-log vm/100/",
    ]) {
        ensure!(line.starts_with(wanted) && line.contains("--repository root@pam@10.0.0.7:store1 --ns n"), "{line}");
    }
    ensure!(client.lines().count() == 4 && client.contains(" of web01 "), "{client}");
    ensure!(server.said("client-env").lines().all(|line| line == "secret aa:bb"), "{}", server.said("client-env"));
    ensure!(server.said("uploaded").contains("Finished Backup of VM 100"), "{}", server.said("uploaded"));
    ensure!(!output.stdout.contains("secret"), "{}", output.stdout);
    server.nothing_left()
}

#[test]
fn a_stopped_guest_is_off_again_afterwards() -> Result<()> {
    let server = Server::new(Qemu::AsWritten, guest(), false)?;
    let output = server.node.vzdump(&["100", "--storage", "server"])?;
    ensure!(output.code == 0, "exit {}:\n{}{}", output.code, output.stdout, output.stderr);
    output.says(&[
        "INFO: starting kvm to execute backup task",
        "INFO: started backup task",
        "INFO: stopping kvm after backup task",
    ])?;
    ensure!(
        server.said("qm").contains("vm-start-paused") && server.said("qm").contains("stop 100"),
        "{}",
        server.said("qm")
    );
    ensure!(server.node.qemu_pid(VMID).is_none(), "it runs");
    server.nothing_left()
}

#[test]
fn a_guest_without_disks_goes_through_the_client() -> Result<()> {
    let server = Server::new(Qemu::Stock, Guest::new(VMID), false)?;
    let output = server.node.vzdump(&["100", "--storage", "server"])?;
    ensure!(output.code == 0, "exit {}:\n{}{}", output.code, output.stdout, output.stderr);
    let client = server.said("client");
    let line = client.lines().next().unwrap_or_default();
    ensure!(
        line.starts_with("backup qemu-server.conf:") && line.contains("--backup-type vm --backup-id 100 --backup-time"),
        "{line}"
    );
    ensure!(server.asked().is_empty(), "{:?}", server.asked());
    server.nothing_left()
}

#[test]
fn a_stock_qemu_is_refused_before_anything_happens() -> Result<()> {
    let server = Server::new(Qemu::Stock, guest(), true)?;
    for mode in ["snapshot", "stop"] {
        let output = server.node.vzdump(&["100", "--storage", "server", "--mode", mode, "--script", "/bin/hook"])?;
        output
            .failed_with(&["Backup of VM 100 failed - PBS backups are not supported by the running QEMU version."])?;
        ensure!(!output.stdout.contains("backup-start"), "{}", output.stdout);
    }
    let changes = ["cont", "stop", "backup", "backup-cancel"];
    ensure!(!changes.iter().any(|command| server.asked_for(command)), "{:?}", server.asked());
    ensure!(!server.said("qm").contains("shutdown"), "{}", server.said("qm"));
    server.nothing_left()
}

#[test]
fn without_the_client_nothing_begins() -> Result<()> {
    let server = Server::new(Qemu::AsWritten, guest(), true)?;
    std::fs::remove_file(server.node.root().join("bin/proxmox-backup-client"))?;
    let output = server.node.vzdump(&["100", "--storage", "server"])?;
    ensure!(output.code == 255, "exit {}", output.code);
    ensure!(
        output.stderr.contains("need the program 'proxmox-backup-client', which is not installed"),
        "{}",
        output.stderr
    );
    ensure!(server.asked().is_empty(), "{:?}", server.asked());
    server.nothing_left()
}

#[test]
fn a_server_that_goes_away_fails_the_backup() -> Result<()> {
    let server = Server::new(Qemu::Fails, guest(), true)?;
    let output = server.node.vzdump(&["100", "--storage", "server"])?;
    output.failed_with(&[
        "ERROR: backup write data failed: command error: broken pipe",
        "INFO: aborting backup job",
        "INFO: resuming VM again",
        "ERROR: Backup of VM 100 failed - backup write data failed: command error: broken pipe",
    ])?;
    ensure!(!server.said("client").contains("upload-log"), "{}", server.said("client"));
    server.nothing_left()
}

#[test]
fn a_signal_cancels_the_backup_in_qemu() -> Result<()> {
    let server = Server::new(Qemu::Endless, guest(), true)?;
    let mut run = server.node.spawn_vzdump(&["100", "--storage", "server"])?;
    run.wait_for("started backup task", SOON)?;
    run.signal(Signal::SIGTERM)?;
    let output = run.wait(SOON)?;
    output.failed_with(&["ERROR: interrupted by signal", "INFO: aborting backup job"])?;
    ensure!(server.asked_for("backup-cancel"), "{:?}", server.asked());
    server.nothing_left()
}

#[test]
fn a_killed_run_leaves_no_backup_in_qemu() -> Result<()> {
    let server = Server::new(Qemu::Endless, guest(), true)?;
    let mut run = server.node.spawn_vzdump(&["100", "--storage", "server"])?;
    run.wait_for("started backup task", SOON)?;
    run.signal(Signal::SIGKILL)?;
    run.wait(SOON)?;
    server.wait_until_asked("backup-cancel")?;
    server.node.wait_for_guardian()?;
    server.nothing_left()
}
