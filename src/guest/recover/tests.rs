use super::*;
use crate::guest::record::{Opened, Record};
use std::sync::Mutex;

/// Writes down what it is asked to do; fails what it is told to.
#[derive(Default)]
struct Double {
    calls: Mutex<Vec<String>>,
    fail: Option<&'static str>,
}

impl Double {
    fn call(&self, what: &str) -> Step {
        self.calls.lock().unwrap().push(what.to_owned());
        if self.fail.is_some_and(|f| what.starts_with(f)) { Err("monitor busy".into()) } else { Ok(Some(what.into())) }
    }
}

impl GuestActions for Double {
    fn resume(&self, _: u32) -> Step {
        self.call("resume")
    }
    fn thaw(&self, _: u32) -> Step {
        self.call("thaw")
    }
    fn sweep(&self, _: u32, qmp: &Path) -> Step {
        self.call(&format!("sweep {}", qmp.display()))
    }
    fn cancel_backup(&self, _: u32) -> Step {
        self.call("cancel backup")
    }
    fn start(&self, _: u32, _: Option<u32>) -> Step {
        self.call("start")
    }
    fn stop(&self, _: u32) -> Step {
        self.call("stop")
    }
    fn end(&self, _: u32) -> Step {
        self.call("end")
    }
    fn free(&self, volid: &str) -> Step {
        self.call(&format!("free {volid}"))
    }
}

struct Node {
    _dir: tempfile::TempDir,
    host: Host,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc/pve/nodes/pve1/qemu-server")).unwrap();
        std::fs::create_dir_all(dir.path().join("mnt/bk/dump")).unwrap();
        std::fs::write(dir.path().join("etc/hostname"), "pve1\n").unwrap();
        let host = Host::with_root(dir.path().to_owned());
        Self { _dir: dir, host }
    }

    fn config(&self, vmid: u32, text: &str) {
        std::fs::write(self.host.path(conffile::config_path(&self.host, vmid)), text).unwrap();
    }

    fn orphan(&self, intents: &[Intent]) -> Orphan {
        let Opened::Fresh(mut record) = Record::open(&self.host, 100, "vzdump").unwrap() else { panic!() };
        for intent in intents {
            record.note(intent).unwrap();
        }
        drop(record);
        self.reopen().unwrap()
    }

    fn reopen(&self) -> Option<Orphan> {
        Orphan::take(&self.host, 100, std::time::Duration::ZERO).unwrap()
    }
}

fn everything() -> Vec<Intent> {
    vec![
        Intent::ConfigLock { lock: "backup".into() },
        Intent::File { path: "/mnt/bk/dump/a.dat".into(), in_qemu: false },
        Intent::Frozen,
        Intent::Volume { volid: "local:100/vm-100-fleece-0.raw".into(), in_qemu: true },
        Intent::Session { qmp: "/run/qemu-server/100.qmp".into() },
        Intent::Paused,
    ]
}

#[test]
fn the_guest_runs_first_and_the_lock_goes_last() {
    let node = Node::new();
    node.config(100, "name: a\nlock: backup\n");
    std::fs::write(node.host.path("/mnt/bk/dump/a.dat"), "x").unwrap();
    let mut orphan = node.orphan(&everything());
    let actions = Double::default();
    let report = recover(&node.host, &mut orphan, &actions, LockClaim::Certain);
    assert!(report.failed.is_empty(), "{report:?}");
    assert_eq!(
        report.done,
        [
            "resume",
            "thaw",
            "sweep /run/qemu-server/100.qmp",
            "free local:100/vm-100-fleece-0.raw",
            "removed '/mnt/bk/dump/a.dat'",
            "removed lock 'backup' of VM 100"
        ]
    );
    assert_eq!(conffile::read(&node.host, 100).unwrap().unwrap(), b"name: a\n");
    orphan.clear().unwrap();
    assert!(node.reopen().is_none());
}

