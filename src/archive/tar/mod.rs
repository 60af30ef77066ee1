//! The tar format as GNU tar writes it: the headers that pass by in a stream, whether they may be unpacked, and where each
//! member lies.
//!
//! [`Walker`] reads the headers, [`Vetting`] decides about them. Neither creates anything: GNU tar makes archives and
//! unpacks them, this says what is in them. Nothing is allocated because an archive says so; bytes have to be there first.

mod archive;
mod attributes;
mod below;
mod content;
mod header;
mod map;
mod pax;
mod source;
mod sparse;
mod table;
mod vet;
mod walk;

use crate::archive::frame::{Container, unwrap};

pub use archive::{Listed, MemberError, TarArchive};
pub use attributes::Attributes;
pub(crate) use content::{Content, TarBytes};
pub(crate) use source::TarInput;
pub use source::TarSource;
pub use table::TableBuilder;
pub(crate) use table::sign;
pub use vet::{Rules, Vetting};
pub use walk::Walker;

/// Bytes of a tar block: headers are one, data is filled up to whole ones.
pub const BLOCK: usize = 512;

/// Tar data cannot be read, or must not be unpacked. Offsets count the bytes of the plain tar data.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// A header is damaged or of a kind nobody knows.
    #[error("the tar data is damaged at byte {offset}: {what}")]
    Damaged {
        /// Of the header.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The end is missing.
    #[error("the tar data ends at byte {offset} without the mark that ends an archive")]
    Truncated {
        /// Where it ends.
        offset: u64,
    },
    /// Unpacking the member could write outside of the target, or do other harm.
    #[error("the member '{name}' at byte {offset} of the tar data is refused: {why}")]
    Refused {
        /// Its name, made printable.
        name: String,
        /// Of its first header.
        offset: u64,
        /// The reason.
        why: String,
    },
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name of a member before it.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Character,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// The label of a volume, which is no file.
    Label,
    /// Something else, with its type flag.
    Other(u8),
}

/// Where the data of a member goes in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// One piece.
    Whole,
    /// Pieces of (offset, length) in the file, one behind the other in the archive. Empty unless maps were asked for.
    Pieces(Vec<(u64, u64)>),
    /// Pieces that a map at the start of the data names (GNU sparse format 1.0).
    MapInData,
}

/// A member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name as it stands in the archive.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Where a link leads; else empty.
    pub link: Vec<u8>,
    /// Bytes of the file, holes included.
    pub size: u64,
    /// Bytes of data in the archive, without what fills the last block.
    pub stored: u64,
    /// Where its first header starts.
    pub offset: u64,
    /// Where its data starts.
    pub data: u64,
    /// What the data is.
    pub layout: Layout,
    /// What else is said about the file; none unless it was asked for.
    pub attributes: Option<Box<Attributes>>,
}

/// A name for messages: what cannot be printed is escaped, and a very long one is cut.
pub fn printable(name: &[u8]) -> String {
    const LONGEST: usize = 300;
    let text = match std::str::from_utf8(name) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => name.escape_ascii().to_string(),
    };
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// The parts of a name that count: no `.`, no empty ones.
pub fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// The name without `./`, double and trailing slashes; empty for the top directory.
pub fn normal(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for part in components(path) {
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(part);
    }
    out
}

/// Does with any bytes what is done with an archive: walks it, vets it, makes a table of it, reads that back. For fuzzing.
#[doc(hidden)]
pub fn rehearse(bytes: &[u8]) {
    let (mut walker, mut vetting) = (Walker::new(), Vetting::new(Rules { devices: false }));
    let mut table = TableBuilder::new();
    let mut members = 0;
    let walked = walker.feed(bytes, &mut |member| {
        members += 1;
        table.push(&member);
        vetting.check(&member)
    });
    assert!(walker.offset() <= bytes.len() as u64 && members <= bytes.len() / BLOCK);
    if walked.is_ok() {
        walker.finish().unwrap_or_default();
    }
    // The same with all that can be known of the members.
    Walker::at_member(0).feed(bytes, &mut |_| Ok(())).unwrap_or_default();
    // Without one when a name is too long.
    if let Ok(parts) = table.finish(Container::Zstd) {
        let payloads = parts.flatten().filter_map(|part| unwrap(Container::Zstd, &part));
        let blocks = payloads.filter_map(|payload| table::unsealed(b'B', &payload));
        let found: usize = blocks.filter_map(|block| table::entries(&block)).map(|entries| entries.len()).sum();
        assert_eq!(found, members);
    }
    // And as if they were a table.
    table::entries(bytes);
    table::root(bytes);
    table::unsealed(b'B', bytes);
    sparse::expand(bytes);
}

#[cfg(test)]
mod tests;
