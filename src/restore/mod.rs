//! Restore: from an archive to a guest on this node. [`plan`] decides, without touching anything; [`execute`] carries the
//! plan out so that at every instant there is either the old guest or the new one, and undoes everything if it fails.
//! [`live`] carries it out with the guest running from the archive meanwhile.
//! A [`container`] has a plan and a way of its own, because its files come as a stream of members and not as disks.

pub mod container;
pub mod execute;
pub mod folder;
pub mod live;
pub mod plan;
mod seat;
pub mod volumes;
