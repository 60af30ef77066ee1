//! Files of the real programs, read at random and compared with the plain data.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::points::Entry;
use super::*;
use crate::archive::Bytes;

mod beside;

fn host() -> Host {
    Host::with_root("/".into())
}

/// Numbers that look random, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Data of many kinds, `len` bytes: programs, text with words that come again, noise, zeros, and all of it once more.
fn mixture(len: usize, seed: u64) -> Vec<u8> {
    let mut numbers = Numbers(seed | 1);
    let program = std::fs::read("/bin/sh").unwrap();
    let mut data = Vec::with_capacity(len + (1 << 20));
    while data.len() < len {
        let part = 1 + numbers.below(200_000) as usize;
        match numbers.below(7) {
            0 | 1 => {
                let from = numbers.below(program.len() as u64) as usize;
                data.extend_from_slice(&program[from..program.len().min(from + part)]);
            }
            2 | 3 => {
                let end = data.len() + part;
                while data.len() < end {
                    let line = format!("line {} of {};\n", numbers.below(999), numbers.below(50));
                    data.extend_from_slice(line.as_bytes());
                }
            }
            4 => (0..part / 8).for_each(|_| data.extend_from_slice(&numbers.below(u64::MAX).to_le_bytes())),
            5 => data.resize(data.len() + part, 0),
            _ => {
                let from = numbers.below(data.len() as u64 + 1) as usize;
                let again = data[from..data.len().min(from + part)].to_vec();
                data.extend_from_slice(&again);
            }
        }
    }
    data.truncate(len);
    data
}

/// `data` through a program; none when it is not installed.
fn packed(line: &str, data: &[u8]) -> Option<Vec<u8>> {
    let (program, args) = line.split_once(' ').unwrap();
    if !host().has_command(program) {
        assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
        eprintln!("skipped: {program} is not installed");
        return None;
    }
    let mut input = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut input, data).unwrap();
    std::io::Seek::rewind(&mut input).unwrap();
    let run = Command::new(program).args(args.split(' ')).stdin(input).stderr(Stdio::inherit()).output().unwrap();
    assert!(run.status.success(), "{line}");
    Some(run.stdout)
}

/// One pass over a file. `plain` is what its data has to begin with, up to an error.
fn pass(bytes: &[u8], plain: &[u8], spacing: u64) -> (Arc<dyn Packed>, Points, Result<(), SeekError>) {
    let method = Method::recognise(bytes).unwrap();
    // lzop reads a file.
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    let file: Arc<dyn Packed> = Arc::new(file);
    let mut at = 0;
    let mut sink = |data: &[u8]| {
        assert!(plain.get(at..at + data.len()) == Some(data), "data from byte {at} on");
        at += data.len();
        Ok(())
    };
    let collector = Collector::new(method, bytes.len() as u64).spaced(spacing, u64::MAX);
    let (points, done) = collect(collector, &host(), &file, &mut sink, &Cancel::new());
    assert_eq!(points.raw(), at as u64);
    (file, points, done)
}

fn whole(bytes: &[u8], plain: &[u8], spacing: u64) -> (Arc<dyn Packed>, Points) {
    let (file, points, done) = pass(bytes, plain, spacing);
    done.unwrap();
    assert_eq!(points.raw(), plain.len() as u64);
    (file, points)
}

fn decoder(file: &Arc<dyn Packed>, points: &Points, number: usize) -> Box<dyn Decode> {
    let (packed, entry) = (points.points[number].packed, &points.points[number].entry);
    match points.method {
        Method::Zstd => Box::new(zstd::Decoder::open(Arc::clone(file), packed, entry).unwrap()),
        Method::Gzip => Box::new(gzip::Decoder::open(file, packed, entry).unwrap()),
        Method::Lzop => Box::new(lzop::Decoder::open(&host(), file, packed, entry, &Cancel::new()).unwrap()),
    }
}

