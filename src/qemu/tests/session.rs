//! Sessions on a real QEMU when all goes well.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::json;

use super::lab::{Lab, MIB, VMID, error, have, read};
use crate::host::Cancel;
use crate::qemu::{DiskSpec, Fleecing, FleecingFormat, Moment, QemuError, Qmp, Session, remove_stale_files, sweep};

const ALL: [&str; 3] = ["drive-scsi0", "virtio0", "scsi1"];

#[test]
fn all_disks_show_the_instant() {
    if !have("all_disks_show_the_instant") {
        return;
    }
    let lab = Lab::start();
    if !lab.capable() {
        let e = error(Session::start(lab.spec(&ALL), &Cancel::new()));
        assert!(matches!(e, QemuError::Unsupported { .. }), "{e}");
        return lab.assert_clean();
    }
    for disk in ["scsi0", "virtio0", "scsi1"] {
        lab.guest(disk, "write -P 1 0 2M");
    }
    for round in 0..3 {
        let started = Instant::now();
        let session = lab.session(&ALL);
        println!("round {round}: start {:?}", started.elapsed());
        assert_eq!(session.exports().iter().map(|e| e.size).collect::<Vec<_>>(), [8 * MIB, 8 * MIB, 4 * MIB + 512]);
        assert!(session.exports().iter().all(|e| e.discards));
        for disk in ["scsi0", "virtio0", "scsi1"] {
            lab.guest(disk, "write -P 2 1M 2M");
        }
        let old =
            if round == 0 { ["read -P 1 0 2M", "read -P 0 2M 2M"] } else { ["read -P 1 0 1M", "read -P 2 1M 2M"] };
        for export in session.exports() {
            read(session.socket(), &export.name, &old).unwrap();
        }
        session.finish().unwrap();
        lab.guest("scsi0", "read -P 2 1M 2M");
        lab.assert_clean();
    }
}

/// A second monitor hears every change of the run state: there is none, neither for the instant nor for the way back.
#[test]
fn the_guest_is_never_stopped() {
    if !have("the_guest_is_never_stopped") {
        return;
    }
    let second =
        ["-chardev", "socket,id=second,path=second.qmp,server=on,wait=off", "-mon", "chardev=second,mode=control"];
    let lab = Lab::with(json!({"driver": "file", "filename": "b.raw"}), &second);
    if !lab.capable() {
        return;
    }
    let mut to = UnixStream::connect(lab.path("second.qmp")).unwrap();
    to.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut lines = BufReader::new(to.try_clone().unwrap()).lines();
    to.write_all(b"{\"execute\": \"qmp_capabilities\"}\n").unwrap();
    // As many disks as it takes to need more than one command for them, and the work around the instant.
    let mut spec = lab.spec(&ALL);
    let mut work = |_: &mut Qmp, _| Ok(());
    spec.around_instant = Some(&mut work);
    let session = Session::start(spec, &Cancel::new()).unwrap();
    lab.guest("scsi0", "write -P 2 1M 2M");
    session.finish().unwrap();
    lab.session(&ALL).abandon();
    sweep(&lab.qmp_path(), VMID).unwrap();
    remove_stale_files(lab.dir.path(), VMID).unwrap();
    lab.assert_clean();
    // The last word is ours: what came before it is all there was.
    lab.qmp().execute("stop", json!({})).unwrap();
    let mut heard = Vec::new();
    while heard.last().is_none_or(|event| event != "STOP") {
        let line: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        heard.extend(line["event"].as_str().map(str::to_owned));
    }
    let status = lab.qmp().execute("query-status", json!({})).unwrap();
    assert_eq!(status["status"], "paused");
    lab.qmp().execute("cont", json!({})).unwrap();
    while heard.last().is_none_or(|event| event != "RESUME") {
        let line: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        heard.extend(line["event"].as_str().map(str::to_owned));
    }
    let state: Vec<_> = heard.iter().filter(|event| ["STOP", "RESUME"].contains(&event.as_str())).collect();
    assert_eq!(state, ["STOP", "RESUME"], "only the test's own");
}

#[test]
fn trim_frees_fleecing_space_and_writes_are_refused() {
    if !have("trim_frees_fleecing_space_and_writes_are_refused") {
        return;
    }
    let lab = Lab::start();
    if !lab.capable() {
        return;
    }
    lab.guest("scsi0", "write -P 1 0 4M");
    let session = lab.session(&["scsi0"]);
    lab.guest("scsi0", "write -P 2 0 4M");
    let used = || {
        let nodes = lab.qmp().execute("query-named-block-nodes", json!({"flat": true})).unwrap();
        let node = nodes.as_array().unwrap().iter().find(|n| n["node-name"] == "vzkeep-file-scsi0").unwrap().clone();
        node["image"]["actual-size"].as_u64().unwrap()
    };
    assert!(used() >= 4 * MIB);
    read(session.socket(), "scsi0", &["read -P 1 0 3M", "discard 0 3M"]).unwrap();
    assert!(used() <= MIB + 65536, "{}", used());
    // A trimmed range needs no saving any more, and cannot be read any more.
    lab.guest("scsi0", "write -P 3 0 1M");
    assert!(used() <= MIB + 65536, "{}", used());
    assert!(read(session.socket(), "scsi0", &["read 0 64k"]).is_err());
    read(session.socket(), "scsi0", &["read -P 1 3M 1M"]).unwrap();
    assert!(read(session.socket(), "scsi0", &["write 0 64k"]).is_err());
    assert!(read(session.socket(), "scsi0", &["write -z 0 64k"]).is_err());
    drop(session);
    lab.guest("scsi0", "read -P 3 0 1M");
    lab.assert_clean();
}

