use std::path::PathBuf;

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;
use crate::archive::Compression;
use crate::archive::frame::{Container, Frame, IndexBuilder, Packer};
use crate::archive::packed::Method;
use crate::archive::seek::Beside;
use crate::archive::vma::{BLOCK, Scanner};
use crate::testdata::{self, golden};

/// A disk whose clusters hold what `kinds` says: nothing, full of data, or data here and there. The last one is cut.
fn disk(kinds: &[u8], tail: usize) -> Vec<u8> {
    let mut bytes = vec![0; (kinds.len().max(1) - 1) * CLUSTER + tail];
    for (i, kind) in kinds.iter().enumerate() {
        let end = bytes.len().min((i + 1) * CLUSTER);
        let cluster = &mut bytes[i * CLUSTER..end];
        for (at, byte) in cluster.iter_mut().enumerate() {
            let filled = match kind % 3 {
                0 => false,
                1 => true,
                _ => (at / BLOCK + usize::from(*kind)).is_multiple_of(3),
            };
            if filled {
                *byte = (at / 7 + i * 13) as u8 | 1;
            }
        }
    }
    bytes
}

fn archive(disks: &[Vec<u8>], compression: Compression) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vma");
    let disk = |(i, bytes): (usize, &Vec<u8>)| testdata::disk(&format!("drive-scsi{i}"), bytes.clone());
    let disks = disks.iter().enumerate().map(disk).collect();
    std::fs::write(&path, testdata::archive(&testdata::job(disks, compression))).unwrap();
    (dir, path)
}

fn open(path: &Path) -> Result<Arc<VmaArchive>, ArchiveError> {
    VmaArchive::open(&Host::with_root("/".into()), path, &Cancel::new())
}

fn whole(image: &dyn Image) -> Vec<u8> {
    let mut bytes = vec![0; image.size() as usize];
    image.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Extents cover the disk, and what they call zero is.
fn check_extents(image: &dyn Image, plain: &[u8], range: Range<u64>) {
    let mut at = range.start;
    for extent in image.extents(range.clone()).unwrap() {
        assert_eq!(extent.offset, at);
        at += extent.len;
        let bytes = &plain[extent.offset as usize..at as usize];
        assert!(extent.kind == ExtentKind::Data || bytes.iter().all(|b| *b == 0));
    }
    assert_eq!(at, range.end);
}

const COMPRESSIONS: [Compression; 3] =
    [Compression::None, Compression::Zstd { threads: 2 }, Compression::Gzip { threads: 1 }];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn random_reads_are_those_of_a_plain_file(
        kinds in proptest::collection::vec(any::<u8>(), 1..150),
        holes in 0..200usize,
        tail in 1..=CLUSTER,
        reads in proptest::collection::vec((any::<prop::sample::Index>(), 0..300_000usize), 20),
        which in 0..COMPRESSIONS.len(),
    ) {
        let kinds: Vec<u8> = [kinds.as_slice(), &vec![0; holes], &[1]].concat();
        let disks = [disk(&kinds, tail), disk(&[2, 1], 5000)];
        let (_dir, path) = archive(&disks, COMPRESSIONS[which]);
        let archive = open(&path).unwrap();
        for (image, plain) in archive.disks().iter().zip(&disks) {
            prop_assert!(whole(image.as_ref()) == *plain);
            check_extents(image.as_ref(), plain, 0..plain.len() as u64);
            for (index, len) in &reads {
                let offset = index.index(plain.len());
                let end = plain.len().min(offset + len);
                let mut buf = vec![7; end - offset];
                image.read_at(&mut buf, offset as u64).unwrap();
                prop_assert!(buf == plain[offset..end]);
                check_extents(image.as_ref(), plain, offset as u64..end as u64);
            }
        }
    }
}

#[test]
fn disks_have_two_names_and_ends() {
    let plain = disk(&[1, 0, 2], 100);
    let (_dir, path) = archive(std::slice::from_ref(&plain), COMPRESSIONS[1]);
    let archive = open(&path).unwrap();
    assert_eq!(archive.header().configs.len(), 1);
    assert!(archive.disk("drive-scsi1").is_none() && archive.disk("drive-scsi0").is_some());
    let image = archive.disk("scsi0").unwrap();
    assert_eq!((image.name(), image.size()), ("drive-scsi0", plain.len() as u64));
    assert!(image.read_at(&mut [0; 2], plain.len() as u64 - 1).is_err());
    assert!(image.extents(0..plain.len() as u64 + 1).is_err());
    assert!(image.extents(3..3).unwrap().is_empty());
}

