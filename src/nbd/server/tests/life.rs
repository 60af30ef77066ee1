//! The socket file, the end of a server, and what a panic behind a disk does.

use std::ops::Range;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::image::{Extent, ExtentKind, ImageError};

fn bind_error(path: &Path) -> String {
    Listener::bind(path).unwrap_err().to_string()
}

#[test]
fn the_socket_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = Listener::bind(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(bind_error(&path), format!("a server is listening on {} already", path.display()));
    drop(listener);
    assert!(!path.exists());
    // What a killed one leaves: a socket that nobody listens on.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = Listener::bind(&path).unwrap();
    UnixStream::connect(&path).unwrap();
    // Somebody replaced it: what is not ours stays.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    drop(listener);
    assert_eq!(bind_error(&path), format!("{} exists and is no socket", path.display()));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let long = dir.path().join("x".repeat(120));
    assert!(bind_error(&long).contains("but that of a socket can have 107 at most"));
    assert!(bind_error(&dir.path().join("none/s")).contains("No such file or directory"));
}

#[test]
fn starters_do_not_take_a_new_server_for_a_dead_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    for _ in 0..20 {
        drop(std::os::unix::net::UnixListener::bind(&path));
        let started = std::thread::scope(|scope| {
            let starters: Vec<_> = (0..4).map(|_| scope.spawn(|| Listener::bind(&path))).collect();
            starters.into_iter().map(|starter| starter.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(started.iter().filter(|started| started.is_ok()).count(), 1, "{started:?}");
    }
}

#[test]
fn the_end_answers_what_is_under_way() {
    let cancel = Cancel::new();
    let slow = FaultyImage::new(Arc::new(disk())).delay(Duration::from_millis(500));
    let exports = Exports::new(vec![Export::read_only("disk", Arc::new(slow))]);
    let mut scene = Scene::with_cancel(exports, Settings::default(), &cancel);
    let (client, idle) = (scene.client("disk"), scene.client("disk"));
    soon("both are counted", || scene.server.as_ref().unwrap().clients() == 2);
    std::thread::scope(|scope| {
        let read = scope.spawn(|| client.read_at(&mut [0; 4096], 0));
        std::thread::sleep(Duration::from_millis(150));
        cancel.set();
        read.join().unwrap().unwrap();
    });
    scene.server.take().unwrap().wait().unwrap();
    assert!(!scene.socket().exists());
    assert!(idle.read_at(&mut [0; 512], 0).unwrap_err().is_fatal());
    assert!(scene.said().is_empty());
}

#[test]
fn a_disk_that_hangs_does_not_hang_the_end() {
    let stuck = FaultyImage::new(Arc::new(disk())).delay(Duration::from_secs(5));
    let settings = Settings { drain: Duration::from_millis(100), ..Settings::default() };
    let mut scene = Scene::new(Exports::new(vec![Export::read_only("disk", Arc::new(stuck))]), settings);
    let client = scene.client("disk");
    std::thread::scope(|scope| {
        let read = scope.spawn(|| client.read_at(&mut [0; 4096], 0));
        std::thread::sleep(Duration::from_millis(150));
        let error = scene.server.take().unwrap().stop().unwrap_err();
        assert_eq!(error.to_string(), "1 connections wait for a disk that does not answer");
        assert!(read.join().unwrap().is_err());
    });
}

/// A disk that counts how many read it at a time, and lets them go when there are as many as are wanted.
#[derive(Default)]
struct Busy {
    now: AtomicUsize,
    most: AtomicUsize,
    wanted: AtomicUsize,
}

impl Image for Arc<Busy> {
    fn name(&self) -> &str {
        "busy"
    }

    fn size(&self) -> u64 {
        1 << 20
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        Ok(vec![Extent { offset: range.start, len: range.end - range.start, kind: ExtentKind::Data }])
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> Result<(), ImageError> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        let begun = Instant::now();
        while self.most.load(Ordering::SeqCst) < self.wanted.load(Ordering::SeqCst)
            && begun.elapsed() < Duration::from_secs(5)
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Were there more, they would come.
        std::thread::sleep(Duration::from_millis(20));
        self.now.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn many_requests_of_many_clients_take_so_many_workers() {
    let busy = Arc::new(Busy::default());
    let settings = Settings { workers: 4, helpers: 5, ..Settings::default() };
    let exports = Exports::new(vec![Export::read_only("busy", Arc::new(Arc::clone(&busy)))]);
    let mut scene = Scene::new(exports, settings);
    // One client has its four workers; of four each has its first one, and all five helpers work.
    for (clients, wanted) in [(1, 4), (4, 9)] {
        busy.most.store(0, Ordering::SeqCst);
        busy.wanted.store(wanted, Ordering::SeqCst);
        let clients: Vec<_> = (0..clients).map(|_| scene.client("busy")).collect();
        std::thread::scope(|scope| {
            for client in &clients {
                (0..8).for_each(|n| {
                    scope.spawn(move || client.read_at(&mut [0; 4096], n * 4096).unwrap());
                });
            }
        });
        assert_eq!(busy.most.load(Ordering::SeqCst), wanted);
        // No more than half of them wait with clients that have nothing to ask.
        let helpers = &scene.server.as_ref().unwrap().shared.helpers;
        soon("helpers are given back", || helpers.load(Ordering::SeqCst) <= 3);
    }
    soon("the workers are gone", || scene.server.as_ref().unwrap().shared.helpers.load(Ordering::SeqCst) == 0);
    scene.stop();
}

/// A disk whose code is broken.
struct Broken;

impl Image for Broken {
    fn name(&self) -> &str {
        "broken"
    }

    fn size(&self) -> u64 {
        1 << 20
    }

    fn extents(&self, _: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        panic!("as the test wants it")
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> Result<(), ImageError> {
        panic!("as the test wants it")
    }
}

#[test]
fn a_panic_costs_the_connection_only() {
    let exports = vec![Export::read_only("broken", Arc::new(Broken)), Export::read_only("disk", Arc::new(disk()))];
    let mut scene = Scene::new(Exports::new(exports), Settings::default());
    let other = scene.client("disk");
    assert!(scene.client("broken").read_at(&mut [0; 512], 0).unwrap_err().is_fatal());
    other.read_at(&mut [0; 512], 0).unwrap();
    soon("the broken one is gone", || scene.server.as_ref().unwrap().clients() == 1);
    drop(other);
    scene.stop();
}
