//! The rows of the table: what is measured, against what.

use crate::container::Container;
use crate::lab::programs;
use crate::measure::{Runs, interleaved, median, peak_memory};
use crate::open::{Archive, one_file};
use crate::scene::{FIVE, GUEST, SPARSE, Scene};
use crate::table::{Row, render, surroundings};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::process::Stdio;
use std::time::Instant;

const FULL: usize = 2048;
const ZSTD1: [&str; 4] = ["--compress", "zstd", "--zstd", "1"];
const ZSTD2: [&str; 4] = ["--compress", "zstd", "--zstd", "2"];
const PLAIN: [&str; 2] = ["--compress", "0"];

struct Bench {
    /// MiB of data.
    mib: usize,
    scene: Scene,
    rounds: usize,
    rows: Vec<Row>,
}

type Work = fn(&mut Bench);

/// Runs the works named, or all, prints the table and keeps a copy of a complete one.
pub fn run(names: &[String]) {
    for program in ["zstd", "cp", "qemu-system-x86_64", "lzop"] {
        assert!(programs::find(program).is_some(), "{program} is missing: run `make setup`");
    }
    let works: [(&str, Work); 8] = [
        ("start", start),
        ("stopped", stopped),
        ("plain", plain),
        ("restore", restore),
        ("memory", memory),
        ("container", container),
        ("open", open),
        ("running", running),
    ];
    for name in names {
        assert!(works.iter().any(|(known, _)| known == name), "no work is called '{name}'");
    }
    let mib = std::env::var("VZKEEP_BENCH_MIB").map_or(FULL, |mib| mib.parse().unwrap());
    assert!(mib >= 64, "VZKEEP_BENCH_MIB must be at least 64");
    let rounds = if mib == FULL { 5 } else { 3 };
    eprintln!("bench: making {mib} MiB of data");
    let mut bench = Bench { mib, scene: Scene::new(mib), rounds, rows: Vec::new() };
    for (name, work) in works.iter().filter(|(name, _)| names.is_empty() || names.iter().any(|n| n == name)) {
        let begun = Instant::now();
        work(&mut bench);
        eprintln!("bench: {name} took {:.0} s", begun.elapsed().as_secs_f64());
    }
    let table = format!("{}\n{}", surroundings(mib, rounds), render(&bench.rows));
    println!("\n{table}");
    if mib == FULL && names.is_empty() {
        let path = programs::project().join("docs/BENCHMARKS.md");
        // What people wrote below the table stays.
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        let notes = before.find("\n## ").map_or("", |at| &before[at..]);
        std::fs::write(&path, format!("{INTRODUCTION}\n{table}{notes}")).unwrap();
    }
}

const INTRODUCTION: &str = "# Speed and memory

Written by `make bench`. The programs `vzdump` and `qmrestore` as they are installed, on a node of the lab, against stock
tools; our run and its yardstick in turn, inputs in the page cache, everything on one file system. One disk: half random,
a quarter like text, a quarter zeros that were written. R is `zstd -q -3 -T1` of the raw file to a file; C is `cp` of it
plus sync of the copy. Ours always syncs what it wrote; `zstd` never does. Containers: 20,000 files of 1 GiB, half random and
half like text in each, the options of tar that vzdump uses on both sides, and our data path without the command line.
";

