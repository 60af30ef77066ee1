//! Where tests find the recordings of the real tools, and the small archives they make themselves.

use std::path::PathBuf;
use std::sync::Arc;

use crate::archive::Compression;
use crate::host::{Cancel, Host};
use crate::image::MemImage;
use crate::transfer::{Backup, BackupDisk, DEFAULT_MEMORY, Output, backup};

/// A disk of these bytes.
pub(crate) fn disk(name: &str, bytes: Vec<u8>) -> BackupDisk {
    BackupDisk { name: name.to_owned(), image: Arc::new(MemImage::sparse(name, bytes)) }
}

/// A backup of these disks. A test sets anew what matters to it.
pub(crate) fn job(disks: Vec<BackupDisk>, compression: Compression) -> Backup {
    Backup {
        disks,
        configs: vec![("qemu-server.conf".into(), b"cores: 1\n".to_vec())],
        compression,
        uuid: [3; 16],
        ctime: 1_795_341_418,
        bwlimit: None,
        max_workers: 4,
        memory: DEFAULT_MEMORY,
        host: Host::with_root("/".into()),
    }
}

/// The archive it makes.
pub(crate) fn archive(job: &Backup) -> Vec<u8> {
    let mut bytes = Vec::new();
    backup(job, Output::Writer(Box::new(&mut bytes), "memory".into()), &mut |_| {}, &Cancel::new()).unwrap();
    bytes
}

/// The folder of recordings: `GOLDEN_DIR`, else `../shared/golden` beside the project. Without it a test says so and does
/// nothing, except in CI, where it fails.
pub(crate) fn golden() -> Option<PathBuf> {
    let default = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/golden"));
    let dir = std::env::var_os("GOLDEN_DIR").map_or(default, PathBuf::from);
    if dir.join("vzdump").is_dir() {
        return Some(dir);
    }
    assert!(std::env::var_os("CI").is_none(), "no recordings in {}: set GOLDEN_DIR", dir.display());
    eprintln!("skipped: no recordings in {}", dir.display());
    None
}
