//! Where archives live.

mod draft;

pub use draft::{Draft, DraftError};
