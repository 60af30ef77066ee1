//! The lab: starts and stops real things for tests and for the demo. A [`Node`] is a Proxmox-like machine below a root
//! prefix in a temporary directory: configuration, storages, real QEMU guests and LXC containers, and stand-ins for `qm`,
//! `pct`, `pvesm` and the bridge. Inside its guests runs the witness, whose records the [`checker`] looks for in restored
//! disks, inside its containers the diarist, whose entries [`diary_check`] looks for in restored trees. Everything dies with
//! the process that made the node, however that ends.

#![allow(dead_code, unused_imports, reason = "every test uses another part of the lab")]

pub mod aftermath;
pub mod archives;
pub mod cgroup;
pub mod checker;
pub mod clean;
pub mod container;
pub mod container_image;
pub mod container_node;
pub mod demo;
pub mod demo_container;
pub mod diary;
pub mod diary_check;
pub mod file_compare;
pub mod guest;
pub mod guest_image;
pub mod guest_kernel;
pub mod guestfish;
pub mod leash;
pub mod mounted;
pub mod nasty;
pub mod node;
pub mod programs;
pub mod qmp;
pub mod record;
pub mod run;
pub mod serial;
pub mod stand_in;
pub mod system_guest;
pub mod thin;
pub mod tree_compare;
pub mod trip;

pub use container::Container;
pub use guest::{Format, Guest, gib, kib, mib};
pub use node::Node;
pub use programs::require;
pub use run::Output;
pub use trip::Dice;
