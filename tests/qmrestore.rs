//! `qmrestore`, the program itself, on a small node with a stand-in for `pvesm`: what it says, what it leaves, and what
//! it leaves when it is stopped or killed on the way.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "lab/archives.rs"]
mod archives;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use vzkeep::archive::Compression;
use vzkeep::guest::record::{Intent, Opened, Record};
use vzkeep::host::Host;
use vzkeep::transfer::Backup;

const ARCHIVE: &str = "/mnt/bk/dump/vzdump-qemu-100-2026_11_22-09_25_34.vma.zst";
const CONFIG: &str = "cores: 1\nname: web01\nscsi0: local:100/vm-100-disk-0.qcow2,size=3M\n\
    virtio0: local:100/vm-100-disk-2.raw,iothread=1,size=1M\n\
    #qmdump#map:scsi0:drive-scsi0:local:qcow2:\n#qmdump#map:virtio0:drive-virtio0:local:raw:\n";
const PVESM: &str = r#"
place() { echo "$VZKEEP_ROOT/var/lib/vz/images/${1#*:}"; }
case $1 in
path) place "$2" ;;
free) rm "$(place "$2")" ;;
alloc)
    file=$(place "$2:$3/$4"); mkdir -p "$(dirname "$file")"; [ -e "$file" ] && { echo "already exists" >&2; exit 1; }
    if [ "$7" = qcow2 ]; then qemu-img create -q -f qcow2 "$file" "${5}K"; else truncate -s "${5}K" "$file"; fi || exit 1
    echo "successfully created '$2:$3/$4'" ;;
esac
"#;

struct Node {
    dir: tempfile::TempDir,
    disks: [Vec<u8>; 2],
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = Self { dir, disks: [noise(3 << 20, 1), noise((1 << 20) + 512, 2)] };
        for dir in ["etc/pve/nodes/pve1/qemu-server", "mnt/bk/dump", "bin", "var/lib/vz/images"] {
            fs::create_dir_all(node.path(dir)).unwrap();
        }
        fs::write(node.path("etc/hostname"), "pve1\n").unwrap();
        let storages =
            "dir: local\n\tpath /var/lib/vz\n\tcontent images,backup\n\ndir: bk\n\tpath /mnt/bk\n\tcontent backup\n";
        fs::write(node.path("etc/pve/storage.cfg"), storages).unwrap();
        node.program("pvesm", PVESM);
        node.program("qm", "[ \"$1\" = status ] && echo 'status: stopped'");
        let [first, second] = node.disks.clone();
        let disks = vec![archives::disk("drive-scsi0", first), archives::disk("drive-virtio0", second)];
        let configs = vec![
            ("qemu-server.conf".into(), CONFIG.into()),
            ("qemu-server.fw".into(), b"[OPTIONS]\nenable: 1\n".to_vec()),
        ];
        let job = Backup { configs, ..archives::job(disks, Compression::Zstd { threads: 1 }) };
        archives::write_vma(&node.path(ARCHIVE), &job).unwrap();
        node
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    fn program(&self, name: &str, body: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_vzkeep"));
        command.arg("qmrestore").args(words).env("VZKEEP_ROOT", self.dir.path()).env("PATH", path);
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).stdin(Stdio::null()).output().unwrap()
    }

    /// Starts a restore that takes half a minute, and waits until it copies.
    fn slow(&self, words: &[&str]) -> Child {
        let words = [&[ARCHIVE, "300", "--bwlimit", "100"], words].concat();
        let child = self.command(&words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for(|| self.images().iter().any(|f| f.ends_with("vm-300-disk-1.raw")));
        std::thread::sleep(Duration::from_millis(300));
        child
    }

    fn config(&self) -> Option<String> {
        fs::read_to_string(self.path("etc/pve/nodes/pve1/qemu-server/300.conf")).ok()
    }

    fn images(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path("var/lib/vz/images/300")) else { return Vec::new() };
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Nothing of a restore of guest 300 is there: no config, no firewall rules, no volumes, no record.
    fn assert_untouched(&self) {
        assert_eq!(self.config(), None);
        assert_eq!(self.images(), Vec::<String>::new());
        assert!(!self.path("etc/pve/firewall/300.fw").exists());
        assert!(!self.record().exists());
    }

    fn record(&self) -> PathBuf {
        self.path("var/lib/vzkeep/300.json")
    }

    fn assert_restored(&self, names: [&str; 2]) {
        let image = |name: &str| self.path("var/lib/vz/images/300").join(name);
        let raw = self.path("scsi0.raw");
        let status =
            Command::new("qemu-img").args(["convert", "-O", "raw"]).args([&image(names[0]), &raw]).status().unwrap();
        assert!(status.success());
        assert!(fs::read(raw).unwrap() == self.disks[0], "scsi0 differs");
        assert!(fs::read(image(names[1])).unwrap() == self.disks[1], "virtio0 differs");
        assert!(!self.record().exists());
        let rules = fs::read_to_string(self.path("etc/pve/firewall/300.fw")).unwrap();
        assert_eq!(rules, "[OPTIONS]\nenable: 1\n");
        let [scsi0, virtio0] = names;
        assert!(self.config().unwrap().starts_with(&format!(
            "cores: 1\nname: web01\nscsi0: local:300/{scsi0},size=3M\nvirtio0: local:300/{virtio0},iothread=1,size=1M\n"
        )));
    }
}

