//! Empty gzip members that carry bytes in an extra field (RFC 1952, 2.3.1.1), which every gzip reader skips.

/// Identifies our extra field.
const FIELD: [u8; 2] = *b"VZ";
/// Bytes in front of the payload: member header, field length, field name and length.
const HEAD: usize = 16;
/// An empty deflate block, CRC 0 and length 0.
const TAIL: [u8; 10] = [3, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Bytes around the payload.
pub(super) const OVERHEAD: usize = HEAD + TAIL.len();
/// Bytes behind the payload.
pub(super) const BEHIND: usize = TAIL.len();
/// Payload of one member; the field's length has 16 bits.
pub(super) const MAX_PAYLOAD: usize = 65520;

/// Appends a member that carries `payload`, at most [`MAX_PAYLOAD`] bytes.
pub(super) fn add(out: &mut Vec<u8>, payload: &[u8]) {
    let len = payload.len() as u16;
    out.extend_from_slice(&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 3]);
    out.extend_from_slice(&(len + 4).to_le_bytes());
    out.extend_from_slice(&FIELD);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(payload);
    out.extend_from_slice(&TAIL);
}

/// Takes a member that carries a payload off the front of `bytes`. `None` when there is something else.
pub(super) fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    if head[..10] != [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 3] || head[12..14] != FIELD {
        return None;
    }
    let outer = u16::from_le_bytes([head[10], head[11]]);
    let len = u16::from_le_bytes([head[14], head[15]]);
    if outer.checked_sub(4) != Some(len) {
        return None;
    }
    let (payload, rest) = rest.split_at_checked(usize::from(len))?;
    *bytes = rest.strip_prefix(&TAIL)?;
    Some(payload)
}
