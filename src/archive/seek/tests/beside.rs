//! The file beside an archive: used when it is good, refused when it is anything else.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::super::beside::*;
use super::*;

/// An archive, what a pass over it found, and the file that keeps it.
fn kept(dir: &Path, line: &str) -> Option<(PathBuf, Beside, Vec<u8>)> {
    let data = mixture(900_000, 47);
    let path = dir.join("vzdump-qemu-100-x.vma.any");
    let bytes = packed(line, &data)?;
    std::fs::write(&path, &bytes).unwrap();
    let points = whole(&bytes, &data, 100_000).1;
    let beside = Beside { points, extra: b"map".to_vec() };
    let file = File::open(&path).unwrap();
    assert!(beside.save(&path, &file, &Fingerprint::of(&file).unwrap()).unwrap());
    let bytes = std::fs::read(Beside::path(&path)).unwrap();
    Some((path, beside, bytes))
}

fn load(path: &Path) -> Result<Option<Beside>, BesideError> {
    let loaded = Beside::load(path, &File::open(path).unwrap())?;
    Ok(loaded.map(|mut loaded| {
        let mut extra = Vec::new();
        std::io::Read::read_to_end(&mut loaded.extra, &mut extra).unwrap();
        Beside { points: loaded.points, extra }
    }))
}

#[test]
fn it_is_read_as_it_was_written() {
    for line in ["zstd -q --zstd=wlog=17", "gzip -6", "lzop -1"] {
        let dir = tempfile::tempdir().unwrap();
        let Some((path, beside, _)) = kept(dir.path(), line) else { return };
        assert!(beside.points.count() > 1 || line.starts_with("lzop"));
        assert_eq!(load(&path).unwrap(), Some(beside), "{line}");
        // Nothing but the two files.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        std::fs::remove_file(Beside::path(&path)).unwrap();
        assert_eq!(load(&path).unwrap(), None);
    }
}

#[test]
fn who_may_not_read_the_archive_may_not_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let Some((path, beside, _)) = kept(dir.path(), "gzip -1") else { return };
    for mode in [0o600, 0o640, 0o444] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let file = File::open(&path).unwrap();
        beside.save(&path, &file, &Fingerprint::of(&file).unwrap()).unwrap();
        assert_eq!(std::fs::metadata(Beside::path(&path)).unwrap().mode() & 0o777, mode);
    }
}

#[test]
fn damage_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let Some((_, _, bytes)) = kept(dir.path(), "zstd -q --zstd=wlog=17") else { return };
    Beside::parse(&bytes).unwrap();
    for at in (0..bytes.len()).filter(|at| *at < 600 || at % 97 == 0 || at + 40 > bytes.len()) {
        let mut bad = bytes.clone();
        bad[at] ^= 0x20;
        assert!(Beside::parse(&bad).is_err(), "byte {at}");
        assert!(Beside::parse(&bytes[..at]).is_err(), "cut at {at}");
    }
    assert!(Beside::parse(&[bytes.as_slice(), b"x"].concat()).is_err());
    let mut newer = bytes.clone();
    newer[8] = 2;
    assert!(matches!(Beside::parse(&newer), Err(BesideError::Version(2))));
}

#[test]
fn it_is_for_one_state_of_one_archive() {
    let dir = tempfile::tempdir().unwrap();
    let Some((path, beside, _)) = kept(dir.path(), "gzip -6") else { return };
    let bytes = std::fs::read(&path).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    let is_stale = |path: &Path| matches!(load(path), Err(BesideError::Stale));
    // The same bytes at another time.
    file.set_modified(time + std::time::Duration::from_nanos(1)).unwrap();
    assert!(is_stale(&path));
    file.set_modified(time).unwrap();
    assert_eq!(load(&path).unwrap().as_ref(), Some(&beside));
    // Another byte at the same time: at the start, in the middle, at the end.
    for at in [0, bytes.len() / 33 * 16 + 5, bytes.len() - 1] {
        file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
        file.set_modified(time).unwrap();
        assert!(is_stale(&path), "{at}");
        file.write_all_at(&bytes[at..=at], at as u64).unwrap();
        file.set_modified(time).unwrap();
    }
    assert!(load(&path).unwrap().is_some());
    // Another size.
    file.set_len(bytes.len() as u64 - 1).unwrap();
    file.set_modified(time).unwrap();
    assert!(is_stale(&path));
    // What was read meanwhile is not what is there now.
    let now = File::open(&path).unwrap();
    let before = Fingerprint::of(&now).unwrap();
    file.set_len(5).unwrap();
    assert!(!beside.save(&path, &now, &before).unwrap());
}

#[test]
fn what_lies_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let Some((path, beside, _)) = kept(dir.path(), "gzip -6") else { return };
    let place = Beside::path(&path);
    assert_eq!(place.file_name().unwrap(), "vzdump-qemu-100-x.vma.any.idx");
    for other in [&b""[..], b"vzkeep", b"vzkeepAP\x01\0\0\0", &[0; 5000]] {
        std::fs::write(&place, other).unwrap();
        let said = load(&path).unwrap_err().to_string();
        assert!(said.contains("is no index") || said.contains("is damaged"), "{said}");
    }
    std::fs::remove_file(&place).unwrap();
    std::fs::create_dir(&place).unwrap();
    assert!(matches!(load(&path), Err(BesideError::Unknown)));
    let file = File::open(&path).unwrap();
    assert!(beside.save(&path, &file, &Fingerprint::of(&file).unwrap()).is_err());
    // The attempt left nothing.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

/// With a checksum that fits, so that what stands behind it is looked at.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = crc32fast::hash(&bytes[16..]);
    bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// What the fuzz target `archive_idx` does: it is refused, or written again as it was.
fn any_file(bytes: Vec<u8>) {
    if bytes.len() < 16 {
        assert!(Beside::parse(&bytes).is_err());
        return;
    }
    let bytes = sealed(bytes);
    if let Ok((beside, made_of)) = Beside::parse(&bytes) {
        let again = beside.bytes(&made_of);
        assert_eq!(Beside::parse(&again).unwrap(), (beside, made_of));
    }
}

#[test]
fn fuzz_corpus() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/archive_idx");
    let mut good = 0;
    for file in std::fs::read_dir(dir).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        good += u32::from(Beside::parse(&bytes).is_ok());
        any_file(bytes);
    }
    assert!(good >= 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn forged_ones_get_an_answer(
        changes in proptest::collection::vec((0..400_usize, any::<u8>()), 1..5),
        len in 0..400_usize,
    ) {
        let points = Points {
            method: Method::Gzip,
            raw: 300_000,
            piece: 18,
            sums: vec![1, 2],
            points: vec![
                points::Point { packed: 0, raw: 0, entry: Entry::Start },
                points::Point { packed: 9, raw: 70, entry: Entry::Gzip { bits: 3, held: 1, window: vec![7; 30] } },
            ],
            notes: vec!["slow".into()],
        };
        let file = tempfile::tempfile().unwrap();
        file.set_len(100).unwrap();
        let bytes = Beside { points, extra: vec![1; 50] }.bytes(&Fingerprint::of(&file).unwrap());
        Beside::parse(&bytes).unwrap();
        let mut bad = bytes[..bytes.len().min(len.max(16))].to_vec();
        for (at, value) in changes {
            let at = at % bad.len();
            bad[at] = value;
        }
        any_file(bad);
    }
}
