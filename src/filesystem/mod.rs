//! What lies on a disk: partitions, logical volumes and the files of file systems, read from any [`Image`] without
//! mounting anything.
//!
//! Every byte comes from outside: what is read is bounded, what is damaged is named, nothing is ever written. What a
//! disk is part of is not known here.

mod bytes;
mod cache;
mod content;
mod error;
mod ext;
mod fat;
mod files;
mod guestfish;
mod lvm;
mod machine;
mod ntfs;
mod partition;
mod probe;

pub use cache::Cached;
pub use content::Content;
pub use error::FsError;
#[doc(hidden)]
pub use files::read_everything;
pub use files::{Entry, FileKind, FileSystem, Metadata, Node, lookup, open, resolve};
pub use guestfish::Guestfish;
pub use lvm::{LogicalVolume, VolumeGroup, volume_groups};
pub use machine::{Machine, Place};
pub use partition::{Partition, Table, partition_table, partitions};
pub use probe::{Found, probe};

/// Does with any bytes what is done with a disk: looks for partitions, volumes and files. For fuzzing.
#[doc(hidden)]
pub fn rehearse(bytes: &[u8]) {
    partition::rehearse(bytes);
    lvm::rehearse(bytes);
    let disk = crate::image::MemImage::new("disk", bytes.to_vec());
    if let Ok(fs) = open(std::sync::Arc::new(disk)) {
        read_everything(&*fs, 50);
    }
}
