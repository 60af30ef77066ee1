//! Sessions on a real QEMU when something goes wrong: each ends with the guest running and nothing left behind.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use super::lab::{Lab, MIB, VMID, WAIT, error, have, read, read_error, within};
use crate::host::Cancel;
use crate::qemu::sweep::sweep_connected;
use crate::qemu::{Fleecing, FleecingFormat, QemuError, Qmp, Session, remove_stale_files, sweep};

/// The construction is stopped after every single command, as by a KILL; the sweep clears each state, also when it is
/// itself killed half-way and started again.
/// Whether this is the long run (`make soak`).
fn soaking() -> bool {
    std::env::var_os("VZKEEP_SOAK").is_some()
}

#[test]
fn every_half_built_state_can_be_swept() {
    if !have("every_half_built_state_can_be_swept") {
        return;
    }
    let lab = Lab::start();
    if !lab.capable() {
        return;
    }
    let (mut switched, mut step) = (0, 2);
    loop {
        let mut spec = lab.spec(&["scsi0", "virtio0"]);
        spec.die_after = Some(step);
        match Session::start(spec, &Cancel::new()) {
            Ok(session) => {
                session.finish().unwrap();
                break;
            }
            Err(e) => assert!(e.to_string().contains("fuse socket"), "step {step}: {e}"),
        }
        if step % 3 == 0 {
            let mut qmp = lab.qmp();
            qmp.fuse = Some(step / 2);
            drop(sweep_connected(&mut qmp, VMID));
        }
        let swept = sweep(&lab.qmp_path(), VMID).unwrap();
        switched += usize::from(swept.removed.iter().any(|what| what == "node vzkeep-top-scsi0"));
        assert!(sweep(&lab.qmp_path(), VMID).unwrap().is_empty());
        for stale in std::fs::read_dir(lab.dir.path()).unwrap().map(|e| e.unwrap().path()) {
            assert!(!stale.display().to_string().ends_with(".nbd"), "step {step}: QEMU left its socket");
        }
        remove_stale_files(lab.dir.path(), VMID).unwrap();
        lab.assert_clean();
        step += 1;
    }
    println!("{step} steps, the guest read through nodes of ours after {switched} of them");
    assert!(step > 20 && switched > 3);
    lab.assert_clean();
}

/// The same from the other side: a complete session, and the end of it killed after every command.
#[test]
fn every_half_removed_state_can_be_swept() {
    if !have("every_half_removed_state_can_be_swept") {
        return;
    }
    let lab = Lab::start();
    if !lab.capable() {
        return;
    }
    for step in 0.. {
        lab.session(&["scsi0", "virtio0"]).abandon();
        let mut qmp = lab.qmp();
        qmp.fuse = Some(step);
        let complete = sweep_connected(&mut qmp, VMID).is_ok();
        drop(qmp);
        sweep(&lab.qmp_path(), VMID).unwrap();
        lab.assert_clean();
        if complete {
            assert!(step > 10);
            break;
        }
    }
}

#[test]
fn the_next_session_clears_the_last() {
    if !have("the_next_session_clears_the_last") {
        return;
    }
    let lab = Lab::start();
    if !lab.capable() {
        return;
    }
    lab.session(&["scsi0", "virtio0"]).abandon();
    std::fs::write(lab.path("vzkeep-4100-scsi0-x.raw"), "left by a KILL").unwrap();
    lab.guest("scsi0", "write -P 9 0 64k");
    let session = lab.session(&["scsi0"]);
    assert!(session.swept().removed.iter().any(|r| r == "drive of scsi0 back to drive-scsi0"), "{:?}", session.swept());
    read(session.socket(), "scsi0", &["read -P 9 0 64k"]).unwrap();
    session.finish().unwrap();

    // A process that is alive and at work is left alone.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", lab.child.id())).unwrap();
    let started = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(19).unwrap().to_owned();
    let id = format!("vzkeep-run-{}-{started}", lab.child.id());
    lab.qmp().execute("object-add", json!({"qom-type": "throttle-group", "id": id})).unwrap();
    assert!(matches!(error(sweep(&lab.qmp_path(), VMID)), QemuError::InUse { pid, .. } if pid == lab.child.id()));
    assert!(matches!(error(Session::start(lab.spec(&["scsi0"]), &Cancel::new())), QemuError::InUse { .. }));
    lab.qmp().execute("object-del", json!({"id": id})).unwrap();
    lab.assert_clean();
}

