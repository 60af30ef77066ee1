//! A node on which containers are restored: `local` for their volumes, `bk` for archives.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const ARCHIVE: &str = "/mnt/bk/dump/vzdump-lxc-200-2026_11_22-09_26_26.tar.zst";
pub const CONFIG: &str = "arch: amd64\nhostname: ct01\nmemory: 128\n\
    mp0: local:200/vm-200-disk-1.raw,mp=/data,backup=1,size=16M\nmp1: local:200/vm-200-disk-2.raw,mp=/nobackup,size=8M\n\
    mp2: /srv/host,mp=/mnt/host\nostype: unmanaged\nrootfs: local:200/vm-200-disk-0.raw,size=400M\nswap: 512\n";
const PVESM: &str = r#"
place() { echo "$VZKEEP_ROOT/var/lib/vz/images/${1#*:}"; }
case $1 in
path) place "$2" ;;
free) rm "$(place "$2")" ;;
alloc)
    file=$(place "$2:$3/$4"); mkdir -p "$(dirname "$file")"; [ -e "$file" ] && { echo "already exists" >&2; exit 1; }
    truncate -s "${5}K" "$file" || exit 1
    echo "successfully created '$2:$3/$4'" ;;
esac
"#;
const PCT: &str = r#"
case $1 in
status) if [ -e "$VZKEEP_ROOT/running" ]; then echo 'status: running'; else echo 'status: stopped'; fi ;;
start) echo "$2" >"$VZKEEP_ROOT/started" ;;
esac
"#;
/// The original's words, of which each keeps something.
const TAR: [&str; 13] = [
    "cpf",
    "-",
    "--one-file-system",
    "-p",
    "--sparse",
    "--numeric-owner",
    "--acls",
    "--xattrs",
    "--xattrs-include=user.*",
    "--xattrs-include=security.capability",
    "--warning=no-file-ignored",
    "--warning=no-xattr-write",
    "--totals",
];

pub struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("vzkeep-pct-").tempdir().unwrap();
        // As on a real node: the root of an unprivileged container gets through.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let node = Self { dir };
        for dir in
            ["etc/pve/nodes/pve1/lxc", "etc/pve/nodes/pve1/qemu-server", "mnt/bk/dump", "bin", "var/lib/vz/images"]
        {
            fs::create_dir_all(node.path(dir)).unwrap();
        }
        fs::write(node.path("etc/hostname"), "pve1\n").unwrap();
        let storages =
            "dir: local\n\tpath /var/lib/vz\n\tcontent images,rootdir\n\ndir: bk\n\tpath /mnt/bk\n\tcontent backup\n";
        fs::write(node.path("etc/pve/storage.cfg"), storages).unwrap();
        for (name, body) in [("pvesm", PVESM), ("pct", PCT)] {
            let path = node.path("bin").join(name);
            fs::write(&path, format!("#!/bin/sh\n{body}")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        node
    }

    /// With an archive of a small tree in `src`.
    pub fn small(ending: &str) -> Self {
        let node = Self::new();
        let source = node.path("src");
        super::tree::small_tree(&source);
        node.archive_of(&source, CONFIG, ending);
        node
    }

    /// Makes the archive of a container of this tree and config, as the original does.
    pub fn archive_of(&self, source: &Path, config: &str, ending: &str) {
        let head = self.path("head");
        fs::create_dir_all(head.join("etc/vzdump")).unwrap();
        fs::write(head.join("etc/vzdump/pct.conf"), config).unwrap();
        fs::write(head.join("etc/vzdump/pct.fw"), "[OPTIONS]\nenable: 1\n").unwrap();
        let plain = self.path("plain.tar");
        let above = format!("--directory={}", source.display());
        let words = [
            "./etc/vzdump/pct.conf",
            "./etc/vzdump/pct.fw",
            &above,
            "--no-anchored",
            "--exclude=lost+found",
            "./",
            "./data",
        ];
        tar(&head, &words, &plain);
        let packer: &[&str] = match ending {
            "zst" => &["zstd", "-q"],
            "gz" => &["gzip", "-1"],
            "xz" => &["xz", "-0"],
            "lzo" => &["lzop"],
            _ => &["cat"],
        };
        let mut command = Command::new(packer[0]);
        command.args(&packer[1..]).stdin(fs::File::open(plain).unwrap());
        assert!(command.stdout(fs::File::create(self.path(ARCHIVE)).unwrap()).status().unwrap().success());
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_vzkeep"));
        command.arg("pct-restore").args(words).env("VZKEEP_ROOT", self.dir.path()).env("PATH", path);
        command
    }

    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).stdin(Stdio::null()).output().unwrap()
    }

    pub fn config(&self) -> Option<String> {
        fs::read_to_string(self.path("etc/pve/nodes/pve1/lxc/201.conf")).ok()
    }

    pub fn image(&self, name: &str) -> PathBuf {
        self.path("var/lib/vz/images/201").join(name)
    }

    pub fn images(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path("var/lib/vz/images/201")) else { return Vec::new() };
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Whether nothing is left to be undone. A run killed before it did anything leaves a record that says so.
    pub fn is_settled(&self) -> bool {
        !fs::read_to_string(self.path("var/lib/vzkeep/201.json")).is_ok_and(|record| record.contains("\"intent\""))
    }

    /// The loop devices of images of this node.
    pub fn loops(&self) -> Vec<String> {
        let out = Command::new("losetup").args(["--noheadings", "-O", "BACK-FILE"]).output().unwrap();
        let root = self.dir.path().to_str().unwrap().to_owned();
        text(&out.stdout).lines().filter(|line| line.contains(&root)).map(str::to_owned).collect()
    }

    /// Nothing of a restore of container 201 is there: config, firewall rules, volumes, record, mounts, loop devices.
    pub fn assert_untouched(&self) {
        assert_eq!(self.config(), None);
        assert_eq!(self.images(), Vec::<String>::new());
        assert!(!self.path("etc/pve/firewall/201.fw").exists() && self.is_settled());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "{mounts}");
        wait_for(|| self.loops().is_empty());
        let left: Vec<_> = fs::read_dir(self.path("var/lib/vzkeep")).unwrap().map(|e| e.unwrap().file_name()).collect();
        let known = ["201.lock", "201.at-work", "201.json"];
        assert!(left.iter().all(|name| known.iter().any(|known| name == known)), "{left:?}");
    }
}

/// GNU tar with the original's options in `dir`.
pub fn tar(dir: &Path, words: &[&str], archive: &Path) {
    let mut command = Command::new("tar");
    command.args(TAR).arg(format!("--directory={}", dir.display())).args(words).stderr(Stdio::null());
    assert!(command.stdout(fs::File::create(archive).unwrap()).status().unwrap().success());
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn wait_for(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}
