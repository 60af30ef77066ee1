//! The records of a task: its log, its line in the index of tasks, its lines in the system log.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use regex::Regex;

use super::normalise::lines;
use crate::lab::Node;

/// A system log that keeps what it gets.
pub struct SystemLog {
    done: Arc<AtomicBool>,
    reader: JoinHandle<Vec<String>>,
}

impl SystemLog {
    /// Listens on the node's `/dev/log`.
    pub fn listen(node: &Node) -> Self {
        let path = node.path("/dev/log");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        if path.exists() {
            std::fs::remove_file(&path).unwrap();
        }
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&done);
        let reader = std::thread::spawn(move || {
            let (mut found, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
            loop {
                let last = stop.load(Ordering::SeqCst);
                match socket.recv(&mut buffer) {
                    Ok(length) => found.push(String::from_utf8_lossy(&buffer[..length]).into_owned()),
                    Err(_) if last => return found,
                    Err(_) => {}
                }
            }
        });
        Self { done, reader }
    }

    /// Everything that came: process id and `level program: text`.
    pub fn end(self, root: &str) -> Vec<(i32, String)> {
        self.done.store(true, Ordering::SeqCst);
        let shape = Regex::new(r"(?s)^<(\d+)>\w{3} [ \d]\d \d\d:\d\d:\d\d (\w+)\[(\d+)\]: (.*)$").unwrap();
        let datagrams = self.reader.join().unwrap();
        let parsed = datagrams.iter().map(|datagram| {
            let found = shape.captures(datagram).unwrap_or_else(|| panic!("no line of a system log: {datagram}"));
            let priority: u8 = found[1].parse().unwrap();
            assert_eq!(priority >> 3, 3, "not from a daemon: {datagram}");
            (found[3].parse().unwrap(), (priority & 7).to_string(), found[2].to_owned(), found[4].to_owned())
        });
        parsed.flat_map(|(pid, level, tag, text)| Some((pid, entry(&level, &tag, &text, root)?))).collect()
    }
}

/// The recorded lines of our programs; those of others say what QEMU and its helpers did.
pub fn recorded_syslog(text: &str) -> Vec<String> {
    let shape = Regex::new(r"^(\w+) (vzdump|qmrestore|pct|unknown)\[\d+\]: (.*)$").unwrap();
    text.lines()
        .filter_map(|line| shape.captures(line))
        .filter_map(|found| entry(&found[1], &found[2], &found[3], ""))
        .collect()
}

fn entry(level: &str, tag: &str, text: &str, root: &str) -> Option<String> {
    let level = match level {
        "6" | "info" => "info",
        "4" | "warn" | "warning" => "warning",
        "3" | "err" => "err",
        other => other,
    };
    // A job that the scheduler runs has no program of its own.
    let tag = if tag == "unknown" { "vzdump" } else { tag };
    Some(format!("{level} {tag}: {}", lines(text, root).into_iter().next()?))
}

/// The log of the task that process `pid` ran; empty if it ran none.
pub fn task_log(node: &Node, pid: i32) -> String {
    let dirs = std::fs::read_dir(node.path("/var/log/pve/tasks")).unwrap().map(|entry| entry.unwrap().path());
    let mut logs = dirs
        .filter(|dir| dir.is_dir())
        .flat_map(|dir| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<PathBuf>>());
    let wanted = format!(":{pid:08X}:");
    let log = logs.find(|path| path.to_string_lossy().contains(&wanted));
    log.map(|path| std::fs::read_to_string(path).unwrap()).unwrap_or_default()
}

/// The line of the task in the index.
pub fn index(node: &Node, pid: i32) -> String {
    let index = std::fs::read_to_string(node.path("/var/log/pve/tasks/index")).unwrap_or_default();
    let wanted = format!(":{pid:08X}:");
    index.lines().filter(|line| line.contains(&wanted)).map(|line| format!("{line}\n")).collect()
}
