//! Restore: from an archive to a guest on this node. [`plan`] decides, without touching anything; [`execute`] carries the
//! plan out so that at every instant there is either the old guest or the new one, and undoes everything if it fails.

pub mod execute;
pub mod plan;
pub mod volumes;
