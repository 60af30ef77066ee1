//! Every way to the disks of an archive leads to the same bytes: extract, restore, map and mount, for archives of the stock
//! program and ours, packed in every way.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use vzkeep::host::Host;

/// Of the disks of the stock program's archives.
const SUMS: [(&str, &str); 2] = [
    ("drive-scsi0", "8d7d0efb80f98dd454e19ace30725c3bdf3d4ce0589e4bb6157d3c8382516f66"),
    ("drive-scsi1", "c739be9e6b9a3864f7ab8bda6cf818b8a8ecfaa58c994e4de42f529a77c1a68b"),
];

fn golden() -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden");
    let dir = std::env::var_os("GOLDEN_DIR").map_or(default, PathBuf::from).join("archives");
    assert!(dir.is_dir() || std::env::var_os("CI").is_none(), "no recordings in {}: set GOLDEN_DIR", dir.display());
    dir.is_dir().then_some(dir)
}

/// Whether the program is there; without it a test fails in CI, and does nothing elsewhere.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    assert!(found || std::env::var_os("CI").is_none(), "{program} is missing; `make setup` installs it");
    if !found {
        println!("SKIPPED: {program} missing");
    }
    found
}

fn vzkeep() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vzkeep"));
    command.env_remove(Host::ROOT_VAR).stdin(Stdio::null());
    command
}

fn run(command: &mut Command) {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn sum(path: &Path) -> String {
    Sha256::digest(fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn extracted(archive: &Path, dir: &Path) {
    let to = dir.join("extracted");
    run(vzkeep().args(["vma", "extract"]).arg(archive).arg(&to));
    for (disk, wanted) in SUMS {
        assert_eq!(sum(&to.join(format!("disk-{disk}.raw"))), wanted, "{} of {}", disk, archive.display());
    }
}

fn restored(archive: &Path, dir: &Path) {
    for (format, to) in [("raw", dir.join("raw")), ("qcow2", dir.join("qcow2"))] {
        run(vzkeep().arg("restore").arg(archive).args(["--format", format, "--to"]).arg(&to));
        for (disk, wanted) in SUMS {
            let (file, plain) = (to.join(format!("{disk}.{format}")), to.join("plain"));
            match format {
                "raw" => fs::rename(file, &plain).unwrap(),
                _ => run(Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(&file).arg(&plain)),
            }
            assert_eq!(sum(&plain), wanted, "{format} {disk} of {}", archive.display());
        }
    }
}

/// Ended with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.0.wait().unwrap();
    }
}

fn mapped(archive: &Path, dir: &Path) {
    let socket = dir.join("socket");
    let server = vzkeep().arg("map").arg(archive).arg("--socket").arg(&socket).stdout(Stdio::null()).spawn().unwrap();
    let _server = Server(server);
    let begun = Instant::now();
    while !socket.exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no socket");
        std::thread::sleep(Duration::from_millis(10));
    }
    for (disk, wanted) in SUMS {
        let (uri, to) = (format!("nbd+unix:///{disk}?socket={}", socket.display()), dir.join("mapped"));
        run(Command::new("nbdcopy").arg(uri).arg(&to));
        assert_eq!(sum(&to), wanted, "mapped {disk} of {}", archive.display());
        fs::remove_file(to).unwrap();
    }
}

/// Unmounted with the test.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg(self.0).status().unwrap().success());
    }
}

fn mounted(archive: &Path, dir: &Path) {
    let at = dir.join("mounted");
    fs::create_dir(&at).unwrap();
    run(vzkeep().arg("mount").arg(archive).arg(&at));
    let _mounted = Mounted(&at);
    for (disk, wanted) in SUMS {
        assert_eq!(sum(&at.join(format!("{disk}.raw"))), wanted, "mounted {disk} of {}", archive.display());
    }
}

#[test]
fn every_way_leads_to_the_same_bytes() {
    let Some(golden) = golden() else { return };
    if !["qemu-img", "nbdcopy", "lzop", "umount"].into_iter().all(has) {
        return;
    }
    let may_mount = nix::unistd::geteuid().is_root() && Path::new("/dev/fuse").exists();
    assert!(may_mount || std::env::var_os("CI").is_none(), "mounting needs root and /dev/fuse");
    let dir = tempfile::tempdir().unwrap();
    let stock = ["vma", "vma.gz", "vma.lzo", "vma.zst"].map(|suffix| golden.join(format!("two-disks.{suffix}")));
    let ours = ["vma", "vma.gz", "vma.lzo", "vma.zst"].map(|suffix| dir.path().join(format!("ours.{suffix}")));
    for (from, to) in stock.iter().rev().zip(&ours) {
        run(vzkeep().arg("convert").arg(from).arg(to));
    }
    for (number, archive) in stock.iter().chain(&ours).enumerate() {
        let dir = dir.path().join(number.to_string());
        fs::create_dir(&dir).unwrap();
        extracted(archive, &dir);
        restored(archive, &dir);
        mapped(archive, &dir);
        if may_mount {
            mounted(archive, &dir);
        }
        run(vzkeep().arg("verify").arg(archive));
        run(vzkeep().arg("compare").arg(archive).arg(&stock[0]));
        fs::remove_dir_all(&dir).unwrap();
    }
}
