//! One header block: checksum, numbers, names. Layouts: POSIX.1-1988 (ustar), GNU tar's manual, "Basic Tar Format".

use super::{Attributes, BLOCK};

/// A header block whose checksum is right.
pub(super) struct Header<'a>(&'a [u8; BLOCK]);

/// The layouts that differ in what follows the link name.
#[derive(PartialEq, Eq)]
pub(super) enum Magic {
    /// Of 1979: nothing follows.
    V7,
    /// POSIX: a prefix for the name.
    Ustar,
    /// GNU tar before POSIX: sparse maps.
    Gnu,
}

impl<'a> Header<'a> {
    /// Checks the checksum, of unsigned or, as some programs made it, of signed bytes.
    pub(super) fn parse(block: &'a [u8; BLOCK]) -> Result<Self, String> {
        let wanted = number(&block[148..156]).map_err(|why| format!("its checksum {why}"))?;
        let (mut unsigned, mut signed) = (8 * i64::from(b' '), 8 * i64::from(b' '));
        for (at, byte) in block.iter().enumerate() {
            if !(148..156).contains(&at) {
                unsigned += i64::from(*byte);
                signed += i64::from(byte.cast_signed());
            }
        }
        if wanted.cast_signed() != unsigned && wanted.cast_signed() != signed {
            return Err(format!("the checksum of the header is {wanted}, but should be {unsigned}"));
        }
        Ok(Self(block))
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn magic(&self) -> Magic {
        match &self.0[257..265] {
            b"ustar  \0" => Magic::Gnu,
            other if other.starts_with(b"ustar\0") => Magic::Ustar,
            _ => Magic::V7,
        }
    }

    pub(super) fn size(&self) -> Result<u64, String> {
        number(&self.0[124..136]).map_err(|why| format!("its size {why}"))
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = text(&self.0[345..500]);
        if prefix.is_empty() || self.magic() != Magic::Ustar {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    /// Owner, permissions, time and device; what is no number is 0.
    pub(super) fn attributes(&self) -> Attributes {
        let field = |at: usize, len: usize| number(&self.0[at..at + len]).unwrap_or_default();
        let small = |at, len| u32::try_from(field(at, len)).unwrap_or_default();
        // Times before 1970 are binary, with all bits of the sign set.
        let mtime = match self.0[136] {
            0xff => self.0[140..148].iter().fold(-1, |value: i64, byte| value << 8 | i64::from(*byte)),
            _ => i64::try_from(field(136, 12)).unwrap_or_default(),
        };
        Attributes {
            mode: (field(100, 8) & 0o7777) as u16,
            uid: small(108, 8),
            gid: small(116, 8),
            mtime: (mtime, 0),
            device: (small(329, 8), small(337, 8)),
            ..Attributes::default()
        }
    }

    /// The size of the file in an old GNU sparse header.
    pub(super) fn real_size(&self) -> Result<u64, String> {
        number(&self.0[483..495]).map_err(|why| format!("its real size {why}"))
    }

    /// The first pieces of an old GNU sparse header, and whether blocks with more follow.
    pub(super) fn pieces(&self) -> Result<(Vec<(u64, u64)>, bool), String> {
        pieces(&self.0[386..482], self.0[482])
    }
}

/// The pieces in a block that extends an old GNU sparse header, and whether more follow.
pub(super) fn more_pieces(block: &[u8; BLOCK]) -> Result<(Vec<(u64, u64)>, bool), String> {
    pieces(&block[..504], block[504])
}

/// GNU tar does not look at the flag that more follow when there is room left in front of it.
fn pieces(bytes: &[u8], more: u8) -> Result<(Vec<(u64, u64)>, bool), String> {
    let mut found = Vec::new();
    for entry in bytes.chunks_exact(24) {
        // The first one without a length field is the end.
        if entry[12] == 0 {
            if more != 0 {
                return Err("the map of a sparse file goes on behind its end".to_owned());
            }
            break;
        }
        let number = |bytes| number(bytes).map_err(|why| format!("a piece of the sparse file {why}"));
        found.push((number(&entry[..12])?, number(&entry[12..])?));
    }
    Ok((found, more != 0))
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits between spaces and NULs, or, with the first bit set, a binary number.
fn number(field: &[u8]) -> Result<u64, String> {
    let bad = || format!("is no number: '{}'", field.escape_ascii());
    match field.split_first() {
        Some((0x80, rest)) => {
            let (high, low) = rest.split_at(rest.len().saturating_sub(8));
            if high.iter().any(|byte| *byte != 0) || low.first().is_some_and(|byte| *byte > 0x7f) {
                return Err(bad());
            }
            return Ok(low.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)));
        }
        Some((0x81.., _)) | None => return Err(bad()),
        _ => {}
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|byte| matches!(byte, b' ' | 0)).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    if !rest.iter().all(|byte| matches!(byte, b' ' | 0)) {
        return Err(bad());
    }
    // Twelve digits of three bits fit.
    digits.iter().try_fold(0, |value, digit| match digit {
        b'0'..=b'7' => Ok(value << 3 | u64::from(digit - b'0')),
        _ => Err(bad()),
    })
}
