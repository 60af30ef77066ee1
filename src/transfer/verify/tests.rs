use std::path::PathBuf;

use super::*;
use crate::archive::Compression;
use crate::archive::vma::CLUSTER;
use crate::testdata::{self, golden};
use crate::transfer::{DEFAULT_MEMORY, TarFrom, TarPack, pack_tar};

fn host() -> Host {
    Host::with_root("/".into())
}

fn judged(path: &Path) -> Verified {
    verify(&host(), path, None, &mut |_| {}, &Cancel::new()).unwrap()
}

/// An archive of two disks, the first one with `clusters` clusters of data and some without.
fn vma(dir: &Path, name: &str, clusters: usize, compression: Compression) -> PathBuf {
    let mut data = vec![0; (clusters + 70) * CLUSTER];
    for (i, byte) in data[..clusters * CLUSTER].iter_mut().enumerate() {
        *byte = (i / 4096) as u8 | 1;
    }
    let disks = vec![testdata::disk("drive-scsi0", data), testdata::disk("drive-scsi1", vec![9; 5000])];
    let path = dir.join(name);
    std::fs::write(&path, testdata::archive(&testdata::job(disks, compression))).unwrap();
    path
}

fn tar(dir: &Path, name: &str, compression: Compression) -> PathBuf {
    let tree = dir.join("tree");
    std::fs::create_dir_all(tree.join("etc")).unwrap();
    std::fs::write(tree.join("etc/hostname"), "ct\n").unwrap();
    std::fs::write(tree.join("zeros"), vec![0; 300_000]).unwrap();
    let made = std::process::Command::new("tar").args(["cf", "-", "-C"]).arg(&tree).arg("./").output().unwrap();
    let path = dir.join(name);
    let how = TarPack { compression, bwlimit: None, memory: DEFAULT_MEMORY, host: host() };
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut writer, &made.stdout).unwrap());
        let to = Output::Writer(Box::new(File::create(&path).unwrap()), name.into());
        pack_tar(TarFrom::Fd(reader.into(), "tar".into()), to, &how, &mut |_| {}, &Cancel::new()).unwrap();
    });
    path
}

const FRAMED: [Compression; 2] = [Compression::Zstd { threads: 2 }, Compression::Gzip { threads: 1 }];

#[test]
fn no_flipped_bit_of_ours_stays_unseen() {
    let dir = tempfile::tempdir().unwrap();
    for compression in FRAMED {
        for path in [vma(dir.path(), "a.vma", 1, compression), tar(dir.path(), "a.tar", compression)] {
            let verified = judged(&path);
            assert_eq!((verified.checked, &verified.damage), (Checked::EveryByte, &Vec::new()), "{}", path.display());
            let good = std::fs::read(&path).unwrap();
            // Every byte near both ends, where the headers, the table and the index are, and many between.
            let near = |at: usize| at < 100 || good.len() - at < 300;
            for at in (0..good.len()).filter(|at| near(*at) || at.is_multiple_of(31)) {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << (at % 8);
                std::fs::write(&path, &bytes).unwrap();
                assert!(!judged(&path).damage.is_empty(), "byte {at} of {} in {}", good.len(), path.display());
            }
            std::fs::write(&path, &good[..good.len() - 1]).unwrap();
            assert!(!judged(&path).damage.is_empty());
        }
    }
}

#[test]
fn each_damaged_frame_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = vma(dir.path(), "a.vma.zst", 59 * 4, FRAMED[0]);
    let source = Source::open(&host(), &path, &Cancel::new()).unwrap();
    let offsets: Vec<u64> = source
        .index()
        .unwrap()
        .iter()
        .scan(0, |at, frame| {
            *at += u64::from(frame.packed);
            Some(*at - u64::from(frame.packed))
        })
        .collect();
    let mut bytes = std::fs::read(&path).unwrap();
    // The order of the frames is that in which the disks were read.
    let frame = |wanted: u32| {
        let index = source.index().unwrap();
        index.iter().position(|frame| frame.device == 1 && frame.first == wanted).unwrap()
    };
    for wanted in [59, 177] {
        bytes[offsets[frame(wanted)] as usize + 20] ^= 1;
    }
    std::fs::write(&path, &bytes).unwrap();
    let damage = judged(&path).damage;
    let wanted = |first: u32, end: usize| {
        let number = frame(first);
        format!(
            "drive-scsi0, bytes {} to {}: frame {number} at byte {} of the file is damaged or cannot be read: its checksum \
             does not match",
            first as usize * CLUSTER,
            end,
            offsets[number]
        )
    };
    let mut all = [wanted(59, 118 * CLUSTER), wanted(177, damage_end(&source, 177))];
    let mut found = damage.clone();
    all.sort();
    found.sort();
    assert_eq!(found, all);
}

/// The disk's byte behind the frame that begins with this cluster.
fn damage_end(source: &Source, first: u32) -> usize {
    let frame = source.index().unwrap().iter().find(|frame| frame.device == 1 && frame.first == first).unwrap();
    (frame.first + frame.clusters) as usize * CLUSTER
}

#[test]
fn archives_of_others_are_held_against_what_they_have() {
    let Some(golden) = golden() else { return };
    let dir = tempfile::tempdir().unwrap();
    for (name, checked) in [
        ("two-disks.vma", Checked::Structure),
        ("two-disks.vma.zst", Checked::Compression),
        ("two-disks.vma.gz", Checked::Compression),
        ("two-disks.vma.lzo", Checked::Compression),
        ("diskless.vma", Checked::Structure),
    ] {
        if name.ends_with("lzo") && !host().has_command("lzop") {
            eprintln!("SKIPPED: lzop is not installed");
            continue;
        }
        let verified = judged(&golden.join("archives").join(name));
        assert_eq!((verified.checked, &verified.damage), (checked, &Vec::new()), "{name}");
        let bytes = std::fs::read(golden.join("archives").join(name)).unwrap();
        let cut = dir.path().join(name);
        std::fs::write(&cut, &bytes[..bytes.len() * 2 / 3]).unwrap();
        assert_eq!(judged(&cut).damage.len(), 1, "{name}");
    }
    let plain = tar(dir.path(), "a.tar", Compression::None);
    assert_eq!(judged(&plain).checked, Checked::Structure);
    let missing = verify(&host(), &dir.path().join("none"), None, &mut |_| {}, &Cancel::new());
    assert!(missing.is_err());
}
