//! Tests of the server: what it serves to our own client, what it says byte by byte, and what hostile clients get.

mod handshake;
mod hostile;
mod life;
mod serving;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;
use crate::image::{FaultyImage, Image, MemImage, OverlayImage};
use crate::nbd::{BASE_ALLOCATION, Client, Options};

const SIZE: usize = 9 << 20;

/// A server in a directory of its own, and what it had to tell.
struct Scene {
    server: Option<Server>,
    dir: TempDir,
    said: Arc<Mutex<Vec<String>>>,
}

impl Scene {
    fn new(exports: Exports, settings: Settings) -> Self {
        Self::with_cancel(exports, settings, &Cancel::new())
    }

    fn with_cancel(exports: Exports, settings: Settings, cancel: &Cancel) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        let report = Box::new(move |event: &Event<'_>| {
            if event.is_trouble() {
                heard.lock().unwrap().push(event.to_string());
            }
        });
        let listener = Listener::bind(&dir.path().join("s")).unwrap();
        let server = Server::start(listener, exports, settings, report, cancel).unwrap();
        Self { server: Some(server), dir, said }
    }

    fn one(image: impl Image + 'static) -> Self {
        Self::new(Exports::new(vec![Export::read_only("disk", Arc::new(image))]), Settings::default())
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn client(&self, export: &str) -> Client {
        let options = Options {
            meta_contexts: vec![BASE_ALLOCATION.into()],
            timeout: Duration::from_secs(20),
            write_timeout: Duration::from_secs(20),
        };
        Client::connect_unix(&self.socket(), export, &options).unwrap()
    }

    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn said(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }

    fn stop(&mut self) {
        self.server.take().unwrap().stop().unwrap();
        assert!(!self.socket().exists(), "the socket stays");
    }
}

/// What byte the disks hold at `at`; in every second 128 KiB nothing.
fn content(len: usize) -> Vec<u8> {
    let byte = |at: usize| if at >> 17 & 1 == 1 { 0 } else { (at.wrapping_mul(0x9e37_79b1) >> 13) as u8 };
    (0..len).map(byte).collect()
}

fn disk() -> MemImage {
    MemImage::sparse("drive-scsi0", content(SIZE))
}

fn overlay(below: impl Image + 'static) -> Arc<OverlayImage> {
    Arc::new(OverlayImage::new(Arc::new(below), &std::env::temp_dir()).unwrap())
}

#[track_caller]
fn soon(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
