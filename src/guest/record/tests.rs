use super::*;

fn host() -> (tempfile::TempDir, Host) {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::with_root(dir.path().to_owned());
    (dir, host)
}

fn fresh(host: &Host) -> Record {
    match Record::open(host, 100, "vzdump").unwrap() {
        Opened::Fresh(record) => record,
        Opened::Orphaned(orphan) => panic!("{orphan:?}"),
    }
}

#[test]
fn a_living_owner_keeps_others_out() {
    let (_dir, host) = host();
    let record = fresh(&host);
    let error = Record::open(&host, 100, "qmrestore").unwrap_err().to_string();
    assert_eq!(
        error,
        format!("guest 100 is being worked on by vzdump (process {}); wait for it to end", std::process::id())
    );
    assert!(Orphan::take(&host, 100, std::time::Duration::ZERO).unwrap().is_none());
    assert_eq!(recorded(&host).unwrap(), [100]);
    record.clear().unwrap();
    assert!(recorded(&host).unwrap().is_empty());
}

#[test]
fn what_was_not_undone_is_found_by_the_next_run() {
    let (_dir, host) = host();
    let mut record = fresh(&host);
    let lock = Intent::ConfigLock { lock: "backup".into() };
    record.note(&lock).unwrap();
    record.note(&Intent::Paused).unwrap();
    record.done(&Intent::Paused).unwrap();
    record.note(&Intent::Session { qmp: "/run/qemu-server/100.qmp".into() }).unwrap();
    drop(record);
    let Opened::Orphaned(mut orphan) = Record::open(&host, 100, "vzdump").unwrap() else { panic!("no orphan") };
    assert_eq!(orphan.intents, [lock.clone(), Intent::Session { qmp: "/run/qemu-server/100.qmp".into() }]);
    assert!(orphan.same_boot());
    assert_eq!(orphan.owner.as_ref().unwrap().command, "vzdump");
    orphan.resolve(&lock).unwrap();
    drop(orphan);
    let Opened::Orphaned(mut orphan) = Record::open(&host, 100, "vzdump").unwrap() else { panic!("no orphan") };
    assert_eq!(orphan.intents.len(), 1);
    let left = orphan.intents[0].clone();
    orphan.resolve(&left).unwrap();
    orphan.into_record("vzdump").unwrap().clear().unwrap();
}

#[test]
fn a_record_without_open_intents_is_no_orphan() {
    let (_dir, host) = host();
    let mut record = fresh(&host);
    record.note(&Intent::Frozen).unwrap();
    record.done(&Intent::Frozen).unwrap();
    drop(record);
    fresh(&host).clear().unwrap();
}

#[test]
fn what_may_be_frozen_does_not_keep_the_next_run_out() {
    let (_dir, host) = host();
    let mut record = fresh(&host);
    record.note(&Intent::Frozen).unwrap();
    drop(record);
    let Opened::Orphaned(orphan) = Record::open(&host, 100, "vzdump").unwrap() else { panic!("no orphan") };
    assert_eq!(orphan.into_record("vzdump").unwrap().into_orphan().unwrap().intents, [Intent::Frozen]);
}

#[test]
fn an_unresolved_orphan_does_not_become_a_record() {
    let (_dir, host) = host();
    let mut record = fresh(&host);
    record.note(&Intent::Paused).unwrap();
    drop(record);
    let Opened::Orphaned(orphan) = Record::open(&host, 100, "vzdump").unwrap() else { panic!("no orphan") };
    let error = orphan.into_record("vzdump").unwrap_err().to_string();
    assert!(error.ends_with("could be undone: paused guest"), "{error}");
}

#[test]
fn a_torn_last_line_is_an_action_that_never_began() {
    let (_dir, host) = host();
    let mut record = fresh(&host);
    record.note(&Intent::Paused).unwrap();
    drop(record);
    let path = host.path("/var/lib/vzkeep/100.json");
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str(r#"{"intent":{"what":"fro"#);
    std::fs::write(&path, &text).unwrap();
    for _ in 0..2 {
        let Opened::Orphaned(orphan) = Record::open(&host, 100, "vzdump").unwrap() else { panic!("no orphan") };
        assert_eq!(orphan.intents, [Intent::Paused]);
    }
    std::fs::write(&path, "{\"intent\":{\"what\":\"teleport\"}}\n").unwrap();
    let error = Record::open(&host, 100, "vzdump").unwrap_err();
    assert!(matches!(error, RecordError::Io { .. }), "{error}");
}