#[test]
fn a_failed_sweep_keeps_what_qemu_may_have_open_and_the_next_run_goes_on() {
    let node = Node::new();
    let mut orphan = node.orphan(&everything());
    let busy = Double { fail: Some("sweep"), ..Double::default() };
    let report = recover(&node.host, &mut orphan, &busy, LockClaim::Certain);
    assert_eq!(report.failed.len(), 2, "{report:?}");
    assert!(!busy.calls.lock().unwrap().iter().any(|c| c.starts_with("free")));
    drop(orphan);
    let mut orphan = node.reopen().unwrap();
    assert_eq!(orphan.intents.len(), 2);
    let actions = Double::default();
    let report = recover(&node.host, &mut orphan, &actions, LockClaim::Certain);
    assert!(report.failed.is_empty());
    assert_eq!(
        *actions.calls.lock().unwrap(),
        ["sweep /run/qemu-server/100.qmp", "free local:100/vm-100-fleece-0.raw"]
    );
    orphan.clear().unwrap();
}

#[test]
fn a_volume_that_a_config_names_is_never_freed() {
    let node = Node::new();
    node.config(100, "scsi0: local:100/new.raw,size=1G\n");
    let volume = |v: &str| Intent::Volume { volid: v.into(), in_qemu: false };
    let mut orphan = node.orphan(&[volume("local:100/new.raw"), volume("local:100/old.raw"), Intent::NewConfig]);
    let actions = Double::default();
    let report = recover(&node.host, &mut orphan, &actions, LockClaim::Certain);
    assert!(report.failed.is_empty());
    assert_eq!(*actions.calls.lock().unwrap(), ["free local:100/old.raw"]);
    assert!(conffile::read(&node.host, 100).unwrap().is_some());
}

#[test]
fn a_lock_of_somebody_else_stays() {
    let node = Node::new();
    node.config(100, "lock: migrate\n");
    let mut orphan = node.orphan(&[Intent::ConfigLock { lock: "backup".into() }, Intent::NewConfig]);
    let report = recover(&node.host, &mut orphan, &Double::default(), LockClaim::Certain);
    assert!(report.failed.is_empty() && report.done.is_empty());
    assert_eq!(conffile::read(&node.host, 100).unwrap().unwrap(), b"lock: migrate\n");
}

#[test]
fn an_uncertain_lock_stays_while_a_vzdump_runs() {
    let node = Node::new();
    node.config(100, "lock: backup\n");
    std::fs::create_dir_all(node.host.path("/var/run")).unwrap();
    let file = std::fs::File::create(node.host.path("/var/run/vzdump.lock")).unwrap();
    let job = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
    let mut orphan = node.orphan(&[Intent::ConfigLock { lock: "backup".into() }]);
    let report = recover(&node.host, &mut orphan, &Double::default(), LockClaim::UnlessVzdumpRuns);
    assert_eq!(report.failed.len(), 1);
    drop(job);
    let report = recover(&node.host, &mut orphan, &Double::default(), LockClaim::UnlessVzdumpRuns);
    assert_eq!(report.done, ["removed lock 'backup' of VM 100"]);
}

#[test]
fn the_lock_stays_while_a_backup_may_run_in_qemu() {
    let node = Node::new();
    node.config(100, "lock: backup\n");
    let mut orphan = node.orphan(&[Intent::ConfigLock { lock: "backup".into() }, Intent::QemuBackup]);
    let busy = Double { fail: Some("cancel"), ..Double::default() };
    assert_eq!(recover(&node.host, &mut orphan, &busy, LockClaim::Certain).failed.len(), 2);
    assert_eq!(conffile::read(&node.host, 100).unwrap().unwrap(), b"lock: backup\n");
    // Somebody may have unlocked the guest and begun a backup of their own since: that one is not ours to end.
    std::fs::create_dir_all(node.host.path("/var/run")).unwrap();
    let file = std::fs::File::create(node.host.path("/var/run/vzdump.lock")).unwrap();
    let job = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
    let actions = Double::default();
    recover(&node.host, &mut orphan, &actions, LockClaim::UnlessVzdumpRuns);
    assert!(actions.calls.lock().unwrap().is_empty());
    drop(job);
    assert!(recover(&node.host, &mut orphan, &actions, LockClaim::UnlessVzdumpRuns).failed.is_empty());
    assert_eq!(*actions.calls.lock().unwrap(), ["cancel backup"]);
}

