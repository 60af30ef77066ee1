//! `vzkeep list`, `show` and `verify`: the program as users call it, on a node with two storages.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "lab/archives.rs"]
mod archives;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use archives::{disk, job, write_vma};
use serde_json::Value;
use vzkeep::archive::Compression;
use vzkeep::host::Host;

struct Node {
    root: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let node = Self { root: tempfile::tempdir().unwrap() };
        fs::create_dir_all(node.path("/etc/pve")).unwrap();
        let storages = "dir: bk\n\tpath /mnt/bk\n\tcontent backup\n\ndir: other\n\tpath /mnt/other\n\tcontent backup,iso\n\n\
                        dir: images\n\tpath /mnt/images\n\tcontent images\n";
        fs::write(node.path("/etc/pve/storage.cfg"), storages).unwrap();
        for storage in ["bk", "other", "images"] {
            fs::create_dir_all(node.path(&format!("/mnt/{storage}/dump"))).unwrap();
        }
        node
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    /// A backup of 10 MiB of which a tenth is data.
    fn archive(&self, storage: &str, name: &str, compression: Compression) -> PathBuf {
        let mut data = vec![0; 10 << 20];
        data[..1 << 20].fill(7);
        let path = self.path(&format!("/mnt/{storage}/dump/{name}"));
        write_vma(&path, &job(vec![disk("drive-scsi0", data)], compression)).unwrap();
        path
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vzkeep"));
        command.args(words).env(Host::ROOT_VAR, self.root.path()).output().unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        let out = self.run(words);
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"))
    }
}

const ZSTD: Compression = Compression::Zstd { threads: 1 };
const FIRST: &str = "vzdump-qemu-100-2026_11_22-09_14_25.vma.zst";
const SECOND: &str = "vzdump-qemu-101-2026_11_22-10_00_00.vma";

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 8;
    fs::write(path, bytes).unwrap();
}

fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

#[test]
fn archives_of_all_storages_are_listed() {
    let node = Node::new();
    let first = node.archive("bk", FIRST, ZSTD);
    node.archive("other", SECOND, Compression::None);
    fs::write(format!("{}.notes", first.display()), "web server\nsecond line\n").unwrap();
    fs::write(format!("{}.protected", first.display()), "").unwrap();
    fs::write(node.path("/mnt/bk/dump/half.dat"), "").unwrap();
    let listed = text(&node.run(&["list"]));
    let lines: Vec<_> = listed.lines().collect();
    assert_eq!(lines.len(), 3, "{listed}");
    assert!(lines[1].starts_with("vm 100  2026-11-22 09:14:25"), "{listed}");
    assert!(lines[1].contains("vma.zst, indexed  protected") && lines[1].ends_with("web server"), "{listed}");
    assert!(lines[2].contains(&format!("other:backup/{SECOND}")) && !lines[2].contains("indexed"), "{listed}");
    let json = node.json(&["list", "--storage", "other", "--json"]);
    assert_eq!(json.as_array().unwrap().len(), 1);
    assert_eq!((&json[0]["vmid"], &json[0]["format"]), (&101.into(), &"vma".into()));
    assert_eq!(node.json(&["list", "/mnt/bk/dump", "--json", "--vmid", "100"])[0]["notes"], "web server\nsecond line");
    let bad = node.run(&["list", "--storage", "nope"]);
    assert_eq!((bad.status.code(), text(&bad).as_str()), (Some(255), "storage 'nope' does not exist\n"));
}

#[test]
fn an_archive_is_shown() {
    let node = Node::new();
    node.archive("bk", FIRST, ZSTD);
    let shown = text(&node.run(&["show", &format!("bk:backup/{FIRST}")]));
    assert!(shown.contains("disk         drive-scsi0: 10.00 MiB, data 1.00 MiB (10.0 %), zero 9.00 MiB"), "{shown}");
    assert!(
        shown.contains("access       by its index of frames") && shown.contains("\n--- qemu-server.conf\ncores: 1\n")
    );
    let plain = node.archive("other", SECOND, Compression::None);
    let json = node.json(&["show", "--json", &format!("/mnt/other/dump/{SECOND}")]);
    assert_eq!((&json["disks"][0]["size"], &json["disks"][0]["data"]), (&10_485_760.into(), &1_048_576.into()));
    assert_eq!(json["path"], plain.display().to_string());
}

