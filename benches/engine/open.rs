//! The rows about archives that are looked into: verify, restore to a file, random reads through `vzkeep map`, one file out of a
//! file system in a disk.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vzkeep::archive::Compression;
use vzkeep::host::{Cancel, Host};
use vzkeep::image::RawImage;
use vzkeep::nbd::{Client, Options};
use vzkeep::transfer::{Backup, BackupDisk, DEFAULT_MEMORY, Output, backup};

use crate::data;
use crate::lab::programs;
use crate::measure::{Side, interleaved, median, once, peak_memory};
use crate::table::Row;

/// Random reads that are timed at a time.
const READS: u64 = 20_000;
/// Bytes of disk that they stay within when they are warm: fewer than are kept in memory.
const WARM: u64 = 32 << 20;
/// Longest wait for a server.
const PATIENCE: Duration = Duration::from_secs(30);

/// An archive of ours and a directory for what is made of it.
pub struct Archive<'a> {
    pub path: &'a Path,
    pub dir: tempfile::TempDir,
}

impl<'a> Archive<'a> {
    pub fn new(path: &'a Path) -> Self {
        Self { path, dir: tempfile::tempdir().unwrap() }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn reset(&self) {
        std::fs::remove_dir_all(self.out()).ok();
        data::warm(self.path);
        nix::unistd::sync();
    }

    fn vzkeep(&self, words: &[&str]) -> Command {
        let mut command = Command::new(vzkeep());
        command.args(words).arg(self.path);
        command
    }

    fn restore(&self) -> Command {
        std::fs::create_dir_all(self.out()).unwrap();
        let mut command = self.vzkeep(&["restore"]);
        command.arg("--to").arg(self.out());
        command
    }

    /// `zstd -d | vma extract`: the stock program's way, with our `vma` in its place.
    fn extract(&self) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "zstd -q -d -c \"$0\" | \"$1\" vma extract - \"$2\""]);
        command.arg(self.path).arg(vzkeep()).arg(self.out());
        command
    }

    /// Verify against `zstd -t`, restore against the stock program's way.
    pub fn whole(&self, rounds: usize) -> Vec<Row> {
        let zstd = || {
            let mut command = Command::new("zstd");
            command.args(["-q", "-t"]).arg(self.path);
            command
        };
        let row = |work: &str, [ours, yard]: [(&str, Side); 2], at_most| {
            let [yardstick, runs] = interleaved(rounds, &|| self.reset(), [yard.1, ours.1]);
            let figures = format!("{} {runs}; {} {yardstick}", ours.0, yard.0);
            let value = runs.wall() / yardstick.wall();
            Row { work: work.into(), figures, value, unit: "x", at_most: Some(at_most) }
        };
        let verify = || self.vzkeep(&["verify"]);
        vec![
            row("verify of .vma.zst against zstd -t", [("verify", &verify), ("zstd -t", &zstd)], 1.1),
            row(
                "restore of .vma.zst against zstd -d | vma extract",
                [("restore", &|| self.restore()), ("zstd -d | vma extract", &|| self.extract())],
                0.7,
            ),
        ]
    }

    /// From the start of `vzkeep map` to the first byte, and reads of 4 KiB, warm and anywhere.
    pub fn mapped(&self, rounds: usize) -> Vec<Row> {
        let socket = self.dir.path().join("socket");
        let (mut first, mut warm, mut cold, mut memory) = (Vec::new(), Vec::new(), Vec::new(), 0.0_f64);
        for _ in 0..rounds {
            self.reset();
            let begun = Instant::now();
            let server = Server::start(self.vzkeep(&["map"]).arg("--socket").arg(&socket));
            let client = server.client(&socket);
            client.read_at(&mut [0; 4096], 0).unwrap();
            first.push(begun.elapsed().as_secs_f64());
            read_randomly(&client, WARM);
            warm.push(READS as f64 / read_randomly(&client, WARM));
            cold.push(READS as f64 / 20.0 / read_some(&client, client.size(), READS / 20));
            memory = memory.max(server.peak_memory());
        }
        let longest = first.iter().copied().fold(0.0, f64::max);
        let row = |work: &str, figures, value, unit, at_most| Row { work: work.into(), figures, value, unit, at_most };
        let rate = median(&warm);
        vec![
            row("start of map to first byte", format!("longest {longest:.3} s"), median(&first), "s", Some(0.2)),
            row(
                "a 4 KiB read through map, warm",
                format!("{rate:.0} a second within 32 MiB, {:.0} a second anywhere", median(&cold)),
                1e6 / rate,
                "us",
                Some(500.0),
            ),
            row("peak memory of map", String::new(), memory, "MiB", Some(256.0)),
        ]
    }

    pub fn memory(&self) -> Row {
        let verify = peak_memory(&self.vzkeep(&["verify"]));
        self.reset();
        let restore = peak_memory(&self.restore());
        Row {
            work: "peak memory, verify and restore".into(),
            figures: format!("verify {verify:.0} MiB; restore {restore:.0} MiB"),
            value: verify.max(restore),
            unit: "MiB",
            at_most: Some(256.0),
        }
    }
}

