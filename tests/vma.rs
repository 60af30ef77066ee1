//! The drop-in `vma`: words, output and exit codes, on archives the stock program made and on its own; the fifo protocol as
//! the node's `qmrestore` speaks it.

#![expect(clippy::unwrap_used, reason = "tests")]

mod lab;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sha2::{Digest, Sha256};

/// SHA-256 of the disks in the stock program's `two-disks.vma`.
const SCSI0: &str = "8d7d0efb80f98dd454e19ace30725c3bdf3d4ce0589e4bb6157d3c8382516f66";
const SCSI1: &str = "c739be9e6b9a3864f7ab8bda6cf818b8a8ecfaa58c994e4de42f529a77c1a68b";

/// Called as the program of this name, as `make install` links it.
fn vma(dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vzkeep"));
    command.arg0("vma").args(words).current_dir(dir).env_remove("VZKEEP_ROOT").env("TZ", "UTC").stdin(Stdio::null());
    command
}

/// Exit code, standard output, standard error.
fn said(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn run(dir: &Path, words: &[&str]) -> (i32, String, String) {
    said(vma(dir, words).output().unwrap())
}

fn ok(dir: &Path, words: &[&str]) -> String {
    let (code, out, err) = run(dir, words);
    assert!(code == 0, "{words:?}: {code}, {err}");
    out
}

fn sha256(path: &Path) -> String {
    Sha256::digest(fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The stock program's archives; see `GOLDEN_DIR`.
fn golden() -> Option<PathBuf> {
    let default = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/golden"));
    let dir = std::env::var_os("GOLDEN_DIR").map_or(default, PathBuf::from).join("archives");
    if dir.is_dir() {
        return Some(dir);
    }
    assert!(std::env::var_os("CI").is_none(), "no recordings in {}: set GOLDEN_DIR", dir.display());
    eprintln!("skipped: no recordings in {}", dir.display());
    None
}

#[test]
fn words_and_exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    let usage = "usage: vma command [command options]\n\nvma list <filename>\n";
    for words in [&[][..], &["help"], &["list"], &["list", "-h"], &["list", "a", "b"], &["extract", "a"], &["create"]] {
        let (code, out, err) = run(here, words);
        assert!(code == 1 && out.starts_with(usage) && err.is_empty(), "{words:?}: {code} {out}{err}");
    }
    let (code, out, err) = run(here, &["verify", "-x", "a"]);
    assert!(code == 1 && out.starts_with(usage) && err == "verify: invalid option -- 'x'\n", "{err}");
    let (code, out, err) = run(here, &["list", "none.vma"]);
    assert!(code == 1 && out.is_empty() && err.starts_with("\n** (process:"), "{err}");
    assert!(
        err.contains("): ERROR **: ") && err.ends_with("none.vma': No such file or directory (os error 2)\n"),
        "{err}"
    );
    // The same by its name as the first word.
    let by_word = Command::new(env!("CARGO_BIN_EXE_vzkeep")).arg("vma").output().unwrap();
    assert!(said(by_word).1.starts_with(usage));
}

#[test]
fn the_stock_programs_archives() {
    let Some(golden) = golden() else { return };
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    let listed = ok(here, &["list", golden.join("two-disks.vma").to_str().unwrap()]);
    let lines: Vec<_> = listed.lines().collect();
    assert!(
        lines.iter().any(|line| line.starts_with("CFG: size: ") && line.ends_with("name: qemu-server.conf")),
        "{listed}"
    );
    assert!(
        lines.iter().any(|line| line.starts_with("DEV: dev_id=1 size: ") && line.ends_with(" devname: drive-scsi0"))
    );
    assert!(lines.last().unwrap().starts_with("CTIME: ") && listed.ends_with('\n'), "{listed}");
    for (number, suffix) in ["", ".zst", ".gz", ".lzo"].into_iter().enumerate() {
        if suffix == ".lzo" && !lab::require("the_stock_programs_archives", &["lzop"]) {
            continue;
        }
        let archive = golden.join(format!("two-disks.vma{suffix}"));
        let archive = archive.to_str().unwrap();
        assert_eq!(ok(here, &["list", archive]), listed, "{suffix}");
        let config = ok(here, &["config", archive]);
        assert!(config.contains("scsi0: "), "{config}");
        assert_eq!(ok(here, &["verify", archive]), "");
        let verified = ok(here, &["verify", "-v", archive]);
        assert!(verified.starts_with(&listed) && verified.contains("\nprogress 100% (read "), "{verified}");
        assert!(
            verified.contains("\ntotal bytes read ") && verified.contains("\nspace reduction due to 4K zero blocks ")
        );
        let to = format!("out{number}");
        let devinfo = ok(here, &["extract", archive, &to]);
        assert!(devinfo.starts_with(&format!("DEVINFO {to}/tmp-disk-drive-scsi0.raw ")), "{devinfo}");
        let to = here.join(to);
        assert_eq!(sha256(&to.join("disk-drive-scsi0.raw")), SCSI0, "{suffix}");
        assert_eq!(sha256(&to.join("disk-drive-scsi1.raw")), SCSI1, "{suffix}");
        assert_eq!(fs::read_to_string(to.join("qemu-server.conf")).unwrap(), config);
        assert!(fs::read_dir(&to).unwrap().all(|e| !e.unwrap().file_name().to_str().unwrap().starts_with("tmp-")));
    }
    let archive = golden.join("two-disks.vma");
    let archive = archive.to_str().unwrap();
    let (code, out, err) = run(here, &["config", archive, "-c", "none.conf"]);
    assert_eq!((code, out.as_str(), err.as_str()), (255, "", "unable to find configuration data 'none.conf'\n"));
    // Only one disk, and never into a directory that exists.
    ok(here, &["extract", "-d", "drive-scsi1", archive, "one"]);
    assert!(here.join("one/disk-drive-scsi1.raw").exists() && !here.join("one/disk-drive-scsi0.raw").exists());
    let (code, _, err) = run(here, &["extract", archive, "one"]);
    assert!(code == 1 && err.ends_with("unable to create target directory one - File exists\n"), "{err}");
    assert!(
        ok(here, &["verify", "-v", golden.join("diskless.vma").to_str().unwrap()])
            .ends_with("vma archive contains no image data\n")
    );
}

/// The part of `qmrestore` that calls `vma`: unpack into a pipe, read the list, answer over a fifo, wait for the end.
fn restore_like_the_node(here: &Path, archive: &Path, map: &str) -> (i32, String, String) {
    let fifo = here.join("map.fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut zstd = Command::new("zstd").args(["-q", "-d", "-c"]).arg(archive).stdout(Stdio::piped()).spawn().unwrap();
    let mut command = vma(here, &["extract", "-v", "-r", "map.fifo", "-", "tmpdir"]);
    command.stdin(zstd.stdout.take().unwrap()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It holds the reading end of the pipe, too.
    drop(command);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        assert!(out.read_line(&mut line).unwrap() > 0, "no CTIME in {seen}");
        seen += &line;
        if line.starts_with("CTIME: ") {
            break;
        }
    }
    // The node reads the configuration before it decides where the disks go.
    assert!(here.join("tmpdir/qemu-server.conf").exists());
    let mut to = fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    to.write_all(map.as_bytes()).unwrap();
    drop(to);
    std::io::Read::read_to_string(&mut out, &mut seen).unwrap();
    let output = child.wait_with_output().unwrap();
    zstd.wait().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    fs::remove_file(&fifo).unwrap();
    fs::remove_dir_all(here.join("tmpdir")).unwrap();
    (output.status.code().unwrap(), seen, err)
}

#[test]
fn the_fifo_protocol_of_qmrestore() {
    let Some(golden) = golden() else { return };
    if !lab::require("the_fifo_protocol_of_qmrestore", &["zstd", "qemu-img", "qemu-nbd"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    let archive = golden.join("two-disks.vma.zst");
    let size = |name: &str| {
        let listed = ok(here, &["list", archive.to_str().unwrap()]);
        let line = listed.lines().find(|line| line.ends_with(name)).unwrap();
        line.split(' ').nth(3).unwrap().parse::<u64>().unwrap()
    };
    // One target that holds something, and is a little larger as storages round up; a qcow2 image.
    fs::write(here.join("first"), vec![0xa5; size("drive-scsi0") as usize + 512]).unwrap();
    let mut make = Command::new("qemu-img");
    make.args(["create", "-q", "-f", "qcow2", "second", &size("drive-scsi1").to_string()]).current_dir(here);
    assert!(make.status().unwrap().success());
    let at = here.display();
    let map = format!(
        "format=raw:1:drive-scsi0={at}/first\n\
         throttling.bps=100000000:throttling.group=local:format=qcow2:0:drive-scsi1={at}/second\ndone\n"
    );
    let (code, out, err) = restore_like_the_node(here, &archive, &map);
    assert!(code == 0 && err.is_empty(), "{code}: {err}");
    assert!(out.contains("\nprogress 100% (read ") && out.contains("\ntotal bytes read "), "{out}");
    let first = fs::read(here.join("first")).unwrap();
    let (disk, behind) = first.split_at(first.len() - 512);
    fs::write(here.join("first"), disk).unwrap();
    assert_eq!(sha256(&here.join("first")), SCSI0);
    assert!(behind.iter().all(|byte| *byte == 0xa5), "nothing is written behind the disk");
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "qcow2", "-O", "raw", "second", "second.raw"]).current_dir(here);
    assert!(convert.status().unwrap().success());
    assert_eq!(sha256(&here.join("second.raw")), SCSI1);

    let (code, _, err) = restore_like_the_node(here, &archive, "skip=drive-scsi0\ndone\n");
    assert!(code == 1 && err.ends_with(": no device name mapping for drive-scsi1\n"), "{err}");
    fs::write(here.join("small"), "small").unwrap();
    let map = format!("skip=drive-scsi0\nformat=raw:0:drive-scsi1={at}/small\ndone\n");
    let (code, _, err) = restore_like_the_node(here, &archive, &map);
    let wanted = format!(
        "vma_reader_register_bs for stream drive-scsi1 failed - unexpected size 5 != {}\n",
        size("drive-scsi1")
    );
    assert!(code == 1 && err.ends_with(&wanted), "{err}");
    let (code, _, err) = restore_like_the_node(here, &archive, "what\ndone\n");
    assert!(code == 1 && err.ends_with("read map failed - parse error ('what')\n"), "{err}");
}

#[test]
fn a_wait_for_the_fifo_ends_with_a_signal() {
    let Some(golden) = golden() else { return };
    let dir = tempfile::tempdir().unwrap();
    nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let archive = golden.join("two-disks.vma");
    let mut command = vma(dir.path(), &["extract", "-r", "fifo", archive.to_str().unwrap(), "to"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("CTIME: ") {
        line.clear();
        out.read_line(&mut line).unwrap();
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    let (code, _, err) = said(child.wait_with_output().unwrap());
    assert!(code == 1 && err.contains("read map failed - cancelled"), "{err}");
}

#[test]
fn create_and_back() {
    if !lab::require("create_and_back", &["qemu-img", "qemu-nbd", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    let mut noise = vec![0; 300 * 1024];
    lab::Dice::seeded(3).bytes(200 * 1024).iter().enumerate().for_each(|(i, byte)| noise[i + 5000] = *byte);
    fs::write(here.join("a.raw"), &noise).unwrap();
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2", "a.raw", "b.qcow2"]).current_dir(here);
    assert!(convert.status().unwrap().success());
    fs::write(here.join("qemu-server.conf"), "scsi0: local:100/a.raw\n").unwrap();
    // A file that is called as drafts are elsewhere is not touched.
    fs::write(here.join("new.dat"), "mine").unwrap();
    let words = [
        "create",
        "new.vma",
        "-v",
        "-c",
        "qemu-server.conf",
        "-d",
        "format=raw:drive-scsi0=a.raw",
        "-d",
        "format=qcow2:drive-virtio0=b.qcow2",
    ];
    let (code, out, err) = run(here, &words);
    assert!(code == 0 && out.is_empty(), "{err}");
    assert!(err.contains(&format!("progress 100% {0}/{0} ", 2 * noise.len())), "{err}");
    assert!(err.contains(&format!("image drive-virtio0: size={} zeros=", noise.len())), "{err}");
    assert_eq!(fs::read(here.join("new.dat")).unwrap(), b"mine");
    assert_eq!(ok(here, &["config", "new.vma"]), "scsi0: local:100/a.raw\n");
    let listed = ok(here, &["list", "new.vma"]);
    let wanted = format!(
        "CFG: size: 23 name: qemu-server.conf\nDEV: dev_id=1 size: {0} devname: drive-scsi0\nDEV: dev_id=2 size: {0} devname: drive-virtio0\nCTIME: ",
        noise.len()
    );
    assert!(listed.starts_with(&wanted), "{listed}");
    ok(here, &["verify", "new.vma"]);
    ok(here, &["extract", "new.vma", "to"]);
    for name in ["drive-scsi0", "drive-virtio0"] {
        assert!(fs::read(here.join(format!("to/disk-{name}.raw"))).unwrap() == noise, "{name}");
    }
    // The old way to name disks, formats found out; and the refusals.
    let (code, _, err) = run(here, &["create", "old.vma", "a.raw", "second=b.qcow2"]);
    assert!(
        code == 0 && err.contains("WARNING **: ") && err.contains("use '-d format=<format>:second=b.qcow2'"),
        "{err}"
    );
    let listed = ok(here, &["list", "old.vma"]);
    assert!(listed.contains(" devname: disk0\n") && listed.contains(" devname: second\n"), "{listed}");
    ok(here, &["extract", "old.vma", "old"]);
    assert!(fs::read(here.join("old/disk-second.raw")).unwrap() == noise);
    let before = fs::read(here.join("old.vma")).unwrap();
    for (words, wanted) in [
        (&["create", "old.vma", "-d", "format=raw:a.raw"][..], "old.vma' exists already and is not overwritten\n"),
        (&["create", "x.vma", "-d", "a=a.raw"], "No format specified for device: 'a=a.raw'\n"),
        (&["create", "x.vma", "-d", "format=raw:a.raw", "b.qcow2"], "specify all devices via '-d'\n"),
        (&["create", "x.vma", "a=a.raw", "a=b.qcow2"], "vma_writer_register_stream 'a' failed: it comes twice\n"),
        (&["create", "x.vma", "-d", "format=raw:none"], "none: No such file or directory (os error 2)\n"),
        (
            &["create", "x.vma", "-c", "none.conf"],
            "Unable to read file: 'none.conf': No such file or directory (os error 2)\n",
        ),
    ] {
        let (code, _, err) = run(here, words);
        assert!(code == 1 && err.ends_with(wanted), "{words:?}: {err}");
    }
    assert!(fs::read(here.join("old.vma")).unwrap() == before && !here.join("x.vma").exists());
    let left: Vec<_> = fs::read_dir(here).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_str().unwrap().contains(".tmp.")), "{left:?}");
}

#[test]
fn the_state_gets_its_name_when_it_is_complete() {
    if !lab::require("the_state_gets_its_name_when_it_is_complete", &["qemu-nbd"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    let state = lab::Dice::seeded(5).bytes(400 * 1024);
    fs::write(here.join("state.raw"), &state).unwrap();
    ok(here, &["create", "a.vma", "vmstate=state.raw"]);
    ok(here, &["extract", "a.vma", "to"]);
    let names = |dir: &str| fs::read_dir(here.join(dir)).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(names("to"), ["vmstate.bin"]);
    assert!(fs::read(here.join("to/vmstate.bin")).unwrap()[..state.len()] == state);
    let mut bytes = fs::read(here.join("a.vma")).unwrap();
    bytes.truncate(bytes.len() - 70_000);
    fs::write(here.join("cut.vma"), bytes).unwrap();
    let (code, _, err) = run(here, &["extract", "cut.vma", "cut"]);
    assert!(code == 1 && err.contains("restore failed - archive '"), "{err}");
    assert_eq!(names("cut"), [""; 0]);
}

#[test]
fn a_damaged_archive_leaves_nothing_that_looks_complete() {
    let Some(golden) = golden() else { return };
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    let mut bytes = fs::read(golden.join("two-disks.vma")).unwrap();
    bytes.truncate(bytes.len() - 70_000);
    fs::write(here.join("cut.vma"), bytes).unwrap();
    let (code, _, err) = run(here, &["verify", "cut.vma"]);
    assert!(
        code == 1 && err.contains("verify failed - archive '") && err.contains("the archive ends in the middle of"),
        "{err}"
    );
    let (code, _, err) = run(here, &["extract", "cut.vma", "to"]);
    assert!(code == 1 && err.contains("restore failed - archive '"), "{err}");
    let left: Vec<_> = fs::read_dir(here.join("to")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name.to_str().unwrap().starts_with("qemu-server.")), "{left:?}");
}
