//! How `vzkeep mount` begins and ends: refusals, signals, kills, a busy directory, damaged and vanished archives.

mod lab;

use anyhow::{Context, Result, ensure};
use lab::Dice;
use lab::archives::make_vma;
use lab::mounted::{LONG, MountPoint, require_fuse, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vzkeep::archive::Compression;
use vzkeep::host::Host;
use vzkeep::image::{FaultyImage, Image, MemImage};
use vzkeep::mount::{Flat, Mounted, Options, Owner, Place};

const MIB: usize = 1 << 20;

/// An archive with a disk of 12 MiB that cannot be compressed, and what is on it.
fn archive(dir: &Path) -> Result<(PathBuf, Vec<u8>)> {
    let (path, bytes) = (dir.join("vzdump-qemu-100-x.vma.zst"), Dice::seeded(5).bytes(12 * MIB));
    make_vma(&path, &[("drive-scsi0", bytes.clone())], Compression::Zstd { threads: 2 })?;
    Ok((path, bytes))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_cannot_be_mounted() -> Result<()> {
    if !require_fuse("what_cannot_be_mounted") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (archive, _) = archive(dir.path())?;
    let point = MountPoint::new(dir.path(), "point")?;
    let refused = |point: &MountPoint, archive: &Path, why: &str| -> Result<()> {
        for foreground in [false, true] {
            let output = point.command(archive)?.args(foreground.then_some("-f")).output()?;
            let said = said(&output);
            ensure!(output.status.code() == Some(255) && output.stdout.is_empty(), "{:?}: {said}", output.status);
            ensure!(said.contains(why) && said.lines().count() == 1, "'{why}' is not in: {said}");
        }
        ensure!(!point.is_mounted()? && point.servers()?.is_empty(), "something is left");
        Ok(())
    };
    std::fs::write(dir.path().join("text"), "this is no archive at all, but long enough to be looked at".repeat(20))?;
    refused(&point, &dir.path().join("text"), "neither")?;
    refused(&point, &dir.path().join("missing.vma"), "No such file")?;
    std::fs::write(point.join("file"), "")?;
    refused(&point, &archive, "is not empty")?;
    std::fs::remove_file(point.join("file"))?;
    let half = dir.path().join("half.vma.zst");
    std::fs::write(&half, &std::fs::read(&archive)?[..6 * MIB])?;
    refused(&point, &half, "half.vma.zst")?;
    // Somebody else's mount, and ours.
    let with = |directory: &Path| {
        Command::new(lab::programs::vzkeep()?).arg("mount").arg(&archive).arg(directory).output().context("vzkeep")
    };
    let output = with(Path::new("/proc"))?;
    ensure!(said(&output).contains("proc (proc) is mounted there already"), "{}", said(&output));
    ensure!(said(&with(&dir.path().join("nowhere"))?).contains("No such file"));
    ensure!(said(&with(&dir.path().join("text"))?).contains("is no directory"));
    point.mount(&archive)?;
    let output = point.command(&archive)?.output()?;
    ensure!(said(&output).contains("an archive is mounted there already"), "{}", said(&output));
    ensure!(point.servers()?.len() == 1, "another process is left");
    point.unmount()
}

/// Starts it in the foreground and waits for the files.
fn in_foreground(point: &MountPoint, archive: &Path) -> Result<Child> {
    let child = point.command(archive)?.arg("--foreground").stderr(Stdio::piped()).spawn()?;
    wait("the archive is mounted", || point.is_mounted())?;
    Ok(child)
}

/// Waits for the end; returns the exit code and what was said.
fn end(mut child: Child) -> Result<(Option<i32>, String)> {
    wait("the process ends", || Ok(child.try_wait()?.is_some()))?;
    let mut said = String::new();
    child.stderr.take().context("no standard error")?.read_to_string(&mut said)?;
    Ok((child.wait()?.code(), said))
}

fn send(pid: u32, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(pid.try_into()?), signal)?)
}

