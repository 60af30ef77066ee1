use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::archive::vma::{CLUSTER, Damage, VmaError, tests::golden};
use crate::archive::{ArchiveCause, Compression, Source};
use crate::host::{Cancel, Host};
use crate::image::{Extent, ExtentKind, Image, ImageError, Target};
use crate::testdata;

/// A disk in memory. Zero pages of `grid` bytes are reported as such; reads from `fail_at` on fail.
struct Mem {
    name: String,
    data: Vec<u8>,
    grid: usize,
    fail_at: u64,
    panics: bool,
}

fn mem(data: Vec<u8>, grid: usize) -> Mem {
    Mem { name: "drive-scsi0".into(), data, grid, fail_at: u64::MAX, panics: false }
}

impl Image for Mem {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.data.len() as u64
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        let mut extents = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min((at / self.grid as u64 + 1) * self.grid as u64);
            let zero = self.data[at as usize..end as usize].iter().all(|b| *b == 0);
            let kind = if zero { ExtentKind::Zero } else { ExtentKind::Data };
            extents.push(Extent { offset: at, len: end - at, kind });
            at = end;
        }
        Ok(extents)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
        assert!(!self.panics, "a bug in the image");
        if offset + buf.len() as u64 > self.fail_at {
            let (offset, len, source) = (self.fail_at, 512, io::Error::from_raw_os_error(libc::EIO));
            return Err(ImageError { image: self.name.clone(), op: "read", offset, len, source });
        }
        buf.copy_from_slice(&self.data[offset as usize..offset as usize + buf.len()]);
        Ok(())
    }
}

struct MemTarget {
    data: Mutex<Vec<u8>>,
    zeroed: bool,
    fail: bool,
}

impl MemTarget {
    fn new(size: usize, zeroed: bool) -> Arc<Self> {
        Arc::new(Self { data: Mutex::new(vec![if zeroed { 0 } else { 0xee }; size]), zeroed, fail: false })
    }
}

impl Target for MemTarget {
    fn name(&self) -> &str {
        "target"
    }

    fn size(&self) -> u64 {
        self.data.lock().unwrap().len() as u64
    }

    fn starts_zeroed(&self) -> bool {
        self.zeroed
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), ImageError> {
        if self.fail {
            let source = io::Error::from_raw_os_error(libc::ENOSPC);
            return Err(ImageError { image: "target".into(), op: "write", offset, len: buf.len() as u64, source });
        }
        self.data.lock().unwrap()[offset as usize..][..buf.len()].copy_from_slice(buf);
        Ok(())
    }

    fn write_zeroes(&self, range: Range<u64>) -> Result<(), ImageError> {
        self.data.lock().unwrap()[range.start as usize..range.end as usize].fill(0);
        Ok(())
    }

    fn flush(&self) -> Result<(), ImageError> {
        Ok(())
    }
}

fn job(images: Vec<Mem>, compression: Compression) -> Backup {
    let disk = |(i, mut image): (usize, Mem)| {
        image.name = format!("drive-scsi{i}");
        BackupDisk { name: image.name.clone(), image: Arc::new(image) as Arc<dyn Image> }
    };
    Backup { max_workers: 16, ..testdata::job(images.into_iter().enumerate().map(disk).collect(), compression) }
}

fn to_vec(job: &Backup) -> (Vec<u8>, Summary) {
    let mut bytes = Vec::new();
    let summary = backup(job, Output::Writer(Box::new(&mut bytes), "memory".into()), &mut |_| {}, &Cancel::new());
    let summary = summary.unwrap();
    assert_eq!(summary.written, bytes.len() as u64);
    assert_eq!(summary.read, summary.total);
    (bytes, summary)
}

fn open(path: &Path) -> Source {
    Source::open(&Host::with_root("/".into()), path, &Cancel::new()).unwrap()
}

fn of_bytes(bytes: &[u8]) -> Source {
    let input = Box::new(io::Cursor::new(bytes.to_vec()));
    Source::from_reader(&Host::with_root("/".into()), "memory", input, &Cancel::new()).unwrap()
}

fn run(source: Source, targets: &BTreeMap<u8, Arc<dyn Target>>) -> Result<RestoreSummary, TransferError> {
    restore(source, targets, None, &mut |_| {}, &Cancel::new())
}

