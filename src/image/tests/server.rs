//! Real servers as processes: their life and death, many threads, bitmaps, discard.

use std::io::BufRead;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::nbd::{self, BASE_ALLOCATION, Client, Options, STATE_DIRTY, dirty_bitmap_context};

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[track_caller]
fn soon(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A child that is killed and reaped whatever the test does.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn eight_threads_read_one_disk() {
    if !have("eight_threads_read_one_disk", &["qemu-nbd", "setpriv"]) {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let bytes = noise(7, 24 << 20);
    std::fs::write(file.path(), &bytes).unwrap();
    let server = QemuNbd::serve(&Host::from_env(), file.path(), "raw", true).unwrap();
    let image = NbdImage::connect(server.socket(), "", "disk").unwrap();
    std::thread::scope(|scope| {
        for t in 0..8usize {
            let (image, bytes) = (&image, &bytes);
            scope.spawn(move || {
                let mut buf = vec![0; (t + 1) * 300_000];
                for i in 0..12 {
                    let at = (t * 2_999_999 + i * 1_777_777) % (bytes.len() - buf.len());
                    image.read_at(&mut buf, at as u64).unwrap();
                    assert!(buf == bytes[at..at + buf.len()], "thread {t}, offset {at}");
                }
            });
        }
    });
}

#[test]
fn nothing_is_left_of_a_server() {
    if !have("nothing_is_left_of_a_server", &["qemu-nbd", "setpriv"]) {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let host = Host::from_env();
    // What a killed run left: no process has this number.
    let stale = std::env::temp_dir().join("vzkeep-nbd-4194305-1-test");
    std::fs::create_dir_all(stale.join("socket")).unwrap();
    // The server must not die with the thread that asked for it.
    let path = file.path().to_owned();
    let server = std::thread::spawn(move || QemuNbd::serve(&host, &path, "raw", true)).join().unwrap().unwrap();
    assert!(!stale.exists(), "the directory of a killed run stays");
    let (pid, socket) = (server.pid(), server.socket().to_owned());
    std::thread::sleep(Duration::from_millis(50));
    assert!(alive(pid));
    let mode = std::fs::metadata(socket.parent().unwrap()).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o700);
    drop(server);
    assert!(!alive(pid) && !socket.parent().unwrap().exists());

    let mut server = QemuNbd::serve(&Host::from_env(), file.path(), "raw", true).unwrap();
    let image = NbdImage::connect(server.socket(), "", "disk").unwrap();
    server.close_door().unwrap();
    assert!(!server.socket().parent().unwrap().exists());
    image.read_at(&mut [0; 512], 0).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/cmdline", server.pid())).unwrap();
    assert!(status.starts_with("qemu-nbd"), "setpriv must have become qemu-nbd: {status:?}");
    drop(image);
    // The last client has left, so it goes by itself; the keeper has not reaped it yet.
    let stat = format!("/proc/{}/stat", server.pid());
    soon("qemu-nbd must end with its last client", || std::fs::read_to_string(&stat).is_ok_and(|s| s.contains(") Z ")));
}

/// Run as a process of its own by the next test, which kills it.
#[test]
#[ignore = "the other half of a_server_dies_with_us"]
fn serves_until_killed() {
    let Some(disk) = std::env::var_os("VZKEEP_TEST_DISK") else { return };
    let server = QemuNbd::serve(&Host::from_env(), Path::new(&disk), "raw", false).unwrap();
    let _target = NbdTarget::connect(server.socket(), "", "disk", true).unwrap();
    println!("\npid {} {}", server.pid(), server.socket().display());
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_server_dies_with_us() {
    if !have("a_server_dies_with_us", &["qemu-nbd", "setpriv"]) {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let us = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "image::tests::server::serves_until_killed", "--ignored", "--nocapture"])
        .env("VZKEEP_TEST_DISK", file.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut us = Guard(us);
    let lines = std::io::BufReader::new(us.0.stdout.take().unwrap()).lines();
    let line = lines.map(Result::unwrap).find(|l| l.starts_with("pid ")).unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    let pid = words[1].parse().unwrap();
    assert!(alive(pid));
    us.0.kill().unwrap();
    us.0.wait().unwrap();
    soon("qemu-nbd must die with the process that started it", || {
        !alive(pid) || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") Z "))
    });
    std::fs::remove_dir_all(Path::new(words[2]).parent().unwrap()).unwrap();
}

#[test]
fn a_server_killed_in_the_middle_is_noticed_at_once() {
    if !have("a_server_killed_in_the_middle_is_noticed_at_once", &["qemu-nbd", "setpriv"]) {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 30).unwrap();
    let server = QemuNbd::serve(&Host::from_env(), file.path(), "raw", true).unwrap();
    let image = NbdImage::connect(server.socket(), "", "drive-scsi0").unwrap();
    let pid = nix::unistd::Pid::from_raw(server.pid() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|t| {
                let image = &image;
                scope.spawn(move || image.read_at(&mut vec![0; 4 << 20], t << 26).unwrap_err())
            })
            .collect();
        std::thread::sleep(Duration::from_millis(100));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        for reader in readers {
            let error = reader.join().unwrap().to_string();
            assert!(error.starts_with("drive-scsi0: read of 4194304 bytes at offset"), "{error}");
            assert!(error.contains("connection to the NBD server is lost"), "{error}");
        }
    });
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_storage_daemon_with_bitmap_and_discard() {
    const NAME: &str = "a_storage_daemon_with_bitmap_and_discard";
    if !have(NAME, &["qemu-storage-daemon", "qemu-img", "qemu-io", "setpriv"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (disk, socket) = (dir.path().join("disk.qcow2"), dir.path().join("socket"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(&disk), "16M"]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 0x11 0 4M", text(&disk)]);
    run("qemu-img", &["bitmap", "--add", "-f", "qcow2", text(&disk), "since"]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 0x22 1M 64k", text(&disk)]);
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "qemu-storage-daemon"])
        .args(["--blockdev", &format!("file,node-name=f,discard=unmap,filename={}", text(&disk))])
        .args(["--blockdev", "qcow2,node-name=q,file=f,discard=unmap"])
        .args(["--nbd-server", &format!("addr.type=unix,addr.path={}", text(&socket))])
        .args(["--export", "nbd,id=e,node-name=q,name=drive-scsi0,writable=on,bitmaps.0=since"])
        .spawn()
        .unwrap();
    let _guard = Guard(child);
    soon("qemu-storage-daemon must answer", || UnixStream::connect(&socket).is_ok());

    let context = dirty_bitmap_context("since");
    let options =
        Options { meta_contexts: vec![BASE_ALLOCATION.into(), context.clone(), "x:none".into()], ..Options::default() };
    let client = Arc::new(Client::connect_unix(&socket, "drive-scsi0", &options).unwrap());
    assert!(client.has_context(&context) && !client.has_context("x:none"));
    let dirty = client.block_status(&context, 0, 16 << 20).unwrap();
    assert_eq!(dirty, [(1 << 20, 0), (1 << 16, STATE_DIRTY), ((15 << 20) - (1 << 16), 0)]);
    let allocation = client.block_status(BASE_ALLOCATION, 0, 16 << 20).unwrap();
    assert_eq!(allocation, [(4 << 20, 0), (12 << 20, nbd::STATE_HOLE | nbd::STATE_ZERO)]);

    let image = NbdImage::with_client(Arc::clone(&client), "disk").discard_after_read(true);
    let mut buf = vec![0; 2 << 20];
    image.read_at(&mut buf, 0).unwrap();
    assert!(buf[..1 << 20].iter().all(|b| *b == 0x11) && buf[1 << 20..][..1 << 16].iter().all(|b| *b == 0x22));
    image.release(0..2 << 20);
    let allocation = client.block_status(BASE_ALLOCATION, 0, 4 << 20).unwrap();
    assert_eq!(allocation, [(2 << 20, nbd::STATE_HOLE | nbd::STATE_ZERO), (2 << 20, 0)]);

    let missing = Client::connect_unix(&socket, "drive-scsi9", &options).unwrap_err().to_string();
    assert!(missing.contains("drive-scsi9"), "{missing}");
    // Writes, zeros and reads of many threads on one connection.
    std::thread::scope(|scope| {
        for t in 0..4u64 {
            let client = &client;
            scope.spawn(move || {
                let (bytes, at) = (noise(t, 1_234_567), t * (2 << 20) + 77);
                client.write_at(&bytes, at).unwrap();
                client.write_zeroes(at + 1000, 5000).unwrap();
                let mut back = vec![0; bytes.len()];
                client.read_at(&mut back, at).unwrap();
                assert!(back[..1000] == bytes[..1000] && back[6000..] == bytes[6000..]);
                assert!(back[1000..6000].iter().all(|b| *b == 0));
            });
        }
    });
    client.flush().unwrap();
}

#[test]
fn a_bad_sector_is_an_error_and_not_the_end() {
    if !have("a_bad_sector_is_an_error_and_not_the_end", &["qemu-storage-daemon", "setpriv"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (disk, socket) = (dir.path().join("disk.raw"), dir.path().join("socket"));
    let bytes = noise(8, 8 << 20);
    std::fs::write(&disk, &bytes).unwrap();
    let bad = format!(
        r#"{{"driver":"blkdebug","node-name":"b","image":{{"driver":"file","filename":"{}"}},
            "inject-error":[{{"event":"none","iotype":"read","errno":5,"sector":8193}}]}}"#,
        text(&disk)
    );
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "qemu-storage-daemon", "--blockdev", &bad])
        .args(["--nbd-server", &format!("addr.type=unix,addr.path={}", text(&socket))])
        .args(["--export", "nbd,id=e,node-name=b,name=disk"])
        .spawn()
        .unwrap();
    let _guard = Guard(child);
    soon("qemu-storage-daemon must answer", || UnixStream::connect(&socket).is_ok());
    let image = NbdImage::connect(&socket, "disk", "drive-scsi1").unwrap();
    let mut buf = vec![0; 8 << 20];
    let error = image.read_at(&mut buf, 0).unwrap_err();
    assert_eq!((error.op, error.offset), ("read", 4 << 20), "{error}");
    assert!(error.to_string().contains("Input/output error") || error.to_string().contains("I/O error"), "{error}");
    image.read_at(&mut buf[..4 << 20], 0).unwrap();
    assert!(buf[..4 << 20] == bytes[..4 << 20]);
    let error = image.read_at(&mut buf[..512], 8193 * 512).unwrap_err();
    assert_eq!(error.offset, 8193 * 512);
}