#[test]
fn many_readers_go_side_by_side() {
    let plain = disk(&[1; 400], CLUSTER);
    let (_dir, path) = archive(std::slice::from_ref(&plain), COMPRESSIONS[1]);
    let image = open(&path).unwrap().disk("scsi0").unwrap();
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (image, plain) = (&image, &plain);
            scope.spawn(move || {
                let mut buf = vec![0; 100_000];
                for offset in (reader * 10_000..plain.len() - buf.len()).step_by(999_983) {
                    image.read_at(&mut buf, offset as u64).unwrap();
                    assert!(buf == plain[offset..offset + buf.len()]);
                }
            });
        }
    });
}

/// SHA-256 of the disks of the stock program's archive.
const SUMS: [&str; 2] = [
    "8d7d0efb80f98dd454e19ace30725c3bdf3d4ce0589e4bb6157d3c8382516f66",
    "c739be9e6b9a3864f7ab8bda6cf818b8a8ecfaa58c994e4de42f529a77c1a68b",
];

fn sums(archive: &Arc<VmaArchive>) -> Vec<String> {
    let sum = |bytes: Vec<u8>| Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    archive.disks().iter().map(|image| sum(whole(image.as_ref()))).collect()
}

#[test]
fn archives_of_the_stock_program_open() {
    let Some(golden) = golden() else { return };
    for (suffix, program) in [("", "true"), (".zst", "true"), (".gz", "true"), (".lzo", "lzop")] {
        if !Host::with_root("/".into()).has_command(program) {
            assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
            eprintln!("skipped: {program} is not installed");
            continue;
        }
        // Once as it is, once to keep what was found, once with that.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("two-disks.vma{suffix}"));
        std::fs::copy(golden.join(format!("archives/two-disks.vma{suffix}")), &path).unwrap();
        for first in [FirstPass::Read, FirstPass::Keep, FirstPass::Never] {
            let archive = VmaArchive::open_with(&Host::with_root("/".into()), &path, first, &Cancel::new()).unwrap();
            assert_eq!(archive.note(), None);
            assert_eq!(sums(&archive), SUMS, "{suffix}");
        }
        assert_eq!(Beside::path(&path).exists(), !suffix.is_empty());
    }
    assert!(open(&golden.join("archives/diskless.vma")).unwrap().disks().is_empty());
}

#[test]
fn a_stream_in_any_pieces_makes_the_same_map() {
    let disks = [disk(&[1, 0, 2, 0, 0, 1, 2, 2], 70), disk(&[0; 300], 1)];
    let (_dir, path) = archive(&disks, Compression::None);
    let bytes = std::fs::read(&path).unwrap();
    let plain = PlainBytes::new(File::open(&path).unwrap()).unwrap();
    let (header, map) = ClusterMap::scan(&plain).unwrap();
    for size in [1, 7, 511, 4096, 100_000, bytes.len()] {
        let mut scanner = Scanner::new();
        bytes.chunks(size).for_each(|piece| scanner.feed(piece).unwrap());
        assert!(scanner.finish().unwrap() == (header.clone(), map.clone()), "{size}");
    }
    for cut in [0, 50, 12_000, bytes.len() - 1, bytes.len() - 600] {
        let mut scanner = Scanner::new();
        scanner.feed(&bytes[..cut]).unwrap();
        let said = scanner.finish().unwrap_err().to_string();
        assert!(said.contains("ends in the middle") || said.contains("incomplete"), "{cut}: {said}");
    }
    let mut encoded = Vec::new();
    map.encode(&mut encoded).unwrap();
    assert_eq!(encoded.len() as u64, map.encoded_len());
    assert!(decode(&header, &encoded).as_ref() == Some(&map));
    for cut in 0..encoded.len() {
        assert!(decode(&header, &encoded[..cut]).is_none());
    }
    let mut other = header.clone();
    other.devices[0].size += CLUSTER as u64;
    assert!(decode(&other, &encoded).is_none());
}

fn decode(header: &Header, mut bytes: &[u8]) -> Option<ClusterMap> {
    let len = bytes.len() as u64;
    ClusterMap::decode(header, &mut bytes, len).unwrap()
}