/// Bytes that do not compress, with zero stretches.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = |i: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if (i >> 16) % 5 == 3 { 0 } else { (state >> 56) as u8 }
    };
    (0..len).map(&mut next).collect()
}

fn wait_for(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const NAMES: [&str; 2] = ["vm-300-disk-0.qcow2", "vm-300-disk-1.raw"];

#[test]
fn restores_and_says_so() {
    let node = Node::new();
    let out = node.run(&[ARCHIVE, "300", "--storage", "local"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    node.assert_restored(NAMES);
    let said = text(&out.stdout);
    let lines: Vec<&str> = said.lines().filter(|l| !l.starts_with("progress ") && !l.starts_with("CTIME: ")).collect();
    assert_eq!(
        lines[..10],
        [
            &format!("restore vma archive: {ARCHIVE}"),
            &format!("CFG: size: {} name: qemu-server.conf", CONFIG.len()),
            "CFG: size: 20 name: qemu-server.fw",
            "DEV: dev_id=1 size: 3145728 devname: drive-scsi0",
            "DEV: dev_id=2 size: 1049088 devname: drive-virtio0",
            "new volume ID is 'local:300/vm-300-disk-0.qcow2'",
            "new volume ID is 'local:300/vm-300-disk-1.raw'",
            "map 'drive-scsi0' to '/var/lib/vz/images/300/vm-300-disk-0.qcow2' (write zeros = 0)",
            "map 'drive-virtio0' to '/var/lib/vz/images/300/vm-300-disk-1.raw' (write zeros = 0)",
            "total bytes read 4259840, sparse bytes 786432 (18.5%)",
        ]
    );
    assert_eq!(lines.last(), Some(&"rescan volumes..."));
    assert!(said.contains("progress 100% (read 4259840 bytes, duration "), "{said}");
    let index = fs::read_to_string(node.path("var/log/pve/tasks/index")).unwrap();
    assert!(index.contains(":qmrestore:300:root@pam: ") && index.ends_with(" OK\n"), "{index}");

    let again = node.run(&[ARCHIVE, "300", "--storage", "local"]);
    assert_eq!(again.status.code(), Some(255));
    assert_eq!(text(&again.stderr), "unable to restore VM 300 - VM 300 already exists on node 'pve1'\n");
    assert_eq!(fs::read_to_string(node.path("var/log/pve/tasks/index")).unwrap(), index);
    node.assert_restored(NAMES);
}

#[test]
fn from_a_volume_id_and_from_standard_input() {
    let node = Node::new();
    let out = node.run(&["bk:backup/vzdump-qemu-100-2026_11_22-09_25_34.vma.zst", "300"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    node.assert_restored(NAMES);
    let node = Node::new();
    let mut child = node.command(&["-", "300"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&fs::read(node.path(ARCHIVE)).unwrap()).unwrap();
    assert!(child.wait().unwrap().success());
    node.assert_restored(NAMES);
}

#[test]
fn what_cannot_be_restored_leaves_nothing() {
    let node = Node::new();
    let missing = node.run(&["/root/nosuch.vma", "300"]);
    assert_eq!(
        (missing.status.code(), text(&missing.stderr).as_str()),
        (Some(2), "can't find file '/root/nosuch.vma'\n")
    );
    let storage = node.run(&[ARCHIVE, "300", "--storage", "nosuch"]);
    assert_eq!(storage.status.code(), Some(255));
    assert_eq!(text(&storage.stderr), "storage 'nosuch' does not exist\n");
    node.assert_untouched();
    let whole = fs::read(node.path(ARCHIVE)).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x10;
    for (what, bytes) in [("cut", &whole[..whole.len() / 2]), ("flipped", &flipped[..])] {
        fs::write(node.path("mnt/bk/dump/bad.vma.zst"), bytes).unwrap();
        let out = node.run(&["/mnt/bk/dump/bad.vma.zst", "300"]);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(255), "{what}: {said}");
        assert!(said.contains("bad.vma.zst") && said.contains("byte"), "{what}: {said}");
        let log = text(&out.stdout);
        for name in NAMES {
            assert!(
                log.contains(&format!("temporary volume 'local:300/{name}' successfully removed")),
                "{what}: {log}"
            );
        }
        node.assert_untouched();
    }
    let status = fs::read_to_string(node.path("var/log/pve/tasks/index")).unwrap();
    assert_eq!(status.lines().count(), 3);
}

#[test]
fn stopped_or_killed_it_leaves_nothing() {
    let node = Node::new();
    let mut child = node.slow(&[]);
    assert_eq!(node.config().as_deref(), Some("lock: create\n"));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    wait_for(|| !node.record().exists());
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), text(&out.stderr).as_str()), (Some(255), "interrupted by signal\n"));
    node.assert_untouched();

    child = node.slow(&[]);
    child.kill().unwrap();
    child.wait().unwrap();
    // No pause: the next run waits for the guardian.
    let out = node.run(&[ARCHIVE, "300"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    node.assert_restored(NAMES);
}

#[test]
fn the_next_run_cleans_up_when_the_guardian_is_gone_too() {
    let node = Node::new();
    let host = Host::with_root(node.dir.path().into());
    let Opened::Fresh(mut record) = Record::open(&host, 300, "qmrestore").unwrap() else { panic!("orphan") };
    record.note(&Intent::NewConfig).unwrap();
    record.note(&Intent::Volume { volid: "local:300/vm-300-disk-0.qcow2".into(), in_qemu: false }).unwrap();
    drop(record);
    fs::write(node.path("etc/pve/nodes/pve1/qemu-server/300.conf"), "lock: create\n").unwrap();
    fs::create_dir_all(node.path("var/lib/vz/images/300")).unwrap();
    fs::write(node.path("var/lib/vz/images/300/vm-300-disk-0.qcow2"), "half").unwrap();
    let out = node.run(&[ARCHIVE, "300"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    node.assert_restored(NAMES);
}

#[test]
fn overwriting_keeps_the_old_guest_until_the_new_one_is_complete() {
    let node = Node::new();
    let conf: &Path = &node.path("etc/pve/nodes/pve1/qemu-server/300.conf");
    let old = "name: old\nscsi0: local:300/vm-300-disk-0.raw\nscsi7: local:300/vm-300-disk-7.raw\n";
    fs::create_dir_all(node.path("var/lib/vz/images/300")).unwrap();
    for name in ["vm-300-disk-0.raw", "vm-300-disk-7.raw"] {
        fs::write(node.path("var/lib/vz/images/300").join(name), "precious").unwrap();
    }
    fs::write(conf, old).unwrap();
    let before = node.images();

    let words = [ARCHIVE, "300", "--force", "--bwlimit", "100"];
    let mut child = node.command(&words).stdout(Stdio::null()).spawn().unwrap();
    wait_for(|| node.images().len() == 4);
    assert_eq!(node.config().unwrap(), format!("lock: create\n{old}"));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for(|| !node.record().exists());
    assert_eq!((node.config().as_deref(), node.images()), (Some(old), before));

    let out = node.run(&[ARCHIVE, "300", "--force"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    node.assert_restored(["vm-300-disk-1.qcow2", "vm-300-disk-2.raw"]);
    assert_eq!(node.images(), ["vm-300-disk-1.qcow2", "vm-300-disk-2.raw", "vm-300-disk-7.raw"]);
    assert!(node.config().unwrap().ends_with("\nunused0: local:300/vm-300-disk-7.raw\n"));
}
