//! The end of a live restore against a QEMU that answers late, or does not answer: all data is there, and must not be given up.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

use super::lab::{say, scripted};
use super::monitor::GREETING;
use crate::host::Cancel;
use crate::qemu::{Move, MoveError, Moving, QemuError};

/// How late the answer to `job-complete` comes.
const LATE: Duration = Duration::from_secs(1);

/// Answers as QEMU does, but late where jobs end, and never where `silent` is asked; goes away when a job is dismissed. Tells
/// what it was asked.
fn slow(silent: &'static str) -> (impl FnOnce(UnixListener) + Send + 'static, Receiver<String>) {
    let (tell, asked) = channel();
    let server = move |listener: UnixListener| {
        let mut jobs: Vec<(Value, &str)> = Vec::new();
        loop {
            let (stream, _) = listener.accept().unwrap();
            say(&stream, GREETING);
            for line in BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok) {
                let request: Value = serde_json::from_str(&line).unwrap();
                let command = request["execute"].as_str().unwrap();
                tell.send(command.to_owned()).unwrap_or_default();
                let arguments = &request["arguments"];
                let mut answer = json!({});
                match command {
                    silent_one if silent_one == silent => continue,
                    "blockdev-mirror" => jobs.push((arguments["job-id"].clone(), "ready")),
                    "job-complete" => {
                        std::thread::sleep(LATE);
                        let job = jobs.iter_mut().find(|(id, _)| *id == arguments["id"]).unwrap();
                        // A real one aborts then.
                        assert_eq!(job.1, "ready");
                        job.1 = "concluded";
                    }
                    "query-jobs" => answer = jobs.iter().map(|(id, is)| json!({ "id": id, "status": is })).collect(),
                    "job-dismiss" => return,
                    _ => {}
                }
                say(&stream, format!("{}\n", json!({ "return": answer, "id": request["id"] })).as_bytes());
            }
            if tell.send("next".into()).is_err() {
                return;
            }
        }
    };
    (server, asked)
}

fn moves() -> Vec<Move> {
    let mirror = json!({ "job": "mirror", "node": "d", "target": "v", "replaces": "o", "remove": [] });
    ["scsi0", "scsi1"].iter().map(|disk| Move::parse(disk, &mirror).unwrap()).collect()
}

#[test]
fn a_slow_end_is_waited_for_and_jobs_that_cannot_be_dismissed_are_no_failure() {
    let (server, asked) = slow("nothing");
    let (_dir, path, thread) = scripted(server);
    let mut moving = Moving::begin(&path, moves(), None, &Cancel::new()).unwrap();
    moving.complete().unwrap();
    thread.join().unwrap();
    assert_eq!(asked.iter().filter(|command| command == "job-complete").count(), 2);
}

#[test]
fn an_end_that_does_not_come_is_waited_for_until_the_wish_to_stop() {
    for silent in ["job-complete", "query-jobs"] {
        let (server, asked) = slow(silent);
        let (_dir, path, thread) = scripted(server);
        let cancel = Cancel::new();
        let mut moving = Moving::begin(&path, moves(), None, &cancel).unwrap();
        let stopper = std::thread::spawn(move || {
            while asked.recv().unwrap() != silent {}
            cancel.set();
        });
        let ended = moving.complete();
        assert!(matches!(ended, Err(MoveError::Qemu(QemuError::Cancelled))), "{silent}: {ended:?}");
        stopper.join().unwrap();
        // Nobody listens to what it is asked any more: it goes.
        drop(thread.join());
    }
}