#[test]
fn signals_unmount() -> Result<()> {
    if !require_fuse("signals_unmount") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (archive, bytes) = archive(dir.path())?;
    let point = MountPoint::new(dir.path(), "point")?;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let child = in_foreground(&point, &archive)?;
        send(child.id(), signal)?;
        assert_eq!(end(child)?, (Some(0), String::new()));
        point.wait_until_gone()?;
    }
    // A process in the background, too.
    point.mount(&archive)?;
    send(u32::try_from(point.servers()?[0])?, Signal::SIGTERM)?;
    point.wait_until_gone()?;
    // A file that is open stays readable; the directory is free at once, and the process ends with the file.
    let child = in_foreground(&point, &archive)?;
    let file = File::open(point.join("drive-scsi0.raw"))?;
    send(child.id(), Signal::SIGTERM)?;
    wait("the directory is free", || Ok(!point.is_mounted()?))?;
    let mut buf = vec![0; MIB];
    file.read_exact_at(&mut buf, 7 * MIB as u64)?;
    ensure!(buf == bytes[7 * MIB..8 * MIB], "other bytes than before");
    drop(file);
    let (code, said) = end(child)?;
    ensure!(code == Some(0) && said.contains("was in use") && said.lines().count() == 1, "{code:?}: {said}");
    // A second signal is for those who cannot wait.
    let child = in_foreground(&point, &archive)?;
    let file = File::open(point.join("drive-scsi0.raw"))?;
    send(child.id(), Signal::SIGTERM)?;
    wait("the directory is free", || Ok(!point.is_mounted()?))?;
    send(child.id(), Signal::SIGTERM)?;
    assert_eq!(end(child)?.0, Some(255));
    ensure!(file.read_at(&mut buf, 0).is_err(), "who read this?");
    Ok(())
}

#[test]
fn whoever_waits_for_a_mount_that_is_killed() -> Result<()> {
    if !require_fuse("whoever_waits_for_a_mount_that_is_killed") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (archive, _) = archive(dir.path())?;
    let point = MountPoint::new(dir.path(), "point")?;
    // Whenever it happens: there is a mount with a process, or there is nothing.
    for millis in [0, 5, 10, 15, 20, 40, 80] {
        let mut child = point.command(&archive)?.stderr(Stdio::null()).spawn()?;
        std::thread::sleep(Duration::from_millis(millis));
        child.kill()?;
        child.wait()?;
        wait("it is settled", || {
            let (mounted, servers) = (point.is_mounted()?, point.servers()?.len());
            Ok(mounted == (servers == 1) && (!mounted || std::fs::metadata(point.join("drive-scsi0.raw")).is_ok()))
        })?;
        if point.is_mounted()? {
            // It may still be about to find that nobody waits.
            Command::new("umount").arg(point.path()).stderr(Stdio::null()).status()?;
        }
        point.wait_until_gone()?;
    }
    Ok(())
}

#[test]
fn a_killed_mount_is_cleaned_up() -> Result<()> {
    if !require_fuse("a_killed_mount_is_cleaned_up") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (archive, bytes) = archive(dir.path())?;
    let point = MountPoint::new(dir.path(), "point")?;
    point.mount(&archive)?;
    send(u32::try_from(point.servers()?[0])?, Signal::SIGKILL)?;
    wait("the mount is dead", || {
        Ok(std::fs::metadata(point.path()).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN)))
    })?;
    let said = point.mount(&archive)?;
    ensure!(said.contains("a killed vzkeep had left") && said.lines().count() == 1, "{said}");
    ensure!(std::fs::read(point.join("drive-scsi0.raw"))? == bytes, "the disk differs");
    point.unmount()?;
    ensure!(!point.is_mounted()?, "the dead one is still there");
    Ok(())
}

#[test]
fn damaged_and_vanished_archives() -> Result<()> {
    if !require_fuse("damaged_and_vanished_archives") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (archive, bytes) = archive(dir.path())?;
    let point = MountPoint::new(dir.path(), "point")?;
    // A flipped bit in the middle: what is not in that frame can be read.
    let file = OpenOptions::new().read(true).write(true).open(&archive)?;
    let middle = file.metadata()?.len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle)?;
    file.write_all_at(&[byte[0] ^ 4], middle)?;
    let child = in_foreground(&point, &archive)?;
    let disk = File::open(point.join("drive-scsi0.raw"))?;
    let mut buf = vec![0; MIB];
    let (mut good, mut bad) = (0, 0);
    for at in (0..12 * MIB).step_by(MIB) {
        match disk.read_exact_at(&mut buf, at as u64) {
            Ok(()) => {
                ensure!(buf == bytes[at..at + MIB], "wrong bytes at {at}");
                good += 1;
            }
            Err(e) => {
                ensure!(e.raw_os_error() == Some(libc::EIO), "{e}");
                bad += 1;
            }
        }
    }
    ensure!(good >= 4 && (1..8).contains(&bad), "{good} good and {bad} bad");
    drop(disk);
    send(child.id(), Signal::SIGTERM)?;
    let (code, said) = end(child)?;
    ensure!(code == Some(0) && said.contains("drive-scsi0: read of") && said.lines().count() == 1, "{code:?}: {said}");
    // One that is cut while it is mounted.
    file.write_all_at(&byte, middle)?;
    let child = in_foreground(&point, &archive)?;
    file.set_len(middle)?;
    let disk = File::open(point.join("drive-scsi0.raw"))?;
    let end_of_disk = disk.read_exact_at(&mut buf, 11 * MIB as u64);
    ensure!(end_of_disk.is_err_and(|e| e.raw_os_error() == Some(libc::EIO)), "read what is not there");
    ensure!(std::fs::read_to_string(point.join("qemu-server.fw"))? == "[OPTIONS]\n", "the configuration is gone");
    drop(disk);
    send(child.id(), Signal::SIGTERM)?;
    assert_eq!(end(child)?.0, Some(0));
    Ok(())
}