#[test]
fn a_file_that_a_living_run_writes_stays() {
    let node = Node::new();
    let path = node.host.path("/mnt/bk/dump/a.dat");
    let writer = Flock::lock(std::fs::File::create(&path).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
    let noted = || node.orphan(&[Intent::File { path: "/mnt/bk/dump/a.dat".into(), in_qemu: false }]);
    let mut orphan = noted();
    let report = recover(&node.host, &mut orphan, &Double::default(), LockClaim::Certain);
    assert!(report.failed.is_empty() && path.exists());
    orphan.clear().unwrap();
    drop(writer);
    recover(&node.host, &mut noted(), &Double::default(), LockClaim::Certain);
    assert!(!path.exists());
}

#[test]
fn paths_that_cannot_be_ours_are_refused() {
    let node = Node::new();
    let mut orphan = node.orphan(&[
        Intent::Dir { path: "/".into() },
        Intent::Dir { path: "/etc".into() },
        Intent::Dir { path: "/mnt/../etc".into() },
        Intent::Dir { path: "relative/dir".into() },
    ]);
    let report = recover(&node.host, &mut orphan, &Double::default(), LockClaim::Certain);
    assert_eq!(report.failed.len(), 4);
    assert!(node.host.path("/etc").exists());
}

#[test]
fn the_old_guest_gets_its_firewall_back_and_the_new_one_keeps_its_own() {
    let node = Node::new();
    let path = node.host.path(conffile::firewall_path(100));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    for (config, old, wanted) in [
        ("name: old\nlock: create\n", Some(&b"old \xff"[..]), Some(&b"old \xff"[..])),
        ("name: old\nlock: create\n", None, None),
        ("name: new\n", Some(b"old"), Some(b"new")),
        ("name: new\n", None, Some(b"new")),
    ] {
        node.config(100, config);
        std::fs::write(&path, "new").unwrap();
        let old = Intent::OldFirewall { rules: old.map(<[u8]>::to_vec) };
        let mut orphan = node.orphan(&[Intent::ConfigLock { lock: "create".into() }, old]);
        let report = recover(&node.host, &mut orphan, &Double::default(), LockClaim::Certain);
        assert!(report.failed.is_empty(), "{config}: {report:?}");
        assert_eq!(std::fs::read(&path).ok().as_deref(), wanted, "{config}");
        assert!(!conffile::read(&node.host, 100).unwrap().unwrap().ends_with(b"create\n"), "{config}");
        orphan.clear().unwrap();
    }
}

#[test]
fn a_large_directory_may_take_its_time_and_one_that_hangs_may_not() {
    let (gone, patience) = (AtomicU64::new(0), Duration::from_millis(500));
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..30 {
                std::thread::sleep(Duration::from_millis(20));
                gone.fetch_add(1, Ordering::Relaxed);
            }
            tell.send(Ok(())).unwrap();
        });
        assert!(ended(&told, &gone, patience).is_some_and(|ended| ended.is_ok()));
        assert_eq!(gone.load(Ordering::Relaxed), 30);
    });
    assert!(ended(&told, &gone, patience).is_none());
}

#[test]
fn a_directory_goes_with_all_it_holds_and_nothing_else() {
    let node = Node::new();
    let dir = node.host.path("/mnt/bk/dump/x.tmp");
    let mut deep = dir.join("deep");
    for _ in 0..60 {
        deep.push("a".repeat(60));
        std::fs::create_dir_all(&deep).unwrap();
    }
    let outside = node.host.path("/mnt/bk/precious");
    std::fs::create_dir_all(&outside).unwrap();
    std::fs::write(outside.join("file"), "").unwrap();
    std::os::unix::fs::symlink(&outside, dir.join("link")).unwrap();
    std::os::unix::fs::symlink("/nonexistent", dir.join("broken")).unwrap();
    std::os::unix::net::UnixListener::bind(dir.join("s")).unwrap();
    let mut orphan = node.orphan(&[Intent::Dir { path: "/mnt/bk/dump/x.tmp".into() }]);
    let report = recover(&node.host, &mut orphan, &Double::default(), LockClaim::Certain);
    assert_eq!(report.done, ["removed '/mnt/bk/dump/x.tmp'"], "{report:?}");
    assert!(!dir.exists() && outside.join("file").exists());
    orphan.clear().unwrap();
    let mut again = node.orphan(&[Intent::Dir { path: "/mnt/bk/dump/x.tmp".into() }]);
    let report = recover(&node.host, &mut again, &Double::default(), LockClaim::Certain);
    assert!(report.done.is_empty() && report.failed.is_empty(), "{report:?}");
}

