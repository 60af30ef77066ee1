//! The QMP client against scripted servers: what a monitor should not do, but a broken or busy one does.

use std::io::{BufRead, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use serde_json::json;

use super::lab::{error, say, scripted, within};
use crate::host::Cancel;
use crate::qemu::{QemuError, Qmp};

pub const GREETING: &[u8] =
    b"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 2, \"minor\": 0, \"major\": 10}, \"package\": \"\"}, \"capabilities\": []}}\r\n";

/// Greets, then answers each request with the next of `answers`, in which `$ID` stands for the request's id.
fn server(answers: Vec<&'static str>) -> impl FnOnce(UnixListener) + Send + 'static {
    move |listener| {
        let (stream, _) = listener.accept().unwrap();
        say(&stream, GREETING);
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        for answer in std::iter::once("{\"return\": {}, \"id\": $ID}\n").chain(answers) {
            let Some(Ok(line)) = lines.next() else { return };
            let request: serde_json::Value = serde_json::from_str(&line).unwrap();
            say(&stream, answer.replace("$ID", &request["id"].to_string()).as_bytes());
        }
        let _ = lines.next();
    }
}

#[test]
fn answers_errors_and_events() {
    let (_dir, path, thread) = scripted(server(vec![
        "{\"event\": \"STOP\", \"data\": {\"a\": 1}}\n{\"return\": 1, \"id\": \"stale\"}\n{\"return\": 7, \"id\": $ID}\n",
        "{\"error\": {\"class\": \"DeviceNotFound\", \"desc\": \"no such thing\"}, \"id\": $ID}\n",
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"bad JSON\"}}\n",
        "{\"id\": $ID}\n",
    ]));
    let mut qmp = Qmp::connect(&path, Duration::from_secs(5)).unwrap();
    assert_eq!(qmp.version(), (10, 0, 2));
    assert_eq!(qmp.execute("one", json!({"x": 1})).unwrap(), 7);
    let e = error(qmp.execute("two", json!({})));
    assert_eq!(e.to_string(), "QMP command 'two' failed: no such thing (DeviceNotFound)");
    assert!(e.is_refusal());
    assert!(error(qmp.execute("three", json!({}))).to_string().contains("bad JSON"));
    assert!(matches!(error(qmp.execute("four", json!({}))), QemuError::Protocol { .. }));
    drop(qmp);
    thread.join().unwrap();
}

#[test]
fn nobody_listens() {
    let dir = tempfile::tempdir().unwrap();
    let e = error(Qmp::connect(&dir.path().join("none"), Duration::from_secs(5)));
    assert!(e.is_gone() && e.to_string().contains("is the guest running?"), "{e}");
    let path = dir.path().join("left");
    drop(UnixListener::bind(&path).unwrap());
    assert!(error(Qmp::connect(&path, Duration::from_secs(5))).is_gone());
    let long = dir.path().join("x".repeat(200));
    assert!(matches!(error(Qmp::connect(&long, Duration::from_secs(5))), QemuError::Socket { .. }));
}

#[test]
fn busy_is_said_and_cancel_ends_the_wait() {
    // A listener that accepts nobody is what QEMU looks like while it serves another client.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("busy");
    let _listener = UnixListener::bind(&path).unwrap();
    let wait = Duration::from_millis(300);
    let e = within(Duration::from_secs(2), "busy", || error(Qmp::connect(&path, wait)));
    assert!(matches!(e, QemuError::Busy { .. }) && e.to_string().contains("is busy"), "{e}");
    let cancel = Cancel::new();
    cancel.set();
    let e = within(Duration::from_secs(2), "cancel", || {
        error(Qmp::connect_unless(&path, Duration::from_secs(60), &cancel))
    });
    assert!(matches!(e, QemuError::Cancelled));
}

#[test]
fn full_backlog_does_not_block() {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("full");
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&fd, Backlog::new(0).unwrap()).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    let e = within(Duration::from_secs(3), "connect", || error(Qmp::connect(&path, Duration::from_millis(300))));
    assert!(matches!(e, QemuError::Busy { .. }), "{e}");
}

#[test]
fn garbage_silence_and_endless_lines_are_errors() {
    for greeting in ["{}\n", "hello\n", "\u{1}\n", "[]\n"] {
        let (_dir, path, thread) = scripted(move |l| say(l.accept().unwrap().0, greeting.as_bytes()));
        let e = error(Qmp::connect(&path, Duration::from_secs(5)));
        assert!(matches!(e, QemuError::Protocol { .. }), "{greeting:?}: {e}");
        thread.join().unwrap();
    }
    let (_dir, path, thread) = scripted(|l| {
        let (stream, _) = l.accept().unwrap();
        let block = vec![b'x'; 1 << 20];
        (0..40).for_each(|_| say(&stream, &block));
    });
    let e = within(Duration::from_secs(20), "endless line", || error(Qmp::connect(&path, Duration::from_secs(20))));
    assert!(e.to_string().contains("a line longer than"), "{e}");
    thread.join().unwrap();

    let (_dir, path, thread) =
        scripted(server(vec!["", "{\"return\": \"late\", \"id\": \"vzkeep-2\"}\n{\"return\": 3, \"id\": $ID}\n"]));
    let mut qmp = Qmp::connect(&path, Duration::from_secs(5)).unwrap();
    let e = error(qmp.execute_within("slow", json!({}), Duration::from_millis(200)));
    assert!(e.to_string().contains("no answer to 'slow' within 0.2 s"), "{e}");
    assert_eq!(qmp.execute("next", json!({})).unwrap(), 3);
    drop(qmp);
    thread.join().unwrap();
}

#[test]
fn a_closed_connection_names_the_command() {
    let (_dir, path, thread) = scripted(|l| {
        let (stream, _) = l.accept().unwrap();
        say(&stream, GREETING);
        say(&stream, b"{\"return\": {}, \"id\": \"vzkeep-1\"}\n");
        let mut line = String::new();
        let mut reader = BufReader::new(stream);
        reader.read_line(&mut line).unwrap();
        reader.read_line(&mut line).unwrap();
    });
    let mut qmp = Qmp::connect(&path, Duration::from_secs(5)).unwrap();
    let e = error(qmp.execute("query-block", json!({})));
    assert!(matches!(&e, QemuError::Closed { command, .. } if command == "query-block"), "{e}");
    thread.join().unwrap();
}