#[test]
fn damage_is_an_error_of_the_reader_with_disk_and_place() {
    let plain = disk(&[1; 200], CLUSTER);
    let (_dir, path) = archive(std::slice::from_ref(&plain), COMPRESSIONS[1]);
    let mut bytes = std::fs::read(&path).unwrap();
    let indexed = Indexed::find(&File::open(&path).unwrap(), Method::Zstd, bytes.len() as u64).unwrap().0.unwrap().1;
    let second = indexed.index.frame(0).unwrap().packed + indexed.index.frame(1).unwrap().packed;
    bytes[second as usize + 100] ^= 4;
    std::fs::write(&path, &bytes).unwrap();
    let image = open(&path).unwrap().disk("scsi0").unwrap();
    let mut buf = [0; 10];
    image.read_at(&mut buf, 0).unwrap();
    let bad = 59 * CLUSTER as u64 + 5;
    let said = image.read_at(&mut buf, bad).unwrap_err().to_string();
    let wanted = format!(
        "drive-scsi0: read of 10 bytes at offset {bad} failed: frame 2 at byte {second} of the file is damaged or cannot be \
         read: its checksum does not match"
    );
    assert_eq!(said, wanted);
    image.read_at(&mut buf, 2 * 59 * CLUSTER as u64).unwrap();
}

/// An archive as the stock programs make it, of one zstd frame.
fn foreign(disks: &[Vec<u8>]) -> (tempfile::TempDir, PathBuf) {
    let (dir, plain) = archive(disks, Compression::None);
    let path = dir.path().join("a.vma.zst");
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    std::io::copy(&mut File::open(plain).unwrap(), &mut encoder).unwrap();
    std::fs::write(&path, encoder.finish().unwrap()).unwrap();
    (dir, path)
}

#[test]
fn a_file_beside_a_foreign_archive_is_used_only_when_it_is_good() {
    let plain = disk(&[1, 0, 2, 1], 300);
    let (_dir, path) = foreign(std::slice::from_ref(&plain));
    let host = Host::with_root("/".into());
    let open_with = |first| VmaArchive::open_with(&host, &path, first, &Cancel::new());
    assert!(open_with(FirstPass::Never).is_err());
    let is_right = |archive: &Arc<VmaArchive>| whole(archive.disk("scsi0").unwrap().as_ref()) == plain;
    let place = Beside::path(&path);
    let archive = open_with(FirstPass::Keep).unwrap();
    assert!(is_right(&archive) && archive.note().is_none());
    let good = std::fs::read(&place).unwrap();
    let mut bad = good.clone();
    bad[60] ^= 1;
    std::fs::write(&place, &bad).unwrap();
    let archive = open_with(FirstPass::Read).unwrap();
    let said = archive.note().unwrap_or_default();
    assert!(said.contains("a.vma.zst.idx' is damaged") && said.ends_with("the archive is read without it"), "{said}");
    assert!(is_right(&archive) && std::fs::read(&place).unwrap() == bad);
    // Kept anew, where that is wanted.
    assert!(is_right(&open_with(FirstPass::Keep).unwrap()));
    assert_eq!(std::fs::read(&place).unwrap(), good);
    // One of a container's archive, and one of another archive.
    let (mut beside, made_of) = Beside::parse(&good).unwrap();
    beside.extra[0] = b't';
    std::fs::write(&place, beside.bytes(&made_of)).unwrap();
    assert!(open_with(FirstPass::Read).unwrap().note().unwrap_or_default().contains("another kind of archive"));
    let (_other, other) = foreign(&[disk(&[2, 2], 300)]);
    VmaArchive::open_with(&host, &other, FirstPass::Keep, &Cancel::new()).unwrap();
    std::fs::copy(Beside::path(&other), &place).unwrap();
    let archive = open_with(FirstPass::Read).unwrap();
    assert!(archive.note().unwrap_or_default().contains("belongs to another archive"), "{:?}", archive.note());
    assert!(is_right(&archive));
    // It cannot be written.
    std::fs::remove_file(&place).unwrap();
    std::fs::create_dir(&place).unwrap();
    let archive = open_with(FirstPass::Keep).unwrap();
    assert!(archive.note().unwrap_or_default().contains("cannot be written"), "{:?}", archive.note());
    assert!(is_right(&archive));
}

#[test]
fn damage_of_a_foreign_archive_is_told() {
    let (_dir, path) = foreign(&[disk(&[1; 30], CLUSTER)]);
    let bytes = std::fs::read(&path).unwrap();
    let said = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        open(&path).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let mut bad = bytes.clone();
    let last = bad.len() - 1;
    bad[last] ^= 1;
    assert!(said(&bad).contains("is damaged: Restored data doesn't match checksum"), "{}", said(&bad));
    assert!(said(&bytes[..last - 300]).contains("the file ends within"), "{}", said(&bytes[..last - 300]));
    // Good zstd data, but no VMA.
    let other = zstd::encode_all(&[7; 90_000][..], 3).unwrap();
    assert!(said(&other).contains("not a VMA archive"), "{}", said(&other));
}

