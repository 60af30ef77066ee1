//! The compressed containers: independent frames (zstd frames, gzip members) one behind the other, and an index at the
//! end that stock programs skip.
//!
//! Every frame holds whole VMA extents, the first one the VMA header. That is what lets restore work on many frames at
//! once and a reader find one cluster. Nothing relies on the index being there or being right: without a good one the
//! container is read as the one stream it is.

mod gzip;
mod index;
mod pack;
#[cfg(test)]
mod tests;

pub use index::{Frame, Index, IndexBuilder, IndexError};
pub use pack::{Packer, Unpacker};

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
