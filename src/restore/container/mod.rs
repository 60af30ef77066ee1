//! Restore of a container: [`plan`] decides which volumes are made and what the config will say, [`execute`] makes them,
//! [`tree`] mounts them in a mount namespace of their own and has GNU tar unpack there what [`members`] reads.

pub mod execute;
pub mod members;
pub mod plan;
pub mod tree;