/// Decompresses from every single access point to the third one after it.
fn every_point(file: &Arc<dyn Packed>, points: &Points, plain: &[u8]) {
    for (i, point) in points.points.iter().enumerate() {
        let mut decoder = decoder(file, points, i);
        let end = points.points.get(i + 3).map_or(plain.len(), |point| point.raw as usize);
        let (mut at, mut buf) = (point.raw as usize, vec![0; 50_000]);
        while at < end {
            let got = decoder.decode(&mut buf).unwrap();
            assert!(got > 0 && plain.get(at..at + got) == Some(&buf[..got]), "point {i}: {point:?}");
            at += got;
        }
    }
    let mut decoder = decoder(file, points, points.points.len() - 1);
    let last = points.points.last().map_or(0, |point| plain.len() - point.raw as usize);
    let mut buf = vec![0; last + 1];
    let mut got = 0;
    loop {
        match decoder.decode(&mut buf[got..]).unwrap() {
            0 => break,
            count => got += count,
        }
    }
    assert_eq!(got, last, "the end is found");
}

fn seekable(file: &Arc<dyn Packed>, points: Points) -> Seekable {
    Seekable::new(&host(), Arc::clone(file), points, &Cancel::new())
}

/// Reads at random places, by `threads` at once.
fn random_reads(bytes: &dyn Bytes, plain: &[u8], threads: u64, count: u32) {
    assert_eq!(bytes.len(), plain.len() as u64);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut numbers = Numbers(99 + thread);
                for _ in 0..count {
                    let offset = numbers.below(plain.len() as u64) as usize;
                    let len = numbers.below(300_000).min((plain.len() - offset) as u64) as usize;
                    let mut buf = vec![1; len];
                    bytes.read_at(&mut buf, offset as u64).unwrap();
                    assert!(buf == plain[offset..offset + len], "{len} bytes at {offset}");
                }
            });
        }
    });
    assert!(bytes.read_at(&mut [0; 2], plain.len() as u64 - 1).is_err());
    assert!(bytes.read_at(&mut [0; 2], u64::MAX).is_err());
}

#[test]
fn zstd_with_small_windows_has_many_access_points() {
    let data = mixture(3 << 20, 5);
    for line in [
        "zstd -q -1 --zstd=wlog=17",
        "zstd -q -3 --zstd=wlog=18",
        "zstd -q -19 --zstd=wlog=16",
        "zstd -q -6 --no-check --zstd=wlog=17",
        "zstd -q --fast=3 --zstd=wlog=19",
    ] {
        let Some(bytes) = packed(line, &data) else { return };
        let (file, points) = whole(&bytes, &data, 100_000);
        assert!(points.count() > 5, "{line}: {}", points.count());
        every_point(&file, &points, &data);
    }
}

#[test]
fn zstd_as_vzdump_calls_it() {
    let data = mixture(9 << 20, 7);
    let tests = [("zstd -q -T1", 4), ("zstd -q -T2", 4), ("zstd -q --zstd=wlog=22", 3), ("zstd -q --long=24", 1)];
    for (line, least) in tests {
        let Some(bytes) = packed(line, &data) else { return };
        let (file, points) = whole(&bytes, &data, 1 << 20);
        assert!(points.count() >= least, "{line}: {}", points.count());
        every_point(&file, &points, &data);
        // A part of a window that nobody asks for is not kept.
        assert!(points.weight() < 1_000_000, "{line}: {}", points.weight());
    }
}

