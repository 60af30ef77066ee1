//! Files of the real programs, read at random and compared with the plain data.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::*;
use crate::archive::Bytes;

pub(super) fn host() -> Host {
    Host::with_root("/".into())
}

/// Numbers that look random, the same in every run.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Data of many kinds, `len` bytes: programs, text with words that come again, noise, zeros, short repeats.
pub(super) fn mixture(len: usize, seed: u64) -> Vec<u8> {
    let mut numbers = Numbers(seed | 1);
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let mut data = Vec::with_capacity(len + (1 << 20));
    while data.len() < len {
        let part = 1 + numbers.below(700_000) as usize;
        match numbers.below(7) {
            0 | 1 => {
                let from = numbers.below((program.len() - part.min(program.len())) as u64 + 1) as usize;
                data.extend_from_slice(&program[from..program.len().min(from + part)]);
            }
            2 | 3 => {
                let end = data.len() + part;
                while data.len() < end {
                    data.extend_from_slice(
                        format!("line {} of {};\n", numbers.below(999), numbers.below(50)).as_bytes(),
                    );
                }
            }
            4 => (0..part / 8).for_each(|_| data.extend_from_slice(&numbers.next().to_le_bytes())),
            5 => data.resize(data.len() + part, 0),
            _ => {
                // Something from before, once more: long matches of far away.
                let from = numbers.below(data.len() as u64 + 1) as usize;
                let again = data[from..data.len().min(from + part)].to_vec();
                data.extend_from_slice(&again);
            }
        }
    }
    data.truncate(len);
    data
}

/// `data` through a program. None when it is not installed.
pub(super) fn packed(line: &str, data: &[u8], dir: &Path) -> Option<(PathBuf, Vec<u8>)> {
    let (program, args) = line.split_once(' ').unwrap();
    if !host().has_command(program) {
        assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
        eprintln!("skipped: {program} is not installed");
        return None;
    }
    let plain = dir.join("plain");
    std::fs::write(&plain, data).unwrap();
    let path = dir.join("packed");
    let out = File::create(&path).unwrap();
    let input = File::open(plain).unwrap();
    let run = Command::new(program).args(args.split(' ')).stdin(input).stdout(out).stderr(Stdio::inherit()).status();
    assert!(run.unwrap().success(), "{line}");
    let bytes = std::fs::read(&path).unwrap();
    Some((path, bytes))
}

/// One pass over a file, whose data has to be `plain`.
pub(super) fn scanned(path: &Path, plain: &[u8]) -> (Arc<dyn Packed>, Points) {
    let file = File::open(path).unwrap();
    let mut start = [0; 16];
    let got = file.read_at(&mut start, 0).unwrap();
    let method = Method::recognise(&start[..got]).unwrap();
    let file: Arc<dyn Packed> = Arc::new(file);
    let mut at = 0;
    let mut sink = |data: &[u8]| {
        assert!(plain.get(at..at + data.len()) == Some(data), "data from byte {at} on");
        at += data.len();
        Ok(())
    };
    let (points, done) = scan(&host(), &file, method, &mut sink, &Cancel::new());
    done.unwrap();
    assert_eq!(at, plain.len());
    assert_eq!(points.raw(), plain.len() as u64);
    (file, points)
}

/// Decompresses from every single access point to the next but one.
pub(super) fn every_point(file: &Arc<dyn Packed>, points: &Points, plain: &[u8]) {
    for (i, point) in points.points.iter().enumerate() {
        let mut decoder: Box<dyn Decode> = match points.method {
            Method::Zstd => Box::new(zstd::Decoder::open(Arc::clone(file), point.packed, &point.entry).unwrap()),
            Method::Gzip => Box::new(gzip::Decoder::open(file, point.packed, &point.entry).unwrap()),
            Method::Lzop => {
                Box::new(lzop::Decoder::open(&host(), file, point.packed, &point.entry, &Cancel::new()).unwrap())
            }
        };
        let end = points.points.get(i + 2).map_or(plain.len(), |point| point.raw as usize);
        let (mut at, mut buf) = (point.raw as usize, vec![0; 100_000]);
        while at < end {
            let got = decoder.decode(&mut buf).unwrap();
            assert!(got > 0 && plain.get(at..at + got) == Some(&buf[..got]), "point {i}: {point:?}");
            at += got;
        }
    }
}