/// Restores to targets that start zeroed or not and compares.
fn same(source: Source, disks: &[Vec<u8>], zeroed: bool) -> RestoreSummary {
    let made: Vec<_> = disks.iter().map(|d| MemTarget::new(d.len() + 512, zeroed)).collect();
    let targets = made.iter().zip(1..).map(|(t, id)| (id, Arc::clone(t) as Arc<dyn Target>)).collect();
    let summary = run(source, &targets).unwrap();
    for (disk, target) in disks.iter().zip(&made) {
        let data = target.data.lock().unwrap();
        assert!(data[..disk.len()] == disk[..], "the restored disk differs");
        let behind = if zeroed { 0 } else { 0xee };
        assert!(data[disk.len()..].iter().all(|b| *b == behind), "written behind the end of the disk");
    }
    summary
}

/// Pieces of zeros, noise and text, from a small recipe.
fn disk(recipe: &[(u8, u16)], size: usize) -> Vec<u8> {
    let (mut data, mut state) = (Vec::with_capacity(size), 1u64);
    for (kind, blocks) in recipe.iter().cycle().take(10_000) {
        for _ in 0..usize::from(*blocks) * 512 / 8 + 1 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let word = match kind % 3 {
                0 => 0,
                1 => state ^ state >> 29,
                _ => 0x2074_7865_7420_6120,
            };
            data.extend_from_slice(&word.to_le_bytes());
        }
        if data.len() >= size {
            break;
        }
    }
    data.resize(size, 0);
    data
}

const ALL: [Compression; 4] =
    [Compression::None, Compression::Zstd { threads: 3 }, Compression::Gzip { threads: 2 }, Compression::Lzo];

fn have_lzop() -> bool {
    let have = Host::with_root("/".into()).has_command("lzop");
    if !have {
        eprintln!("SKIPPED: lzop is not installed");
    }
    have
}

#[test]
fn awkward_sizes_come_back_through_every_compression() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = [(1, 300), (0, 700), (2, 90), (0, 8), (1, 9), (0, 9000), (1, 1)];
    let disks = vec![
        disk(&recipe, 9_000_000 + 512),
        disk(&[(1, 1)], 512),
        vec![0; 70_000],
        disk(&[(1, 60_000)], 5 << 20),
        disk(&[(0, 60_000), (1, 1)], (40 << 20) + 4096),
    ];
    for compression in ALL {
        if compression == Compression::Lzo && !have_lzop() {
            continue;
        }
        let images = disks.iter().map(|d| mem(d.clone(), 4096)).collect();
        let job = job(images, compression);
        let path = dir.path().join(format!("a.vma{}", compression.suffix()));
        let mut draft = Draft::create(&path).unwrap();
        let summary = backup(&job, Output::Draft(&mut draft), &mut |_| {}, &Cancel::new()).unwrap();
        draft.commit().unwrap();
        assert_eq!(summary.written, path.metadata().unwrap().len());
        assert_eq!(summary.read, summary.total);
        let indexed = matches!(compression, Compression::Zstd { .. } | Compression::Gzip { .. });
        for zeroed in [true, false] {
            let source = open(&path);
            assert_eq!((source.index().is_some(), source.note()), (indexed, None));
            let as_indexed = same(source, &disks, zeroed);
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(same(of_bytes(&bytes), &disks, zeroed), as_indexed);
            let fd = OwnedFd::from(File::open(&path).unwrap());
            let piped = Source::from_fd(&Host::with_root("/".into()), "stdin", fd, &Cancel::new()).unwrap();
            assert_eq!(same(piped, &disks, zeroed), as_indexed);
        }
        assert!(run(open(&path), &BTreeMap::new()).is_ok());
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), if have_lzop() { 4 } else { 3 });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn any_disk_comes_back(
        recipe in proptest::collection::vec((any::<u8>(), 0u16..600), 1..8),
        sectors in 1usize..20_000,
        grid in prop_oneof![Just(512usize), Just(4096), Just(65536), Just(1 << 20)],
        which in 0usize..3,
    ) {
        let data = disk(&recipe, sectors * 512);
        let (bytes, _) = to_vec(&job(vec![mem(data.clone(), grid), mem(data.clone(), 4096)], ALL[which]));
        same(of_bytes(&bytes), &[data.clone(), data], which == 0);
    }
}

