//! vzkeep: one engine that backs up and restores virtual machines, behind the command lines
//! administrators already use.
//!
//! Arrows point one way; nothing below knows the name of a command line above it:
//!
//! `cli` -> `job` -> `guest`, `storage`, `restore`, `notify` -> `archive`, `transfer` -> `filesystem` -> `image`
//! -> `nbd`, `qemu`, `host` -> `config`, `schema`
//!
//! Everything that can be backed up is opened as an [`image::Image`]; everything that was backed up can be read
//! as one again. Backup is a copy from an image to an archive, restore a copy from an archive to a target. What lies on
//! an image, its partitions, volumes and files, is read by [`filesystem`].

pub mod archive;
pub mod cli;
pub mod config;
pub mod filesystem;
pub mod guest;
pub mod host;
pub mod image;
pub mod job;
pub mod mount;
pub mod nbd;
pub mod notify;
pub mod qemu;
pub mod restore;
pub mod schedule;
pub mod schema;
pub mod storage;
#[cfg(test)]
mod testdata;
pub mod transfer;
