//! `vzkeep compare`: two archives, directories of a restore or disk images, disk by disk and to the last byte.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::place::place;
use super::restore::archive_path;
use super::{FAILED, complain, say, sentence};
use crate::archive::VmaArchive;
use crate::host::{Cancel, Host};
use crate::image::{Image, NbdImage, detect_format, open_image};
use crate::transfer::{Comparison, compare};

/// Ranges that are named of each disk.
const NAMED: usize = 1000;
/// Ranges that are named on a line of text.
const SHOWN: usize = 8;

/// What is compared, and how.
#[derive(Debug, Args)]
pub(super) struct Compare {
    /// An archive (a path or a volume), a directory of restored disks, a disk image or device, or nbd+unix:///EXPORT?socket=PATH
    a: String,
    /// The other one
    b: String,
    /// Only this disk: drive-scsi0, or scsi0 for short
    #[arg(long)]
    disk: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// At most so many KiB a second are read of each
    #[arg(long, value_name = "KIBPS")]
    bwlimit: Option<u64>,
}

/// Runs the verb: 0 same, 1 different.
pub(super) fn run(given: &Compare) -> ExitCode {
    match work(given) {
        Ok(same) => ExitCode::from(u8::from(!same)),
        Err(e) => {
            complain(&format!("{}\n", sentence(&e)));
            ExitCode::from(FAILED)
        }
    }
}

/// What is on one side.
struct Side {
    name: String,
    /// A single image has none, and no name that could be compared.
    configs: Option<Vec<(String, Vec<u8>)>>,
    disks: Vec<(String, Arc<dyn Image>)>,
}

fn work(given: &Compare) -> Result<bool> {
    let (host, cancel) = (Host::from_env(), Cancel::new());
    cancel.on_signals().context("signals cannot be handled")?;
    let limit = given.bwlimit.map(|kib| kib.saturating_mul(1024)).filter(|bytes| *bytes > 0);
    let mut a = open(&host, &given.a, &cancel)?;
    let mut b = open(&host, &given.b, &cancel)?;
    if let Some(disk) = &given.disk {
        for side in [&mut a, &mut b].into_iter().filter(|side| side.configs.is_some()) {
            side.disks.retain(|(name, _)| name == disk || name.strip_prefix("drive-") == Some(disk));
            if side.disks.is_empty() {
                bail!("'{}' has no disk '{disk}'", side.name);
            }
        }
    }
    let (mut same, mut disks, mut configs) = (true, Vec::new(), Vec::new());
    for (name, a, b) in pairs(&a, &b)? {
        let result = match (a, b) {
            (Some(a), Some(b)) => Some(compare(a, b, NAMED, limit, &mut |_, _| {}, &cancel)?),
            _ => None,
        };
        same &= result.as_ref().is_some_and(Comparison::same);
        let only = if a.is_some() { &given.a } else { &given.b };
        if given.json {
            disks.push(disk_json(name, result.as_ref(), only));
        } else {
            say(&disk_text(name, result.as_ref(), only));
        }
    }
    // Of one disk alone, or of an image, nobody wants to know whether the machine is called the same.
    if let (Some(first), Some(second), None) = (&a.configs, &b.configs, &given.disk) {
        let mut names: Vec<_> = first.iter().chain(second).map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        for name in names {
            let of = |configs: &[(String, Vec<u8>)]| configs.iter().find(|c| c.0 == *name).map(|c| c.1.clone());
            let (first, second) = (of(first), of(second));
            let what = match (&first, &second) {
                (Some(first), Some(second)) if first == second => "same".to_owned(),
                (Some(_), Some(_)) => "differs".to_owned(),
                (Some(_), None) => format!("only in '{}'", given.a),
                (None, _) => format!("only in '{}'", given.b),
            };
            same &= first == second;
            configs.push(json!({"name": name, "same": first == second}));
            if !given.json {
                say(&format!("{name}: {what}\n"));
            }
        }
    }
    if given.json {
        say(&format!("{}\n", json!({"same": same, "disks": disks, "configs": configs})));
    }
    Ok(same)
}

/// A disk on both sides, or on one of them.
type Pair<'a> = (&'a str, Option<&'a Arc<dyn Image>>, Option<&'a Arc<dyn Image>>);

fn pairs<'a>(a: &'a Side, b: &'a Side) -> Result<Vec<Pair<'a>>> {
    if a.configs.is_some() && b.configs.is_some() {
        let find = |side: &'a Side, name: &str| side.disks.iter().find(|disk| disk.0 == name).map(|disk| &disk.1);
        let mut pairs: Vec<Pair> =
            a.disks.iter().map(|(name, disk)| (name.as_str(), Some(disk), find(b, name))).collect();
        let others = b.disks.iter().filter(|(name, _)| find(a, name).is_none());
        pairs.extend(others.map(|(name, disk)| (name.as_str(), None, Some(disk))));
        return Ok(pairs);
    }
    for side in [a, b] {
        if side.disks.len() != 1 {
            let names: Vec<_> = side.disks.iter().map(|disk| disk.0.as_str()).collect();
            bail!("'{}' has {} disks, name one with --disk: {}", side.name, names.len(), names.join(", "));
        }
    }
    // The name the archive has for it says more than that of a file.
    let name = if a.configs.is_some() { &a.disks[0].0 } else { &b.disks[0].0 };
    Ok(vec![(name, Some(&a.disks[0].1), Some(&b.disks[0].1))])
}

