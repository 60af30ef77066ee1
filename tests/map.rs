//! `vzkeep map` with the clients people use: qemu-img, qemu-io, nbdcopy, nbdinfo, and a virtual machine that boots from the
//! disks of an archive and writes to them.

mod lab;

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::record::{self, Record};
use lab::{Node, archives, mib};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vzkeep::archive::Compression;
use vzkeep::host::{Host, sys};

const ZSTD: Compression = Compression::Zstd { threads: 1 };
const SIZE: usize = (12 << 20) + 512;

/// Data with holes in it; another one for each seed.
fn content(seed: u32) -> Vec<u8> {
    let byte = |at: usize| (at as u32 / 3).wrapping_mul(0x9e37_79b1).wrapping_add(seed) >> 11;
    (0..SIZE).map(|at| if at >> 20 & 3 == 1 { 0 } else { byte(at) as u8 }).collect()
}

/// An archive of two disks, and the disks as raw files beside it.
fn archive(dir: &Path, compression: Compression) -> Result<PathBuf> {
    archive_of(dir, compression, [content(0), content(1)])
}

fn archive_of(dir: &Path, compression: Compression, disks: [Vec<u8>; 2]) -> Result<PathBuf> {
    let mut sources = Vec::new();
    for (bytes, name) in disks.into_iter().zip(["drive-scsi0", "drive-virtio1"]) {
        fs::write(dir.join(name).with_extension("raw"), &bytes)?;
        sources.push(archives::disk(name, bytes));
    }
    let path = dir.join(format!("vzdump-qemu-100-2026_11_22-09_14_25.vma{}", compression.suffix()));
    archives::write_vma(&path, &archives::job(sources, compression))?;
    Ok(path)
}

/// The two disks of a guest whose witness has written `count` records.
fn witnessed(count: u64) -> [Vec<u8>; 2] {
    let size = mib(24);
    let slots = record::slots_for(&[size, size]);
    [0, 1].map(|disk| {
        let mut bytes = vec![0; size as usize];
        for n in 1..=count {
            let record = Record { n, disk, disks: 2, slots, stride: record::stride_for(size, slots) };
            record.fill(&mut bytes[record.offset() as usize..][..record::SIZE]);
        }
        bytes
    })
}

/// A running `vzkeep map`, killed if the test fails.
struct Map {
    child: Child,
    socket: PathBuf,
    dir: PathBuf,
}

