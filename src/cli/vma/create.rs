//! `vma create`: an archive of disks and configuration files.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use super::words::Words;
use super::{Failure, Tools, fatal, log};
use crate::archive::vma::MAX_EXTENT;
use crate::archive::{Compression, Source};
use crate::cli::complain;
use crate::image::{detect_format, open_image};
use crate::transfer::{Backup, BackupDisk, DEFAULT_MEMORY, Draft, Output, Progress, backup};

pub(super) fn create(tools: &Tools, words: &Words) -> Result<(), Failure> {
    let (filename, old) = words.rest.split_first().ok_or(Failure::Usage)?;
    let new: Vec<&str> = words.all('d').collect();
    if !old.is_empty() && !new.is_empty() {
        return Err(fatal("Unexpected extra argument - specify all devices via '-d'"));
    }
    let configs: Vec<_> = words.all('c').map(|name| config(tools, name)).collect::<Result<_, _>>()?;
    let disks = new.into_iter().map(|disk| (disk, true)).chain(old.iter().map(|disk| (disk.as_str(), false)));
    let disks = disks.enumerate().map(|(number, (disk, strict))| open(tools, disk, strict, number));
    let disks: Vec<BackupDisk> = disks.collect::<Result<_, _>>()?;
    unique(&configs, &disks)?;
    let job = Backup {
        disks,
        configs,
        compression: Compression::None,
        uuid: uuid::Uuid::new_v4().into_bytes(),
        ctime: tools.host.now().timestamp().as_second(),
        bwlimit: None,
        max_workers: 16,
        memory: DEFAULT_MEMORY,
        host: tools.host.clone(),
    };
    let (verbose, mut shown) = (words.has('v'), None);
    let mut progress = |p: &Progress| {
        let percent = p.read.saturating_mul(100).checked_div(p.total).unwrap_or(100);
        if verbose && shown != Some(percent) {
            shown = Some(percent);
            complain(&format!("progress {percent}% {}/{} {}\n", p.read, p.total, p.zero));
        }
    };
    let failed = |e: &dyn std::fmt::Display| fatal(format!("creating vma archive failed - {e}"));
    let path = tools.path(filename);
    if path.metadata().is_ok_and(|meta| meta.file_type().is_fifo()) {
        let output = Output::Fd(pipe(tools, &path).map_err(|e| failed(&e))?.into(), filename.clone());
        return backup(&job, output, &mut progress, &tools.cancel).map(|_| ()).map_err(|e| failed(&e));
    }
    let mut draft = Draft::beside(&path).map_err(|e| failed(&e))?;
    backup(&job, Output::Draft(&mut draft), &mut progress, &tools.cancel).map_err(|e| failed(&e))?;
    draft.commit().map_err(|e| failed(&e))?;
    if verbose { statistics(tools, &path).map_err(|why| failed(&why)) } else { Ok(()) }
}

/// No reader takes an archive in which a name comes twice.
fn unique(configs: &[(String, Vec<u8>)], disks: &[BackupDisk]) -> Result<(), Failure> {
    for (at, (name, data)) in configs.iter().enumerate() {
        if configs[..at].iter().any(|earlier| earlier.0 == *name) {
            return Err(fatal(format!("Unable to append config data {name} (len = {}): it comes twice", data.len())));
        }
    }
    for (at, BackupDisk { name, .. }) in disks.iter().enumerate() {
        if disks[..at].iter().any(|earlier| earlier.name == *name) {
            return Err(fatal(format!("vma_writer_register_stream '{name}' failed: it comes twice")));
        }
    }
    Ok(())
}

/// Opens a pipe that somebody reads, or will read soon. Not with a call that waits, which no signal ends.
fn pipe(tools: &Tools, path: &Path) -> std::io::Result<File> {
    loop {
        match OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path) {
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) && !tools.cancel.is_set() => {
                std::thread::sleep(Duration::from_millis(50));
            }
            opened => return opened,
        }
    }
}

fn config(tools: &Tools, name: &str) -> Result<(String, Vec<u8>), Failure> {
    let path = tools.path(name);
    let data = std::fs::read(&path).map_err(|e| fatal(format!("Unable to read file: '{name}': {e}")))?;
    let base = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if data.len() > usize::from(u16::MAX) {
        return Err(fatal(format!("Unable to append config data {name} (len = {})", data.len())));
    }
    Ok((base, data))
}

/// Opens `[format=FORMAT:][NAME=]PATH`; `strict` asks for the format.
fn open(tools: &Tools, given: &str, strict: bool, number: usize) -> Result<BackupDisk, Failure> {
    let (format, given) = match given.strip_prefix("format=").map(|rest| (rest, rest.split_once(':'))) {
        Some((_, Some((format, rest)))) => (Some(format.to_owned()), rest),
        Some((_, None)) => {
            return Err(fatal(format!("read map failed - option 'format' not terminated ('{given}')")));
        }
        None if strict => return Err(fatal(format!("No format specified for device: '{given}'"))),
        None => {
            let what = "Specifying a device without a format is deprecated";
            log("WARNING", &format!("{what} - use '-d format=<format>:{given}'"));
            (None, given)
        }
    };
    let (name, path) = match given.split_once('=') {
        Some((name, path)) => (name.to_owned(), path),
        None => (format!("disk{number}"), given),
    };
    let failed = |why: String| fatal(format!("bdrv_open '{path}' failed - {why}"));
    let real = tools.path(path);
    let format = format.map_or_else(|| detect_format(&tools.host, &real), Ok).map_err(failed)?;
    let image = open_image(&tools.host, &real, &format, &name).map_err(|e| failed(e.to_string()))?;
    Ok(BackupDisk { name, image })
}

/// What each disk came to, read back from the archive.
fn statistics(tools: &Tools, path: &Path) -> Result<(), String> {
    let source = Source::open(&tools.host, path, &tools.cancel).map_err(|e| e.to_string())?;
    let header = source.header().clone();
    let Some(mut reader) = source.into_reader() else { return Ok(()) };
    let (mut stored, mut buf) = (BTreeMap::<u8, u64>::new(), Vec::with_capacity(MAX_EXTENT));
    while let Some(head) = reader.next_extent(&mut buf).map_err(|e| e.to_string())? {
        for piece in &head.pieces {
            *stored.entry(piece.device).or_default() += piece.stored() as u64;
        }
    }
    for device in &header.devices {
        let (name, size) = (&device.name, device.size);
        // What pads the last block is no part of the disk.
        let saved = stored.get(&device.id).copied().unwrap_or(0).min(size);
        complain(&format!("image {name}: size={size} zeros={} saved={saved}\n", size - saved));
    }
    Ok(())
}
