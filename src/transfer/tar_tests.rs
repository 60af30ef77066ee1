use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;
use crate::archive::tar::{Rules, TarError, TarSource, Vetting};
use crate::archive::{ArchiveCause, Compression};
use crate::host::{Cancel, Host};

const ZSTD: Compression = Compression::Zstd { threads: 2 };
const GZIP: Compression = Compression::Gzip { threads: 2 };

fn host() -> Host {
    Host::with_root("/".into())
}

fn how(compression: Compression) -> TarPack {
    TarPack { compression, bwlimit: None, memory: DEFAULT_MEMORY, host: host() }
}

fn reader(bytes: &[u8]) -> TarFrom<'_> {
    TarFrom::Reader(Box::new(bytes), "tar".into())
}

/// The archive of `tar`, in memory.
pub(super) fn pack(tar: &[u8], compression: Compression) -> Result<(Vec<u8>, TarSummary), TransferError> {
    let mut out = Vec::new();
    let output = Output::Writer(Box::new(&mut out), "memory".into());
    let summary = pack_tar(reader(tar), output, &how(compression), &mut |_| {}, &Cancel::new())?;
    Ok((out, summary))
}

fn unpack(source: TarSource) -> Result<Vec<u8>, TransferError> {
    let mut out = Vec::new();
    let output = Output::Writer(Box::new(&mut out), "memory".into());
    unpack_tar(source, output, &mut Vetting::new(Rules { devices: true }), None, &mut |_| {}, &Cancel::new())?;
    Ok(out)
}

fn unpack_file(path: &Path) -> Result<Vec<u8>, TransferError> {
    unpack(TarSource::open(&host(), path, &Cancel::new())?)
}

/// Bytes that do not compress.
fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes.extend_from_slice(&(seed ^ seed >> 29).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Small files, large files, odd names, holes, links.
fn tree(dir: &Path) {
    for number in 0..40 {
        let sub = dir.join(format!("d{number}"));
        fs::create_dir(&sub).unwrap();
        for file in 0..10 {
            fs::write(sub.join(format!("f{file}")), noise(1000 * file, number)).unwrap();
        }
    }
    fs::write(dir.join("large"), noise(9 << 20, 7)).unwrap();
    fs::write(dir.join("a\nnewline"), "x").unwrap();
    fs::write(dir.join(std::ffi::OsStr::from_bytes(b"no\xffutf8")), "y").unwrap();
    let long = dir.join("n".repeat(200)).join("m".repeat(200));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("o".repeat(200)), "z").unwrap();
    symlink("/nowhere/at/all", dir.join("symlink")).unwrap();
    symlink("t".repeat(300), dir.join("long link")).unwrap();
    fs::hard_link(dir.join("large"), dir.join("d3/again")).unwrap();
    fs::hard_link(dir.join("symlink"), dir.join("d4/symlink too")).unwrap();
    let holes = File::create(dir.join("holes")).unwrap();
    holes.set_len(1 << 30).unwrap();
    for at in [1u64, 100 << 20, 500 << 20, (1 << 30) - 4096] {
        holes.write_all_at(&noise(4096, at), at / 4096 * 4096).unwrap();
    }
}

fn tar(dir: &Path, words: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").arg("-C").arg(dir).args(words).args(["-cf", "-", "--sparse", "."]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

const PAX: [&str; 3] = ["--format=posix", "--acls", "--xattrs"];

#[test]
fn what_goes_in_comes_out() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("tree");
    fs::create_dir(&inside).unwrap();
    tree(&inside);
    for words in [&PAX[..], &["--format=gnu"]] {
        let plain = tar(&inside, words);
        let names = Command::new("tar").arg("-C").arg(&inside).args(["-cvf", "/dev/null", "."]).output().unwrap();
        let members = names.stdout.iter().filter(|byte| **byte == b'\n').count() as u64;
        for (compression, name) in [
            (Compression::None, "a.tar"),
            (ZSTD, "a.tar.zst"),
            (Compression::Zstd { threads: 1 }, "b.tar.zst"),
            (GZIP, "a.tar.gz"),
            (Compression::Lzo, "a.tar.lzo"),
        ] {
            let (packed, summary) = pack(&plain, compression).unwrap();
            let path = dir.path().join(name);
            fs::write(&path, &packed).unwrap();
            let TarProgress { raw, written, members: counted } = summary.progress;
            assert_eq!((raw, written, summary.note), (plain.len() as u64, packed.len() as u64, None), "{name}");
            // A name with a newline is escaped by tar.
            assert_eq!(counted, members, "{name}");
            assert!(unpack_file(&path).unwrap() == plain, "{name}");
            let stream =
                TarSource::from_reader(&host(), "stream", Box::new(std::io::Cursor::new(packed)), &Cancel::new());
            assert!(unpack(stream.unwrap()).unwrap() == plain, "{name} as a stream");
        }
    }
}

