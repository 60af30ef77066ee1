//! What lies on a disk: partitions, logical volumes and the files of file systems, read from any [`Image`] without
//! mounting anything.
//!
//! Every byte comes from outside: what is read is bounded, what is damaged is named, nothing is ever written. What a
//! disk is part of is not known here.

mod bytes;
mod error;
mod partition;
mod probe;

pub use error::FsError;
#[doc(hidden)]
pub use partition::rehearse;
pub use partition::{Partition, Table, partition_table, partitions};
pub use probe::{Found, probe};
