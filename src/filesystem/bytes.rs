//! Little numbers out of raw bytes. Outside of the bytes everything is zero: callers check sizes where it matters, and a
//! hostile offset is never a panic.

/// The `N` bytes from `at` on, zeros behind the end.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    if let Some(found) = at.checked_add(N).and_then(|end| bytes.get(at..end)) {
        out.copy_from_slice(found);
    }
    out
}

pub(super) fn u8_at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(super) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

/// A name for messages: what cannot be printed is escaped.
pub(super) fn shown(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => name.escape_ascii().to_string(),
    }
}

/// Whether `text` stands at `at`.
pub(super) fn is_at(bytes: &[u8], at: usize, text: &[u8]) -> bool {
    at.checked_add(text.len()).and_then(|end| bytes.get(at..end)) == Some(text)
}

/// UTF-16 as bytes: UTF-8, and halves of pairs that stand alone in the same way, so that every name has one spelling.
pub(super) fn utf16(units: impl Iterator<Item = u16>) -> Vec<u8> {
    let mut out = Vec::new();
    for decoded in char::decode_utf16(units) {
        match decoded {
            Ok(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            Err(e) => {
                let unit = e.unpaired_surrogate();
                let last = |shift: u16| 0x80 | ((unit >> shift) & 0x3f) as u8;
                out.extend_from_slice(&[0xe0 | (unit >> 12) as u8, last(6), last(0)]);
            }
        }
    }
    out
}
