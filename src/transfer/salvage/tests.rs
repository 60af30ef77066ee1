use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use md5::{Digest, Md5};
use proptest::prelude::*;

use super::*;
use crate::archive::Compression;
use crate::archive::vma::{CLUSTER, EXTENT_HEADER, ExtentHead, Extents};
use crate::image::MemTarget;
use crate::testdata;
use crate::transfer::Backup;

const UUID: [u8; 16] = *b"0123456789abcdef";
const ZSTD: Compression = Compression::Zstd { threads: 1 };
const GZIP: Compression = Compression::Gzip { threads: 1 };

/// Two disks: one of several extents, of awkward length and with zeros in between, and a small one.
fn disks() -> &'static [Vec<u8>; 2] {
    static DISKS: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    DISKS.get_or_init(make_disks)
}

fn make_disks() -> [Vec<u8>; 2] {
    let mut state = 7u64;
    let mut noise = |len: usize| {
        let byte = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8 | 1
        };
        (0..len).map(byte).collect::<Vec<u8>>()
    };
    let mut first = noise(11 * (1 << 20) + 1000);
    first[5 << 20..(5 << 20) + 20_000].fill(0);
    let mut second = noise(500_000);
    second[150_000..400_000].fill(0);
    [first, second]
}

/// Plain, as zstd frames, as gzip members.
fn archive(compression: Compression) -> &'static Vec<u8> {
    static ARCHIVES: OnceLock<[Vec<u8>; 3]> = OnceLock::new();
    let all = ARCHIVES.get_or_init(|| [Compression::None, ZSTD, GZIP].map(make));
    &all[[Compression::None, ZSTD, GZIP].iter().position(|c| *c == compression).unwrap()]
}

/// The plain one as a single zstd frame, and as a single gzip member.
fn foreign() -> [Vec<u8>; 2] {
    let plain = archive(Compression::None);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(plain).unwrap();
    let mut zstd = zstd::Encoder::new(Vec::new(), 1).unwrap();
    // As the program does.
    zstd.include_checksum(true).unwrap();
    zstd.write_all(plain).unwrap();
    [zstd.finish().unwrap(), gzip.finish().unwrap()]
}

fn make(compression: Compression) -> Vec<u8> {
    let [first, second] = disks().clone();
    let disks = vec![testdata::disk("drive-scsi0", first), testdata::disk("drive-scsi1", second)];
    let configs = vec![("qemu-server.conf".into(), b"memory: 512\n".to_vec())];
    let job = testdata::job(disks, compression);
    testdata::archive(&Backup { configs, uuid: UUID, ctime: 1_800_000_000, max_workers: 1, ..job })
}

/// Where the extents of a plain archive are, and what is in them.
fn extents(plain: &[u8]) -> Vec<(usize, ExtentHead)> {
    let (_, start) = Header::read(&mut &plain[..]).unwrap();
    let extents = Extents::new(&plain[start as usize..], &UUID, start).map(Result::unwrap);
    extents.map(|extent| (extent.offset as usize, extent.head)).collect()
}

struct Saved {
    losses: Losses,
    targets: [Arc<MemTarget>; 2],
    header: Header,
}

/// Salvages, onto targets that hold something else before.
fn salvage(bytes: &[u8]) -> Saved {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let host = Host::with_root(PathBuf::from("/"));
    let wreck = Wreck::open(&host, file.path(), &Cancel::new()).unwrap();
    let header = wreck.header().clone();
    let target = |number: usize| Arc::new(MemTarget::new("t", disks()[number].len() as u64, number == 1));
    let targets = [target(0), target(1)];
    let map: BTreeMap<u8, Arc<dyn Target>> =
        targets.iter().zip(1..).map(|(t, id)| (id, Arc::clone(t) as Arc<dyn Target>)).collect();
    let losses = wreck.save(&map, None, &mut |_, _| {}).unwrap();
    Saved { losses, targets, header }
}