#[test]
fn full_fleecing_space_breaks_the_backup_not_the_guest() {
    if !have("full_fleecing_space_breaks_the_backup_not_the_guest") {
        return;
    }
    let lab = Lab::start();
    if !lab.capable() {
        return;
    }
    let small = lab.path("small");
    std::fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2M", "tmpfs"]).arg(&small).output().unwrap();
    if !mounted.status.success() {
        println!("SKIPPED full_fleecing_space_breaks_the_backup_not_the_guest: cannot mount a tmpfs");
        return;
    }
    let result = std::panic::catch_unwind(|| {
        lab.guest("virtio0", "write -P 1 0 8M");
        let mut spec = lab.spec(&["scsi0", "virtio0"]);
        spec.disks[1].fleecing = Fleecing::Directory(small.clone());
        let session = Session::start(spec, &Cancel::new()).unwrap();
        assert_eq!(std::fs::read_dir(&small).unwrap().count(), 0, "unlinked");
        read(session.socket(), "virtio0", &["read -P 1 0 8M"]).unwrap();
        lab.guest("virtio0", "write -P 2 0 8M");
        lab.guest("virtio0", "read -P 2 0 8M");
        let broken = session.broken("drive-virtio0", &read_error(session.socket(), "virtio0", "read 5M 64k")).unwrap();
        assert!(broken.is_full(), "{broken:?}");
        assert!(broken.to_string().contains("no space left for fleecing"), "{broken}");
        read(session.socket(), "scsi0", &["read -P 0 0 8M"]).unwrap();
        session.finish().unwrap();
        lab.guest("virtio0", "write -P 3 0 1M");
        lab.assert_clean();
    });
    // QEMU has closed the file with its node; a test that failed may need the lazy way.
    assert!(Command::new("umount").arg("-l").arg(&small).status().unwrap().success());
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_fleecing_image_that_hangs_times_out() {
    if !have("a_fleecing_image_that_hangs_times_out") {
        return;
    }
    // Now and then QEMU's own monitor hangs with the store, for reasons not yet understood; kept out of the short run until then.
    if !soaking() {
        return println!("SKIPPED a_fleecing_image_that_hangs_times_out: VZKEEP_SOAK not set");
    }
    let lab = Lab::start();
    if !lab.capable() {
        return;
    }
    let Some(store) = HangingStore::start(&lab) else {
        return println!("SKIPPED a_fleecing_image_that_hangs_times_out: no FUSE exports here");
    };
    lab.guest("scsi0", "write -P 1 0 1M");
    let mut spec = lab.spec(&["scsi0"]);
    spec.cbw_timeout = Duration::from_secs(1);
    spec.disks[0].fleecing = Fleecing::Image { path: store.path.clone(), format: FleecingFormat::Raw };
    let session = Session::start(spec, &Cancel::new()).unwrap();
    lab.guest("scsi0", "write -P 2 0 64k");
    read(session.socket(), "scsi0", &["read -P 1 0 1M"]).unwrap();

    store.signal(Signal::SIGSTOP);
    let started = Instant::now();
    lab.guest("scsi0", "write -P 3 512k 64k");
    let waited = started.elapsed();
    assert!(waited > Duration::from_millis(500) && waited < Duration::from_secs(4), "the guest waited {waited:?}");
    within(Duration::from_secs(1), "a write after the break", || lab.guest("scsi0", "write -P 3 768k 64k"));
    let broken = session.broken("scsi0", &read_error(session.socket(), "scsi0", "read 512k 64k")).unwrap();
    assert!(broken.to_string().contains("took longer than 1 s"), "{broken}");
    store.signal(Signal::SIGCONT);
    session.finish().unwrap();
    lab.guest("scsi0", "read -P 3 768k 64k");
    lab.assert_clean();
}

/// A fleecing image on a file system whose server can be made to hang.
struct HangingStore {
    child: Child,
    path: PathBuf,
}

impl HangingStore {
    fn start(lab: &Lab) -> Option<Self> {
        let (image, path) = (lab.path("store"), lab.path("mounted"));
        std::fs::File::create(&image).unwrap().set_len(8 * MIB).unwrap();
        std::fs::File::create(&path).unwrap();
        let mut store = Command::new("setpriv");
        store.args(["--pdeathsig", "KILL", "qemu-storage-daemon", "--blockdev"]);
        store.arg(format!("driver=file,node-name=f,filename={}", image.display())).arg("--export");
        store.arg(format!("type=fuse,id=e,node-name=f,writable=on,mountpoint={}", path.display()));
        let store = Self { child: store.spawn().ok()?, path };
        let until = Instant::now() + Duration::from_secs(5);
        while std::fs::metadata(&store.path).is_ok_and(|m| m.len() == 0) {
            if Instant::now() > until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(store)
    }

    fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for HangingStore {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = Command::new("umount").arg("-l").arg(&self.path).output();
    }
}

#[test]
fn a_bad_sector_is_the_disks_own_error() {
    if !have("a_bad_sector_is_the_disks_own_error") {
        return;
    }
    let bad = json!({
        "driver": "blkdebug", "image": {"driver": "file", "filename": "b.raw"},
        "inject-error": [{"event": "read_aio", "sector": 4096, "errno": 5, "iotype": "read", "once": false}],
    });
    let lab = Lab::with(bad, &[]);
    if !lab.capable() {
        return;
    }
    // Holes are not read at all.
    lab.guest("virtio0", "write -P 1 0 8M");
    let session = lab.session(&["scsi0", "virtio0"]);
    read(session.socket(), "virtio0", &["read -P 1 0 2M"]).unwrap();
    let error = read_error(session.socket(), "virtio0", "read 2M 64k");
    assert_eq!((error.raw_os_error(), session.broken("virtio0", &error)), (Some(libc::EIO), None));
    read(session.socket(), "virtio0", &["read -P 1 3M 5M"]).unwrap();
    session.finish().unwrap();
    lab.assert_clean();
}

/// The instant flushes all disks; one that cannot be flushed costs the backup, not the guest.
#[test]
fn a_disk_that_cannot_be_flushed() {
    if !have("a_disk_that_cannot_be_flushed") {
        return;
    }
    let bad = json!({
        "driver": "blkdebug", "image": {"driver": "file", "filename": "b.raw"},
        "inject-error": [{"event": "none", "iotype": "flush", "errno": 5, "once": false}],
    });
    let lab = Lab::with(bad, &[]);
    if !lab.capable() {
        return;
    }
    lab.guest("virtio0", "write -P 1 0 1M");
    let e = error(Session::start(lab.spec(&["scsi0", "virtio0"]), &Cancel::new()));
    assert!(e.is_refusal() && e.to_string().contains("flush"), "{e}");
    lab.assert_clean();
    lab.guest("virtio0", "read -P 1 0 1M");
    // Alone it changes over without that.
    let session = lab.session(&["virtio0"]);
    read(session.socket(), "virtio0", &["read -P 1 0 1M"]).unwrap();
    session.finish().unwrap();
    lab.assert_clean();
}

#[test]
fn qemu_killed_in_the_middle() {
    if !have("qemu_killed_in_the_middle") {
        return;
    }
    let mut lab = Lab::start();
    if !lab.capable() {
        return;
    }
    let session = lab.session(&["scsi0", "virtio0"]);
    let socket = session.socket().to_owned();
    lab.child.kill().unwrap();
    lab.child.wait().unwrap();
    assert!(read(&socket, "scsi0", &["read 0 64k"]).is_err());
    within(WAIT, "finish", || session.finish()).unwrap();
    assert!(!socket.exists(), "the socket's name is removed for QEMU");
    assert!(error(sweep(&lab.qmp_path(), VMID)).is_gone());
    assert!(error(Session::start(lab.spec(&["scsi0"]), &Cancel::new())).is_gone());
}

#[test]
fn cancel_and_busy_and_a_foreign_nbd_server() {
    if !have("cancel_and_busy_and_a_foreign_nbd_server") {
        return;
    }
    let lab = Lab::start();
    if !lab.capable() {
        return;
    }
    // Cancelled at the instant.
    let cancel = Cancel::new();
    let mut around = {
        let cancel = cancel.clone();
        move |_: &mut Qmp, _| {
            cancel.set();
            Ok(())
        }
    };
    let mut spec = lab.spec(&["scsi0", "virtio0"]);
    spec.around_instant = Some(&mut around);
    assert!(matches!(error(Session::start(spec, &cancel)), QemuError::Cancelled));
    lab.assert_clean();
    assert!(matches!(error(Session::start(lab.spec(&["scsi0"]), &cancel)), QemuError::Cancelled));

    // Somebody else at the monitor.
    let other = UnixStream::connect(lab.qmp_path()).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let mut spec = lab.spec(&["scsi0"]);
    spec.busy_timeout = Duration::from_millis(300);
    let e = within(Duration::from_secs(3), "busy", || error(Session::start(spec, &Cancel::new())));
    assert!(matches!(e, QemuError::Busy { .. }), "{e}");
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(500));
            drop(other);
        });
        lab.session(&["scsi0"]).finish().unwrap();
    });
    assert!(started.elapsed() >= Duration::from_millis(400), "waited for our turn");
    lab.assert_clean();

    // Somebody else's NBD server is neither used nor stopped.
    let address = json!({"addr": {"type": "unix", "data": {"path": "foreign.sock"}}});
    lab.qmp().execute("nbd-server-start", address).unwrap();
    let e = error(Session::start(lab.spec(&["scsi0"]), &Cancel::new()));
    assert!(matches!(e, QemuError::NbdServerTaken { .. }), "{e}");
    // Not even when a run was killed between setting its mark and finding the server taken. The sweep goes by the names of sockets,
    // which hold the guest's number: other tests use the same, so this one has to be run alone.
    if soaking() {
        lab.qmp().execute("object-add", json!({"qom-type": "throttle-group", "id": "vzkeep-nbd"})).unwrap();
        sweep(&lab.qmp_path(), VMID).unwrap();
    }
    lab.qmp().execute("nbd-server-stop", json!({})).unwrap();
    lab.assert_clean();
}

#[test]
fn a_fleecing_image_with_errors() {
    if !have("a_fleecing_image_with_errors") {
        return;
    }
    let lab = Lab::start();
    if !lab.capable() {
        return;
    }
    let text = lab.path("text");
    std::fs::write(&text, "no qcow2").unwrap();
    let mut spec = lab.spec(&["scsi0", "virtio0"]);
    spec.disks[1].fleecing = Fleecing::Image { path: text, format: FleecingFormat::Qcow2 };
    let e = error(Session::start(spec, &Cancel::new()));
    assert!(e.is_refusal(), "{e}");
    lab.assert_clean();
}