impl Map {
    fn start(dir: &Path, archive: &Path, words: &[&str]) -> Result<Self> {
        let socket = dir.join("s");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vzkeep"));
        command.arg("map").arg(archive).arg("--socket").arg(&socket).args(words).env_remove(Host::ROOT_VAR);
        command.stdin(Stdio::null()).stdout(File::create(dir.join("out"))?).stderr(File::create(dir.join("err"))?);
        sys::end_with_thread(&mut command);
        let child = command.spawn()?;
        let mut map = Self { child, socket, dir: dir.to_owned() };
        let deadline = Instant::now() + Duration::from_secs(60);
        // The lines come when clients may connect.
        while !map.said("out").contains("nbd+unix://") {
            let ended = map.child.try_wait()?;
            ensure!(ended.is_none() && Instant::now() < deadline, "vzkeep map: {ended:?}: {}", map.said("err"));
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(map)
    }

    fn said(&self, stream: &str) -> String {
        fs::read_to_string(self.dir.join(stream)).unwrap_or_default()
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// Ends it; it must be content and leave nothing.
    fn stop(mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{status}: {}", self.said("err"));
        ensure!(!self.socket.exists(), "the socket stays");
        Ok(())
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn run(program: &str, words: &[&str]) -> Result<String> {
    let out = Command::new(program).args(words).stdin(Stdio::null()).output().with_context(|| program.to_owned())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(out.status.success(), "{program} {words:?}: {}{}", text(&out.stdout), text(&out.stderr));
    Ok(text(&out.stdout))
}

/// A program that must fail, and what it says.
fn fails(program: &str, words: &[&str]) -> Result<String> {
    let out = Command::new(program).args(words).stdin(Stdio::null()).output()?;
    ensure!(!out.status.success(), "{program} {words:?} succeeds");
    Ok(String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

#[test]
fn what_clients_read_is_what_was_backed_up() -> Result<()> {
    if !lab::require("what_clients_read_is_what_was_backed_up", &["qemu-img", "nbdcopy", "nbdinfo"]) {
        return Ok(());
    }
    for compression in [ZSTD, Compression::None] {
        let dir = tempfile::tempdir()?;
        let archive = archive(dir.path(), compression)?;
        let map = Map::start(dir.path(), &archive, &["--disk", "virtio1"])?;
        let [first, second] = ["drive-scsi0.raw", "drive-virtio1.raw"].map(|name| path(dir.path(), name));
        let (short, default, copied) = (map.uri("scsi0"), map.uri(""), path(dir.path(), "copied"));
        ensure!(
            map.said("out")
                == format!(
                    "drive-scsi0 12.00 MiB read-only {}\ndrive-virtio1 12.00 MiB read-only {}\n",
                    map.uri("drive-scsi0"),
                    map.uri("drive-virtio1")
                )
        );
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &first, &short])?;
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &second, &default])?;
        run("qemu-img", &["convert", "-f", "raw", "-O", "raw", "-m", "8", "-W", &short, &copied])?;
        ensure!(fs::read(&copied)? == fs::read(&first)?);
        // Several connections with many requests each; two programs at a time.
        fs::remove_file(&copied)?;
        std::thread::scope(|scope| {
            let other = path(dir.path(), "other");
            let (uri, to) = (map.uri("drive-virtio1"), other.clone());
            let beside = scope.spawn(move || run("nbdcopy", &["--connections=4", "--requests=64", &uri, &to]));
            run("nbdcopy", &["--request-size=1048576", &short, &copied])?;
            beside.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
            ensure!(fs::read(&copied)? == fs::read(&first)? && fs::read(&other)? == fs::read(&second)?);
            Ok(())
        })?;
        // Where the holes are, as two programs see it.
        let holes: Value = serde_json::from_str(&run("nbdinfo", &["--map", "--json", &short])?)?;
        let holes: Vec<_> = holes.as_array().context("no list")?.iter().filter(|e| e["type"] == 3).collect();
        ensure!(holes.len() == 3 && holes[0]["offset"] == 1 << 20 && holes[0]["length"] == 1 << 20, "{holes:?}");
        let map_of_qemu: Value =
            serde_json::from_str(&run("qemu-img", &["map", "--output=json", "-f", "raw", &short])?)?;
        let zero = map_of_qemu.as_array().context("no list")?.iter().filter(|e| e["zero"] == true).count();
        ensure!(zero == 3, "{map_of_qemu}");
        let info: Value = serde_json::from_str(&run("nbdinfo", &["--json", "--list", &default])?)?;
        let exports = info["exports"].as_array().context("no exports")?;
        let names: Vec<_> = exports.iter().map(|export| export["export-name"].clone()).collect();
        ensure!(names == [json!("drive-scsi0"), json!("drive-virtio1")], "{info}");
        ensure!(exports[0]["is_read_only"] == true && exports[0]["can_multi_conn"] == true, "{info}");
        ensure!(exports[0]["block_size_maximum"] == 32 << 20 && info["structured"] == true, "{info}");
        let said = fails("qemu-img", &["info", &map.uri("scsi7")])?;
        ensure!(said.contains("there is no export of this name"), "{said}");
        ensure!(!fails("qemu-io", &["-f", "raw", "-c", "write 0 512", &short])?.is_empty());
        ensure!(map.said("err").is_empty(), "{}", map.said("err"));
        map.stop()?;
    }
    Ok(())
}

#[test]
fn an_overlay_takes_what_is_written_and_goes() -> Result<()> {
    if !lab::require("an_overlay_takes_what_is_written_and_goes", &["qemu-img", "qemu-io"]) {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let archive = archive(dir.path(), ZSTD)?;
    let before = fs::read(&archive)?;
    let overlays = dir.path().join("overlays");
    fs::create_dir(&overlays)?;
    let words = ["--overlay", "--overlay-dir", &overlays.display().to_string()];
    let map = Map::start(dir.path(), &archive, &words)?;
    let (uri, raw) = (map.uri("scsi0"), path(dir.path(), "drive-scsi0.raw"));
    // The same on the export and on the raw file, which then have to be equal.
    for target in [&uri, &raw] {
        let io = ["-d", "unmap", "-f", "raw", "-c"];
        for command in [
            "write -P 0xab 1000 70000",
            "write -P 0xcd 4096 4096",
            "write -z 2M 1M",
            "write -z -u 5000 100",
            "write -f -P 7 12582912 512",
            "write -P 9 7M 4M",
            "flush",
            "read -P 9 7M 4M",
            "read -P 0 2M 1M",
        ] {
            let said = run("qemu-io", &[&io[..], &[command, target]].concat())?;
            ensure!(!said.contains("failed"), "{command}: {said}");
        }
    }
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &raw, &uri])?;
    // What is trimmed reads as zeros here.
    run("qemu-io", &["-d", "unmap", "-f", "raw", "-c", "discard 8M 1M", "-c", "read -P 0 8M 1M", &uri])?;
    ensure!(fs::read_dir(&overlays)?.next().is_none(), "an overlay has a name");
    map.stop()?;
    ensure!(fs::read(&archive)? == before, "the archive was changed");
    Ok(())
}

#[test]
fn a_killed_server_leaves_a_socket_that_the_next_one_replaces() -> Result<()> {
    if !lab::require("a_killed_server_leaves_a_socket_that_the_next_one_replaces", &["nbdinfo"]) {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let archive = archive(dir.path(), Compression::None)?;
    let mut map = Map::start(dir.path(), &archive, &["--overlay", "--overlay-dir", &path(dir.path(), "")])?;
    let before = fs::read_dir(dir.path())?.count();
    let mut words = vec!["map".to_owned(), archive.display().to_string(), "--socket".to_owned()];
    words.push(map.socket.display().to_string());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let said = fails(env!("CARGO_BIN_EXE_vzkeep"), &words)?;
    ensure!(said == format!("a server is listening on {} already\n", map.socket.display()), "{said}");
    map.signal(Signal::SIGKILL)?;
    map.child.wait()?;
    ensure!(map.socket.exists() && fs::read_dir(dir.path())?.count() == before);
    let map = Map::start(dir.path(), &archive, &[])?;
    run("nbdinfo", &["--size", &map.uri("scsi0")])?;
    map.signal(Signal::SIGINT)?;
    map.stop()
}

#[test]
fn disks_in_files_of_their_own_and_what_cannot_be_served() -> Result<()> {
    if !lab::require("disks_in_files_of_their_own_and_what_cannot_be_served", &["qemu-img", "qemu-nbd", "setpriv"]) {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let archive = archive(dir.path(), Compression::None)?;
    let (raw, qcow2) = (path(dir.path(), "drive-scsi0.raw"), path(dir.path(), "disk.qcow2"));
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw, &qcow2])?;
    for file in [&raw, &qcow2] {
        let map = Map::start(dir.path(), Path::new(file), &[])?;
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &raw, &map.uri("")])?;
        map.stop()?;
    }
    let socket = path(dir.path(), "s");
    let failing = |archive: &str, more: &[&str], said: &str| {
        let words = [&["map", archive, "--socket", &socket][..], more].concat();
        let heard = fails(env!("CARGO_BIN_EXE_vzkeep"), &words)?;
        ensure!(heard.contains(said), "{heard:?} does not say {said:?}");
        ensure!(!Path::new(&socket).exists(), "a socket is left");
        Ok(())
    };
    let archive = archive.display().to_string();
    failing(&archive, &["--disk", "scsi7"], "there is no disk 'scsi7', only drive-scsi0, drive-virtio1")?;
    failing(&archive, &["--overlay", "--overlay-dir", "/nonexistent"], "the overlay in /nonexistent: No such file")?;
    failing("/nonexistent.vma", &[], "No such file")?;
    let tar = path(dir.path(), "vzdump-lxc-100-2026_11_22-09_14_25.tar");
    run("tar", &["cf", &tar, "-C", &path(dir.path(), ""), "./out"])?;
    failing(&tar, &[], "holds a container")?;
    fs::write(&socket, "mine")?;
    let heard = fails(env!("CARGO_BIN_EXE_vzkeep"), &["map", &archive, "--socket", &socket])?;
    ensure!(heard == format!("{socket} exists and is no socket\n") && fs::read(&socket)? == b"mine", "{heard}");
    Ok(())
}