#[test]
fn golden_archives_restore() {
    use sha2::{Digest, Sha256};
    for name in ["two-disks.vma", "two-disks.vma.zst", "two-disks.vma.gz", "two-disks.vma.lzo"] {
        if name.ends_with(".lzo") && !have_lzop() {
            continue;
        }
        let Some(bytes) = golden(name) else { return };
        let target = MemTarget::new(0x50000, true);
        let targets = BTreeMap::from([(1, Arc::clone(&target) as Arc<dyn Target>)]);
        let summary = run(of_bytes(&bytes), &targets).unwrap();
        let sum: String = Sha256::digest(&*target.data.lock().unwrap()).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(sum, "8d7d0efb80f98dd454e19ace30725c3bdf3d4ce0589e4bb6157d3c8382516f66", "{name}");
        let blocks = 7 * 16 - 69;
        let expected = RestoreSummary { read: 8 * 65536, sparse: 65536, zero_blocks: blocks * 4096 };
        assert_eq!(summary, expected, "{name}");
    }
}

#[test]
fn a_diskless_archive_is_that_of_the_stock_tool() {
    let Some(golden) = golden("diskless.vma") else { return };
    let header = of_bytes(&golden).header().clone();
    let job =
        Backup { configs: header.configs, uuid: header.uuid, ctime: header.ctime, ..job(vec![], Compression::None) };
    assert!(to_vec(&job).0 == golden);
    let (bytes, _) = to_vec(&Backup { compression: Compression::Zstd { threads: 1 }, ..job });
    assert!(zstd::decode_all(bytes.as_slice()).unwrap() == golden);
}

#[test]
fn counts_are_worded_as_by_the_stock_tool() {
    let summary = RestoreSummary { read: 1_207_959_552, sparse: 1_074_987_008, zero_blocks: 28_500_000 };
    let text =
        "total bytes read 1207959552, sparse bytes 1074987008 (89%)\nspace reduction due to 4K zero blocks 21.4%";
    assert_eq!(summary.to_string(), text);
    let all = RestoreSummary { read: 65536, sparse: 65536, zero_blocks: 0 };
    assert_eq!(all.to_string(), "total bytes read 65536, sparse bytes 65536 (100%)");
    let few = RestoreSummary { read: 1 << 40, sparse: 65536, zero_blocks: 0 };
    assert!(few.to_string().starts_with("total bytes read 1099511627776, sparse bytes 65536 (5.96e-06%)\n"), "{few}");
}

/// A sparse disk far larger than memory.
struct Sparse;

impl Image for Sparse {
    fn name(&self) -> &str {
        "sparse"
    }

    fn size(&self) -> u64 {
        64 << 30
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        Ok(vec![Extent { offset: range.start, len: range.end - range.start, kind: ExtentKind::Zero }])
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> Result<(), ImageError> {
        panic!("zeros are not read")
    }
}

#[test]
fn zeros_are_neither_read_nor_large() {
    let mut job = job(vec![], Compression::Zstd { threads: 2 });
    job.disks.push(BackupDisk { name: "drive-scsi0".into(), image: Arc::new(Sparse) });
    let (bytes, summary) = to_vec(&job);
    assert_eq!((summary.zero, summary.read), (64 << 30, 64 << 30));
    assert!(bytes.len() < 4 << 20, "{} bytes", bytes.len());
    assert_eq!(run(of_bytes(&bytes), &BTreeMap::new()).unwrap().sparse, 64 << 30);
}

fn error(job: &Backup, output: Output) -> TransferError {
    backup(job, output, &mut |_| {}, &Cancel::new()).unwrap_err()
}

#[test]
fn errors_say_what_and_where() {
    let data = disk(&[(1, 400), (2, 100)], 20 << 20);
    let path = tempfile::tempdir().unwrap();
    let draft = || Draft::create(&path.path().join("a.vma.zst")).unwrap();
    for compression in ALL {
        if compression == Compression::Lzo && !have_lzop() {
            continue;
        }
        let mut bad = mem(data.clone(), 4096);
        bad.fail_at = 11 << 20;
        let text =
            error(&job(vec![mem(data.clone(), 4096), bad], compression), Output::Draft(&mut draft())).to_string();
        assert!(text.starts_with("drive-scsi1: read of 512 bytes at offset 11534336 failed: Input/output"), "{text}");

        let mut buggy = mem(data.clone(), 4096);
        buggy.panics = true;
        let text = error(&job(vec![buggy], compression), Output::Draft(&mut draft())).to_string();
        assert_eq!(text, "internal error in the thread 'read drive-scsi0': a bug in the image");

        let full = Output::Fd(File::options().write(true).open("/dev/full").unwrap().into(), "/dev/full".into());
        let text = error(&job(vec![mem(data.clone(), 4096)], compression), full).to_string();
        assert!(
            text.starts_with("vma_queue_write: write error - No space left on device ('/dev/full' after "),
            "{text}"
        );

        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let text = error(&job(vec![mem(data.clone(), 4096)], compression), Output::Fd(writer.into(), "stdout".into()));
        assert!(text.to_string().contains("'stdout'") && text.to_string().contains("Broken pipe"), "{text}");
    }
    assert_eq!(std::fs::read_dir(path.path()).unwrap().count(), 0);
}

/// Counts the reads that run side by side; each takes a while, so that a second one can catch up with it.
struct Counted {
    inner: Mem,
    now: AtomicUsize,
    most: AtomicUsize,
    allowed: AtomicUsize,
}

impl Image for Counted {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        self.inner.extents(range)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(10));
        self.now.fetch_sub(1, Ordering::SeqCst);
        self.inner.read_at(buf, offset)
    }

    fn limit_requests(&self, most: usize) {
        self.allowed.store(most, Ordering::SeqCst);
    }
}