#[test]
fn zstd_in_many_frames() {
    let data = mixture(3 << 20, 9);
    let mut bytes = Vec::new();
    let mut parts = data.chunks(150_000).enumerate();
    let all = parts.all(|(i, part)| {
        let Some(mut frame) = packed(if i % 2 == 0 { "zstd -q -1" } else { "zstd -q -3 --no-check" }, part) else {
            return false;
        };
        bytes.append(&mut frame);
        // Skippable frames, and ones without data.
        if i % 3 == 0 {
            bytes.extend_from_slice(&[0x53, 0x2a, 0x4d, 0x18, 5, 0, 0, 0, 1, 2, 3, 4, 5]);
            bytes.append(&mut packed("zstd -q", &[]).unwrap());
        }
        true
    });
    if !all {
        return;
    }
    let (file, points) = whole(&bytes, &data, 100_000);
    assert_eq!(points.count(), data.chunks(150_000).count());
    every_point(&file, &points, &data);
    random_reads(&seekable(&file, points), &data, 2, 20);
}

#[test]
fn gzip_and_pigz() {
    let data = mixture(2 << 20, 11);
    for line in ["gzip -1", "gzip -6", "gzip -9 -N", "pigz -p2", "pigz -p2 -i", "pigz -p1 -0"] {
        let Some(mut bytes) = packed(line, &data) else { continue };
        // Stock programs take zeros for the rest of a tape's block.
        bytes.extend_from_slice(&[0; 1000]);
        let (file, points) = whole(&bytes, &data, 100_000);
        assert!(points.count() >= 4, "{line}: {}", points.count());
        every_point(&file, &points, &data);
    }
    // Members one behind the other.
    let mut bytes = Vec::new();
    for part in data.chunks(444_444) {
        let Some(mut member) = packed("gzip -3", part) else { return };
        bytes.append(&mut member);
    }
    let (file, points) = whole(&bytes, &data, 200_000);
    assert!(points.points.iter().filter(|point| point.entry == Entry::Start).count() > 3);
    every_point(&file, &points, &data);
    random_reads(&seekable(&file, points), &data, 3, 20);
    bytes.extend_from_slice(b"junk");
    let said = pass(&bytes, &data, 200_000).2.unwrap_err().to_string();
    assert!(said.contains("no gzip member begins here") && said.contains(&(bytes.len() - 4).to_string()), "{said}");
}

#[test]
fn lzop_blocks() {
    let data = mixture(6 << 20, 13);
    for line in ["lzop -1", "lzop -3 --crc32", "lzop -9 -C", "lzop -F"] {
        // The slowest level compresses a megabyte or so in a second.
        let data = if line.contains("-9") { &data[..300_000] } else { &data };
        let Some(bytes) = packed(line, data) else { return };
        let (file, points) = whole(&bytes, data, 1 << 20);
        assert_eq!(points.count(), data.len().div_ceil(1 << 20), "{line}: {:?}", points.notes());
        every_point(&file, &points, data);
        random_reads(&seekable(&file, points), data, 2, 4);
    }
    let mut twice = packed("lzop -1", &data[..1_000_000]).unwrap();
    twice.append(&mut packed("lzop -1 --crc32", &data[1_000_000..3_000_000]).unwrap());
    // The program has its own mind about several files in one.
    let (file, points, done) = pass(&twice, &data, 300_000);
    let said = done.unwrap_err().to_string();
    assert!(said.contains("multipart"), "{said}");
    random_reads(&seekable(&file, points.clone()), &data[..points.raw() as usize], 1, 4);
}

#[test]
fn several_threads_read_and_one_reads_in_order() {
    let data = mixture(6 << 20, 17);
    for line in ["zstd -q --zstd=wlog=18", "gzip -4"] {
        let Some(bytes) = packed(line, &data) else { return };
        let (file, points) = whole(&bytes, &data, 1 << 20);
        let bytes = seekable(&file, points);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut buf = vec![0; 65_536];
                for (i, part) in data.chunks(buf.len()).enumerate() {
                    bytes.read_at(&mut buf[..part.len()], i as u64 * 65_536).unwrap();
                    assert!(&buf[..part.len()] == part);
                }
            });
            random_reads(&bytes, &data, 3, 15);
        });
    }
}