#[test]
fn damage_is_found_recorded_and_told() {
    let node = Node::new();
    let first = node.archive("bk", FIRST, ZSTD);
    node.archive("other", SECOND, Compression::None);
    let good = node.run(&["verify", "--all", "--record"]);
    let said = text(&good);
    assert!(good.status.success() && said.contains(&format!("bk:backup/{FIRST}: good; checked every byte")), "{said}");
    assert!(said.contains(&format!("other:backup/{SECOND}: good; checked the structure only")), "{said}");
    let states =
        |json: &Value| json.as_array().unwrap().iter().map(|a| a["verified"]["state"].clone()).collect::<Vec<_>>();
    assert_eq!(states(&node.json(&["list", "--json"])), ["ok", "ok"]);
    // What was found good lately is left out.
    assert_eq!(text(&node.run(&["verify", "--all", "--skip-verified", "1"])), "");

    // An archive that changed is another one.
    let at = fs::metadata(&first).unwrap().len() as usize / 2;
    flip(&first, at);
    assert_eq!(states(&node.json(&["list", "--json"])), [Value::Null, "ok".into()]);
    let bad = node.run(&["verify", "--all", "--record", "--skip-verified", "1", "--json"]);
    assert_eq!(bad.status.code(), Some(1));
    let json: Value = serde_json::from_slice(&bad.stdout).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 1, "{json}");
    assert!(json[0]["damage"][0].as_str().unwrap().starts_with("drive-scsi0, bytes 0 to "), "{json}");
    assert!(text(&node.run(&["list"])).contains("DAMAGED 20"));
    // By guest, and nothing is left out that was not good.
    let guest = node.run(&["verify", "100", "--skip-verified", "9"]);
    assert!(guest.status.code() == Some(1) && text(&guest).contains("DAMAGED; checked every byte"), "{}", text(&guest));
    let none = node.run(&["verify", "999"]);
    assert_eq!((none.status.code(), text(&none).as_str()), (Some(255), "there is no archive of guest 999\n"));
    // What cannot be judged is not damaged, and not written down: somebody ends lzop, or us.
    let lzo = node.archive("other", "vzdump-qemu-102-2026_11_22-11_00_00.vma.lzo", Compression::Lzo);
    let bin = node.path("bin");
    fs::create_dir_all(&bin).unwrap();
    fs::write(bin.join("lzop"), "#!/bin/sh\nkill -9 $$\n").unwrap();
    fs::set_permissions(bin.join("lzop"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vzkeep"));
    let killed = command.args(["verify", "--record"]).arg(&lzo).env("PATH", &bin).env_remove(Host::ROOT_VAR).output();
    let killed = killed.unwrap();
    assert_eq!(killed.status.code(), Some(255), "{}", text(&killed));
    assert_eq!(text(&killed).matches("signal: 9").count(), 1, "{}", text(&killed));
    fs::write(bin.join("lzop"), "#!/bin/sh\nkill $PPID\nexec sleep 600\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vzkeep"));
    let path = std::env::join_paths([bin.clone(), "/usr/bin".into(), "/bin".into()]).unwrap();
    let ended = command.args(["verify", "--record"]).arg(&lzo).env("PATH", path).env_remove(Host::ROOT_VAR).output();
    let ended = ended.unwrap();
    assert_eq!(ended.status.code(), Some(255), "{}", text(&ended));
    let of_lzo = node.json(&["list", "--json", "--vmid", "102"]);
    assert_eq!(of_lzo[0]["verified"], Value::Null, "{of_lzo}");
    // Nothing but the verdicts was left beside the archives.
    let names: Vec<_> = fs::read_dir(node.path("/mnt/bk/dump")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}
