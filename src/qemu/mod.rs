//! Running QEMU processes: the monitor, the guest agent, and the point in time of a running guest.
//!
//! [`Session`] fixes all disks of a guest at one instant and exports them over NBD; [`sweep`] finds and removes
//! whatever an earlier session left behind in the process. Both use the monitor ([`Qmp`]) in short batches, because
//! everybody else on the node needs the same socket. Reading the exports is the work of the NBD client, not of this
//! module. Everything we create inside QEMU carries the prefix `vzkeep-`.

mod agent;
mod broken;
mod disks;
mod error;
mod features;
mod fleecing;
mod moving;
mod names;
mod nodes;
mod qmp;
mod session;
mod socket;
mod sweep;
mod switch;

pub use agent::{Agent, FreezeStatus, FsFreeze};
pub use broken::Broken;
pub use error::QemuError;
pub use fleecing::{Fleecing, FleecingFormat, remove_stale_files};
pub use moving::{Move, MoveError, Moving, Progress, Way};
pub use qmp::Qmp;
pub use session::{AroundInstant, DiskSpec, Export, Moment, Session, SessionSpec};
pub use sweep::{Swept, sweep};

#[cfg(test)]
mod tests;
