//! `vzkeep convert`: an archive of a virtual machine, written anew in another form.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::place::place;
use super::restore::archive_path;
use super::{FAILED, complain, say, sentence};
use crate::archive::{Compression, VmaArchive};
use crate::host::{Cancel, Host};
use crate::transfer::{Backup, BackupDisk, DEFAULT_MEMORY, Draft, Output, Progress, backup_numbered};

/// What is converted, and into what.
#[derive(Debug, Args)]
pub(super) struct Convert {
    /// The archive, a path or a volume such as local:backup/<name>
    archive: String,
    /// The new archive, whose name says how it is compressed, or a directory, which is what 'vzkeep restore --to' makes
    #[arg(value_name = "NEW.vma.zst|NEW.vma.gz|NEW.vma.lzo|NEW.vma|DIR")]
    new: PathBuf,
    /// Threads that compress; half of the cores without
    #[arg(long)]
    threads: Option<usize>,
    /// At most so many KiB of the disks a second
    #[arg(long, value_name = "KIBPS")]
    bwlimit: Option<u64>,
}

/// Runs the verb.
pub(super) fn run(given: &Convert) -> ExitCode {
    let name = given.new.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if given.new.is_dir() || !name.contains(".vma") && !name.contains(".tar") {
        return super::restore::run(&super::restore::Restore::whole(&given.archive, &given.new, given.bwlimit));
    }
    match convert(given, &name) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            complain(&format!("{}\n", sentence(&e)));
            ExitCode::from(FAILED)
        }
    }
}

/// How an archive of this name is compressed.
fn compression(name: &str, threads: usize) -> Result<Compression> {
    let (_, suffix) = name.rsplit_once(".vma").context("only archives of virtual machines can be converted")?;
    Ok(match suffix {
        "" => Compression::None,
        ".zst" => Compression::Zstd { threads },
        ".gz" => Compression::Gzip { threads },
        ".lzo" => Compression::Lzo,
        _ => bail!("'{name}' does not say how it is to be compressed: .vma, .vma.zst, .vma.gz or .vma.lzo"),
    })
}

fn convert(given: &Convert, name: &str) -> Result<()> {
    let (host, cancel) = (Host::from_env(), Cancel::new());
    cancel.on_signals().context("signals cannot be handled")?;
    let half = std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
    let compression = compression(name, given.threads.unwrap_or(half).max(1))?;
    let path = place(&host, &given.new);
    let archive = VmaArchive::open(&host, &archive_path(&host, &given.archive)?, &cancel)?;
    if let Some(note) = archive.note() {
        complain(&format!("{note}\n"));
    }
    let mut draft = Draft::beside(&path)?;
    let written = write(&host, &cancel, given, &archive, compression, &mut draft)?;
    draft.commit()?;
    say(&format!("'{}' has {written} bytes\n", given.new.display()));
    Ok(())
}

fn write(
    host: &Host,
    cancel: &Cancel,
    given: &Convert,
    archive: &Arc<VmaArchive>,
    compression: Compression,
    draft: &mut Draft,
) -> Result<u64> {
    let header = archive.header();
    let mut disks = Vec::new();
    for device in &header.devices {
        let image = archive.disk(&device.name).context("a disk of the archive is gone")?;
        disks.push(BackupDisk { name: device.name.clone(), image });
    }
    let job = Backup {
        disks,
        configs: header.configs.clone(),
        compression,
        // The same backup in another form.
        uuid: header.uuid,
        ctime: header.ctime,
        bwlimit: given.bwlimit.map(|kib| kib.saturating_mul(1024)),
        max_workers: 16,
        memory: DEFAULT_MEMORY,
        host: host.clone(),
    };
    let numbers: Vec<u8> = header.devices.iter().map(|device| device.id).collect();
    let mut shown = 0;
    let mut progress = |p: &Progress| {
        let percent = p.read.saturating_mul(100).checked_div(p.total).unwrap_or(100);
        if percent > shown {
            shown = percent;
            say(&format!("progress {percent}% (read {} bytes, written {})\n", p.read, p.written));
        }
    };
    Ok(backup_numbered(&job, &numbers, Output::Draft(draft), &mut progress, cancel)?.written)
}