/// Opens whatever it is and reads what can be read: errors are fine, anything else is not.
fn read_all(path: &Path) {
    let Ok(archive) = open(path) else { return };
    for image in archive.disks() {
        let mut buf = vec![0; 200_000];
        for offset in (0..image.size().min(50 << 20)).step_by(buf.len()) {
            let len = buf.len().min((image.size() - offset) as usize);
            image.read_at(&mut buf[..len], offset).ok();
        }
        image.extents(0..image.size()).ok();
    }
}

#[test]
fn more_clusters_than_there_can_be_are_refused() {
    let (_dir, path) = archive(&[disk(&[0; 200], 9)], COMPRESSIONS[1]);
    let bytes = std::fs::read(&path).unwrap();
    let good = Indexed::find(&File::open(&path).unwrap(), Method::Zstd, bytes.len() as u64).unwrap().0.unwrap().1;
    let start = good.index.iter().next().unwrap();
    // 200 clusters need four extents' headers.
    for (raw, refused) in [(4 * 512 - 1, true), (4 * 512, false)] {
        let (mut builder, mut out) = (IndexBuilder::new([3; 16]), bytes[..start.packed as usize].to_vec());
        builder.push(start);
        let mut packed = Vec::new();
        Packer::new(Container::Zstd).unwrap().pack(&vec![1; raw], &mut packed).unwrap();
        builder.push(Frame::of_clusters(&packed, raw, 1, 0, 200));
        out.extend_from_slice(&packed);
        out.extend(builder.finish(Container::Zstd));
        std::fs::write(&path, &out).unwrap();
        assert_eq!(open(&path).is_err(), refused, "{raw} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn damaged_archives_end_in_errors(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        which in 0..COMPRESSIONS.len(),
    ) {
        let (_dir, path) = archive(&[disk(&[1, 0, 2], 9)], COMPRESSIONS[which]);
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, change) in changes {
            let at = at.index(bytes.len());
            bytes[at] ^= change;
        }
        std::fs::write(&path, &bytes).unwrap();
        read_all(&path);
        bytes.truncate(cut.index(bytes.len()));
        std::fs::write(&path, &bytes).unwrap();
        read_all(&path);
    }

    #[test]
    fn an_index_that_lies_ends_in_errors(
        frames in proptest::collection::vec((0..3u8, 0..200u32, 0..100_000u32, 0..9_000usize), 1..6),
        real: bool,
    ) {
        let (_dir, path) = archive(&[disk(&[1, 0, 2], 9)], COMPRESSIONS[1]);
        let bytes = std::fs::read(&path).unwrap();
        let good = Indexed::find(&File::open(&path).unwrap(), Method::Zstd, bytes.len() as u64).unwrap().0.unwrap().1;
        let (mut builder, mut out, mut at) = (IndexBuilder::new([3; 16]), Vec::new(), 0);
        for (number, frame) in good.index.iter().enumerate() {
            let packed = &bytes[at..at + frame.packed as usize];
            at += packed.len();
            if number == 0 || real {
                builder.push(frame);
                out.extend_from_slice(packed);
            }
        }
        for (device, first, clusters, raw) in frames {
            let mut packed = Vec::new();
            Packer::new(Container::Zstd).unwrap().pack(&vec![1; raw], &mut packed).unwrap();
            builder.push(Frame::of_clusters(&packed, raw.max(1), device, first, clusters));
            out.extend_from_slice(&packed);
        }
        out.extend(builder.finish(Container::Zstd));
        std::fs::write(&path, &out).unwrap();
        read_all(&path);
    }

    #[test]
    fn any_bytes_are_a_map_or_none(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let header = Header {
            uuid: [1; 16],
            ctime: 0,
            configs: Vec::new(),
            devices: vec![Device { id: 1, name: "drive-scsi0".into(), size: 3 << 16 }],
        };
        // Two extents; three runs of disk 1: in the first, zero, in the second.
        let words: Vec<u32> = vec![2, 0, 12800, 0, 13312, 0, 1, 1, 3, 0, 0, 1, 0, 1, 1, u32::MAX, 2, 1, 1];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        prop_assert!(decode(&header, &bytes).is_some());
        for (at, change) in changes {
            let at = at.index(bytes.len());
            bytes[at] ^= change;
        }
        if let Some(map) = decode(&header, &bytes) {
            prop_assert!((0..3).all(|cluster| map.place(1, cluster).is_some()) && map.place(1, 3).is_none());
        }
    }
}