/// One file of 1 MiB out of a file system of `mib` MiB, most of which is data.
pub fn one_file(mib: usize, rounds: usize) -> Row {
    let dir = tempfile::tempdir().unwrap();
    let (tree, raw, path) = (dir.path().join("tree"), dir.path().join("raw"), dir.path().join("a.vma.zst"));
    std::fs::create_dir_all(tree.join("srv")).unwrap();
    for (name, size) in [("srv/large", mib * 7 / 8), ("srv/wanted", 2)] {
        std::fs::File::create(tree.join(name)).unwrap().set_len((size as u64) << 20).unwrap();
        data::fill(&tree.join(name), size);
    }
    std::fs::File::options().write(true).open(tree.join("srv/wanted")).unwrap().set_len(1 << 20).unwrap();
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(&raw).arg(format!("{mib}M"));
    once(mke2fs);
    let disk = BackupDisk { name: "drive-scsi0".into(), image: Arc::new(RawImage::open(&raw, "drive-scsi0").unwrap()) };
    let job = Backup {
        disks: vec![disk],
        configs: Vec::new(),
        compression: Compression::Zstd { threads: 2 },
        uuid: [7; 16],
        ctime: 0,
        bwlimit: None,
        max_workers: 16,
        memory: DEFAULT_MEMORY,
        host: Host::with_root("/".into()),
    };
    let output = Output::Writer(Box::new(std::fs::File::create(&path).unwrap()), "archive".into());
    backup(&job, output, &mut |_| {}, &Cancel::new()).unwrap();
    let cat = || {
        let mut command = Command::new(vzkeep());
        command.arg("cat").arg(&path).arg("drive-scsi0/srv/wanted");
        command
    };
    let wanted = std::fs::read(tree.join("srv/wanted")).unwrap();
    assert!(cat().output().unwrap().stdout == wanted, "another file");
    let [runs] = interleaved(rounds, &|| data::warm(&path), [&cat]);
    Row {
        work: format!("one file of 1 MiB out of {mib} MiB of ext4 in .vma.zst"),
        figures: format!("vzkeep cat {runs}"),
        value: runs.wall(),
        unit: "s",
        at_most: Some(1.0),
    }
}

fn vzkeep() -> PathBuf {
    programs::project().join("target/release/vzkeep")
}

/// Seconds for [`READS`] reads of 4 KiB anywhere in the first `within` bytes.
fn read_randomly(client: &Client, within: u64) -> f64 {
    read_some(client, within, READS)
}

fn read_some(client: &Client, within: u64, reads: u64) -> f64 {
    let (begun, mut state, mut buf) = (Instant::now(), 1_u64, [0; 4096]);
    for _ in 0..reads {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        client.read_at(&mut buf, (state >> 20) % (within.min(client.size()) / 4096) * 4096).unwrap();
    }
    begun.elapsed().as_secs_f64()
}

/// `vzkeep map`, ended when it is not needed any more.
struct Server(Child);

impl Server {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn client(&self, socket: &Path) -> Client {
        let begun = Instant::now();
        loop {
            match Client::connect_unix(socket, "", &Options::default()) {
                Ok(client) => return client,
                Err(e) => assert!(begun.elapsed() < PATIENCE, "{e}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// In MiB, so far.
    fn peak_memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.0.wait().unwrap();
    }
}