#[test]
fn stock_programs_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("tree");
    fs::create_dir(&inside).unwrap();
    tree(&inside);
    let plain = tar(&inside, &PAX);
    for (compression, name, test, list) in [
        (ZSTD, "a.tar.zst", &["zstd", "-q", "-t"][..], "--zstd"),
        (GZIP, "a.tar.gz", &["gzip", "-t"], "--gzip"),
        (Compression::Lzo, "a.tar.lzo", &["lzop", "-qt"], "--lzop"),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, pack(&plain, compression).unwrap().0).unwrap();
        let tested = Command::new(test[0]).args(&test[1..]).arg(&path).output().unwrap();
        assert!(tested.status.success() && tested.stderr.is_empty(), "{tested:?}");
        let compared = Command::new("tar").arg("-C").arg(&inside).args([list, "-df"]).arg(&path).output().unwrap();
        assert!(compared.status.success() && compared.stderr.is_empty(), "{compared:?}");
    }
}

#[test]
fn archives_of_other_tools_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("tree");
    fs::create_dir(&inside).unwrap();
    tree(&inside);
    fs::remove_file(inside.join("large")).unwrap();
    fs::remove_file(inside.join("d3/again")).unwrap();
    let plain = dir.path().join("plain.tar");
    fs::write(&plain, tar(&inside, &["--format=gnu"])).unwrap();
    for words in ["zstd -q -c", "gzip -1c", "lzop -c", "xz -0c", "bzip2 -1c"] {
        let mut words = words.split(' ');
        let program = words.next().unwrap();
        let Ok(packed) = Command::new(program).args(words).arg(&plain).output() else {
            eprintln!("SKIPPED: {program} is not installed");
            continue;
        };
        let path = dir.path().join(program);
        fs::write(&path, packed.stdout).unwrap();
        assert!(unpack_file(&path).unwrap() == fs::read(&plain).unwrap(), "{program}");
        let bytes = fs::read(&path).unwrap();
        // Cut off: said, wherever that is.
        fs::write(&path, &bytes[..bytes.len() * 2 / 3]).unwrap();
        let error = unpack_file(&path).unwrap_err().to_string();
        assert!(error.contains("damaged") || error.contains("failed") || error.contains("ends at byte"), "{error}");
    }
    fs::write(&plain, "no archive at all").unwrap();
    let error = TarSource::open(&host(), &plain, &Cancel::new()).err().unwrap();
    assert!(matches!(error.cause, ArchiveCause::NoTar(_)), "{error}");
}

#[test]
fn small_members_are_whole_in_a_frame() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..120 {
        fs::write(dir.path().join(format!("{number}")), noise(100_000, number)).unwrap();
    }
    let plain = tar(dir.path(), &PAX);
    let path = dir.path().join("a.tar.zst");
    fs::write(&path, pack(&plain, ZSTD).unwrap().0).unwrap();
    let source = TarSource::open(&host(), &path, &Cancel::new()).unwrap();
    let crate::archive::tar::TarInput::Indexed(indexed) = source.input else { panic!("no index") };
    let (mut at, mut starts) = (0, Vec::new());
    for frame in indexed.index.iter().filter(|frame| !frame.is_table()) {
        starts.push(at);
        at += u64::from(frame.raw);
    }
    assert_eq!((at, starts.len() > 2), (plain.len() as u64, true));
    let mut members = Vec::new();
    let mut walker = crate::archive::tar::Walker::new();
    let walked = walker.feed(&plain, &mut |member| {
        members.push(member.offset);
        Ok(())
    });
    walked.unwrap();
    assert!(starts.iter().all(|start| members.contains(start)), "{starts:?}");
}

#[test]
fn damaged_input_makes_no_archive() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), noise(5000, 1)).unwrap();
    let plain = tar(dir.path(), &PAX);
    let end = plain.iter().rposition(|byte| *byte != 0).unwrap();
    let cut = &plain[..end / 512 * 512 - 1024];
    match pack(cut, ZSTD).unwrap_err() {
        TransferError::Tar { cause: TarError::Truncated { offset }, .. } => assert_eq!(offset, cut.len() as u64),
        other => panic!("{other}"),
    }
    let mut flipped = plain.clone();
    flipped[3] ^= 1;
    let error = pack(&flipped, ZSTD).unwrap_err();
    assert!(error.to_string().contains("damaged at byte 0: the checksum"), "{error}");
}