impl Saved {
    /// What is called saved is right, and what is called lost is zero; the maps say the same.
    fn check(&self) {
        for (number, (wanted, target)) in disks().iter().zip(&self.targets).enumerate() {
            let (mut wanted, id) = (wanted.clone(), number as u8 + 1);
            for loss in self.losses.lost.iter().filter(|loss| loss.device == id) {
                wanted[loss.range.start as usize..loss.range.end as usize].fill(0);
            }
            let content = target.content();
            let wrong = || wanted.iter().zip(&content).position(|(a, b)| a != b);
            assert!(wanted == content, "disk {id} at {:?}: {:?}", wrong(), self.losses);
            let map = self.losses.map(&self.header, self.header.device(id).unwrap());
            let lost = self.losses.lost.iter().any(|loss| loss.device == id);
            assert_eq!(map.is_some(), lost);
            let mut at = 0;
            for line in map.iter().flat_map(|map| map.lines().skip_while(|line| !line.contains("size  status")).skip(1))
            {
                let mut words = line.split_whitespace();
                let mut number = || u64::from_str_radix(words.next().unwrap().trim_start_matches("0x"), 16).unwrap();
                assert_eq!(number(), at, "{line}");
                at += number();
                assert!(matches!(words.next(), Some("+" | "-")));
            }
            assert!(at == 0 || at == wanted.len() as u64);
        }
    }

    /// Disk, first byte, end, reason and offset of what is lost.
    fn lost(&self) -> Vec<(u8, u64, u64, &str, Option<u64>)> {
        let tuple = |l: &'_ Loss| (l.device, l.range.start, l.range.end, l.offset);
        self.losses
            .lost
            .iter()
            .map(|l| (tuple(l), l.reason.as_str()))
            .map(|((d, s, e, o), r)| (d, s, e, r, o))
            .collect()
    }
}

/// The clusters of an extent as ranges of bytes: those of one disk are neighbours here.
fn bytes_of(head: &ExtentHead) -> (u8, u64, u64) {
    let (first, last) = (head.pieces[0], head.pieces[head.pieces.len() - 1]);
    assert!(
        head.pieces.iter().enumerate().all(|(i, p)| p.number == first.number + i as u32 && p.device == first.device)
    );
    let size = disks()[usize::from(first.device) - 1].len() as u64;
    let cluster = CLUSTER as u64;
    (first.device, u64::from(first.number) * cluster, size.min((u64::from(last.number) + 1) * cluster))
}

/// Puts the checksum of a changed extent's header right.
fn seal(head: &mut [u8]) {
    head[24..40].fill(0);
    let sum: [u8; 16] = Md5::digest(&head[..EXTENT_HEADER]).into();
    head[24..40].copy_from_slice(&sum);
}

#[test]
fn what_is_whole_is_saved_whole() {
    let [zstd, gzip] = foreign();
    for bytes in [archive(Compression::None), archive(ZSTD), archive(GZIP), &zstd, &gzip] {
        let saved = salvage(bytes);
        saved.check();
        assert!(saved.losses.is_empty() && saved.losses.damages.is_empty(), "{:?}", saved.losses);
    }
}

#[test]
fn a_damaged_header_costs_its_extent() {
    let good = archive(Compression::None);
    for (number, (at, head)) in extents(good).into_iter().enumerate() {
        let (device, start, end) = bytes_of(&head);
        let mut bytes = good.clone();
        bytes[at + 100] ^= 4;
        let saved = salvage(&bytes);
        saved.check();
        let reason = "the extent header's checksum does not match";
        assert_eq!(saved.lost(), [(device, start, end, reason, Some(at as u64))], "extent {number}");
        assert_eq!(saved.losses.damages, [format!("archive byte {at}: {reason}")]);

        // An extent of another archive in its place.
        let mut bytes = good.clone();
        bytes[at + 8] ^= 1;
        seal(&mut bytes[at..]);
        let saved = salvage(&bytes);
        saved.check();
        let reason = "the extent belongs to another archive (its UUID differs)";
        assert_eq!(saved.lost(), [(device, start, end, reason, Some(at as u64))], "extent {number}");

        // None at all.
        let mut bytes = good.clone();
        bytes.drain(at..at + head.len());
        let saved = salvage(&bytes);
        saved.check();
        assert_eq!(saved.lost(), [(device, start, end, "the archive does not have it", None)], "extent {number}");

        // The same one twice.
        let mut bytes = good.clone();
        bytes.extend_from_slice(&good[at..at + head.len()]);
        let saved = salvage(&bytes);
        saved.check();
        assert!(saved.losses.lost.is_empty() && saved.losses.doubtful);
        let first = head.pieces[0].number;
        let said = &saved.losses.damages[0];
        assert!(
            said.contains(&format!(
                "cluster {first} of drive-scsi{} comes a second time; the first one is kept",
                device - 1
            )),
            "{said}"
        );
    }
}

