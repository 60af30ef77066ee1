//! Small archives made for tests, without a guest. Needs nothing else of the lab, so that a test may have it alone.

#![allow(dead_code, reason = "every test uses another part of the lab")]

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use vzkeep::archive::Compression;
use vzkeep::host::{Cancel, Host};
use vzkeep::image::MemImage;
use vzkeep::transfer::{Backup, BackupDisk, DEFAULT_MEMORY, Output, TarFrom, TarPack, backup, pack_tar};

/// A disk of these bytes.
pub fn disk(name: &str, bytes: Vec<u8>) -> BackupDisk {
    BackupDisk { name: name.to_owned(), image: Arc::new(MemImage::sparse(name, bytes)) }
}

/// A backup of these disks. A test sets anew what matters to it.
pub fn job(disks: Vec<BackupDisk>, compression: Compression) -> Backup {
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

/// A new file for an archive.
///
/// # Errors
/// When it cannot be made.
pub fn output(path: &Path) -> Result<Output<'static>> {
    Ok(Output::Writer(Box::new(File::create(path)?), path.display().to_string()))
}

/// Writes the archive of a virtual machine.
///
/// # Errors
/// When it cannot be written.
pub fn write_vma(path: &Path, job: &Backup) -> Result<()> {
    backup(job, output(path)?, &mut |_| {}, &Cancel::new())?;
    Ok(())
}

/// An archive of a virtual machine with these disks.
///
/// # Errors
/// When it cannot be written.
pub fn make_vma(path: &Path, disks: &[(&str, Vec<u8>)], compression: Compression) -> Result<()> {
    let disks = disks.iter().map(|(name, bytes)| disk(name, bytes.clone())).collect();
    let configs = vec![
        ("qemu-server.conf".into(), b"memory: 512\n".to_vec()),
        ("qemu-server.fw".into(), b"[OPTIONS]\n".to_vec()),
    ];
    write_vma(path, &Backup { configs, ctime: 1_763_802_865, ..job(disks, compression) })
}

/// The archive of a tree, as `vzdump` makes it.
///
/// # Errors
/// When it cannot be written.
pub fn make_tar(path: &Path, tree: &Path, compression: Compression) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["cf", "-", "--sparse", "--numeric-owner", "--acls", "--xattrs", "--xattrs-include=user.*"]);
    tar.args(["--xattrs-include=security.capability", "--warning=no-file-ignored", "--one-file-system", "-C"]);
    let mut tar = tar.arg(tree).arg("./").stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let host = Host::with_root("/".into());
    let how = TarPack { compression, bwlimit: None, memory: DEFAULT_MEMORY, host };
    let from = TarFrom::Fd(tar.stdout.take().context("tar without output")?.into(), "tar".into());
    pack_tar(from, output(path)?, &how, &mut |_| {}, &Cancel::new())?;
    ensure!(tar.wait()?.success(), "tar failed");
    Ok(())
}
