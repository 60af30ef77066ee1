//! Files beside archives from anywhere: refused, or read as they are written. Their checksum is made to fit, so that what stands
//! behind it is looked at.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vzkeep::archive::seek::Beside;

/// Bit by bit: no dependency for so little.
fn crc32(bytes: &[u8]) -> u32 {
    let bit = |sum: u32, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), bit))
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    if bytes.len() >= 16 {
        let sum = crc32(&bytes[16..]);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    }
    if let Ok((beside, made_of)) = Beside::parse(&bytes) {
        let again = beside.bytes(&made_of);
        assert!(Beside::parse(&again).is_ok_and(|read| read == (beside, made_of)));
    }
});
