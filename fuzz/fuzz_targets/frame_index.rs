//! Containers whose index comes from anywhere: found, refused or not there, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vzkeep::archive::frame::{Container, Index};

/// Bit by bit: no dependency for so little.
fn crc32(bytes: &[u8]) -> u32 {
    let bit = |sum: u32, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), bit))
}

/// The same as the body of an index behind `frames` bytes, with all around it as it has to be.
fn wrapped(frames: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; frames.into()];
    bytes.extend(0x184d_2a56_u32.to_le_bytes());
    bytes.extend((body.len() as u32 + 32).to_le_bytes());
    let mut summed = body.to_vec();
    summed.extend((body.len() as u64).to_le_bytes());
    summed.extend(u64::from(frames).to_le_bytes());
    let sum = crc32(&summed);
    bytes.extend(summed);
    bytes.extend([sum, 1].map(u32::to_le_bytes).concat());
    bytes.extend(b"vzkeepND");
    bytes
}

fn find(container: Container, data: &[u8]) {
    let found = Index::find(container, data.len() as u64, &mut |buf, offset| {
        let from = data.get(offset as usize..).and_then(|d| d.get(..buf.len()));
        buf.copy_from_slice(from.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    });
    if let Ok(Some(index)) = found {
        assert!(index.iter().map(|f| u64::from(f.packed)).sum::<u64>() < data.len() as u64);
    }
}

fuzz_target!(|data: &[u8]| {
    find(Container::Zstd, data);
    find(Container::Gzip, data);
    if let Some((frames, body)) = data.split_first() {
        find(Container::Zstd, &wrapped(*frames, body));
    }
});