#[test]
fn bytes_that_are_missing_or_too_many_cost_their_extent() {
    let good = archive(Compression::None);
    let all = extents(good);
    for (at, head) in &all {
        let (device, start, end) = bytes_of(head);
        let wanted = [(device, start, end, "bytes are missing or too many within an extent", Some(*at as u64))];
        let middle = at + EXTENT_HEADER + 9000;
        for gone in [1, 4096] {
            let mut bytes = good.clone();
            bytes.drain(middle..middle + gone);
            let saved = salvage(&bytes);
            // Of the last extent nobody can tell that from an end that is cut.
            if *at == all[all.len() - 1].0 {
                assert!(!saved.losses.is_empty());
            } else {
                saved.check();
                assert_eq!(saved.lost(), wanted, "{gone}");
            }
        }
    }
    let (at, head) = &all[1];
    let mut bytes = good.clone();
    bytes.splice(at + 5000..at + 5000, [7; 4096]);
    let saved = salvage(&bytes);
    saved.check();
    let (device, start, end) = bytes_of(head);
    assert_eq!(saved.lost()[0].0, device);
    assert_eq!((saved.lost()[0].1, saved.lost()[0].2), (start, end));
    // Over the border of two extents, in whole blocks: neither of them is trusted.
    let mut bytes = good.clone();
    bytes.drain(at - 8192..at + 8192);
    let saved = salvage(&bytes);
    saved.check();
    assert!(saved.lost().len() <= 2 && !saved.losses.is_empty(), "{:?}", saved.losses);
}

#[test]
fn of_an_archive_that_is_cut_all_is_saved_that_is_there() {
    let good = archive(Compression::None);
    let all = extents(good);
    let (at, head) = all.iter().find(|(_, head)| head.pieces[0].device == 1 && head.pieces[0].number > 0).unwrap();
    // Two and a half clusters of this extent are there.
    let cut = at + EXTENT_HEADER + 2 * CLUSTER + 30_000;
    let saved = salvage(&good[..cut]);
    saved.check();
    let first = u64::from(head.pieces[0].number) + 2;
    let lost = saved.lost();
    assert_eq!((lost[0].0, lost[0].1, lost[0].4), (1, first * CLUSTER as u64, Some(*at as u64)), "{lost:?}");
    assert_eq!(lost[0].3, "the archive ends in the middle of an extent's data");
    assert_eq!(lost.last().unwrap().2, disks()[usize::from(lost.last().unwrap().0) - 1].len() as u64);
}

#[test]
fn a_header_that_is_damaged_is_used_as_far_as_it_goes() {
    let mut bytes = archive(Compression::None).clone();
    let config = bytes[..16384].windows(6).position(|w| w == b"memory").unwrap();
    bytes[config] = b'n';
    let saved = salvage(&bytes);
    saved.check();
    assert!(saved.losses.lost.is_empty() && saved.losses.doubtful && !saved.losses.is_empty());
    assert!(saved.losses.damages[0].starts_with("the header's checksum does not match"));
    assert_eq!(saved.header.configs[0].1, b"nemory: 512\n");
    // The UUID, which every extent repeats.
    let mut bytes = archive(Compression::None).clone();
    bytes[10] ^= 1;
    let saved = salvage(&bytes);
    saved.check();
    assert!(saved.losses.lost.is_empty() && saved.losses.doubtful);
    let mut bytes = archive(Compression::None).clone();
    bytes[0] = 0;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    assert!(Wreck::open(&Host::with_root("/".into()), file.path(), &Cancel::new()).is_err());
}