#[test]
fn ready_made_images() {
    if !have("ready_made_images") {
        return;
    }
    let lab = Lab::start();
    if !lab.capable() {
        return;
    }
    let image = |name: &str, format: &str, size: &str| {
        let path = lab.path(name);
        let mut img = std::process::Command::new("qemu-img");
        assert!(img.args(["create", "-q", "-f", format]).arg(&path).arg(size).status().unwrap().success());
        path
    };
    lab.guest("scsi0", "write -P 1 0 1M");
    lab.guest("virtio0", "write -P 1 0 1M");
    let mut spec = lab.spec(&["scsi0", "virtio0"]);
    spec.disks[0].fleecing = Fleecing::Image { path: image("f.qcow2", "qcow2", "8M"), format: FleecingFormat::Qcow2 };
    // A storage may round up.
    spec.disks[1].fleecing = Fleecing::Image { path: image("f.img", "raw", "9M"), format: FleecingFormat::Raw };
    let disks = spec.disks.clone();
    let session = Session::start(spec, &Cancel::new()).unwrap();
    for disk in ["scsi0", "virtio0"] {
        lab.guest(disk, "write -P 2 0 8M");
        read(session.socket(), disk, &["read -P 1 0 1M", "read -P 0 1M 7M"]).unwrap();
    }
    session.finish().unwrap();
    lab.assert_clean();
    assert!(lab.path("f.qcow2").exists() && lab.path("f.img").exists(), "the caller's images stay");

    let mut spec = lab.spec(&[]);
    spec.disks = disks;
    spec.disks[1].fleecing = Fleecing::Image { path: image("small", "raw", "7M"), format: FleecingFormat::Raw };
    let e = error(Session::start(spec, &Cancel::new()));
    assert!(e.to_string().contains("has 7340032 bytes, the disk has 8388608"), "{e}");
    lab.assert_clean();
}

#[test]
fn run_state_is_kept() {
    if !have("run_state_is_kept") {
        return;
    }
    let lab = Lab::start();
    if !lab.capable() {
        return;
    }
    let status = |qmp: &mut Qmp| qmp.execute("query-status", json!({})).unwrap()["status"].as_str().unwrap().to_owned();
    let device_node = |qmp: &mut Qmp| {
        let blocks = qmp.execute("query-block", json!({})).unwrap();
        let scsi0 = blocks.as_array().unwrap().iter().find(|b| b["qdev"] == "scsi0").unwrap().clone();
        scsi0["inserted"]["node-name"].as_str().unwrap().to_owned()
    };
    let mut seen = Vec::new();
    {
        let mut spec = lab.spec(&["scsi0"]);
        let mut look = |qmp: &mut Qmp, moment: Moment| {
            seen.push((moment, device_node(qmp), status(qmp)));
            Ok(())
        };
        spec.around_instant = Some(&mut look);
        Session::start(spec, &Cancel::new()).unwrap().finish().unwrap();
    }
    let seen: Vec<_> = seen.iter().map(|(moment, node, status)| (*moment, node.as_str(), status.as_str())).collect();
    assert_eq!(seen, [(Moment::Before, "drive-scsi0", "running"), (Moment::After, "vzkeep-filter-scsi0", "running")]);
    assert_eq!(status(&mut lab.qmp()), "running");

    // Somebody else's pause is not ours to end, neither in a session nor in a sweep.
    lab.qmp().execute("stop", json!({})).unwrap();
    let session = lab.session(&ALL);
    assert_eq!(status(&mut lab.qmp()), "paused");
    // Disks in I/O threads change their context when the guest starts and stops: the exports must follow.
    lab.qmp().execute("cont", json!({})).unwrap();
    for export in session.exports() {
        read(session.socket(), &export.name, &["read -P 0 0 4M"]).unwrap();
    }
    lab.qmp().execute("stop", json!({})).unwrap();
    session.finish().unwrap();
    assert!(sweep(&lab.qmp_path(), VMID).unwrap().is_empty());
    assert_eq!(status(&mut lab.qmp()), "paused");
    lab.qmp().execute("cont", json!({})).unwrap();
    lab.assert_clean();

    // The work of the instant fails: the guest runs on, nothing is left.
    let mut spec = lab.spec(&ALL);
    let mut fail = |_: &mut Qmp, moment| match moment {
        Moment::Before => Ok(()),
        Moment::After => Err(QemuError::AtInstant("no bitmap".into())),
    };
    spec.around_instant = Some(&mut fail);
    assert_eq!(error(Session::start(spec, &Cancel::new())).to_string(), "no bitmap");
    lab.assert_clean();
}

#[test]
fn wrong_specifications_change_nothing() {
    if !have("wrong_specifications_change_nothing") {
        return;
    }
    let lab = Lab::start();
    if !lab.capable() {
        return;
    }
    let start = |spec| error(Session::start(spec, &Cancel::new())).to_string();
    assert!(start(lab.spec(&[])).contains("at least one disk"));
    let e = start(lab.spec(&["scsi0", "scsi7"]));
    assert_eq!(e, "guest 4100 has no disk 'scsi7' with a front end in QEMU; it has: scsi0, virtio0, scsi1");
    assert!(start(lab.spec(&["scsi0", "drive-scsi0"])).contains("asked for twice"));
    let mut spec = lab.spec(&["scsi0"]);
    spec.cbw_timeout = Duration::ZERO;
    assert!(start(spec).contains("at least 1 second"));
    let mut spec = lab.spec(&["scsi0"]);
    spec.disks = vec![DiskSpec { device: "scsi0".into(), fleecing: Fleecing::Directory(lab.path("none")) }];
    let e = start(spec);
    assert!(e.contains("fleecing image") && e.contains("create failed"), "{e}");
    lab.assert_clean();
}
