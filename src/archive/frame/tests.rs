use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

/// Frames of `parts` and their index; also the plain bytes.
fn build(container: Container, parts: &[Vec<u8>]) -> (Vec<u8>, Vec<u8>) {
    let mut packer = Packer::new(container).unwrap();
    let mut index = IndexBuilder::new([5; 16]);
    let (mut bytes, mut packed) = (Vec::new(), Vec::new());
    for (i, part) in parts.iter().enumerate() {
        packer.pack(part, &mut packed).unwrap();
        let device = u8::from(i > 0);
        let first = 59 * i as u32;
        index.push(Frame::of_clusters(&packed, part.len(), device, first, 59));
        bytes.extend_from_slice(&packed);
    }
    bytes.extend(index.finish(container));
    (bytes, parts.concat())
}

fn find(container: Container, bytes: &[u8]) -> Result<Option<Index>, IndexError> {
    Index::find(container, bytes.len() as u64, &mut |buf, offset| {
        let from = bytes.get(offset as usize..).unwrap_or_default();
        let from = from.get(..buf.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(from);
        Ok(())
    })
}

fn parts() -> Vec<Vec<u8>> {
    vec![b"header".to_vec(), vec![7; 100_000], (0..50_000u32).flat_map(u32::to_le_bytes).collect()]
}

fn check(container: Container, parts: &[Vec<u8>]) {
    let (bytes, plain) = build(container, parts);
    let index = find(container, &bytes).unwrap().unwrap();
    assert_eq!((index.uuid, index.len()), ([5; 16], parts.len()));
    let (mut unpacker, mut offset, mut out) = (Unpacker::new(container).unwrap(), 0, Vec::new());
    for (frame, part) in index.iter().zip(parts) {
        unpacker.unpack(&bytes[offset..offset + frame.packed as usize], frame.raw as usize, &mut out).unwrap();
        assert!(&out == part);
        offset += frame.packed as usize;
    }
    let mut stream = Vec::new();
    match container {
        Container::Zstd => zstd::Decoder::new(bytes.as_slice()).unwrap().read_to_end(&mut stream).unwrap(),
        Container::Gzip => flate2::read::MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut stream).unwrap(),
    };
    assert!(stream == plain);
}

#[test]
fn frames_are_found_and_make_one_stream() {
    for container in [Container::Zstd, Container::Gzip] {
        check(container, &parts());
        // An index of more than one extra field.
        check(container, &vec![vec![1; 10]; 10_000]);
        let (bytes, _) = build(container, &parts());
        let index = find(container, &bytes).unwrap().unwrap();
        let holder = index.iter().find(|f| f.device == 1 && (f.first..f.first + f.clusters).contains(&60));
        assert_eq!(holder.map(|f| f.first), Some(59));
    }
}

#[test]
fn stock_programs_read_it() {
    let dir = tempfile::tempdir().unwrap();
    for (container, name, tests) in [
        (Container::Zstd, "a.zst", &["zstd -q -t", "zstd -q -dc"][..]),
        (Container::Gzip, "a.gz", &["gzip -t", "pigz -t", "gzip -dc", "pigz -dc"][..]),
    ] {
        let (bytes, plain) = build(container, &[parts(), vec![vec![3; 9]; 9000]].concat());
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        for command in tests {
            let mut words = command.split(' ');
            let mut program = Command::new(words.next().unwrap());
            let run = program.args(words).arg(&path).stdin(Stdio::null()).output();
            let Ok(run) = run else {
                eprintln!("SKIPPED: {command} is not installed");
                continue;
            };
            let said = String::from_utf8_lossy(&run.stderr).into_owned();
            assert!(run.status.success() && said.is_empty(), "{command}: {said}");
            assert!(!command.ends_with("-dc") || run.stdout == plain, "{command}");
        }
    }
}

#[test]
fn every_flipped_byte_of_an_index_is_noticed() {
    for container in [Container::Zstd, Container::Gzip] {
        let (good, _) = build(container, &parts());
        let index = find(container, &good).unwrap().unwrap();
        let frames: usize = index.iter().map(|f| f.packed as usize).sum();
        for at in frames..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 0x10;
            // Not found or refused; never a different index.
            match find(container, &bytes) {
                Ok(Some(found)) => assert_eq!(found, index, "byte {at}"),
                Ok(None) | Err(IndexError::Damaged(_)) => {}
                Err(e) => panic!("byte {at}: {e}"),
            }
        }
        assert!(matches!(find(container, &good[1..]), Err(IndexError::Damaged(_))));
        assert!(find(container, &good[..good.len() - 1]).unwrap().is_none());
        assert!(find(container, &[]).unwrap().is_none());
    }
}

#[test]
fn lengths_have_to_be_exact() {
    for container in [Container::Zstd, Container::Gzip] {
        let (mut packed, mut out) = (Vec::new(), Vec::new());
        Packer::new(container).unwrap().pack(&[1; 1000], &mut packed).unwrap();
        let mut unpacker = Unpacker::new(container).unwrap();
        assert!(unpacker.unpack(&packed, 999, &mut out).is_err());
        assert!(unpacker.unpack(&packed, 1001, &mut out).is_err());
        assert!(unpacker.unpack(&packed[..packed.len() - 1], 1000, &mut out).is_err());
        let middle = packed.len() - 6;
        packed[middle] ^= 1;
        assert!(unpacker.unpack(&packed, 1000, &mut out).is_err());
    }
}

/// What the fuzz target `frame_index` does, over its corpus.
#[test]
fn fuzz_corpus() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/frame_index");
    for file in std::fs::read_dir(dir).into_iter().flatten() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        for container in [Container::Zstd, Container::Gzip] {
            if let Ok(Some(index)) = find(container, &bytes) {
                assert!(index.iter().map(|f| u64::from(f.packed)).sum::<u64>() < bytes.len() as u64);
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200), zstd: bool) {
        let container = if zstd { Container::Zstd } else { Container::Gzip };
        find(container, &bytes).ok();
        // With a good trailer in sight.
        let (good, _) = build(container, &[b"x".to_vec()]);
        let mut mixed = bytes.clone();
        mixed.extend_from_slice(&good[good.len().saturating_sub(60)..]);
        find(container, &mixed).ok();
    }
}
