//! `vzkeep restore`: the disks of an archive into files of a directory, or one of them onto a block device.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use super::place::{archive_on, place};
use super::{FAILED, complain, say, sentence};
use crate::archive::vma::{Device, Header};
use crate::archive::{FirstPass, Holds, Source, VmaArchive, holds};
use crate::host::{Cancel, Host};
use crate::image::{Image, RawTarget, Target};
use crate::restore::folder::Folder;
use crate::transfer::salvage::{self, Loss, Losses};
use crate::transfer::{self, CopyOptions, CopyProgress, RestoreProgress};

/// Ranges that are told one by one.
const SHOWN: usize = 200;

/// What is restored, and whereto.
#[derive(Debug, Args)]
pub(super) struct Restore {
    /// The archive, a path or a volume such as local:backup/<name>
    archive: String,
    /// The directory, which is made if it does not exist, or the block device
    #[arg(long, value_name = "DIR|DEVICE")]
    to: PathBuf,
    /// Only this disk: drive-scsi0, or scsi0 for short; may be given more than once
    #[arg(long, value_name = "DISK")]
    disk: Vec<String>,
    /// The format of the files
    #[arg(long, value_enum, default_value = "raw")]
    format: Format,
    /// Save what can be saved of a damaged archive; what cannot reads as zeros and is listed in a file <disk>.map (exit code 1)
    #[arg(long)]
    salvage: bool,
    /// At most so many KiB of data a second
    #[arg(long, value_name = "KIBPS")]
    bwlimit: Option<u64>,
    /// Go on with a restore onto a block device that broke off: begin at this byte of the disk
    ///
    /// What is before it on the device is neither read nor written: that it is right is for who calls to know. A restore that
    /// fails says up to which byte everything is written and synced. 'vzkeep compare' checks the whole.
    #[arg(long, value_name = "BYTE", conflicts_with = "salvage")]
    start_at: Option<u64>,
}

impl Restore {
    /// All of an archive into a directory.
    pub(super) fn whole(archive: &str, to: &Path, bwlimit: Option<u64>) -> Self {
        let (archive, to) = (archive.to_owned(), to.to_owned());
        Self { archive, to, disk: Vec::new(), format: Format::Raw, salvage: false, bwlimit, start_at: None }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Raw,
    Qcow2,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// Runs the verb.
pub(super) fn run(given: &Restore) -> ExitCode {
    match restore(given) {
        Ok(saved) => ExitCode::from(u8::from(!saved)),
        Err(e) => {
            complain(&format!("{}\n", sentence(&e)));
            ExitCode::from(FAILED)
        }
    }
}

/// Where an archive lies: a volume of a storage, or a path.
pub(super) fn archive_path(host: &Host, name: &str) -> Result<PathBuf> {
    let path = archive_on(host, name)?;
    if path.is_file() && holds(host, &path, &Cancel::new())? == Holds::Container && !is_vma_name(&path) {
        bail!(
            "'{name}' is no archive of a virtual machine; 'vzkeep extract' and 'pct restore' unpack those of containers"
        );
    }
    Ok(path)
}

/// A damaged archive of a virtual machine may not begin like one.
fn is_vma_name(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().contains(".vma"))
}

/// The disks that were asked for; all without `wanted`.
pub(super) fn choose<'a>(header: &'a Header, wanted: &[String]) -> Result<Vec<&'a Device>> {
    if wanted.is_empty() {
        return Ok(header.devices.iter().collect());
    }
    let mut chosen: Vec<&Device> = Vec::new();
    for name in wanted {
        let devices = &header.devices;
        let short = |device: &&Device| device.name.strip_prefix("drive-") == Some(name);
        let device = devices.iter().find(|d| d.name == *name).or_else(|| devices.iter().find(short));
        let device = device.with_context(|| {
            let names: Vec<_> = devices.iter().map(|d| d.name.as_str()).collect();
            format!("the archive has no disk '{name}', but {}", names.join(", "))
        })?;
        if !chosen.iter().any(|d| d.id == device.id) {
            chosen.push(device);
        }
    }
    Ok(chosen)
}

/// One restore.
struct Job<'a> {
    host: Host,
    cancel: Cancel,
    given: &'a Restore,
    archive: PathBuf,
    limit: Option<u64>,
    begun: Instant,
}

