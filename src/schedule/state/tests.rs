use super::*;
use crate::config::JobsCfg;

/// No process started then, so this task is gone.
const GONE: &str = "UPID:pve1:00000001:7FFFFFFFFFFF:6B02BAFB:vzdump::root@pam:";

fn node() -> (tempfile::TempDir, JobStates) {
    let dir = tempfile::tempdir().unwrap();
    let states = JobStates::new(&Host::with_root(dir.path().to_owned()));
    (dir, states)
}

fn job(schedule: &str) -> BackupJob {
    JobsCfg::parse(&format!("vzdump: a\n\tschedule {schedule}\n\tenabled 1\n\tall 1\n")).jobs.remove(0)
}

#[test]
fn a_job_lives() {
    let (_dir, states) = node();
    let created = states.follow(&job("daily"), 1000).unwrap();
    assert_eq!((created.state, created.last_run()), (Phase::Created, Some(1000)));
    assert_eq!(states.follow(&job("daily"), 2000).unwrap(), created);
    assert_eq!(states.follow(&job("hourly"), 3000).unwrap().last_run(), Some(3000));
    states.claim("a", 4000).unwrap();
    assert_eq!(states.read("a").unwrap().unwrap().last_run(), Some(4000));
    let host = states.host.clone();
    let us = Upid::for_us(&host, "vzdump", "", "root@pam").unwrap();
    states.started("a", &us.to_string()).unwrap();
    let refused = states.claim("a", 5000).unwrap_err().to_string();
    assert_eq!(refused, format!("job 'a' runs already, as task {us}"));
    assert_eq!(states.follow(&job("hourly"), us.start).unwrap().state, Phase::Started);
    states.stopped("a", "OK", 6000).unwrap();
    let ended = states.read("a").unwrap().unwrap();
    assert_eq!((ended.state, ended.last_run(), ended.msg.as_deref()), (Phase::Stopped, Some(us.start), Some("OK")));
    assert_eq!(ended.config["schedule"], "hourly");
    states.claim("a", 7000).unwrap();
    // Claimed a moment ago: nobody else may; a minute later the claimer has died.
    let refused = states.claim("a", 7059).unwrap_err().to_string();
    assert_eq!(refused, "job 'a' runs already, its task is about to start");
    states.claim("a", 7060).unwrap();
    states.forget_others(|id| id == "a").unwrap();
    assert!(states.read("a").unwrap().is_some());
    states.forget_others(|_| false).unwrap();
    assert!(states.read("a").unwrap().is_none());
}

#[test]
fn a_task_that_is_gone_has_ended() {
    let (_dir, states) = node();
    let upid: Upid = GONE.parse().unwrap();
    for (log, msg) in [
        ("INFO: x\n\nTASK ERROR: job errors\n", "job errors"),
        ("INFO: x\nTASK OK\n", "OK"),
        ("INFO: x\n\nTASK WARNINGS: 2\n", "WARNINGS: 2"),
        ("INFO: half a li", "unexpected status"),
    ] {
        let path = states.host.path(upid.log_path());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, log).unwrap();
        states.started("a", GONE).unwrap();
        let now = upid.start + 10;
        let state = states.follow(&job("daily"), now).unwrap();
        assert_eq!((state.state, state.msg.as_deref()), (Phase::Stopped, Some(msg)));
        states.claim("a", now).unwrap();
    }
}

#[test]
fn the_nodes_own_files_are_read_and_damaged_ones_count_as_none() {
    let (_dir, states) = node();
    let file = states.file("a");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let own =
        format!(r#"{{"config":{{"enabled":1,"schedule":"daily"}},"state":"stopped","msg":"OK","upid":"{GONE}"}}"#);
    std::fs::write(&file, own).unwrap();
    let state = states.follow(&job("daily"), 0x6B02_BAFC).unwrap();
    assert_eq!(state.last_run(), Some(0x6B02_BAFB), "a number and a text are the same value");
    for damaged in ["", "{", "[]", "\u{0}", r#"{"state":"no"}"#] {
        std::fs::write(&file, damaged).unwrap();
        assert_eq!(states.read("a").unwrap(), None);
        assert_eq!(states.follow(&job("daily"), 77).unwrap().last_run(), Some(77));
    }
}

#[test]
fn a_clock_put_back_does_not_hold_a_job_up() {
    let (_dir, states) = node();
    states.follow(&job("daily"), 9000).unwrap();
    assert_eq!(states.follow(&job("daily"), 5000).unwrap().last_run(), Some(5000));
}
