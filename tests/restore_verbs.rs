//! `vzkeep restore`, `compare` and `convert`, the program as users call it: every kind of archive into files and onto a device,
//! what is left when it is killed or the disk is full, and what is salvaged of a damaged archive.

#![expect(clippy::unwrap_used, reason = "tests")]

mod lab;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use lab::archives;
use vzkeep::archive::{Compression, Source};
use vzkeep::host::{Cancel, Host};
use vzkeep::transfer::{Backup, backup_numbered};

const MIB: usize = 1 << 20;

/// Two disks, with zeros and awkward lengths.
fn disks() -> [Vec<u8>; 2] {
    let mut dice = lab::Dice::seeded(11);
    let mut first = dice.bytes(5 * MIB + 512);
    first[MIB..3 * MIB].fill(0);
    [first, dice.bytes(MIB + 1024)]
}

/// An archive with the disks under numbers that are not next to each other.
fn archive(path: &Path, compression: Compression) {
    let [first, second] = disks();
    let disks = vec![archives::disk("drive-scsi0", first), archives::disk("drive-virtio1", second)];
    let configs = vec![("qemu-server.conf".into(), b"memory: 512\n".to_vec())];
    let job = Backup { configs, ..archives::job(disks, compression) };
    let out = archives::output(path).unwrap();
    backup_numbered(&job, &[1, 4], out, &mut |_| {}, &Cancel::new()).unwrap();
}

fn vzkeep(here: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vzkeep"));
    command.args(words).current_dir(here).env_remove("VZKEEP_ROOT").stdin(Stdio::null());
    command
}

