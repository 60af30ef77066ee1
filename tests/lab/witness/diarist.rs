//! The diarist: process 1 of the lab's containers. Appends numbered entries to the diaries of all volumes in turn, each
//! made durable before the next is begun. Told to power off, it leaves the mark of a clean shutdown and ends.
//!
//! Needs nothing but the standard library; built static, see `container_image.rs`.

#[path = "../diary.rs"]
mod diary;

use diary::{CLEAN, LIST, SIZE};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

/// What LXC sends to the first process of a container that shall stop.
const SIGPWR: i32 = 30;

static STOP: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn sync();
}

extern "C" fn stop(_: i32) {
    STOP.store(true, SeqCst);
}

fn main() -> std::io::Result<()> {
    // SAFETY: the handler only stores to an atomic.
    unsafe { signal(SIGPWR, stop) };
    if Path::new(CLEAN).exists() {
        std::fs::remove_file(CLEAN)?;
    }
    let list = std::fs::read_to_string(LIST)?;
    let mut diaries = list.lines().map(open).collect::<std::io::Result<Vec<_>>>()?;
    while !STOP.load(SeqCst) {
        // After a crash the first may be one entry ahead of the others.
        let n = diaries.iter().map(|(_, last)| *last).min().unwrap_or(0) + 1;
        for (volume, (file, last)) in diaries.iter_mut().enumerate() {
            if *last < n {
                file.write_all(&diary::entry(n, volume as u64))?;
                file.sync_data()?;
                *last = n;
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut mark = File::create(CLEAN)?;
    writeln!(mark, "{}", diaries.first().map_or(0, |(_, last)| *last))?;
    mark.sync_all()?;
    // SAFETY: takes and returns nothing.
    unsafe { sync() };
    Ok(())
}

/// Opens a diary behind its last whole entry.
fn open(path: &str) -> std::io::Result<(File, u64)> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let whole = file.metadata()?.len() / SIZE as u64;
    file.set_len(whole * SIZE as u64)?;
    file.seek(SeekFrom::Start(whole * SIZE as u64))?;
    Ok((file, whole))
}