#[test]
fn a_damaged_archive_fails_reads_and_nothing_else() -> Result<()> {
    if !lab::require("a_damaged_archive_fails_reads_and_nothing_else", &["qemu-img", "qemu-io"]) {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let archive = archive(dir.path(), ZSTD)?;
    let mut bytes = fs::read(&archive)?;
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 0x55);
    fs::write(&archive, &bytes)?;
    let map = Map::start(dir.path(), &archive, &[])?;
    let mut failed = 0;
    for export in ["scsi0", "virtio1"] {
        for at in 0..12 {
            let (at, uri) = (format!("{at}M"), map.uri(export));
            match run("qemu-io", &["-r", "-f", "raw", "-c", &format!("read {at} 1M"), &uri]) {
                Ok(_) => {}
                Err(error) => {
                    ensure!(format!("{error:#}").contains("Input/output error"), "{error:#}");
                    failed += 1;
                }
            }
        }
    }
    ensure!(failed > 0 && failed < 24, "{failed} of 24 reads fail");
    let said = map.said("err");
    ensure!(said.starts_with("drive-") && said.contains(": read of ") && said.lines().count() >= failed, "{said}");
    map.stop()
}

#[test]
fn a_virtual_machine_boots_from_an_archive_and_writes() -> Result<()> {
    const BEFORE: u64 = 3000;
    let test = "a_virtual_machine_boots_from_an_archive_and_writes";
    if !lab::programs::require_guest(test) {
        return Ok(());
    }
    let (node, dir) = (Node::new()?, tempfile::tempdir()?);
    let archive = archive_of(dir.path(), ZSTD, witnessed(BEFORE))?;
    let map = Map::start(dir.path(), &archive, &["--overlay", "--overlay-dir", &path(dir.path(), "")])?;
    let boot = lab::guest_image::boot()?;
    let serial = node.path("/tmp/serial");
    // Below the node's root, so that it does not outlive the test.
    let mut qemu = node.command("qemu-system-x86_64");
    qemu.args(["-machine", "accel=tcg,smm=off,type=pc", "-m", "128", "-nodefaults", "-display", "none", "-kernel"]);
    qemu.arg(&boot.kernel).arg("-initrd").arg(&boot.witness);
    qemu.args([
        "-append",
        "console=ttyS0 quiet mitigations=off edd=off nosmp nokaslr apparmor=0 audit=0 panic=-1 witness",
    ]);
    qemu.arg("-chardev").arg(format!("socket,id=s,path={},server=on,wait=off", serial.display()));
    qemu.args(["-device", "isa-serial,chardev=s", "-device", "virtio-scsi-pci,id=c"]);
    for (drive, device) in [("scsi0", "scsi-hd,bus=c.0,drive=scsi0"), ("virtio1", "virtio-blk-pci,drive=virtio1")] {
        let server = json!({"type": "unix", "path": map.socket});
        let node = json!({"driver": "nbd", "server": server, "export": drive, "node-name": drive});
        qemu.arg("-blockdev").arg(node.to_string()).args(["-device", device]);
    }
    let mut qemu = qemu.process_group(0).spawn()?;
    let deadline = Instant::now() + Duration::from_secs(120);
    while !serial.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    // It goes on where the records in the archive end.
    let mut now = lab::serial::ask(&serial, "status", Duration::from_secs(120))?;
    while now.n < BEFORE + 5 && Instant::now() < deadline {
        now = lab::serial::ask(&serial, "status", Duration::from_secs(60))?;
    }
    ensure!(now.n >= BEFORE + 5 && now.errors == 0, "{now:?}");
    kill(Pid::from_raw(i32::try_from(qemu.id())?), Signal::SIGKILL)?;
    qemu.wait()?;
    // What it wrote, together with what it had: every record, on both disks, at one instant.
    let disks = ["scsi0", "virtio1"].map(|disk| (map.uri(disk), dir.path().join(disk)));
    for (uri, to) in &disks {
        run("qemu-img", &["convert", "-f", "raw", "-O", "raw", uri, &to.display().to_string()])?;
    }
    let verdict = lab::checker::check(&disks.map(|(_, file)| file))?;
    ensure!(verdict.heads.iter().all(|head| *head + 1 >= now.n), "{verdict} instead of {now:?}");
    map.stop()
}
