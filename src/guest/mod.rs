//! What is backed up, and what must be true about it whatever happens to us: the record of what a run did to a guest,
//! and the recovery that undoes it after the run was killed.

pub mod actions;
pub mod conffile;
pub mod guard;
pub mod monitor;
pub mod record;
pub mod recover;