fn disk_text(name: &str, result: Option<&Comparison>, only: &str) -> String {
    let Some(result) = result else { return format!("{name}: only in '{only}'\n") };
    if result.same() {
        return format!("{name}: same ({} bytes)\n", result.sizes.0);
    }
    let mut parts = Vec::new();
    if result.sizes.0 != result.sizes.1 {
        parts.push(format!("has {} and {} bytes", result.sizes.0, result.sizes.1));
    }
    if result.bytes > 0 {
        let ranges: Vec<_> = result.ranges.iter().take(SHOWN).map(|r| format!("{}-{}", r.start, r.end - 1)).collect();
        let more = if result.more || result.ranges.len() > SHOWN { " and more" } else { "" };
        parts.push(format!("differs in {} bytes: {}{more}", result.bytes, ranges.join(", ")));
    }
    format!("{name}: {}\n", parts.join("; "))
}

fn disk_json(name: &str, result: Option<&Comparison>, only: &str) -> Value {
    let Some(result) = result else { return json!({"name": name, "same": false, "only_in": only}) };
    let ranges: Vec<_> = result.ranges.iter().map(|r| json!({"start": r.start, "end": r.end})).collect();
    json!({
        "name": name, "same": result.same(), "sizes": [result.sizes.0, result.sizes.1],
        "differing_bytes": result.bytes, "ranges": ranges, "more_ranges": result.more,
    })
}

fn open(host: &Host, name: &str, cancel: &Cancel) -> Result<Side> {
    if let Some(rest) = name.strip_prefix("nbd+unix:///") {
        let (export, socket) = rest
            .split_once("?socket=")
            .with_context(|| format!("'{name}' is no address of an NBD server like nbd+unix:///EXPORT?socket=PATH"))?;
        let image = NbdImage::connect(&place(host, Path::new(socket)), export, name)?;
        return Ok(Side { name: name.to_owned(), configs: None, disks: vec![(name.to_owned(), Arc::new(image))] });
    }
    let path = place(host, Path::new(name));
    if path.is_dir() {
        return directory(host, name, &path);
    }
    if path.exists() && !is_archive(&path)? {
        let disk = image(host, &path, name)?;
        return Ok(Side { name: name.to_owned(), configs: None, disks: vec![(name.to_owned(), disk)] });
    }
    let archive = VmaArchive::open(host, &archive_path(host, name)?, cancel)?;
    if let Some(note) = archive.note() {
        complain(&format!("{note}\n"));
    }
    let disks = archive.disks().into_iter().map(|disk| (disk.name().to_owned(), disk)).collect();
    Ok(Side { name: name.to_owned(), configs: Some(archive.header().configs.clone()), disks })
}

/// By its first bytes; a raw disk that begins like one is called `.raw`.
fn is_archive(path: &Path) -> Result<bool> {
    use std::io::Read;
    let mut start = Vec::new();
    let file = std::fs::File::open(path).with_context(|| format!("reading '{}' failed", path.display()))?;
    if !file.metadata()?.is_file() || path.extension().is_some_and(|ending| ending == "raw") {
        return Ok(false);
    }
    file.take(16).read_to_end(&mut start)?;
    Ok(crate::archive::recognise(&start).is_ok())
}

fn image(host: &Host, path: &Path, name: &str) -> Result<Arc<dyn Image>> {
    let raw = !path.is_file() || path.extension().is_some_and(|ending| ending == "raw");
    let format = if raw { "raw".to_owned() } else { detect_format(host, path).map_err(anyhow::Error::msg)? };
    Ok(open_image(host, path, &format, name)?)
}

/// What `vzkeep restore` or `vma extract` made.
fn directory(host: &Host, name: &str, path: &Path) -> Result<Side> {
    let (mut configs, mut disks) = (Vec::new(), Vec::new());
    let entries = std::fs::read_dir(path).with_context(|| format!("reading '{name}' failed"))?;
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.retain(|file| file.is_file());
    files.sort();
    for file in files {
        let base = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let disk = base.strip_suffix(".raw").or_else(|| base.strip_suffix(".qcow2"));
        if let Some(disk) = disk {
            let disk = disk.strip_prefix("disk-").unwrap_or(disk);
            disks.push((disk.to_owned(), image(host, &file, disk)?));
        } else if base.ends_with(".conf") || base.ends_with(".fw") {
            configs.push((base, std::fs::read(&file).with_context(|| format!("reading '{}' failed", file.display()))?));
        }
    }
    if disks.is_empty() && configs.is_empty() {
        bail!("'{name}' holds neither disks (.raw, .qcow2) nor configuration files");
    }
    Ok(Side { name: name.to_owned(), configs: Some(configs), disks })
}
