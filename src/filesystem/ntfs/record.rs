//! A record of the table of files, and the attributes in it.

use super::{FsError, NUMBER, damaged};
use crate::filesystem::bytes::{is_at, le16, le32, le64, u8_at, utf16};

/// Bytes whose last two are kept elsewhere, so that a write that was cut off shows.
const STRIDE: usize = 512;

/// Where an attribute lies that does not stand in its record.
#[derive(Debug, Clone)]
pub(super) struct Outside {
    /// First cluster of this part.
    pub first: u64,
    /// Bytes of all parts.
    pub size: u64,
    /// Bytes of them that were written.
    pub valid: u64,
    /// Clusters of a unit of compression, as a power of two; 0 without.
    pub unit: u16,
}

/// An attribute.
#[derive(Debug, Clone)]
pub(super) struct Attribute {
    kind: u32,
    name: Vec<u8>,
    flags: u16,
    bytes: Vec<u8>,
    /// None when it stands in the record.
    pub outside: Option<Outside>,
}

impl Attribute {
    pub fn is(&self, kind: u32, name: &str) -> bool {
        self.kind == kind && self.name == name.as_bytes()
    }

    pub fn is_compressed(&self) -> bool {
        self.flags & 0xff == 1
    }

    pub fn is_encrypted(&self) -> bool {
        self.flags & 0x4000 != 0
    }

    /// Its value, when it stands in the record.
    pub fn value(&self) -> &[u8] {
        if self.outside.is_some() {
            return &[];
        }
        let (len, at) = (le32(&self.bytes, 0x10) as usize, usize::from(le16(&self.bytes, 0x14)));
        self.bytes.get(at..at.saturating_add(len)).unwrap_or_default()
    }

    /// The list of its pieces, when it does not.
    pub fn runs(&self) -> &[u8] {
        self.bytes.get(usize::from(le16(&self.bytes, 0x20))..).unwrap_or_default()
    }
}

/// A record.
pub(super) struct Record {
    pub in_use: bool,
    pub is_directory: bool,
    pub links: u64,
    /// The file it is a further record of; 0 when it is a file's first.
    pub base: u64,
    pub attributes: Vec<Attribute>,
}

impl Record {
    pub fn parse(mut raw: Vec<u8>, number: u64) -> Result<Self, FsError> {
        let wrong = || damaged(format!("record {number} of its table of files makes no sense"));
        if !is_at(&raw, 0, b"FILE") || !fix_up(&mut raw) {
            return Err(wrong());
        }
        let flags = le16(&raw, 0x16);
        let mut at = usize::from(le16(&raw, 0x14));
        let used = (le32(&raw, 0x18) as usize).min(raw.len());
        let mut attributes = Vec::new();
        while le32(&raw[..used], at) != u32::MAX && at + 16 <= used {
            let len = le32(&raw, at + 4) as usize;
            let bytes = raw.get(at..at.saturating_add(len)).filter(|bytes| bytes.len() >= 16).ok_or_else(wrong)?;
            let (name_at, name_len) = (usize::from(le16(bytes, 10)), 2 * usize::from(u8_at(bytes, 9)));
            let name = bytes.get(name_at..name_at + name_len).ok_or_else(wrong)?;
            let outside = (u8_at(bytes, 8) != 0).then(|| Outside {
                first: le64(bytes, 0x10),
                size: le64(bytes, 0x30),
                valid: le64(bytes, 0x38),
                unit: le16(bytes, 0x22),
            });
            if outside.as_ref().is_some_and(|outside| outside.size >= 1 << 60 && outside.first == 0) {
                return Err(wrong());
            }
            let name = utf16(name.chunks_exact(2).map(|unit| le16(unit, 0)));
            attributes.push(Attribute {
                kind: le32(bytes, 0),
                name,
                flags: le16(bytes, 12),
                bytes: bytes.to_vec(),
                outside,
            });
            at += len;
        }
        Ok(Self {
            in_use: flags & 1 != 0,
            is_directory: flags & 2 != 0,
            links: le16(&raw, 0x12).into(),
            base: le64(&raw, 0x20) & NUMBER,
            attributes,
        })
    }
}

/// Puts the last two bytes of every 512 back in place; false when what stands there is not what has to.
pub(super) fn fix_up(raw: &mut [u8]) -> bool {
    let (at, count) = (usize::from(le16(raw, 4)), usize::from(le16(raw, 6)));
    let Some(saved) = raw.get(at..at + 2 * count).map(<[u8]>::to_vec) else { return false };
    if count != raw.len() / STRIDE + 1 {
        return false;
    }
    saved[2..].chunks_exact(2).zip(raw.chunks_exact_mut(STRIDE)).all(|(real, part)| {
        let matches = part[STRIDE - 2..] == saved[..2];
        part[STRIDE - 2..].copy_from_slice(real);
        matches
    })
}