/// Exit code, standard output, standard error.
fn run(here: &Path, words: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = vzkeep(here, words).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn ok(here: &Path, words: &[&str]) -> String {
    let (code, out, err) = run(here, words);
    assert!(code == 0 && err.is_empty(), "{words:?}: {code} {err}");
    out
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const NAMES: [(&str, Compression); 4] = [
    ("a.vma", Compression::None),
    ("a.vma.zst", Compression::Zstd { threads: 2 }),
    ("a.vma.gz", Compression::Gzip { threads: 1 }),
    ("a.vma.lzo", Compression::Lzo),
];

#[test]
fn every_archive_is_restored_converted_and_compared() {
    if !lab::require("every_archive_is_restored_converted_and_compared", &["qemu-img", "qemu-nbd", "lzop", "zstd"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    let disks = disks();
    for (name, compression) in NAMES {
        archive(&here.join(name), compression);
        ok(here, &["restore", name, "--to", "to"]);
        assert_eq!(names(&here.join("to")), ["drive-scsi0.raw", "drive-virtio1.raw", "qemu-server.conf"], "{name}");
        assert!(fs::read(here.join("to/drive-scsi0.raw")).unwrap() == disks[0], "{name}");
        assert!(fs::read(here.join("to/drive-virtio1.raw")).unwrap() == disks[1], "{name}");
        // Nothing is overwritten, and what is there stays.
        let (code, _, err) = run(here, &["restore", name, "--to", "to"]);
        assert!(code == 255 && err.ends_with("exists already and is not overwritten\n"), "{err}");
        fs::remove_dir_all(here.join("to")).unwrap();
        // Zeros take no room.
        ok(here, &["restore", name, "--to", "one", "--disk", "scsi0"]);
        assert_eq!(names(&here.join("one")), ["drive-scsi0.raw", "qemu-server.conf"]);
        use std::os::unix::fs::MetadataExt;
        assert!(fs::metadata(here.join("one/drive-scsi0.raw")).unwrap().blocks() * 512 <= 4 * MIB as u64);
        fs::remove_dir_all(here.join("one")).unwrap();
    }
    ok(here, &["restore", "a.vma.zst", "--to", "qcow2", "--format", "qcow2"]);
    ok(here, &["compare", "a.vma", "qcow2"]);
    // There and back again, with the same numbers, time, UUID and files.
    for (from, to) in
        [("a.vma.zst", "b.vma"), ("a.vma", "b.vma.zst"), ("a.vma.zst", "b.vma.gz"), ("a.vma.gz", "b.vma.lzo")]
    {
        let out = ok(here, &["convert", from, to]);
        assert!(out.ends_with(&format!("'{to}' has {} bytes\n", fs::metadata(here.join(to)).unwrap().len())), "{out}");
        let host = Host::with_root("/".into());
        let header = |name: &str| Source::open(&host, &here.join(name), &Cancel::new()).unwrap().header().clone();
        assert_eq!(header(from), header(to));
        ok(here, &["vma", "verify", to]);
        ok(here, &["restore", to, "--to", "again"]);
        assert!(fs::read(here.join("again/drive-scsi0.raw")).unwrap() == disks[0]);
        assert!(fs::read(here.join("again/drive-virtio1.raw")).unwrap() == disks[1]);
        fs::remove_dir_all(here.join("again")).unwrap();
        let (code, _, err) = run(here, &["convert", from, to]);
        assert!(code == 255 && err.ends_with("exists already and is not overwritten\n"), "{err}");
    }
    let stock = Command::new("zstd").args(["-q", "-t"]).arg(here.join("b.vma.zst")).status().unwrap();
    assert!(stock.success());
    ok(here, &["convert", "a.vma", "folder"]);
    ok(here, &["compare", "folder", "b.vma.zst"]);
    let (code, _, err) = run(here, &["convert", "a.vma", "b.vma.xz"]);
    assert!(code == 255 && err.contains("does not say how it is to be compressed"), "{err}");
}

/// SHA-256 of the disks in the stock program's `two-disks.vma`.
const STOCK: [(&str, &str); 2] = [
    ("drive-scsi0.raw", "8d7d0efb80f98dd454e19ace30725c3bdf3d4ce0589e4bb6157d3c8382516f66"),
    ("drive-scsi1.raw", "c739be9e6b9a3864f7ab8bda6cf818b8a8ecfaa58c994e4de42f529a77c1a68b"),
];

#[test]
fn the_stock_programs_archives() {
    use sha2::{Digest, Sha256};
    let default = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/golden"));
    let golden = std::env::var_os("GOLDEN_DIR").map_or(default, PathBuf::from).join("archives");
    if !golden.is_dir() {
        assert!(std::env::var_os("CI").is_none(), "no recordings in {}: set GOLDEN_DIR", golden.display());
        return println!("SKIPPED the_stock_programs_archives: no recordings in {}", golden.display());
    }
    if !lab::require("the_stock_programs_archives", &["lzop"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    let check = |to: &str| {
        for (name, sum) in STOCK {
            let bytes = fs::read(here.join(to).join(name)).unwrap();
            let found: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, sum, "{to}/{name}");
        }
        fs::remove_dir_all(here.join(to)).unwrap();
    };
    for suffix in ["", ".zst", ".gz", ".lzo"] {
        let archive = golden.join(format!("two-disks.vma{suffix}"));
        let archive = archive.to_str().unwrap();
        ok(here, &["restore", archive, "--to", "to"]);
        check("to");
        ok(here, &["restore", archive, "--to", "salvaged", "--salvage"]);
        check("salvaged");
    }
    let plain = golden.join("two-disks.vma");
    let plain = plain.to_str().unwrap();
    for name in ["new.vma", "new.vma.zst", "new.vma.gz", "new.vma.lzo"] {
        ok(here, &["convert", plain, name]);
        ok(here, &["restore", name, "--to", "to"]);
        ok(here, &["compare", plain, "to"]);
        check("to");
    }
    for suffix in [".zst", ".gz", ".lzo"] {
        let archive = golden.join(format!("two-disks.vma{suffix}"));
        // The archives lie where nothing can be written; there it would say that it read all of them first.
        let (code, _, err) = run(here, &["convert", archive.to_str().unwrap(), "again.vma.zst"]);
        assert!(code == 0, "{err}");
        ok(here, &["compare", plain, "again.vma.zst"]);
        fs::remove_file(here.join("again.vma.zst")).unwrap();
    }
    let diskless = golden.join("diskless.vma");
    ok(here, &["convert", diskless.to_str().unwrap(), "none.vma.zst"]);
    ok(here, &["restore", "none.vma.zst", "--to", "none"]);
    ok(here, &["compare", diskless.to_str().unwrap(), "none"]);
}

#[test]
fn compare_says_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    archive(&here.join("a.vma"), Compression::None);
    archive(&here.join("b.vma.zst"), Compression::Zstd { threads: 1 });
    let same = ok(here, &["compare", "a.vma", "b.vma.zst"]);
    let wanted = format!(
        "drive-scsi0: same ({} bytes)\ndrive-virtio1: same ({} bytes)\nqemu-server.conf: same\n",
        disks()[0].len(),
        disks()[1].len()
    );
    assert_eq!(same, wanted);
    ok(here, &["restore", "a.vma", "--to", "to"]);
    let mut disk = disks()[0].clone();
    disk[4096] ^= 1;
    disk[2 * MIB] = 1;
    fs::write(here.join("to/drive-scsi0.raw"), &disk).unwrap();
    fs::write(here.join("to/qemu-server.conf"), "memory: 1024\n").unwrap();
    fs::write(here.join("to/drive-ide2.raw"), "another").unwrap();
    let (code, out, err) = run(here, &["compare", "b.vma.zst", "to"]);
    let differs = format!("drive-scsi0: differs in 1024 bytes: 4096-4607, {}-{}\n", 2 * MIB, 2 * MIB + 511);
    assert!(code == 1 && err.is_empty() && out.contains(&differs), "{out}{err}");
    assert!(out.contains("drive-ide2: only in 'to'\n") && out.contains("qemu-server.conf: differs\n"), "{out}");
    let (code, out, _) = run(here, &["compare", "--json", "--disk", "scsi0", "b.vma.zst", "to/drive-scsi0.raw"]);
    let said: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &said["same"], &said["disks"][0]["differing_bytes"]), (1, &false.into(), &1024.into()));
    assert_eq!(said["disks"][0]["ranges"][0], serde_json::json!({"start": 4096, "end": 4608}));
    // A disk that is longer is another one.
    disk.extend_from_slice(&[0; 512]);
    fs::write(here.join("long.raw"), &disk).unwrap();
    let (code, out, _) = run(here, &["compare", "to/drive-scsi0.raw", "long.raw"]);
    assert!(code == 1 && out.contains(&format!("has {} and {} bytes", disk.len() - 512, disk.len())), "{out}");
    let (code, _, err) = run(here, &["compare", "a.vma", "long.raw"]);
    assert!(code == 255 && err.contains("has 2 disks, name one with --disk: drive-scsi0, drive-virtio1"), "{err}");
    assert_eq!(run(here, &["compare", "a.vma", "none.vma"]).0, 255);
}

#[test]
fn a_killed_restore_leaves_only_temporary_names() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    archive(&here.join("a.vma.zst"), Compression::Zstd { threads: 1 });
    for convert in [false, true] {
        let words: &[&str] = match convert {
            false => &["restore", "a.vma.zst", "--to", "to", "--bwlimit", "500"],
            true => &["convert", "a.vma.zst", "new.vma", "--bwlimit", "500"],
        };
        let mut child = vzkeep(here, words).stdout(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        let temporary = |name: &String| name.contains(".tmp.");
        let found = || {
            let dir = if convert { here.to_owned() } else { here.join("to") };
            dir.is_dir() && names(&dir).iter().any(temporary)
        };
        while !found() {
            assert!(begun.elapsed() < Duration::from_secs(30) && child.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let dir = if convert { here.to_owned() } else { here.join("to") };
        let left = names(&dir);
        assert!(left.iter().all(|name| temporary(name) || name == "a.vma.zst" || name == "to"), "{left:?}");
        // The next run removes them.
        match convert {
            false => ok(here, &["restore", "a.vma.zst", "--to", "to"]),
            true => ok(here, &["convert", "a.vma.zst", "new.vma"]),
        };
        assert!(!names(&dir).iter().any(temporary), "{:?}", names(&dir));
    }
    // A signal removes them at once.
    let mut child = vzkeep(here, &["restore", "a.vma.zst", "--to", "other", "--bwlimit", "500"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !here.join("other").is_dir() {
        std::thread::sleep(Duration::from_millis(5));
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    // Unless it came before anybody listened.
    let code = child.wait().unwrap().code();
    assert!(code != Some(0) && (code.is_none() || !here.join("other").exists()), "{code:?}");
}

/// A block device over a file, or none where that is not to be had.
struct Loop(PathBuf);

impl Loop {
    fn over(file: &Path) -> Option<Self> {
        let out = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        out.status.success().then(|| Self(String::from_utf8(out.stdout).unwrap().trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        Command::new("losetup").arg("--detach").arg(&self.0).status().unwrap();
    }
}

#[test]
fn onto_a_block_device() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    archive(&here.join("a.vma.zst"), Compression::Zstd { threads: 1 });
    let size = disks()[0].len();
    let file = here.join("device");
    fs::write(&file, vec![0xa5; size + 4096]).unwrap();
    let Some(device) = Loop::over(&file) else {
        println!("SKIPPED onto_a_block_device: no loop device to be had");
        return;
    };
    let to = device.0.to_str().unwrap();
    let (code, _, err) = run(here, &["restore", "a.vma.zst", "--to", to]);
    assert!(
        code == 255 && err == format!("'{to}' takes one disk, name it with --disk: drive-scsi0, drive-virtio1\n"),
        "{err}"
    );
    ok(here, &["restore", "a.vma.zst", "--to", to, "--disk", "scsi0"]);
    let content = |to: &str| fs::read(to).unwrap();
    let now = content(to);
    assert!(now[..size] == disks()[0] && now[size..].iter().all(|byte| *byte == 0xa5));
    // From a byte on: what is before it is not touched.
    let middle = 2 * MIB + 512;
    fs::write(to, vec![0x5a; size]).unwrap();
    ok(here, &["restore", "a.vma.zst", "--to", to, "--disk", "drive-scsi0", "--start-at", &middle.to_string()]);
    let now = content(to);
    assert!(now[..middle].iter().all(|byte| *byte == 0x5a) && now[middle..size] == disks()[0][middle..]);
    let (code, _, err) = run(here, &["restore", "a.vma.zst", "--to", to, "--disk", "scsi0", "--start-at", "99999999"]);
    assert!(code == 255 && err.contains("nothing of it can be copied from byte 99999999 on"), "{err}");
    // In use: somebody else has it for himself.
    use std::os::unix::fs::OpenOptionsExt;
    let held = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL).open(to).unwrap();
    let (code, _, err) = run(here, &["restore", "a.vma.zst", "--to", to, "--disk", "scsi0"]);
    assert!(
        code == 255
            && err == format!("'{to}' is in use: mounted, or part of a volume group, an array or a swap space\n"),
        "{err}"
    );
    drop(held);
    drop(device);
    fs::write(&file, vec![0; 4096]).unwrap();
    let device = Loop::over(&file).unwrap();
    let to = device.0.to_str().unwrap();
    let (code, _, err) = run(here, &["restore", "a.vma.zst", "--to", to, "--disk", "scsi0"]);
    assert!(code == 255 && err == format!("'{to}' has 4096 bytes, drive-scsi0 needs {size}\n"), "{err}");
}

#[test]
fn words_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    archive(&here.join("a.vma"), Compression::None);
    fs::write(here.join("file"), "x").unwrap();
    fs::write(here.join("ct.tar"), vec![0; 10240]).unwrap();
    for (words, wanted) in [
        (&["restore", "a.vma", "--to", "file"][..], "'file' is neither a directory nor a block device\n"),
        (
            &["restore", "a.vma", "--to", "to", "--disk", "sata0"],
            "the archive has no disk 'sata0', but drive-scsi0, drive-virtio1\n",
        ),
        (
            &["restore", "a.vma", "--to", "to", "--start-at", "5"],
            "--start-at is for block devices: files of a restore that broke off are not kept\n",
        ),
        (&["restore", "none.vma", "--to", "to"], "none.vma'\n"),
        (&["restore", "ct.tar", "--to", "to"], "'vzkeep extract' and 'pct restore' unpack those of containers\n"),
        (&["restore", "a.vma", "--to", "no/such/dir"], "no/such/dir' failed: No such file or directory\n"),
    ] {
        let (code, _, err) = run(here, words);
        assert!(code == 255 && err.ends_with(wanted), "{words:?}: {err}");
    }
    assert!(!here.join("to").exists());
}

#[test]
fn a_damaged_archive_is_salvaged() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    archive(&here.join("a.vma.zst"), Compression::Zstd { threads: 1 });
    let mut bytes = fs::read(here.join("a.vma.zst")).unwrap();
    // In the first disk's data.
    let middle = bytes.len() / 3;
    bytes[middle] ^= 0x40;
    fs::write(here.join("bad.vma.zst"), &bytes).unwrap();
    let (code, _, err) = run(here, &["restore", "bad.vma.zst", "--to", "to"]);
    assert!(code == 255 && err.contains("is damaged or cannot be read"), "{err}");
    assert!(!here.join("to").exists(), "made for nothing");
    let (code, _, err) = run(here, &["restore", "bad.vma.zst", "--to", "to", "--salvage"]);
    assert!(code == 1 && err.contains(" are lost and read as zeros: frame "), "{code} {err}");
    let lost = err.lines().find(|line| line.starts_with("drive-") && line.contains(" are lost")).unwrap();
    let disk = lost.split(':').next().unwrap();
    let map = fs::read_to_string(here.join(format!("to/{disk}.map"))).unwrap();
    assert!(
        map.starts_with("# Mapfile. Created by vzkeep\n") && map.lines().any(|line| line.ends_with("  -")),
        "{map}"
    );
    // A map that is there is found out before anything is read, as a disk is.
    fs::create_dir(here.join("old")).unwrap();
    fs::write(here.join("old").join(format!("{disk}.map")), "old").unwrap();
    let (code, out, err) = run(here, &["restore", "bad.vma.zst", "--to", "old", "--salvage"]);
    assert!(code == 255 && err.ends_with(&format!("{disk}.map' exists already and is not overwritten\n")), "{err}");
    assert!(!out.contains("progress") && names(&here.join("old")).len() == 1, "{out}");
    // What is called saved is right.
    let number = usize::from(disk != "drive-scsi0");
    let saved = fs::read(here.join(format!("to/{disk}.raw"))).unwrap();
    let mut wanted = disks()[number].clone();
    for line in map.lines().filter(|line| line.ends_with("  -")) {
        let number = |word: &str| usize::from_str_radix(word.trim_start_matches("0x"), 16).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        wanted[number(words[0])..number(words[0]) + number(words[1])].fill(0);
    }
    assert!(saved == wanted);
    // The other disk, and a sound archive, lose nothing.
    let other = if number == 0 { "virtio1" } else { "scsi0" };
    let (code, _, err) = run(here, &["restore", "bad.vma.zst", "--to", "other", "--salvage", "--disk", other]);
    assert!(code == 0, "{err}");
    assert_eq!(names(&here.join("other")).len(), 2);
    assert_eq!(
        ok(here, &["restore", "a.vma.zst", "--to", "good", "--salvage"]).lines().last(),
        Some("everything was saved")
    );
    ok(here, &["compare", "a.vma.zst", "good"]);
}

#[test]
fn a_full_disk_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    archive(&here.join("a.vma.zst"), Compression::Zstd { threads: 1 });
    let small = here.join("small");
    fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&small).output().unwrap();
    if !mounted.status.success() {
        println!("SKIPPED a_full_disk_leaves_nothing: nothing can be mounted here");
        return;
    }
    let full = std::panic::catch_unwind(|| {
        for words in [
            &["restore", "a.vma.zst", "--to", "small/to"][..],
            &["restore", "a.vma.zst", "--to", "small/to", "--salvage"],
            &["convert", "a.vma.zst", "small/b.vma"],
        ] {
            let (code, _, err) = run(here, words);
            assert!(code == 255 && err.contains("No space left on device"), "{words:?}: {err}");
            assert_eq!(names(&small), [""; 0], "{words:?}");
        }
    });
    assert!(Command::new("umount").arg(&small).status().unwrap().success());
    full.unwrap();
}