/// Counts what is read of it.
struct Counted(Vec<u8>, std::sync::atomic::AtomicU64);

impl Packed for Counted {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read_some(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let got = self.0.read_some(buf, offset)?;
        self.1.fetch_add(got as u64, std::sync::atomic::Ordering::Relaxed);
        Ok(got)
    }
}

#[test]
fn who_reads_in_order_does_not_start_again_and_again() {
    let data = mixture(6 << 20, 19);
    let Some(bytes) = packed("zstd -q --long=27", &data) else { return };
    let len = bytes.len() as u64;
    let points = whole(&bytes, &data, 1 << 20).1;
    assert_eq!(points.count(), 1);
    let counted = Arc::new(Counted(bytes, 0.into()));
    let bytes = Seekable::new(&host(), Arc::clone(&counted) as _, points, &Cancel::new());
    let mut buf = vec![0; 10_000];
    for (i, part) in data.chunks(buf.len()).enumerate() {
        bytes.read_at(&mut buf[..part.len()], i as u64 * 10_000).unwrap();
        assert!(&buf[..part.len()] == part);
    }
    drop(bytes);
    assert_eq!(counted.1.load(std::sync::atomic::Ordering::Relaxed), len);
}

#[test]
fn a_wrong_access_point_costs_time_only() {
    let data = mixture(2 << 20, 23);
    for line in ["zstd -q --zstd=wlog=17", "gzip -6"] {
        let Some(bytes) = packed(line, &data) else { return };
        let (file, mut points) = whole(&bytes, &data, 100_000);
        let (mut wrong, mut other) = (0, Vec::new());
        // The one before is asked instead.
        for point in points.points.iter_mut().skip(1).step_by(2) {
            if let Entry::Zstd { window, .. } | Entry::Gzip { window, .. } = &mut point.entry {
                wrong += 1;
                // Another one's, and bytes that are none at all.
                std::mem::swap(window, &mut other);
            }
        }
        assert!(wrong > 2, "{line}: {wrong}");
        random_reads(&seekable(&file, points.clone()), &data, 2, 20);
        // Wrong checksums are another thing: that is not the data.
        points.sums[3] ^= 1;
        let bytes = seekable(&file, points);
        let at = 3 << 18;
        let said = bytes.read_at(&mut [0], at).unwrap_err().to_string();
        assert!(said.contains("is not what it was when the archive was read first"), "{said}");
        let mut one = [0];
        bytes.read_at(&mut one, at + (1 << 18)).unwrap();
        assert_eq!(one[0], data[at as usize + (1 << 18)]);
    }
}

#[test]
fn a_damaged_place_costs_two_access_points_and_once() {
    let data = mixture(8 << 20, 27);
    let (len, spacing) = (1_usize << 18, 400_000);
    // The decoders' buffers are read a little farther.
    for (line, buffer) in [("zstd -q --zstd=wlog=17", 128 << 10), ("gzip -6", 512 << 10)] {
        let Some(mut bytes) = packed(line, &data) else { return };
        let points = whole(&bytes, &data, spacing).1;
        assert!(points.count() > 12, "{line}: {}", points.count());
        // Between two access points in the middle. A decoder may be a block ahead of what it gives, so not right behind one.
        let middle = points.count() / 2;
        let (before, behind) = (&points.points[middle], &points.points[middle + 1]);
        let place = (before.packed + (behind.packed - before.packed) * 2 / 3) as usize;
        bytes[place..place + 64].iter_mut().for_each(|byte| *byte ^= 0x5a);
        let apart = points.points.windows(2).map(|pair| pair[1].packed - pair[0].packed).max().unwrap();
        let most = apart + buffer;
        let damaged = before.raw as usize / len..(behind.raw as usize).div_ceil(len);
        let counted = Arc::new(Counted(bytes, 0.into()));
        let bytes = Seekable::new(&host(), Arc::clone(&counted) as _, points.clone(), &Cancel::new());
        let read = |number: usize| {
            let was = counted.1.load(std::sync::atomic::Ordering::Relaxed);
            let mut buf = vec![0; 4096];
            let done = bytes.read_at(&mut buf, (number * len) as u64);
            assert!(done.is_err() || buf == data[number * len..number * len + 4096], "{line}: {number}");
            (done.is_ok(), counted.1.load(std::sync::atomic::Ordering::Relaxed) - was)
        };
        // From the end to the start: nobody reads ahead.
        let all: Vec<_> = damaged.clone().rev().map(read).collect();
        let (wrong, cost) =
            (all.iter().filter(|(good, _)| !good).count(), all.iter().map(|(_, cost)| cost).sum::<u64>());
        assert!(wrong > 0 && cost <= 2 * most, "{line}: {wrong}, {cost} of {most} twice");
        assert_eq!(read(damaged.end - 1), (false, 0), "{line}");
        // All others are had from the nearest access point, as if nothing had happened.
        for number in (2..data.len() / len).rev().filter(|number| !damaged.contains(number)) {
            let (good, cost) = read(number);
            assert!(good && cost <= most, "{line}: {number}, {good}, {cost} of {most}");
        }
    }
}