#[test]
fn a_guest_restored_while_it_ran_goes_before_its_volumes_or_stays_with_them() {
    let volume = |n: u32| Intent::Volume { volid: format!("local:100/vm-100-disk-{n}.raw"), in_qemu: false };
    let live = "lock: create\nscsi0: local:100/vm-100-disk-1.raw,size=1M\n";
    let old = "name: old\nscsi0: local:100/vm-100-disk-0.raw,size=1M\n";
    let unlocked = live.replace("lock: create\n", "");
    let intents = |old: Option<&str>| {
        let lock = if old.is_some() { Intent::ConfigLock { lock: "create".into() } } else { Intent::NewConfig };
        let old = old.map(|old| old.as_bytes().to_vec());
        vec![lock, volume(1), Intent::LiveGuest { old, new: unlocked.clone().into_bytes() }, volume(0)]
    };
    // A guest that does not end: nothing of it is touched, and all is tried again.
    let node = Node::new();
    node.config(100, live);
    let mut orphan = node.orphan(&intents(Some(old)));
    let actions = Double { fail: Some("end"), ..Double::default() };
    let report = recover(&node.host, &mut orphan, &actions, LockClaim::Certain);
    assert_eq!((report.done.len(), report.failed.len(), orphan.intents.len()), (0, 4, 4), "{report:?}");
    assert_eq!(*actions.calls.lock().unwrap(), ["end"]);
    // It ends: the old guest is there again with its volume, only what was restored goes.
    let actions = Double::default();
    let report = recover(&node.host, &mut orphan, &actions, LockClaim::Certain);
    assert!(report.failed.is_empty(), "{report:?}");
    assert_eq!(*actions.calls.lock().unwrap(), ["end", "free local:100/vm-100-disk-1.raw"]);
    assert_eq!(conffile::read(&node.host, 100).unwrap().unwrap(), old.as_bytes());
    drop(orphan);
    // There was none: nothing is there again.
    let node = Node::new();
    node.config(100, live);
    let mut orphan = node.orphan(&intents(None));
    let report = recover(&node.host, &mut orphan, &Double::default(), LockClaim::Certain);
    assert!(report.failed.is_empty() && conffile::read(&node.host, 100).unwrap().is_none(), "{report:?}");
    drop(orphan);
    // Somebody has removed the lock, and has its lines written in another order: it is the same guest.
    let node = Node::new();
    node.config(100, &format!("# note\n\n{unlocked}"));
    let mut orphan = node.orphan(&intents(Some(old)));
    let actions = Double::default();
    let report = recover(&node.host, &mut orphan, &actions, LockClaim::Certain);
    assert!(report.failed.is_empty(), "{report:?}");
    assert_eq!(*actions.calls.lock().unwrap(), ["end", "free local:100/vm-100-disk-1.raw"]);
    assert_eq!(conffile::read(&node.host, 100).unwrap().unwrap(), old.as_bytes());
    drop(orphan);
    // Somebody has made another one, or is about to.
    for other in ["name: other\nscsi0: local:100/vm-100-disk-1.raw,size=1M\n", "lock: create\nname: other\n"] {
        let node = Node::new();
        node.config(100, other);
        let mut orphan = node.orphan(&intents(None));
        let actions = Double::default();
        let report = recover(&node.host, &mut orphan, &actions, LockClaim::Certain);
        assert!(report.failed.is_empty(), "{report:?}");
        assert!(!actions.calls.lock().unwrap().contains(&"end".to_owned()), "{other}");
        assert_eq!(conffile::read(&node.host, 100).unwrap().unwrap(), other.as_bytes());
    }
}