impl Bench {
    fn ratio(&mut self, work: &str, ours: (&str, &Runs), yardstick: (&'static str, &Runs), at_most: f64) {
        let (value, unit) = (ours.1.wall() / yardstick.1.wall(), yardstick.0);
        let figures = format!("{} {}; {unit} {}", ours.0, ours.1, yardstick.1);
        self.rows.push(Row { work: work.into(), figures, value, unit, at_most: Some(at_most) });
    }
}

fn stopped(bench: &mut Bench) {
    let scene = &bench.scene;
    let [r, one, r2, two] = interleaved(
        bench.rounds,
        &|| scene.reset(&scene.raw),
        [&|| scene.zstd(1), &|| scene.vzdump(GUEST, &ZSTD1), &|| scene.zstd(2), &|| scene.vzdump(GUEST, &ZSTD2)],
    );
    bench.ratio("stopped VM to .vma.zst, zstd: 1", ("vzdump", &one), ("R", &r), 1.15);
    bench.ratio("stopped VM to .vma.zst, zstd: 2", ("vzdump", &two), ("R", &r), 0.8);
    bench.ratio("the same against zstd -T2", ("vzdump", &two), ("zstd -T2", &r2), 1.0);
}

fn plain(bench: &mut Bench) {
    let scene = &bench.scene;
    let [c, ours] =
        interleaved(bench.rounds, &|| scene.reset(&scene.raw), [&|| scene.cp(), &|| scene.vzdump(GUEST, &PLAIN)]);
    bench.ratio("stopped VM to .vma", ("vzdump", &ours), ("C", &c), 1.3);
}

fn restore(bench: &mut Bench) {
    let scene = &bench.scene;
    scene.reset(&scene.raw);
    crate::measure::once(scene.vzdump(GUEST, &ZSTD1));
    let archive = scene.keep_archive(GUEST);
    let [d, ours] = interleaved(
        bench.rounds,
        &|| scene.reset(&archive),
        [&|| scene.unzstd(&archive), &|| scene.qmrestore(&archive)],
    );
    // What was restored is right, too; the fastest way to write nothing is no use.
    let (restored, _) = scene.node.disk(crate::scene::RESTORED, "scsi0").unwrap();
    crate::measure::once({
        let mut cmp = std::process::Command::new("cmp");
        cmp.arg(&scene.raw).arg(restored);
        cmp
    });
    std::fs::remove_file(&archive).unwrap();
    bench.ratio("qmrestore of .vma.zst", ("qmrestore", &ours), ("zstd -d", &d), 1.1);
}

fn memory(bench: &mut Bench) {
    let gzip = ["--compress", "gzip"];
    let lzo = ["--compress", "lzo"];
    let works: [(&str, u32, &[&str]); 5] = [
        ("this disk, zstd: 2", GUEST, &ZSTD2),
        ("64 GiB of nearly nothing, zstd: 2", SPARSE, &ZSTD2),
        ("five disks, zstd: 2", FIVE, &ZSTD2),
        ("five disks, gzip", FIVE, &gzip),
        ("five disks, lzo", FIVE, &lzo),
    ];
    for (what, vmid, words) in works {
        let scene = &bench.scene;
        scene.reset(&scene.raw);
        let backup = peak_memory(&scene.vzdump(vmid, words));
        let archive = scene.keep_archive(vmid);
        let restore = peak_memory(&scene.qmrestore(&archive));
        std::fs::remove_file(archive).unwrap();
        bench.rows.push(Row {
            work: format!("peak memory, {what}"),
            figures: format!("vzdump {backup:.0} MiB; qmrestore {restore:.0} MiB"),
            value: backup.max(restore),
            unit: "MiB",
            at_most: Some(256.0),
        });
    }
}

/// From starting the program to the first read of the guest's image.
fn start(bench: &mut Bench) {
    let scene = &bench.scene;
    let mut seconds = Vec::new();
    for _ in 0..bench.rounds {
        scene.reset(&scene.raw);
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
        inotify.add_watch(&scene.raw, AddWatchFlags::IN_ACCESS).unwrap();
        let mut command = scene.vzdump(GUEST, &ZSTD1);
        let begun = Instant::now();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        inotify.read_events().unwrap();
        seconds.push(begun.elapsed().as_secs_f64());
        assert!(child.wait().unwrap().success());
    }
    bench.rows.push(Row {
        work: "start to first byte read".into(),
        figures: format!("longest {:.3} s", seconds.iter().copied().fold(0.0, f64::max)),
        value: median(&seconds),
        unit: "s",
        at_most: Some(0.3),
    });
}

/// Archives that are looked into.
fn open(bench: &mut Bench) {
    let scene = &bench.scene;
    scene.reset(&scene.raw);
    crate::measure::once(scene.vzdump(GUEST, &ZSTD2));
    let path = scene.keep_archive(GUEST);
    let archive = Archive::new(&path);
    bench.rows.extend(archive.whole(bench.rounds));
    bench.rows.extend(archive.mapped(bench.rounds));
    bench.rows.push(archive.memory());
    drop(archive);
    std::fs::remove_file(path).unwrap();
    bench.rows.push(one_file(bench.mib, bench.rounds));
}

/// The tree has half as much data as the disk.
fn container(bench: &mut Bench) {
    let tree = Container::new(bench.mib / 2);
    let [zstd1, one, zstd2, two] = interleaved(
        bench.rounds,
        &|| tree.reset(),
        [&|| tree.tar_zstd(1), &|| tree.pack(1), &|| tree.tar_zstd(2), &|| tree.pack(2)],
    );
    bench.ratio("container's files to .tar.zst, zstd: 1", ("ours", &one), ("tar | zstd -T1", &zstd1), 1.0);
    bench.ratio("container's files to .tar.zst, zstd: 2", ("ours", &two), ("tar | zstd -T1", &zstd1), 0.8);
    bench.ratio("the same against zstd -T2", ("ours", &two), ("tar | zstd -T2", &zstd2), 1.0);
    let archive = tree.path("archive.zst");
    std::fs::rename(tree.path("ours.zst"), &archive).unwrap();
    let [x, ours] = interleaved(bench.rounds, &|| tree.reset(), [&|| tree.tar_x(&archive), &|| tree.unpack(&archive)]);
    // What was unpacked is right, too.
    crate::measure::once({
        let mut diff = std::process::Command::new("diff");
        diff.arg("-r").arg(tree.path("tree")).arg(tree.path("unpacked"));
        diff
    });
    bench.ratio("container's files unpacked", ("ours", &ours), ("tar --zstd -x", &x), 1.05);
    let [t, list] = interleaved(bench.rounds, &|| {}, [&|| tree.tar_t(&archive), &|| tree.list(&archive)]);
    bench.ratio("listing one directory of it", ("vzkeep ls", &list), ("tar --zstd -t", &t), 0.05);
}

/// Last: the guest's witness writes into the disk.
fn running(bench: &mut Bench) {
    let scene = &bench.scene;
    scene.node.start(GUEST).unwrap();
    scene.node.witness(GUEST, "stop").unwrap();
    let [r, ours] =
        interleaved(bench.rounds, &|| scene.reset(&scene.raw), [&|| scene.zstd(1), &|| scene.vzdump(GUEST, &ZSTD1)]);
    scene.reset(&scene.raw);
    scene.node.witness(GUEST, "go").unwrap();
    scene.node.wait_for_records(GUEST, 50).unwrap();
    let watched = |work: &dyn Fn()| {
        let watch = scene.node.watch(GUEST).unwrap();
        work();
        watch.finish().unwrap().as_secs_f64() * 1e3
    };
    let calm = watched(&|| std::thread::sleep(std::time::Duration::from_secs(5)));
    let busy = watched(&|| {
        crate::measure::once(scene.vzdump(GUEST, &ZSTD1));
    });
    bench.ratio("running VM to .vma.zst, zstd: 1", ("vzdump", &ours), ("R", &r), 1.35);
    bench.rows.push(Row {
        work: "longest stall of a guest that writes, during a backup".into(),
        figures: format!("without a backup {calm:.0} ms"),
        value: busy,
        unit: "ms",
        at_most: None,
    });
}
