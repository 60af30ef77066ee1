//! The witness: process 1 of the lab's guests. Writes numbered records to all its disks in turn, each made durable before
//! the next is begun, and measures how long the longest of these writes took. Says so on the serial console and takes
//! commands there. Powers the machine off when the power button is pressed.
//!
//! Needs nothing but the standard library; built static, see `guest_image.rs`.

#[path = "../record.rs"]
mod record;

use record::{Block, Record, SIZE};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

static N: AtomicU64 = AtomicU64::new(0);
static STALL: Stall = Stall::new();
static FILES: AtomicU64 = AtomicU64::new(0);
static FILE_STALL: Stall = Stall::new();
static ERRORS: AtomicU64 = AtomicU64::new(0);
static PULSE: AtomicU64 = AtomicU64::new(1000);
static STOP: AtomicBool = AtomicBool::new(false);
static IDLE: AtomicBool = AtomicBool::new(false);

/// Longest durable write in milliseconds, since boot and since the last reset.
struct Stall {
    ever: AtomicU64,
    reset: AtomicU64,
}

impl Stall {
    const fn new() -> Self {
        Self { ever: AtomicU64::new(0), reset: AtomicU64::new(0) }
    }

    fn note(&self, since: Instant) {
        let ms = since.elapsed().as_millis() as u64;
        self.ever.fetch_max(ms, SeqCst);
        self.reset.fetch_max(ms, SeqCst);
    }
}

struct Disk {
    path: String,
    file: File,
    size: u64,
    stride: u64,
}

fn main() {
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let mut paths = disk_paths();
    spawn(commands);
    for path in entries("/dev/input") {
        spawn(move || power_button(&path));
    }
    if cmdline.split_whitespace().any(|word| word == "agent") && !paths.is_empty() {
        let path = paths.remove(0);
        spawn(move || files_on(&path));
    }
    if paths.is_empty() {
        IDLE.store(true, SeqCst);
    } else {
        spawn(move || write_records(paths));
    }
    loop {
        say("pulse");
        // In steps, so that a shorter pulse holds at once and not after the rest of a long one.
        let told = Instant::now();
        while told.elapsed() < Duration::from_millis(PULSE.load(SeqCst)) {
            sleep(Duration::from_millis(20));
        }
    }
}

fn say(what: &str) {
    let state = if IDLE.load(SeqCst) { "idle" } else { "writing" };
    println!(
        "witness: {what} n={} stall={} since={} files={} fstall={} fsince={} errors={} state={state}",
        N.load(SeqCst),
        STALL.ever.load(SeqCst),
        STALL.reset.load(SeqCst),
        FILES.load(SeqCst),
        FILE_STALL.ever.load(SeqCst),
        FILE_STALL.reset.load(SeqCst),
        ERRORS.load(SeqCst),
    );
}

fn entries(dir: &str) -> Vec<String> {
    let mut all: Vec<String> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path().display().to_string()).collect();
    all.sort();
    all
}

/// SCSI and virtio disks of at least 1 MiB, in the order of their names.
fn disk_paths() -> Vec<String> {
    entries("/sys/block")
        .into_iter()
        .filter_map(|path| path.strip_prefix("/sys/block/").map(str::to_owned))
        .filter(|name| name.starts_with("sd") || name.starts_with("vd"))
        .map(|name| format!("/dev/{name}"))
        .filter(|path| File::open(path).and_then(|mut f| f.seek(SeekFrom::End(0))).is_ok_and(|size| size >= 1 << 20))
        .collect()
}

fn commands() {
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        let mut words = line.split_whitespace();
        let word = words.next().unwrap_or_default();
        match word {
            "status" => {}
            "reset" => {
                STALL.reset.store(0, SeqCst);
                FILE_STALL.reset.store(0, SeqCst);
            }
            "pulse" => PULSE.store(words.next().and_then(|w| w.parse().ok()).unwrap_or(1000), SeqCst),
            "stop" => {
                STOP.store(true, SeqCst);
                while !IDLE.load(SeqCst) {
                    sleep(Duration::from_millis(5));
                }
            }
            "go" => {
                STOP.store(false, SeqCst);
                while IDLE.load(SeqCst) {
                    sleep(Duration::from_millis(5));
                }
            }
            "poweroff" => power_off(),
            _ => continue,
        }
        say(word);
    }
}

/// Waits for KEY_POWER (116) pressed on an input device; events are 24 bytes: time, type, code, value.
fn power_button(path: &str) {
    let Ok(mut device) = File::open(path) else { return };
    let mut event = [0_u8; 24];
    while device.read_exact(&mut event).is_ok() {
        let kind = u16::from_le_bytes([event[16], event[17]]);
        let code = u16::from_le_bytes([event[18], event[19]]);
        if kind == 1 && code == 116 && event[20] == 1 {
            power_off();
        }
    }
}