#[test]
fn what_is_before_a_cut_can_be_read() {
    let data = mixture(2 << 20, 29);
    for line in ["zstd -q --zstd=wlog=17", "gzip -6", "lzop -1"] {
        let Some(bytes) = packed(line, &data) else { return };
        for cut in [bytes.len() - 1, bytes.len() * 2 / 3, bytes.len() / 5, 30] {
            let (file, points, done) = pass(&bytes[..cut], &data, 200_000);
            let said = done.unwrap_err().to_string();
            let expected = if line.starts_with("lzop") { "lzop failed" } else { "the file ends within" };
            assert!(said.contains(expected), "{line}, {cut}: {said}");
            let there = points.raw() as usize;
            assert!(there + 700_000 > data.len() * cut / bytes.len(), "{line}, {cut}: {there}");
            if there > 0 {
                random_reads(&seekable(&file, points), &data[..there], 1, 5);
            }
        }
    }
}

#[test]
fn flipped_bits_are_found_in_the_pass() {
    let data = mixture(600_000, 31);
    for line in ["zstd -q", "gzip -6", "lzop -1"] {
        let Some(bytes) = packed(line, &data) else { return };
        let mut numbers = Numbers(41);
        let count = if line.starts_with("lzop") { 8 } else { 40 };
        for _ in 0..count {
            let mut bad = bytes.clone();
            let at = 20 + numbers.below(bytes.len() as u64 - 20) as usize;
            bad[at] ^= 1 << numbers.below(8);
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, &bad).unwrap();
            let file: Arc<dyn Packed> = Arc::new(file);
            let method = Method::recognise(&bad).unwrap();
            let mut got = Vec::new();
            let mut sink = |part: &[u8]| {
                got.extend_from_slice(part);
                assert!(got.len() < 2 << 20);
                Ok(())
            };
            let (_, done) = scan(&host(), &file, method, &mut sink, &Cancel::new());
            // A name or a time in a header may be anything.
            assert!(done.is_err() || got == data, "{line}: byte {at}");
        }
    }
}

