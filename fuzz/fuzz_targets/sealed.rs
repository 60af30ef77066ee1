//! Checksums of VMA archives, so that fuzzing gets behind them: one that is all zeros is made to fit.

use md5::{Digest, Md5};

const HEADER_SUM: usize = 32;
const EXTENT_SUM: usize = 24;
const EXTENT_HEADER: usize = 512;

/// `data` with checksums in place of zeros.
pub fn sealed(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    let len = bytes.get(56..60).map_or(0, |size| size.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)));
    if bytes.starts_with(b"VMA\0") && len <= bytes.len() {
        seal(&mut bytes[..len], HEADER_SUM);
    }
    for at in 0..bytes.len().saturating_sub(EXTENT_HEADER - 1) {
        if bytes[at..].starts_with(b"VMAE") {
            seal(&mut bytes[at..at + EXTENT_HEADER], EXTENT_SUM);
        }
    }
    bytes
}

fn seal(bytes: &mut [u8], at: usize) {
    if bytes.get(at..at + 16).is_some_and(|sum| sum.iter().all(|byte| *byte == 0)) {
        let sum = Md5::digest(&*bytes);
        bytes[at..at + 16].copy_from_slice(&sum);
    }
}
