//! The compressed containers: independent frames (zstd frames, gzip members) one behind the other, and an index at the
//! end that stock programs skip.
//!
//! Every frame of a VMA holds whole extents, the first one the VMA header; frames of tar data begin with a member where
//! that is possible. That is what lets restore work on many frames at once and a reader find one cluster or one file: for
//! files there is a table of members between the frames and the index, which stock programs skip, too. Nothing relies on the index being there or being right: without a good one the
//! container is read as the one stream it is.

mod gzip;
mod index;
mod pack;
mod places;
#[cfg(test)]
mod tests;

pub use index::{Frame, Index, IndexBuilder, IndexError, TAR_ID, unwrap, wrap};
pub use pack::{Packer, Unpacker};
pub use places::{Placed, Places};

/// Bytes of raw data in the largest frame, the first excepted: an extent of 59 full clusters and what zero extents may
/// follow it.
pub const MAX_FRAME: usize = 6 << 20;

/// The containers that are written in frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// `.zst`
    Zstd,
    /// `.gz`
    Gzip,
}