#[test]
fn no_more_requests_are_in_flight_than_max_workers() {
    for (max_workers, seen) in [(1, 1), (16, 2)] {
        let inner = mem(disk(&[(1, 600)], 40 << 20), 4096);
        let [now, most, allowed] = std::array::from_fn(|_| AtomicUsize::new(0));
        let image = Arc::new(Counted { inner, now, most, allowed });
        let disks = vec![BackupDisk { name: "drive-scsi0".into(), image: Arc::clone(&image) as Arc<dyn Image> }];
        to_vec(&Backup { disks, max_workers, ..job(vec![], Compression::None) });
        assert_eq!(image.most.load(Ordering::SeqCst), seen, "max-workers={max_workers}");
        assert_eq!(image.allowed.load(Ordering::SeqCst), max_workers);
    }
}

#[test]
fn zeros_count_against_the_limit() {
    // Eight MiB that are known to be zero, at 16 MiB a second: the original takes half a second, too.
    let job = Backup { bwlimit: Some(16 << 20), ..job(vec![mem(vec![0; 8 << 20], 4096)], Compression::None) };
    let begun = Instant::now();
    to_vec(&job);
    assert!(begun.elapsed() >= Duration::from_millis(475), "{:?}", begun.elapsed());
}

/// About 100 ms on an idle machine; here it only has to tell a stop from a hang when everything is busy.
const SOON: Duration = Duration::from_secs(3);

#[test]
fn a_wish_to_stop_ends_every_wait() {
    let data = disk(&[(1, 400)], 30 << 20);
    for compression in ALL {
        if compression == Compression::Lzo && !have_lzop() {
            continue;
        }
        for bwlimit in [None, Some(1 << 20)] {
            let job = Backup { bwlimit, ..job(vec![mem(data.clone(), 4096)], compression) };
            // Nobody reads the other end: the output blocks. With a limit, the readers sleep.
            let (_reader, writer) = io::pipe().unwrap();
            let cancel = Cancel::new();
            let wish = cancel.clone();
            let asked = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(300));
                wish.set();
                Instant::now()
            });
            let result = backup(&job, Output::Fd(writer.into(), "stdout".into()), &mut |_| {}, &cancel);
            let took = asked.join().unwrap().elapsed();
            assert!(matches!(result, Err(TransferError::Cancelled)));
            assert!(took < SOON, "{compression:?}: {took:?}");
        }
    }
}

#[test]
fn a_restore_from_a_silent_pipe_can_be_stopped() {
    let (bytes, _) = to_vec(&job(vec![mem(disk(&[(1, 400)], 10 << 20), 4096)], Compression::None));
    let (reader, mut writer) = io::pipe().unwrap();
    let feeder = std::thread::spawn(move || {
        writer.write_all(&bytes[..5 << 20]).unwrap();
        writer
    });
    let cancel = Cancel::new();
    let source = Source::from_fd(&Host::with_root("/".into()), "stdin", reader.into(), &cancel).unwrap();
    let wish = cancel.clone();
    let asked = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        wish.set();
        Instant::now()
    });
    let result = restore(source, &BTreeMap::new(), None, &mut |_| {}, &cancel);
    assert!(asked.join().unwrap().elapsed() < SOON);
    assert!(matches!(result, Err(TransferError::Cancelled)), "{result:?}");
    drop(feeder.join().unwrap());
}

