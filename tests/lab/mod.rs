//! The lab: starts and stops real things for tests and for the demo. A [`Node`] is a Proxmox-like machine below a root
//! prefix in a temporary directory: configuration, storages, real QEMU guests, and stand-ins for `qm`, `pvesm` and the
//! bridge. Inside its guests runs the witness, whose records the [`checker`] looks for in restored disks. Everything dies
//! with the process that made the node, however that ends.

#![allow(dead_code, unused_imports, reason = "every test uses another part of the lab")]

pub mod aftermath;
pub mod checker;
pub mod clean;
pub mod demo;
pub mod guest;
pub mod guest_image;
pub mod guest_kernel;
pub mod leash;
pub mod node;
pub mod programs;
pub mod qmp;
pub mod record;
pub mod run;
pub mod serial;
pub mod stand_in;
pub mod trip;

pub use guest::{Format, Guest, gib, kib, mib};
pub use node::Node;
pub use programs::require;
pub use run::Output;
pub use trip::Dice;