/// A frame whose third compressed block goes on with tables of one symbol, which a dictionary cannot hold.
#[test]
fn tables_that_no_dictionary_holds() {
    let mut bytes = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3];
    let mut block = |kind: u32, size: usize, content: &[u8], last: bool| {
        let word = u32::from(last) | kind << 1 | (size as u32) << 3;
        bytes.extend_from_slice(&word.to_le_bytes()[..3]);
        bytes.extend_from_slice(content);
    };
    // Four literals; one sequence of four literals and eight bytes from 18 back: symbols 4, 4 (four more bits: 5), 5.
    let first = [4 << 3, b'a', b'b', b'c', b'd', 1, 0x54, 4, 4, 5, 0x15];
    let second = [4 << 3, b'e', b'f', b'g', b'h', 1, 0xfc, 0x15];
    let full = 128 << 10;
    block(1, full, b"x", false);
    block(2, first.len(), &first, false);
    block(1, full, b"y", false);
    block(2, second.len(), &second, false);
    block(1, full, b"z", false);
    block(0, 3, b"end", true);
    let file: Arc<dyn Packed> = Arc::new(bytes);
    let mut data = Vec::new();
    let mut sink = |part: &[u8]| {
        data.extend_from_slice(part);
        Ok(())
    };
    let collector = Collector::new(Method::Zstd, 0).spaced(1, u64::MAX);
    let (points, done) = collect(collector, &host(), &file, &mut sink, &Cancel::new());
    done.unwrap();
    assert!(data.ends_with(b"end") && data[full..].starts_with(b"abcdxxxxxxxxyy"));
    // The one after the second stretch would be of no use; in front of the first table, one is.
    let raw: Vec<_> = points.points.iter().map(|point| point.raw).collect();
    assert_eq!(raw, [0, full as u64]);
    every_point(&file, &points, &data);
}

#[test]
fn a_pass_can_be_stopped() {
    let data = mixture(3 << 20, 37);
    for line in ["zstd -q", "gzip -1", "lzop -1"] {
        let Some(bytes) = packed(line, &data) else { return };
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        let file: Arc<dyn Packed> = Arc::new(file);
        let (method, cancel) = (Method::recognise(&bytes).unwrap(), Cancel::new());
        let mut stop = |_: &[u8]| {
            cancel.set();
            Ok(())
        };
        let done = scan(&host(), &file, method, &mut stop, &cancel).1;
        assert!(matches!(done, Err(SeekError::Cancelled)), "{line}: {done:?}");
        let mut refuse = |_: &[u8]| Err(io::Error::other("no"));
        let done = scan(&host(), &file, method, &mut refuse, &Cancel::new()).1;
        assert!(matches!(done, Err(SeekError::Sink(_))), "{line}: {done:?}");
    }
}

/// What the fuzz target `seek_scan` does: a pass, and if it went well, reading from every access point.
fn any_bytes(bytes: &[u8]) {
    let Some(method) = Method::recognise(bytes).filter(|method| *method != Method::Lzop) else { return };
    let file: Arc<dyn Packed> = Arc::new(bytes.to_vec());
    let mut data = Vec::new();
    let mut sink = |part: &[u8]| {
        data.extend_from_slice(part);
        if data.len() > 16 << 20 { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(()) }
    };
    let collector = Collector::new(method, bytes.len() as u64).spaced(1000, u64::MAX);
    let (points, done) = collect(collector, &host(), &file, &mut sink, &Cancel::new());
    if done.is_ok() && !data.is_empty() {
        random_reads(&seekable(&file, points), &data, 1, 3);
    }
}

#[test]
fn fuzz_corpus() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/seek_scan");
    let mut count = 0;
    for file in std::fs::read_dir(dir).unwrap() {
        any_bytes(&std::fs::read(file.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn changed_frames_get_an_answer(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        gzip: bool,
    ) {
        let data = mixture(60_000, 43);
        let mut bytes = if gzip {
            let mut packer = crate::archive::frame::Packer::new(crate::archive::frame::Container::Gzip).unwrap();
            let mut out = Vec::new();
            packer.pack(&data, &mut out).unwrap();
            out
        } else {
            // A window smaller than the data, no checksum.
            let mut encoder = ::zstd::Encoder::new(Vec::new(), 3).unwrap();
            encoder.window_log(12).unwrap();
            std::io::Write::write_all(&mut encoder, &data).unwrap();
            encoder.finish().unwrap()
        };
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        any_bytes(&bytes);
    }
}
