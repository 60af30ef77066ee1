use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::*;

/// The golden samples; `None` where they are not at hand, which CI does not accept.
pub(crate) fn golden(name: &str) -> Option<Vec<u8>> {
    let root = env!("CARGO_MANIFEST_DIR");
    let dir =
        std::env::var_os("GOLDEN_DIR").map_or_else(|| PathBuf::from(root).join("../shared/golden"), PathBuf::from);
    let bytes = std::fs::read(dir.join("archives").join(name)).ok();
    if bytes.is_none() {
        assert!(std::env::var_os("CI").is_none(), "GOLDEN_DIR has no archives/{name}");
        eprintln!("SKIPPED: no golden archive {name}; set GOLDEN_DIR");
    }
    bytes
}

fn read_all(bytes: &[u8]) -> Result<(Header, Vec<Vec<u8>>), VmaError> {
    let mut reader = Reader::new(bytes)?;
    let header = reader.header().clone();
    let mut disks: Vec<Vec<u8>> = header.devices.iter().map(|d| vec![0; d.size as usize + CLUSTER]).collect();
    let (mut checker, mut buf) = (Checker::new(&header), Vec::new());
    loop {
        let offset = reader.offset();
        let Some(head) = reader.next_extent(&mut buf)? else { break };
        checker.extent(&head, offset)?;
        let mut blocks = buf[EXTENT_HEADER..].chunks(BLOCK);
        for piece in &head.pieces {
            let disk = header.devices.iter().position(|d| d.id == piece.device).unwrap();
            for i in (0..16).filter(|i| piece.mask >> i & 1 == 1) {
                let at = piece.number as usize * CLUSTER + i * BLOCK;
                disks[disk][at..at + BLOCK].copy_from_slice(blocks.next().unwrap());
            }
        }
    }
    checker.finish(reader.offset())?;
    for (disk, device) in disks.iter_mut().zip(&header.devices) {
        disk.truncate(device.size as usize);
    }
    Ok((header, disks))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn golden_archive_reads() {
    let Some(bytes) = golden("two-disks.vma") else { return };
    let (header, disks) = read_all(&bytes).unwrap();
    assert_eq!(header.devices.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["drive-scsi0", "drive-scsi1"]);
    assert_eq!(header.ctime, 1_795_341_418);
    assert_eq!(header.config("qemu-server.fw").unwrap(), b"[OPTIONS]\n\nenable: 1\n");
    assert_eq!(hex(&Sha256::digest(&disks[0])), "8d7d0efb80f98dd454e19ace30725c3bdf3d4ce0589e4bb6157d3c8382516f66");
    assert_eq!(hex(&Sha256::digest(&disks[1])), "c739be9e6b9a3864f7ab8bda6cf818b8a8ecfaa58c994e4de42f529a77c1a68b");
}

/// The stock tool takes clusters of all disks in turn; with its order the bytes are its bytes.
#[test]
fn golden_archives_are_written_to_the_byte() {
    let (Some(two), Some(none)) = (golden("two-disks.vma"), golden("diskless.vma")) else { return };
    let (header, disks) = read_all(&two).unwrap();
    let mut written = header.encode().unwrap();
    let mut extent = vec![0; EXTENT_HEADER];
    let mut clusters = Vec::new();
    for (device, number) in [(1usize, 0), (2, 0), (1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (1, 4)] {
        let disk = &disks[device - 1];
        let from = number * CLUSTER;
        let mut data = disk[from..disk.len().min(from + CLUSTER)].to_vec();
        data.resize(CLUSTER, 0);
        extent.append(&mut data);
        clusters.push(Cluster { device: device as u8, number: number as u32, read: true });
    }
    let encoded = encode_extent(&mut extent, &header.uuid, &clusters);
    written.extend_from_slice(&extent[..encoded.len]);
    assert!(written == two);

    let (header, disks) = read_all(&none).unwrap();
    assert!(disks.is_empty());
    let mut written = header.encode().unwrap();
    let mut extent = [0; EXTENT_HEADER];
    encode_zero_extent(&mut extent, &header.uuid, 0, 0, 0);
    written.extend_from_slice(&extent);
    assert!(written == none);
}

const UUID: [u8; 16] = [9; 16];

fn small_header() -> Header {
    let device = |id, name: &str, size| Device { id, name: name.into(), size };
    let configs = vec![("qemu-server.conf".into(), b"cores: 1\n".to_vec())];
    Header { uuid: UUID, ctime: 1, configs, devices: vec![device(1, "drive-a", 100_000), device(7, "drive-b", 512)] }
}

fn extent(clusters: &[(u8, u32)]) -> Vec<u8> {
    let mut buf = vec![0x55; EXTENT_HEADER + clusters.len() * CLUSTER];
    let clusters: Vec<_> =
        clusters.iter().map(|(device, number)| Cluster { device: *device, number: *number, read: true }).collect();
    let len = encode_extent(&mut buf, &UUID, &clusters).len;
    buf.truncate(len);
    buf
}

fn archive(extents: &[&[(u8, u32)]]) -> Vec<u8> {
    let mut bytes = small_header().encode().unwrap();
    extents.iter().for_each(|e| bytes.append(&mut extent(e)));
    bytes
}

fn damage(bytes: &[u8]) -> (u64, Damage) {
    match read_all(bytes) {
        Err(VmaError::Damaged { offset, damage }) => (offset, damage),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_kind_of_damage_is_named() {
    let good = archive(&[&[(1, 1), (7, 0)], &[(1, 0)]]);
    assert_eq!(read_all(&good).unwrap().0, small_header());
    let head = small_header().encode().unwrap().len();
    let second = head + EXTENT_HEADER + 2 * CLUSTER;
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        damage(&bytes)
    };
    assert_eq!(flipped(0), (0, Damage::HeaderMagic(*b"WMA\0")));
    assert_eq!(flipped(7), (4, Damage::Version(0)));
    assert_eq!(flipped(100), (32, Damage::HeaderChecksum));
    assert_eq!(flipped(56), (good.len() as u64, Damage::Truncated("the header")));
    let mut short = good.clone();
    short[56..60].fill(0);
    assert!(matches!(damage(&short), (56, Damage::HeaderLayout(_))));
    assert_eq!(flipped(second), (second as u64, Damage::ExtentMagic(*b"WMAE")));
    assert_eq!(flipped(second + 10), (second as u64, Damage::ExtentChecksum));

    let other = Header { uuid: [8; 16], ..small_header() }.encode().unwrap();
    assert_eq!(damage(&[&other, &good[head..]].concat()), (head as u64, Damage::ExtentUuid));
    let (unknown, outside, twice) = (archive(&[&[(2, 0)]]), archive(&[&[(1, 2)]]), archive(&[&[(1, 0)], &[(1, 0)]]));
    assert_eq!(damage(&unknown), (head as u64, Damage::UnknownDevice(2)));
    assert!(matches!(damage(&outside), (_, Damage::OutOfRange { cluster: 2, clusters: 2, .. })));
    assert!(matches!(damage(&twice), (_, Damage::Duplicate { cluster: 0, .. })));
    let missing = damage(&good[..second]);
    let expected = Damage::Missing { device: "drive-a".into(), missing: 1, clusters: 2, first: 0, byte: 0 };
    assert_eq!(missing, (second as u64, expected));

    assert_eq!(damage(&good[..5000]), (5000, Damage::Truncated("the header")));
    assert_eq!(damage(&good[..head - 1]), (head as u64 - 1, Damage::Truncated("the header")));
    assert_eq!(damage(&good[..second + 9]), (second as u64 + 9, Damage::Truncated("an extent's header")));
    assert_eq!(damage(&good[..good.len() - 1]), (good.len() as u64 - 1, Damage::Truncated("an extent's data")));
    let garbage = [good.as_slice(), &[0; 700]].concat();
    assert_eq!(damage(&garbage), (good.len() as u64, Damage::ExtentMagic([0; 4])));
    assert_eq!(damage(&[good.as_slice(), b"junk!"].concat()), (good.len() as u64, Damage::ExtentMagic(*b"junk")));
}

#[test]
fn block_count_has_to_fit_the_masks() {
    use md5::{Digest, Md5};
    let mut bytes = archive(&[&[(1, 0), (1, 1), (7, 0)]]);
    let head = small_header().encode().unwrap().len();
    bytes[head + 7] -= 1;
    bytes[head + 24..head + 40].fill(0);
    let sum = Md5::digest(&bytes[head..head + EXTENT_HEADER]);
    bytes[head + 24..head + 40].copy_from_slice(&sum);
    assert_eq!(damage(&bytes), (head as u64, Damage::BlockCount { announced: 47, listed: 48 }));
}

#[test]
fn a_scattered_archive_of_a_huge_disk_stays_small() {
    let mut header = small_header();
    header.devices = (1..=255).map(|id| Device { id, name: format!("d{id}"), size: MAX_DISK }).collect();
    let mut checker = Checker::new(&header);
    let pieces = |device: u8, area: u32| vec![Piece { device, number: area * 32768, mask: 0 }];
    let mut all = (1..=255)
        .flat_map(|device| (0..131_072).map(move |area| ExtentHead { blocks: 0, pieces: pieces(device, area) }));
    assert!(all.by_ref().take(16384).all(|head| checker.extent(&head, 0).is_ok()));
    let refused = checker.extent(&all.next().unwrap(), 0);
    assert!(matches!(refused, Err(VmaError::Damaged { damage: Damage::TooScattered, .. })));
    header.devices[0].size = 1 << 63;
    assert!(matches!(header.encode(), Err(VmaError::Unfit(_))));
}

#[test]
fn what_does_not_fit_is_refused() {
    let unfit = |change: &dyn Fn(&mut Header)| {
        let mut header = small_header();
        change(&mut header);
        assert!(matches!(header.encode(), Err(VmaError::Unfit(_))));
    };
    unfit(&|h| h.configs[0].1 = vec![0; 65536]);
    unfit(&|h| h.configs[0].0 = "../../etc/passwd".into());
    unfit(&|h| h.configs = vec![("a".into(), vec![]); 257]);
    unfit(&|h| h.devices[0].size = 0);
    unfit(&|h| h.devices[1].id = 1);
}

#[test]
fn zero_blocks_are_left_out_in_place() {
    let mut buf = vec![0; EXTENT_HEADER + 3 * CLUSTER];
    let block = |cluster: usize, block: usize| EXTENT_HEADER + cluster * CLUSTER + block * BLOCK;
    buf[block(0, 3) + 4095] = 1;
    buf[block(2, 0)..block(2, 16)].fill(2);
    let cluster = |number, read| Cluster { device: 1, number, read };
    let clusters = [cluster(4, true), cluster(9, false), cluster(5, true), cluster(6, true)];
    let encoded = encode_extent(&mut buf, &UUID, &clusters);
    assert_eq!(encoded, Encoded { len: EXTENT_HEADER + 17 * BLOCK, zero_blocks: 4 * 16 - 17 });
    let head = ExtentHead::parse(&array(&buf, 0), &UUID, 0).unwrap();
    assert_eq!(
        head.pieces.iter().map(|p| (p.number, p.mask)).collect::<Vec<_>>(),
        [(4, 8), (9, 0), (5, 0), (6, 0xffff)]
    );
    assert_eq!(buf[EXTENT_HEADER + BLOCK - 1], 1);
    assert!(buf[EXTENT_HEADER + BLOCK..encoded.len].iter().all(|b| *b == 2));
}

/// What the fuzz target `vma` does, over its corpus.
#[test]
fn fuzz_corpus() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/vma");
    for file in std::fs::read_dir(dir).into_iter().flatten() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        // Any answer will do, as long as there is one.
        let mut reader = match Reader::new(bytes.as_slice()) {
            Ok(reader) => reader,
            Err(_) => continue,
        };
        let (mut checker, mut buf) = (Checker::new(reader.header()), Vec::new());
        while let Ok(Some(head)) = reader.next_extent(&mut buf) {
            if checker.extent(&head, reader.offset()).is_err() {
                break;
            }
        }
    }
}