fn power_off() {
    STOP.store(true, SeqCst);
    let deadline = Instant::now() + Duration::from_secs(5);
    while !IDLE.load(SeqCst) && Instant::now() < deadline {
        sleep(Duration::from_millis(5));
    }
    for args in [&["umount", "/mnt"][..], &["sync"], &["poweroff", "-f"]] {
        let done = Command::new("/bin/busybox").args(args).status();
        if let Err(error) = done {
            println!("witness: {args:?} failed: {error}");
        }
    }
    sleep(Duration::from_secs(60));
}

fn write_records(paths: Vec<String>) {
    let mut disks: Vec<Disk> = Vec::new();
    for path in paths {
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        let opened = opened.and_then(|mut file| file.seek(SeekFrom::End(0)).map(|size| (file, size)));
        match opened {
            Ok((file, size)) => disks.push(Disk { path, file, size, stride: 0 }),
            Err(error) => return println!("witness: cannot open {path}: {error}"),
        }
    }
    let sizes: Vec<u64> = disks.iter().map(|disk| disk.size).collect();
    let slots = record::slots_for(&sizes);
    for disk in &mut disks {
        disk.stride = record::stride_for(disk.size, slots);
    }
    // Names may change from boot to boot, what is written on the disks does not.
    let mut found: Vec<(Option<u64>, u64, Disk)> = Vec::new();
    for disk in disks {
        match last_record(&disk, slots) {
            Ok((index, n)) => found.push((index, n, disk)),
            Err(error) => return println!("witness: cannot read {}: {error}", disk.path),
        }
    }
    found.sort_by_key(|(index, _, _)| index.unwrap_or(u64::MAX));
    let mut n = found.iter().map(|(_, n, _)| *n).max().unwrap_or(0).max(1);
    let disks: Vec<Disk> = found.into_iter().map(|(_, _, disk)| disk).collect();
    let mut buf = vec![0; SIZE];
    loop {
        while STOP.load(SeqCst) {
            IDLE.store(true, SeqCst);
            sleep(Duration::from_millis(2));
        }
        IDLE.store(false, SeqCst);
        for (index, disk) in disks.iter().enumerate() {
            let record =
                Record { n, disk: index as u64, disks: disks.len() as u64, slots, stride: disk.stride };
            record.fill(&mut buf);
            let begun = Instant::now();
            let written = disk.file.write_all_at(&buf, record.offset()).and_then(|()| disk.file.sync_data());
            STALL.note(begun);
            if let Err(error) = written {
                ERRORS.fetch_add(1, SeqCst);
                println!("witness: I/O error: record {n} on {}: {error}", disk.path);
                STOP.store(true, SeqCst);
                break;
            }
        }
        if !STOP.load(SeqCst) || ERRORS.load(SeqCst) == 0 {
            N.store(n, SeqCst);
            n += 1;
        }
    }
}

/// The index and the highest number of the records on a disk. The first record ever lies in slot 1, so a disk without one
/// there is new.
fn last_record(disk: &Disk, slots: u64) -> std::io::Result<(Option<u64>, u64)> {
    let mut buf = vec![0; SIZE];
    let (mut index, mut last) = (None, 0);
    for slot in std::iter::once(1).chain(0..slots) {
        disk.file.read_exact_at(&mut buf, slot * disk.stride)?;
        match Record::read(&buf) {
            Block::Intact(record) if record.slots == slots => {
                index = Some(record.disk);
                last = last.max(record.n);
            }
            _ if index.is_none() => break,
            _ => {}
        }
    }
    Ok((index, last))
}

/// Writes numbered files to an ext4 file system, made on the first boot.
fn files_on(path: &str) {
    let mut magic = [0; 2];
    let known = File::open(path).and_then(|f| f.read_exact_at(&mut magic, 1080)).is_ok() && magic == [0x53, 0xef];
    if !known {
        run("/sbin/mke2fs", &["-q", "-t", "ext4", "-F", path]);
    }
    run("/bin/busybox", &["mount", "-t", "ext4", path, "/mnt"]);
    println!("witness: {path} mounted");
    let mut buf = vec![0; SIZE];
    for n in 1_u64.. {
        while STOP.load(SeqCst) {
            sleep(Duration::from_millis(2));
        }
        Record { n, disk: 0, disks: 1, slots: 64, stride: SIZE as u64 }.fill(&mut buf);
        let begun = Instant::now();
        let written = File::create(format!("/mnt/file-{:02}", n % 64))
            .and_then(|mut f| f.write_all(&buf).and_then(|()| f.sync_all()));
        FILE_STALL.note(begun);
        if let Err(error) = written {
            ERRORS.fetch_add(1, SeqCst);
            return println!("witness: I/O error: file {n}: {error}");
        }
        FILES.store(n, SeqCst);
        sleep(Duration::from_millis(20));
    }
}

fn run(program: &str, args: &[&str]) {
    match Command::new(program).args(args).status() {
        Ok(status) if status.success() => {}
        other => println!("witness: {program} {args:?} failed: {other:?}"),
    }
}
