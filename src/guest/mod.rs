//! What is backed up, and what must be true about it whatever happens to us: a VM's disks and power switch, the record of
//! what a run did to a guest, the guardian beside the run, and the recovery that undoes what a killed run left.

pub mod actions;
pub mod commands;
pub mod conffile;
pub mod container;
pub mod fleecing;
pub mod guard;
pub mod held;
pub mod monitor;
pub mod pbs;
pub mod power;
pub mod record;
pub mod recover;
pub mod unlock;
pub mod vm;