#[test]
fn a_guest_that_is_complete_only_loses_its_lock() {
    let node = Node::new();
    let live = "lock: create\nscsi0: local:100/vm-100-disk-1.raw,size=1M\n";
    node.config(100, live);
    let Opened::Fresh(mut record) = Record::open(&node.host, 100, "qmrestore").unwrap() else { panic!() };
    let guest = Intent::LiveGuest { old: None, new: live.replace("lock: create\n", "").into_bytes() };
    let volume = Intent::Volume { volid: "local:100/vm-100-disk-1.raw".into(), in_qemu: false };
    for intent in [&Intent::NewConfig, &volume, &guest] {
        record.note(intent).unwrap();
    }
    record.exchange(&Intent::ConfigLock { lock: "create".into() }, &[&guest], &[]).unwrap();
    drop(record);
    let actions = Double::default();
    let report = recover(&node.host, &mut node.reopen().unwrap(), &actions, LockClaim::Certain);
    assert!(report.failed.is_empty() && actions.calls.lock().unwrap().is_empty(), "{report:?}");
    let config = conffile::read(&node.host, 100).unwrap().unwrap();
    assert_eq!(String::from_utf8(config).unwrap(), live.replace("lock: create\n", ""));
}

#[test]
fn wherever_the_note_of_an_arrival_is_torn_no_volume_goes_that_is_needed() {
    let volume = |n: u32| Intent::Volume { volid: format!("local:100/vm-100-disk-{n}.raw"), in_qemu: false };
    let live = "lock: create\nscsi0: local:100/vm-100-disk-1.raw,size=1M\n";
    let old = "name: old\nscsi0: local:100/vm-100-disk-0.raw,size=1M\n";
    let new = live.replace("lock: create\n", "");
    let guest = Intent::LiveGuest { old: Some(old.into()), new: new.clone().into_bytes() };
    let rules = Intent::OldFirewall { rules: None };
    let lock = Intent::ConfigLock { lock: "create".into() };
    let node = Node::new();
    let Opened::Fresh(mut record) = Record::open(&node.host, 100, "qmrestore").unwrap() else { panic!() };
    for intent in [&lock, &volume(1), &rules, &guest] {
        record.note(intent).unwrap();
    }
    let path = node.host.path(crate::guest::record::DIRECTORY).join("100.json");
    let begun = std::fs::read_to_string(&path).unwrap().len();
    record.exchange(&lock, &[&rules, &guest], &[volume(0)]).unwrap();
    drop(record);
    let text = std::fs::read_to_string(&path).unwrap();
    let (mut undone, mut arrived, mut freed) = (0, 0, 0);
    for cut in (begun..text.len()).step_by(7).chain([text.len()]) {
        let recovered = |config: Option<&str>| {
            let real = node.host.path(conffile::config_path(&node.host, 100));
            config.map_or_else(|| drop(std::fs::remove_file(&real)), |config| node.config(100, config));
            std::fs::write(&path, &text[..cut]).unwrap();
            let actions = Double::default();
            let report = recover(&node.host, &mut node.reopen().unwrap(), &actions, LockClaim::Certain);
            assert!(report.failed.is_empty(), "{cut}: {report:?}");
            let config = std::fs::read_to_string(&real).ok();
            (config, actions.calls.into_inner().unwrap())
        };
        let (config, calls) = recovered(Some(live));
        let (config, calls) = (config.unwrap(), calls.iter().map(String::as_str).collect::<Vec<_>>());
        let complete = config == new;
        match (complete, calls.as_slice()) {
            (false, ["end", "free local:100/vm-100-disk-1.raw"]) if config == old => undone += 1,
            (true, []) => arrived += 1,
            (true, ["free local:100/vm-100-disk-0.raw"]) => freed += 1,
            _ => panic!("{cut}: {config} {calls:?}"),
        }
        // Somebody has removed the unfinished guest: what the old one had stays, for nothing has taken its place.
        let (_, calls) = recovered(None);
        assert!(complete || !calls.contains(&"free local:100/vm-100-disk-0.raw".to_owned()), "{cut}: {calls:?}");
    }
    assert!(undone > 1 && arrived > 1 && freed == 1, "{undone} {arrived} {freed}");
}
