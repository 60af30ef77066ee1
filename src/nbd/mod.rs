//! NBD, the protocol in which QEMU hands out disks: wire codec, client and [`server`].
//!
//! The client keeps many requests in flight from many threads over one connection and reads the payload of a reply
//! straight into the buffer of the thread that asked. What a server says is never believed: every length, offset, cookie
//! and count is checked, and a server that breaks the protocol costs the connection, not the process.
//! Specification: `doc/proto.md` of the NBD project.

mod client;
mod error;
mod handshake;
mod reader;
#[doc(hidden)]
pub mod rehearsal;
pub mod reply;
pub mod server;
mod vocabulary;
pub mod wire;

pub use client::{Client, Options};
pub use error::NbdError;
pub use handshake::Export;

/// The meta context that tells data from holes.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// Flag of [`BASE_ALLOCATION`]: the range is not allocated.
pub const STATE_HOLE: u32 = 1;

/// Flag of [`BASE_ALLOCATION`]: the range reads as zeros.
pub const STATE_ZERO: u32 = 2;

/// Flag of `qemu:dirty-bitmap:<name>`: the range was written since the bitmap began.
pub const STATE_DIRTY: u32 = 1;

/// The name of the meta context that shows QEMU's dirty bitmap `bitmap`.
pub fn dirty_bitmap_context(bitmap: &str) -> String {
    format!("qemu:dirty-bitmap:{bitmap}")
}

#[cfg(test)]
mod tests;