#[test]
#[ignore = "measures"]
fn measure() {
    let path = PathBuf::from(std::env::var("MEASURE").unwrap());
    let file = File::open(&path).unwrap();
    let mut start = [0; 16];
    file.read_at(&mut start, 0).unwrap();
    let method = Method::recognise(&start).unwrap();
    let size = file.metadata().unwrap().len();
    let packed: Arc<dyn Packed> = Arc::new(file.try_clone().unwrap());
    let begun = std::time::Instant::now();
    let (points, done) = scan(&host(), &packed, method, &mut |_| Ok(()), &Cancel::new());
    done.unwrap();
    let took = begun.elapsed().as_secs_f64();
    eprintln!(
        "scan {:.2} s, {:.0} MB/s of data; packed {} MB, raw {} MB, {} points, weight {} KiB, {:?}",
        took,
        points.raw as f64 / 1e6 / took,
        size / 1000000,
        points.raw / 1000000,
        points.count(),
        points.weight() >> 10,
        points.notes()
    );
    let windows: Vec<_> = points
        .points
        .iter()
        .map(|p| match &p.entry {
            points::Entry::Zstd { window, .. } | points::Entry::Gzip { window, .. } => window.len(),
            _ => 0,
        })
        .collect();
    eprintln!("windows mean {} max {}", windows.iter().sum::<usize>() / windows.len(), windows.iter().max().unwrap());
    let print = Fingerprint::of(&file).unwrap();
    let bytes = Beside { points: points.clone(), extra: vec![] }.bytes(&print);
    let begun = std::time::Instant::now();
    Beside::parse(&bytes).unwrap();
    eprintln!("idx {} KiB, parse {:.1} ms", bytes.len() >> 10, begun.elapsed().as_secs_f64() * 1e3);
    let seek = Seekable::new(&host(), packed, points, &Cancel::new());
    let mut numbers = Numbers(77);
    let mut buf = [0; 4096];
    let begun = std::time::Instant::now();
    let count = 300;
    for _ in 0..count {
        seek.read_at(&mut buf, numbers.below(seek.len() - 4096)).unwrap();
    }
    eprintln!("cold 4 KiB: {:.0}/s", count as f64 / begun.elapsed().as_secs_f64());
    let begun = std::time::Instant::now();
    for _ in 0..200_000 {
        seek.read_at(&mut buf, numbers.below((48 << 20).min(seek.len() - 4096))).unwrap();
    }
    eprintln!("warm 4 KiB in 48 MiB: {:.0}/s", 200_000.0 / begun.elapsed().as_secs_f64());
    let mut big = vec![0; 1 << 20];
    let begun = std::time::Instant::now();
    let mut at = 0;
    while at + (1 << 20) <= seek.len() {
        seek.read_at(&mut big, at).unwrap();
        at += 1 << 20;
    }
    eprintln!("in order: {:.0} MB/s", at as f64 / 1e6 / begun.elapsed().as_secs_f64());
}

#[test]
fn zstd_of_all_levels() {
    let dir = tempfile::tempdir().unwrap();
    let data = mixture(24 << 20, 5);
    for line in ["zstd -q -1 -T1", "zstd -q -3 -T1", "zstd -q -3 -T2", "zstd -q -19 -T2", "zstd -q --long=27"] {
        let Some((path, _)) = packed(line, &data, dir.path()) else { return };
        let (file, points) = scanned(&path, &data);
        eprintln!("{line}: {} points, {} KiB", points.count(), points.weight() >> 10);
        every_point(&file, &points, &data);
    }
}