#[test]
fn a_damaged_frame_costs_what_the_index_says_is_in_it() {
    for (compression, container) in
        [(ZSTD, crate::archive::frame::Container::Zstd), (GZIP, crate::archive::frame::Container::Gzip)]
    {
        let good = archive(compression);
        let mut read = |buf: &mut [u8], at: u64| {
            buf.copy_from_slice(&good[at as usize..at as usize + buf.len()]);
            Ok(())
        };
        let index = Index::find(container, good.len() as u64, &mut read).unwrap().unwrap();
        let mut offset = 0;
        for (number, frame) in index.iter().enumerate() {
            if number > 0 {
                let mut bytes = good.clone();
                bytes[offset + frame.packed as usize / 2] ^= 0x10;
                let saved = salvage(&bytes);
                saved.check();
                let cluster = CLUSTER as u64;
                let size = disks()[usize::from(frame.device) - 1].len() as u64;
                let (start, end) =
                    (u64::from(frame.first) * cluster, u64::from(frame.first + frame.clusters) * cluster);
                let lost = saved.lost();
                assert_eq!(lost.len(), 1, "{lost:?}");
                assert_eq!(
                    (lost[0].0, lost[0].1, lost[0].2, lost[0].4),
                    (frame.device, start, size.min(end), Some(offset as u64))
                );
                assert!(lost[0].3.starts_with(&format!("frame {number} is damaged: ")), "{}", lost[0].3);

                // The same without an index: what can be is found again behind it.
                let frames: usize = index.iter().map(|frame| frame.packed as usize).sum();
                let saved = salvage(&bytes[..frames]);
                saved.check();
                let within =
                    |l: &Loss| l.device == frame.device && l.range.start >= start && l.range.end <= size.min(end);
                assert!(!saved.losses.lost.is_empty() && saved.losses.lost.iter().all(within), "{:?}", saved.losses);
            }
            offset += frame.packed as usize;
        }
        // Cut: the index is gone with the end.
        let saved = salvage(&good[..good.len() / 2]);
        saved.check();
        let saved_bytes: u64 = saved.losses.lost.iter().map(|l| l.range.end - l.range.start).sum();
        assert!(saved_bytes < 8 << 20, "about half of it is there: {:?}", saved.losses);
    }
}

#[test]
fn foreign_streams_are_saved_up_to_the_damage() {
    let [mut zstd, mut gzip] = foreign();
    let lost = |saved: &Saved| saved.losses.lost.iter().map(|l| l.range.end - l.range.start).sum::<u64>();
    for bytes in [&zstd[..zstd.len() / 2], &gzip[..gzip.len() / 2]] {
        let saved = salvage(bytes);
        saved.check();
        assert!((3 << 20..8 << 20).contains(&lost(&saved)) && saved.losses.doubtful, "{:?}", saved.losses);
    }
    for bytes in [&mut zstd, &mut gzip] {
        let middle = bytes.len() / 2;
        bytes[middle..middle + 64].fill(0xff);
        let saved = salvage(bytes);
        // Perhaps only the checksum tells, at the end.
        assert!(lost(&saved) < 8 << 20 && saved.losses.doubtful && !saved.losses.is_empty(), "{:?}", saved.losses);
    }
}

#[test]
fn frames_of_any_size_are_saved() {
    let plain = archive(Compression::None);
    // Far smaller than an extent, with empty and skippable ones in between, and one that is damaged at the very end.
    let mut packed: Vec<u8> = plain.chunks(30_000).flat_map(|part| zstd::bulk::compress(part, 1).unwrap()).collect();
    let mut mixed = Vec::new();
    for part in plain.chunks(300_000) {
        mixed.extend(zstd::bulk::compress(part, 1).unwrap());
        mixed.extend(zstd::bulk::compress(b"", 1).unwrap().repeat(50));
        mixed.extend(b"\x50\x2a\x4d\x18\0\0\0\0".repeat(50));
    }
    for bytes in [&packed, &mixed] {
        let saved = salvage(bytes);
        saved.check();
        assert!(saved.losses.is_empty() && saved.losses.damages.is_empty(), "{:?}", saved.losses);
    }
    let end = packed.len() - 1000;
    packed[end..].fill(0xff);
    let saved = salvage(&packed);
    saved.check();
    assert!(!saved.losses.lost.is_empty(), "{:?}", saved.losses);
}