#[test]
fn who_is_not_root() -> Result<()> {
    let name = "who_is_not_root";
    if !require_fuse(name) || !lab::require(name, &["setpriv", "fusermount3"]) {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (archive, bytes) = archive(dir.path())?;
    let point = MountPoint::new(dir.path(), "point")?;
    // Everything has to be where that user can find it.
    let program = dir.path().join("vzkeep");
    std::fs::copy(lab::programs::vzkeep()?, &program)?;
    for (path, mode) in [(dir.path(), 0o755), (&program, 0o755), (&archive, 0o644)] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    }
    std::os::unix::fs::chown(point.path(), Some(65_534), Some(65_534))?;
    let as_nobody = |words: &[&std::ffi::OsStr]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).args(words).env_remove(Host::ROOT_VAR);
        command.output().context("setpriv")
    };
    let mount = [program.as_os_str(), "mount".as_ref(), archive.as_os_str(), point.path().as_os_str()];
    for ends_by_signal in [false, true] {
        let output = as_nobody(&mount)?;
        ensure!(output.status.success(), "{}", said(&output));
        // Not even root looks into it; whose it is reads all of it.
        ensure!(std::fs::metadata(point.join("drive-scsi0.raw")).is_err(), "root has got in");
        let read = as_nobody(&["cat".as_ref(), point.join("drive-scsi0.raw").as_os_str()])?;
        ensure!(read.stdout == bytes, "other bytes: {}", said(&read));
        if ends_by_signal {
            send(u32::try_from(point.servers()?[0])?, Signal::SIGTERM)?;
        } else {
            let output = as_nobody(&["fusermount3".as_ref(), "-u".as_ref(), point.path().as_os_str()])?;
            ensure!(output.status.success(), "{}", said(&output));
        }
        point.wait_until_gone()?;
    }
    Ok(())
}

#[test]
fn a_disk_that_does_not_answer() -> Result<()> {
    if !require_fuse("a_disk_that_does_not_answer") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let point = MountPoint::new(dir.path(), "point")?;
    let mut flat = Flat::new(Owner { uid: 0, gid: 0, mode: 0o400 }, std::time::UNIX_EPOCH);
    let stuck: Arc<dyn Image> = Arc::new(MemImage::new("stuck", vec![1; 16 * MIB]));
    flat.add("stuck", Arc::new(FaultyImage::new(stuck).delay(LONG * 10)), std::time::UNIX_EPOCH);
    flat.add_bytes("quick", b"hello".to_vec(), std::time::UNIX_EPOCH);
    let (lines, host) = (Arc::new(Mutex::new(Vec::new())), Host::with_root("/".into()));
    let log = Arc::clone(&lines);
    let options = Options {
        allow_other: false,
        patience: Duration::from_secs(2),
        say: Arc::new(move |line| log.lock().unwrap().push(line.to_owned())),
    };
    let place = Place::find(&host, point.path(), &mut |_| {})?;
    let mounted = Mounted::new(&host, place, Arc::new(flat), &options)?;
    let begun = Instant::now();
    // In a process of its own each: one that reads cannot be ended, as the kernel has it.
    let mut readers: Vec<_> = (0..10)
        .map(|n| {
            let mut dd = Command::new("dd");
            dd.arg(format!("if={}", point.join("stuck").display())).args([
                "of=/dev/null",
                "bs=4096",
                "count=1",
                "iflag=direct",
            ]);
            dd.arg(format!("skip={}", n * 100)).stderr(Stdio::null()).spawn()
        })
        .collect::<std::io::Result<_>>()?;
    std::thread::sleep(Duration::from_millis(300));
    // Nobody waits for them.
    ensure!(std::fs::metadata(point.join("stuck"))?.len() == 16 * MIB as u64, "another size");
    ensure!(std::fs::read_dir(point.path())?.count() == 2, "other files");
    ensure!(begun.elapsed() < LONG, "a question that needs no disk took {:?}", begun.elapsed());
    for reader in &mut readers {
        wait("the reader gets an error", || Ok(reader.try_wait()?.is_some()))?;
        ensure!(!reader.wait()?.success(), "it read something");
    }
    ensure!(mounted.unmount()?, "it is busy");
    mounted.ended().recv_timeout(LONG)??;
    point.wait_until_gone()?;
    let lines = lines.lock().unwrap();
    ensure!(lines.iter().any(|line| line.contains("did not answer")), "{lines:?}");
    Ok(())
}