/// Returns whether everything was saved.
fn restore(given: &Restore) -> Result<bool> {
    let (host, cancel) = (Host::from_env(), Cancel::new());
    cancel.on_signals().context("signals cannot be handled")?;
    let archive = archive_path(&host, &given.archive)?;
    let limit = given.bwlimit.map(|kib| kib.saturating_mul(1024)).filter(|bytes| *bytes > 0);
    let to = place(&host, &given.to);
    let job = Job { host, cancel, given, archive, limit, begun: Instant::now() };
    let kind = to.metadata().map(|meta| meta.file_type()).ok();
    match kind {
        Some(kind) if kind.is_block_device() => job.onto_device(&to),
        Some(kind) if !kind.is_dir() => bail!("'{}' is neither a directory nor a block device", given.to.display()),
        _ => job.to_directory(&to),
    }
}

impl Job<'_> {
    fn to_directory(&self, to: &Path) -> Result<bool> {
        if self.given.start_at.is_some() {
            bail!("--start-at is for block devices: files of a restore that broke off are not kept");
        }
        let mut folder = Folder::open(to)?;
        let format = self.given.format.to_string();
        if self.given.salvage {
            return self.salvage(|disks, header| {
                let mut targets = BTreeMap::new();
                for device in disks {
                    // Not when everything is saved and one of them is to be written.
                    folder.expect_free(&map_name(device))?;
                    targets.insert(device.id, self.disk_file(&mut folder, &format, device)?);
                }
                for (name, data) in &header.configs {
                    folder.add_file(name, data)?;
                }
                Ok((targets, Some(folder)))
            });
        }
        let source = Source::open(&self.host, &self.archive, &self.cancel)?;
        if let Some(note) = source.note() {
            complain(&format!("{note}\n"));
        }
        let header = source.header().clone();
        let disks = choose(&header, &self.given.disk)?;
        for (name, data) in &header.configs {
            folder.add_file(name, data)?;
        }
        let mut targets: BTreeMap<u8, Arc<dyn Target>> = BTreeMap::new();
        for device in &disks {
            targets.insert(device.id, self.disk_file(&mut folder, &format, device)?);
        }
        // Some disks of many are read alone, where that is possible.
        match (!self.given.disk.is_empty()).then(|| self.random_access()).transpose()?.flatten() {
            Some(archive) => {
                for device in &disks {
                    let image = archive.disk(&device.name).context("a disk of the archive is gone")?;
                    self.copy(&image, targets[&device.id].as_ref(), 0)?;
                }
            }
            None => self.stream(source, &targets)?,
        }
        drop(targets);
        folder.commit()?;
        for device in disks {
            say(&format!("restored {} to '{}'\n", device.name, file_name(to, device, &format)));
        }
        Ok(true)
    }

    fn disk_file(&self, folder: &mut Folder, format: &str, device: &Device) -> Result<Arc<dyn Target>> {
        let name = format!("{}.{format}", device.name);
        Ok(folder.add_disk(&self.host, &name, format, device.size, &device.name)?)
    }

    fn onto_device(&self, to: &Path) -> Result<bool> {
        let shown = self.given.to.display();
        if self.given.format != Format::Raw {
            bail!("a block device holds a raw disk: --format qcow2 is for directories");
        }
        let open = |name: &str| -> Result<Arc<dyn Target>> {
            match RawTarget::open(to, name, false) {
                Ok(target) => Ok(Arc::new(target)),
                Err(e) if e.source.kind() == std::io::ErrorKind::ResourceBusy => {
                    bail!("'{shown}' is in use: mounted, or part of a volume group, an array or a swap space")
                }
                Err(e) => Err(e.into()),
            }
        };
        if self.given.salvage {
            return self.salvage(|disks, _| {
                let device = only(disks, &shown)?;
                Ok((BTreeMap::from([(device.id, open(&device.name)?)]), None))
            });
        }
        let source = Source::open(&self.host, &self.archive, &self.cancel)?;
        if let Some(note) = source.note() {
            complain(&format!("{note}\n"));
        }
        let device = only(&choose(source.header(), &self.given.disk)?, &shown)?.clone();
        let target = open(&device.name)?;
        let (size, wanted) = (target.size(), device.size);
        if size < wanted {
            bail!("'{shown}' has {size} bytes, {} needs {wanted}", device.name);
        }
        // To go on in the middle is worth going through the archive first.
        let random = match self.given.start_at {
            Some(_) => Some(VmaArchive::open(&self.host, &self.archive, &self.cancel)?),
            None => self.random_access()?,
        };
        if let Some(archive) = random {
            let image = archive.disk(&device.name).context("a disk of the archive is gone")?;
            self.copy(&image, target.as_ref(), self.given.start_at.unwrap_or(0))?;
        } else {
            self.stream(source, &BTreeMap::from([(device.id, target)]))?;
        }
        say(&format!("restored {} to '{shown}'\n", device.name));
        Ok(true)
    }

    /// The archive, when it can be read at any place.
    fn random_access(&self) -> Result<Option<Arc<VmaArchive>>> {
        match VmaArchive::open_with(&self.host, &self.archive, FirstPass::Never, &self.cancel) {
            Ok(archive) => Ok(Some(archive)),
            Err(e) if e.is_unsupported() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn percent(&self) -> impl FnMut(u64, u64) {
        let (begun, mut shown) = (self.begun, 0);
        move |done, total| {
            let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0);
            if percent > shown {
                shown = percent;
                let seconds = begun.elapsed().as_secs();
                say(&format!("progress {percent}% (read {done} bytes, duration {seconds} sec)\n"));
            }
        }
    }

    fn stream(&self, source: Source, targets: &BTreeMap<u8, Arc<dyn Target>>) -> Result<()> {
        let mut percent = self.percent();
        let mut progress = |p: &RestoreProgress| percent(p.done, p.total);
        transfer::restore(source, targets, self.limit, &mut progress, &self.cancel)?;
        Ok(())
    }

    fn copy(&self, image: &Arc<dyn Image>, target: &dyn Target, start: u64) -> Result<()> {
        let (mut percent, mut last) = (self.percent(), CopyProgress::default());
        let mut progress = |p: &CopyProgress| {
            last = *p;
            percent(p.done, p.total);
        };
        let options = CopyOptions { start, bwlimit: self.limit };
        let copied = transfer::copy(image, target, options, &mut progress, &self.cancel);
        let Err(cause) = copied else { return Ok(()) };
        // Only a device keeps what is written, and only what is synced is there after a crash.
        if !target.starts_zeroed() && last.complete > start && target.flush().is_ok() {
            let complete = last.complete;
            complain(&format!(
                "everything before byte {complete} is written: --start-at {complete} goes on from there\n"
            ));
        }
        Err(cause.into())
    }

    /// Saves what can be saved into the targets that `open` makes.
    fn salvage(
        &self,
        open: impl FnOnce(&[&Device], &Header) -> Result<(BTreeMap<u8, Arc<dyn Target>>, Option<Folder>)>,
    ) -> Result<bool> {
        let wreck = salvage::Wreck::open(&self.host, &self.archive, &self.cancel)?;
        let header = wreck.header().clone();
        let disks = choose(&header, &self.given.disk)?;
        let (targets, mut folder) = open(&disks, &header)?;
        for (id, target) in &targets {
            let wanted = header.device(*id).map_or(0, |d| d.size);
            if target.size() < wanted {
                bail!("{} has {} bytes, {wanted} are needed", target.name(), target.size());
            }
        }
        let mut percent = self.percent();
        let losses = wreck.save(&targets, self.limit, &mut |done, total| percent(done, total))?;
        drop(targets);
        for device in &disks {
            let Some(map) = losses.map(&header, device) else { continue };
            match &mut folder {
                Some(folder) => folder.add_file(&map_name(device), map.as_bytes())?,
                // A device has no place for it.
                None => say(&map),
            }
        }
        if let Some(folder) = folder {
            folder.commit()?;
        }
        report(&losses, &disks);
        Ok(losses.is_empty())
    }
}