#[test]
fn a_slow_output_gets_everything() {
    struct Slow(Vec<u8>);
    impl Write for Slow {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            std::thread::sleep(Duration::from_millis(2));
            let len = buf.len().min(64 << 10);
            self.0.extend_from_slice(&buf[..len]);
            Ok(len)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let data = disk(&[(1, 400), (0, 50)], 12 << 20);
    let job = Backup { memory: 0, ..job(vec![mem(data.clone(), 4096), mem(data.clone(), 4096)], ALL[1]) };
    let mut slow = Slow(Vec::new());
    let mut seen = Vec::new();
    backup(&job, Output::Writer(Box::new(&mut slow), "slow".into()), &mut |p| seen.push(*p), &Cancel::new()).unwrap();
    same(of_bytes(&slow.0), &[data.clone(), data], true);
    assert!(seen.len() > 2 && seen.is_sorted_by_key(|p| (p.read, p.written)));
}

#[test]
fn the_rate_limit_is_kept() {
    let data = disk(&[(1, 60_000)], 6 << 20);
    let job = Backup { bwlimit: Some(8 << 20), ..job(vec![mem(data.clone(), 4096)], Compression::None) };
    let begin = Instant::now();
    let (bytes, _) = to_vec(&job);
    let took = begin.elapsed().as_secs_f64();
    // The last piece need not be waited for.
    // The upper bound leaves room for a busy machine.
    assert!((0.70 * 0.95..3.0).contains(&took), "{took}");
    let begin = Instant::now();
    restore(of_bytes(&bytes), &BTreeMap::new(), Some(12 << 20), &mut |_| {}, &Cancel::new()).unwrap();
    assert!(begin.elapsed().as_secs_f64() > 0.1);
}

#[test]
fn damaged_archives_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = disk(&[(1, 4000), (2, 3000)], 20 << 20);
    for compression in [ALL[0], ALL[1], ALL[2]] {
        let (good, _) = to_vec(&job(vec![mem(data.clone(), 4096)], compression));
        let path = dir.path().join("damaged");
        let result = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let source = Source::open(&Host::with_root("/".into()), &path, &Cancel::new())?;
            run(source, &BTreeMap::new())
        };
        result(&good).unwrap();
        for len in [good.len() / 2, good.len() / 2 + 4096] {
            let cut = result(&good[..len]).unwrap_err();
            assert!(cut.to_string().contains("damaged'"), "{cut}");
        }
        assert!(result(&[good.as_slice(), &[7; 600]].concat()).is_err());
        if compression != Compression::None {
            let mut flipped = good.clone();
            flipped[good.len() / 2] ^= 4;
            let error = result(&flipped).unwrap_err();
            assert!(error.to_string().contains(" is damaged or cannot be read"), "{error}");
            // A damaged index: read without it.
            let mut index = good.clone();
            let at = good.len() - 30;
            index[at] ^= 4;
            std::fs::write(&path, &index).unwrap();
            assert!(open(&path).note().is_some() && open(&path).index().is_none());
            result(&index).unwrap();
        }
    }
}

#[test]
fn a_frame_left_out_is_missed() {
    // Two archives of the same identity: header and index of one, frames of the other.
    let long = to_vec(&job(vec![mem(disk(&[(1, 4000)], 10 << 20), 4096)], Compression::None)).0;
    let header = long.len() - long.len() / 2;
    let result = run(of_bytes(&[&long[..header - header % 512], &[][..]].concat()), &BTreeMap::new());
    let Err(TransferError::Archive(e)) = result else { panic!("{result:?}") };
    assert!(matches!(e.cause, ArchiveCause::Vma(VmaError::Damaged { damage: Damage::Truncated(_), .. })), "{e}");
}