#[test]
fn what_cannot_be_read_costs_no_more_than_itself() {
    let good = archive(Compression::None);
    let (header, len) = Header::read(&mut good.as_slice()).unwrap();
    let all = extents(good);
    // Of the first disk, whose first clusters there are whole.
    let (at, head) = all.iter().skip(1).find(|(_, head)| head.pieces[0].device == 1).unwrap();
    assert!(head.pieces[..4].iter().all(|piece| piece.mask == u16::MAX));
    let in_data = at + EXTENT_HEADER + 3 * CLUSTER + 8192;
    let in_header = *at;
    let (device, start, end) = bytes_of(head);
    let cluster = start + 3 * CLUSTER as u64;
    let wanted = [
        (in_data, (device, cluster, cluster + CLUSTER as u64), "the archive cannot be read: EIO", in_data - 8192),
        (in_header, (device, start, end), "expected an extent, found [00, 00, 00, 00]", in_header),
    ];
    for (hole, bytes, reason, offset) in wanted {
        let targets = [0, 1].map(|number: usize| Arc::new(MemTarget::new("t", disks()[number].len() as u64, false)));
        let map: BTreeMap<u8, Arc<dyn Target>> =
            targets.iter().zip(1..).map(|(t, id)| (id, Arc::clone(t) as Arc<dyn Target>)).collect();
        let saver = Saver::new(&header, &map, Checker::new(&header), Book::new(false), Cancel::new(), "a");
        let mut parser = Parser::new(saver, Some(UUID), true);
        parser.skip(len);
        parser.hole(hole as u64..hole as u64 + 512, "EIO");
        let mut read = good.clone();
        read[hole..hole + 512].fill(0);
        for (number, part) in read.chunks(READ).enumerate() {
            parser.feed(part, (number * READ) as u64).unwrap();
        }
        parser.end().unwrap();
        let losses = parser.into_saver().finish().unwrap();
        let saved = Saved { losses, targets, header: header.clone() };
        saved.check();
        assert_eq!(saved.lost(), [(bytes.0, bytes.1, bytes.2, reason, Some(offset as u64))]);
    }
}

/// What the fuzz target `salvage` does, over the corpora of whatever it reads.
#[test]
fn fuzz_corpus() {
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut opened = 0;
    for file in
        ["salvage", "vma", "frame_index"].into_iter().flat_map(|dir| std::fs::read_dir(corpus.join(dir)).unwrap())
    {
        let Ok(wreck) = Wreck::open(&Host::with_root("/".into()), &file.unwrap().path(), &Cancel::new()) else {
            continue;
        };
        opened += 1;
        // Any answer will do, as long as there is one.
        wreck.save(&BTreeMap::new(), None, &mut |_, _| {}).ok();
    }
    assert!(opened > 3, "only {opened} were archives");
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 16, failure_persistence: None, ..ProptestConfig::with_cases(12) })]
    /// Whatever is changed: no panic, no endless loop, and with checksums over all data nothing wrong is called right.
    #[test]
    fn nothing_wrong_is_called_right(
        kind in 0usize..3,
        places in prop::collection::vec((any::<prop::sample::Index>(), 1usize..2000, any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = archive([Compression::None, ZSTD, GZIP][kind]).clone();
        for (at, len, value) in &places {
            // The list of disks has to be there.
            let at = 16384 + at.index(bytes.len() - 16384);
            let end = bytes.len().min(at + len);
            bytes[at..end].fill(*value);
        }
        if let Some(cut) = &cut {
            bytes.truncate(16384 + cut.index(bytes.len() - 16384));
        }
        let saved = salvage(&bytes);
        if kind != 0 {
            saved.check();
        }
    }
}