/// The file that says what was lost of a disk.
fn map_name(device: &Device) -> String {
    format!("{}.map", device.name)
}

/// What was lost, as lines.
fn report(losses: &Losses, disks: &[&Device]) {
    for damage in &losses.damages {
        complain(&format!("{damage}\n"));
    }
    for Loss { device, range, reason, offset } in losses.lost.iter().take(SHOWN) {
        let Some(disk) = disks.iter().find(|d| d.id == *device) else { continue };
        let at = offset.map(|at| format!(" (archive byte {at})")).unwrap_or_default();
        let (name, start, end, len) = (&disk.name, range.start, range.end, range.end - range.start);
        complain(&format!("{name}: {len} bytes from {start} to {end} are lost and read as zeros: {reason}{at}\n"));
    }
    if let Some(more) = losses.lost.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        complain(&format!("and {more} more ranges, see the map\n"));
    }
    if losses.is_empty() {
        say("everything was saved\n");
    }
}

/// The one disk for a block device.
fn only<'a>(disks: &[&'a Device], device: &dyn fmt::Display) -> Result<&'a Device> {
    match disks {
        [disk] => Ok(disk),
        [] => bail!("the archive has no disk"),
        _ => {
            let names: Vec<_> = disks.iter().map(|d| d.name.as_str()).collect();
            bail!("'{device}' takes one disk, name it with --disk: {}", names.join(", "))
        }
    }
}

fn file_name(dir: &Path, device: &Device, format: &str) -> String {
    dir.join(format!("{}.{format}", device.name)).display().to_string()
}