#[test]
fn targets_have_to_fit() {
    let (bytes, _) = to_vec(&job(vec![mem(disk(&[(1, 4000)], 1 << 20), 4096)], Compression::None));
    let small = BTreeMap::from([(1, MemTarget::new((1 << 20) - 512, true) as Arc<dyn Target>)]);
    let text = run(of_bytes(&bytes), &small).unwrap_err().to_string();
    assert_eq!(text, "target has 1048064 bytes, drive-scsi0 in archive 'memory' needs 1048576");
    let none = BTreeMap::from([(2, MemTarget::new(1 << 20, true) as Arc<dyn Target>)]);
    assert!(matches!(run(of_bytes(&bytes), &none), Err(TransferError::Targets(_))));
    let full = MemTarget { data: Mutex::new(vec![0; 1 << 20]), zeroed: true, fail: true };
    let full = BTreeMap::from([(1, Arc::new(full) as Arc<dyn Target>)]);
    let text = run(of_bytes(&bytes), &full).unwrap_err().to_string();
    assert!(text.starts_with("target: write of 1048576 bytes at offset 0 failed: No space"), "{text}");
}

#[test]
fn stdout_can_be_a_pipe() {
    let data = disk(&[(1, 4000), (2, 3000)], 20 << 20);
    for compression in ALL {
        if compression == Compression::Lzo && !have_lzop() {
            continue;
        }
        let (mut reader, writer) = io::pipe().unwrap();
        let collector = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        });
        let job = job(vec![mem(data.clone(), 4096)], compression);
        let output = Output::Fd(writer.into(), "stdout".into());
        let summary = backup(&job, output, &mut |_| {}, &Cancel::new()).unwrap();
        let bytes = collector.join().unwrap();
        assert_eq!(summary.written, bytes.len() as u64);
        same(of_bytes(&bytes), std::slice::from_ref(&data), true);
    }
}

#[test]
fn groups_cover_the_disk_once() {
    let data = disk(&[(1, 300), (0, 2000), (2, 9), (0, 130), (1, 20_000)], (30 << 20) + 512);
    let mut plan = super::plan::Plan::new(Arc::new(mem(data, 512)));
    let mut next = 0;
    while let Some(group) = plan.next_group().unwrap() {
        assert_eq!(group.first, next);
        assert_eq!(group.data().count() + group.zeros().count(), group.count as usize);
        assert!(group.data().count() <= 59);
        next += group.count;
    }
    assert_eq!(next, ((30u64 << 20) + 512).div_ceil(CLUSTER as u64));
}

/// A disk that has one cluster of data after every run of `gap` clusters of zeros.
struct Islands {
    gap: u64,
    islands: u64,
}

impl Islands {
    fn is_data(&self, cluster: u64) -> bool {
        cluster % (self.gap + 1) == self.gap
    }
}

impl Image for Islands {
    fn name(&self) -> &str {
        "drive-scsi0"
    }

    fn size(&self) -> u64 {
        (self.gap + 1) * self.islands * CLUSTER as u64
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        let cluster = CLUSTER as u64;
        let mut extents = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let number = at / cluster;
            let data = self.is_data(number);
            let next = if data { number + 1 } else { number - number % (self.gap + 1) + self.gap };
            let end = (next * cluster).min(range.end);
            let kind = if data { ExtentKind::Data } else { ExtentKind::Zero };
            extents.push(Extent { offset: at, len: end - at, kind });
            at = end;
        }
        Ok(extents)
    }

    fn read_at(&self, buf: &mut [u8], _offset: u64) -> Result<(), ImageError> {
        // Only data is read, and none of it is zero.
        buf.fill(0xa5);
        Ok(())
    }
}

#[test]
fn islands_of_data_far_apart_fit_the_buffers() {
    // With gaps of this length a group has as many extents of zeros as it can have.
    for gap in [1121, 1122, 1125, 1128, 1180] {
        let disk = Islands { gap, islands: 150 };
        let size = disk.size();
        let disk = BackupDisk { name: "drive-scsi0".into(), image: Arc::new(disk) };
        let job = Backup { max_workers: 16, ..testdata::job(vec![disk], Compression::None) };
        let output = Output::Writer(Box::new(io::sink()), "sink".into());
        let summary = backup(&job, output, &mut |_| {}, &Cancel::new()).unwrap();
        assert_eq!((summary.read, summary.zero), (size, size - 150 * CLUSTER as u64), "gap {gap}");
    }
}
