//! The agent client against agents that are slow, stuck, confused or gone.

use std::io::{BufRead, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::lab::{error, say, scripted, within};
use crate::qemu::{Agent, FreezeStatus, QemuError};

const QUICK: Duration = Duration::from_millis(300);

/// What the pretended guest knows.
#[derive(Default)]
struct Guest {
    frozen: bool,
    log: Vec<String>,
}

type Shared = Arc<Mutex<Guest>>;

/// Serves connections one after the other, as QEMU's chardev does; `odd` may answer a command itself.
fn agent(
    guest: Shared,
    odd: impl Fn(&str, &UnixStream, &Shared) -> bool + Send + 'static,
) -> impl FnOnce(UnixListener) + Send + 'static {
    move |listener| {
        while let Ok((stream, _)) = listener.accept() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text: Vec<u8> = line.drain(..).filter(|&b| b != 0xff).collect();
                let Ok(request) = serde_json::from_slice::<Value>(&text) else { continue };
                let command = request["execute"].as_str().unwrap().to_owned();
                if command == "quit" {
                    return;
                }
                guest.lock().unwrap().log.push(command.clone());
                if odd(&command, &stream, &guest) {
                    continue;
                }
                let mut guest = guest.lock().unwrap();
                let answer = match command.as_str() {
                    "guest-sync-delimited" => {
                        say(&stream, &[0xff]);
                        request["arguments"]["id"].clone()
                    }
                    "guest-fsfreeze-status" => json!(if guest.frozen { "frozen" } else { "thawed" }),
                    "guest-fsfreeze-freeze" => {
                        guest.frozen = true;
                        json!(2)
                    }
                    "guest-fsfreeze-thaw" => {
                        guest.frozen = false;
                        json!(2)
                    }
                    _ => json!({}),
                };
                say(&stream, format!("{}\n", json!({ "return": answer })).as_bytes());
            }
        }
    }
}

struct Running {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
    guest: Shared,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    fn new(odd: impl Fn(&str, &UnixStream, &Shared) -> bool + Send + 'static) -> Self {
        let guest = Shared::default();
        let (dir, path, thread) = scripted(agent(Arc::clone(&guest), odd));
        Self { _dir: dir, path, guest, thread: Some(thread) }
    }

    fn connect(&self) -> Agent {
        Agent::connect(&self.path, Duration::from_secs(5)).unwrap()
    }

    fn frozen(&self) -> bool {
        self.guest.lock().unwrap().frozen
    }

    fn count(&self, command: &str) -> usize {
        self.guest.lock().unwrap().log.iter().filter(|c| *c == command).count()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        say(UnixStream::connect(&self.path).unwrap(), b"{\"execute\": \"quit\"}\n");
        let joined = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || joined.is_ok());
    }
}

#[test]
fn freeze_and_thaw() {
    let running = Running::new(|_, _, _| false);
    assert_eq!(running.connect().freeze_status(QUICK).unwrap(), FreezeStatus::Thawed);
    let freeze = running.connect().freeze(QUICK, QUICK).unwrap();
    assert!(running.frozen() && freeze.frozen() == 2);
    assert_eq!(freeze.thaw().unwrap(), 2);
    assert!(!running.frozen());
    drop(running.connect().freeze(QUICK, QUICK).unwrap());
    assert!(!running.frozen(), "dropped means thawed");
}

#[test]
fn silence_and_garbage() {
    let running = Running::new(|_, _, _| true);
    let e = within(Duration::from_secs(2), "silence", || error(Agent::connect(&running.path, QUICK)));
    assert!(matches!(e, QemuError::Timeout { .. }) && e.to_string().contains("guest agent"), "{e}");
    drop(running);

    let running = Running::new(|command, stream, _| {
        say(stream, b"\xff\xff{]\n\x00\xfe{\"return\": 4}\n");
        command != "guest-sync-delimited"
    });
    let e = within(Duration::from_secs(2), "garbage", || error(Agent::connect(&running.path, QUICK)));
    assert!(matches!(e, QemuError::Protocol { .. }), "{e}");
}

#[test]
fn stale_answers_are_skipped() {
    let running = Running::new(|command, stream, _| {
        if command == "guest-sync-delimited" {
            say(stream, b"{\"return\": \"frozen\"}\n\xff{\"return\": 12}\n{\"error\": {\"class\": \"x\"}}\n");
        }
        false
    });
    assert_eq!(running.connect().freeze_status(QUICK).unwrap(), FreezeStatus::Thawed);
}

#[test]
fn a_freeze_without_answer_is_thawed() {
    // The agent freezes, but its answer is lost.
    let running = Running::new(|command, _, guest| {
        if command == "guest-fsfreeze-freeze" {
            guest.lock().unwrap().frozen = true;
        }
        command == "guest-fsfreeze-freeze"
    });
    let agent = running.connect();
    let e = within(Duration::from_secs(3), "freeze", || error(agent.freeze(QUICK, QUICK)));
    assert!(matches!(&e, QemuError::Timeout { command, .. } if command == "guest-fsfreeze-freeze"), "{e}");
    assert!(!running.frozen());
}

#[test]
fn a_thaw_is_tried_again() {
    let running = Running::new(|command, stream, guest| {
        let first = guest.lock().unwrap().log.iter().filter(|c| *c == "guest-fsfreeze-thaw").count() == 1;
        if command == "guest-fsfreeze-thaw" && first {
            stream.shutdown(std::net::Shutdown::Both).unwrap();
            return true;
        }
        false
    });
    running.connect().freeze(QUICK, QUICK).unwrap().thaw().unwrap();
    assert!(!running.frozen() && running.count("guest-fsfreeze-thaw") == 2);
}

#[test]
fn a_thaw_that_never_works_is_said() {
    let running = Running::new(|command, _, _| command == "guest-fsfreeze-thaw");
    let freeze = running.connect().freeze(QUICK, QUICK).unwrap();
    let e = within(Duration::from_secs(5), "thaw", || error(freeze.thaw()));
    assert!(e.to_string().contains("may still be frozen"), "{e}");
    assert!(running.count("guest-fsfreeze-thaw") > 1);
}

#[test]
fn refusals_and_foreign_freezes() {
    let running = Running::new(|command, stream, guest| {
        guest.lock().unwrap().frozen = true;
        if command == "guest-info" {
            say(stream, b"{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"disabled\"}}\n");
        }
        command == "guest-info"
    });
    let mut agent = running.connect();
    let e = error(agent.execute("guest-info", json!({}), QUICK));
    assert_eq!(e.to_string(), "guest agent command 'guest-info' failed: disabled (CommandNotFound)");
    let e = error(agent.freeze(QUICK, QUICK));
    assert!(e.to_string().contains("already frozen"), "{e}");
    assert!(running.frozen(), "not ours to thaw");
}