#[test]
fn a_flipped_bit_in_an_archive_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), noise(6 << 20, 1)).unwrap();
    let plain = tar(dir.path(), &PAX);
    for compression in [ZSTD, GZIP] {
        let (good, _) = pack(&plain, compression).unwrap();
        let path = dir.path().join("archive");
        for at in [100, good.len() / 2, good.len() - good.len() / 5] {
            let mut bytes = good.clone();
            bytes[at] ^= 4;
            fs::write(&path, bytes).unwrap();
            let error = unpack_file(&path).unwrap_err();
            let TransferError::Archive(error) = error else { panic!("{error}") };
            assert!(matches!(error.cause, ArchiveCause::Frame { .. }), "byte {at}: {error}");
        }
        // Without its end it is read as a stream, and that ends too early.
        fs::write(&path, &good[..good.len() / 2]).unwrap();
        let error = unpack_file(&path).unwrap_err();
        let TransferError::Archive(error) = error else { panic!("{error}") };
        assert!(matches!(error.cause, ArchiveCause::TarRead { offset: 1.., .. }), "{error}");
    }
}

#[test]
fn nothing_of_a_refused_member_is_written() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("in")).unwrap();
    fs::write(dir.path().join("escape"), "x").unwrap();
    let plain = Command::new("tar").arg("-C").arg(dir.path().join("in")).args(["-cPf", "-", ".", "../escape"]).output();
    for compression in [Compression::None, ZSTD] {
        let path = dir.path().join("archive");
        fs::write(&path, pack(&plain.as_ref().unwrap().stdout, compression).unwrap().0).unwrap();
        let source = TarSource::open(&host(), &path, &Cancel::new()).unwrap();
        let mut out = Vec::new();
        let output = Output::Writer(Box::new(&mut out), "tar".into());
        let mut vetting = Vetting::new(Rules { devices: true });
        let error = unpack_tar(source, output, &mut vetting, None, &mut |_| {}, &Cancel::new()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("the member '../escape' at byte 512 of the tar data is refused"), "{text}");
        assert!(out.is_empty());
    }
}

#[test]
fn a_wish_to_stop_ends_waits_for_pipes() {
    for unpacks in [false, true] {
        let (from, _keep) = std::io::pipe().unwrap();
        let (mut to, out) = std::io::pipe().unwrap();
        let cancel = Cancel::new();
        let stopper = cancel.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            stopper.set();
        });
        let output = Output::Fd(out.into(), "tar".into());
        let error = if unpacks {
            // The reader of the output never reads: more than a pipe holds has to wait.
            let mut plain = vec![0; 512];
            plain.resize(4 << 20, 0);
            let source = TarSource::from_reader(&host(), "zeros", Box::new(std::io::Cursor::new(plain)), &cancel);
            let mut vetting = Vetting::new(Rules { devices: false });
            unpack_tar(source.unwrap(), output, &mut vetting, None, &mut |_| {}, &cancel).unwrap_err()
        } else {
            let from = TarFrom::Fd(from.into(), "tar".into());
            pack_tar(from, output, &how(ZSTD), &mut |_| {}, &cancel).unwrap_err()
        };
        assert!(matches!(error, TransferError::Cancelled), "{error}");
        thread.join().unwrap();
        to.read_to_end(&mut Vec::new()).unwrap();
    }
}

#[test]
fn a_full_target_ends_it_though_tar_goes_on() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from_raw_os_error(libc::ENOSPC))
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    // A program that never ends and says no more after a while.
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), noise(20 << 20, 1)).unwrap();
    let script = format!("tar -C '{}' -cf - . | head -c 15000000; exec sleep 60", dir.path().display());
    let mut child = Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let from = TarFrom::Fd(child.stdout.take().unwrap().into(), "tar".into());
    let output = Output::Writer(Box::new(Full), "/mnt/full".into());
    let error = pack_tar(from, output, &how(ZSTD), &mut |_| {}, &Cancel::new()).unwrap_err();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(&error, TransferError::Write { archive, written: 0, .. } if archive == "/mnt/full"), "{error}");
}

#[test]
fn the_configuration_is_read_without_unpacking() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("in");
    fs::create_dir_all(inside.join("etc/vzdump")).unwrap();
    fs::write(inside.join("etc/vzdump/pct.conf"), "arch: amd64\n").unwrap();
    fs::write(inside.join("large"), noise(9 << 20, 2)).unwrap();
    let words = ["-cf", "-", "./etc/vzdump/pct.conf", "./large"];
    let plain = Command::new("tar").arg("-C").arg(&inside).args(words).output().unwrap().stdout;
    let path = dir.path().join("archive");
    for compression in [Compression::None, ZSTD, GZIP, Compression::Lzo] {
        fs::write(&path, pack(&plain, compression).unwrap().0).unwrap();
        let mut source = TarSource::open(&host(), &path, &Cancel::new()).unwrap();
        let found = source.peek([b"etc/vzdump/pct.conf", b"./etc/vzdump/pct.fw"], 1 << 20).unwrap();
        assert_eq!(found, [Some(b"arch: amd64\n".to_vec()), None]);
        assert!(unpack(source).unwrap() == plain);
    }
}
