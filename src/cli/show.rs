//! `vzkeep show`: what is in an archive, without reading more of it than has to be.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::place::place_of_archive;
use super::{FAILED, complain, say, sentence};
use crate::archive::tar::{TarArchive, TarSource};
use crate::archive::{Holds, VmaArchive, holds};
use crate::host::{Cancel, Host};
use crate::image::{ExtentKind, Image};
use crate::schema::size::human;
use crate::storage::{ArchiveInfo, verdicts};

/// Where a container's archive has its configuration.
const CONTAINER_CONFIGS: [&[u8]; 2] = [b"etc/vzdump/pct.conf", b"etc/vzdump/pct.fw"];
/// Within how many bytes they are.
const CONFIGS_WITHIN: usize = 4 << 20;
/// Bytes of disk asked for at once.
const ASKED: u64 = 1 << 40;

/// Which archive to show.
#[derive(Debug, Args)]
pub struct Show {
    /// The archive, a path or a volume such as local:backup/<name>
    archive: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A disk in the archive, in bytes.
struct Disk {
    name: String,
    size: u64,
    /// What of it the archive may hold data of; the rest is zeros.
    data: u64,
}

/// What there is to say.
struct Facts {
    kind: &'static str,
    configs: Vec<(String, Vec<u8>)>,
    disks: Vec<Disk>,
    uuid: Option<String>,
    /// Seconds since 1970.
    made: Option<i64>,
    members: Option<u64>,
    access: &'static str,
    note: Option<String>,
}

/// Shows it.
pub fn run(args: &Show) -> ExitCode {
    match show(&Host::from_env(), args) {
        Ok(text) => {
            say(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(&format!("{}\n", sentence(&error)));
            ExitCode::from(FAILED)
        }
    }
}

fn show(host: &Host, args: &Show) -> Result<String> {
    let (path, cancel) = (place_of_archive(host, &args.archive)?, Cancel::new());
    cancel.on_signals().context("signals cannot be handled")?;
    let meta = path.metadata().with_context(|| format!("looking at '{}' failed", path.display()))?;
    let facts = match holds(host, &path, &cancel)? {
        Holds::Vm => of_vm(&VmaArchive::open(host, &path, &cancel)?)?,
        Holds::Container => of_container(host, &path, &cancel)?,
    };
    if let Some(note) = &facts.note {
        complain(&format!("{note}\n"));
    }
    let beside = |name: String| std::fs::read(path.with_file_name(name)).ok();
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let info = ArchiveInfo::parse(&name);
    let notes = beside(format!("{name}.notes")).map(|notes| String::from_utf8_lossy(&notes).trim_end().to_owned());
    let is_protected = path.with_file_name(format!("{name}.protected")).exists();
    let verdict =
        path.parent().and_then(|dir| verdicts(dir).ok()?.remove(&name)).filter(|verdict| verdict.is_of(&meta));
    let verified = verdict.map(|verdict| {
        let state = if verdict.damage.is_empty() { "good" } else { "DAMAGED" };
        (verdict.time, state, verdict.checked)
    });
    if args.json {
        return Ok(format!("{:#}\n", as_json(&path, &meta, &facts, notes, is_protected, verified)));
    }
    let time = |seconds| match Timestamp::from_second(seconds) {
        Ok(time) => time.to_zoned(host.now().time_zone().clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string(),
        Err(_) => seconds.to_string(),
    };
    let mut text = format!("archive      {}\n", args.archive.display());
    let mut line = |name: &str, value: &str| text += &format!("{name:<12} {value}\n");
    let vmid = info.as_ref().and_then(ArchiveInfo::vmid).map_or_else(String::new, |vmid| format!(" {vmid}"));
    line("guest", &format!("{}{vmid}", facts.kind));
    facts.made.iter().for_each(|made| line("made", &time(*made)));
    line("size", &human(meta.len(), 2));
    line("access", facts.access);
    facts.uuid.iter().for_each(|uuid| line("uuid", uuid));
    facts.members.iter().for_each(|members| line("members", &members.to_string()));
    if is_protected {
        line("protected", "yes");
    }
    if let Some((at, state, checked)) = verified {
        line("verified", &format!("{state} ({checked}), {}", time(at)));
    }
    for disk in &facts.disks {
        let share = percent(disk.data, disk.size);
        let zero = human(disk.size - disk.data, 2);
        line(
            "disk",
            &format!("{}: {}, data {} ({share}), zero {zero}", disk.name, human(disk.size, 2), human(disk.data, 2)),
        );
    }
    let (size, data) = totals(&facts);
    if size > 0 {
        line(
            "ratio",
            &format!("{} of the disks, {} of their data", percent(meta.len(), size), percent(meta.len(), data)),
        );
    }
    notes.iter().for_each(|notes| line("notes", &notes.replace('\n', "\n             ")));
    for (name, content) in &facts.configs {
        text += &format!("\n--- {name}\n{}", String::from_utf8_lossy(content));
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    Ok(text)
}

fn of_vm(archive: &Arc<VmaArchive>) -> Result<Facts> {
    let mut disks = Vec::new();
    for image in archive.disks() {
        let (name, size) = (image.name().to_owned(), image.size());
        disks.push(Disk { name, size, data: data_of(image.as_ref())? });
    }
    let header = archive.header();
    Ok(Facts {
        kind: "vm",
        configs: header.configs.clone(),
        disks,
        uuid: Some(uuid::Uuid::from_bytes(header.uuid).to_string()),
        made: Some(header.ctime),
        members: None,
        access: archive.access(),
        note: archive.note().map(str::to_owned),
    })
}

fn data_of(image: &dyn Image) -> Result<u64> {
    let (mut at, mut data) = (0, 0);
    while at < image.size() {
        let end = image.size().min(at + ASKED);
        let extents = image.extents(at..end)?;
        data += extents.iter().filter(|e| e.kind == ExtentKind::Data).map(|e| e.len).sum::<u64>();
        at = end;
    }
    Ok(data)
}

fn of_container(host: &Host, path: &Path, cancel: &Cancel) -> Result<Facts> {
    let mut source = TarSource::open(host, path, cancel)?;
    let found = source.peek(CONTAINER_CONFIGS, CONFIGS_WITHIN)?;
    let name =
        |path: &[u8]| String::from_utf8_lossy(path.rsplit(|b| *b == b'/').next().unwrap_or_default()).into_owned();
    let configs = CONTAINER_CONFIGS.iter().zip(found).filter_map(|(path, content)| Some((name(path), content?)));
    let configs = configs.collect();
    let archive = TarArchive::open(host, path, cancel)?;
    let members = archive.members();
    Ok(Facts {
        kind: "ct",
        configs,
        disks: Vec::new(),
        uuid: None,
        made: None,
        members,
        access: if members.is_some() { "by the table of its members" } else { "from start to end" },
        note: None,
    })
}

/// Bytes of all disks, and of their data.
fn totals(facts: &Facts) -> (u64, u64) {
    (facts.disks.iter().map(|disk| disk.size).sum(), facts.disks.iter().map(|disk| disk.data).sum())
}

fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        _ => format!("{:.1} %", part as f64 * 100.0 / whole as f64),
    }
}

fn as_json(
    path: &Path,
    meta: &Metadata,
    facts: &Facts,
    notes: Option<String>,
    is_protected: bool,
    verified: Option<(i64, &str, String)>,
) -> Value {
    let disk = |disk: &Disk| json!({ "name": disk.name, "size": disk.size, "data": disk.data });
    let config = |(name, content): &(String, Vec<u8>)| (name.clone(), Value::from(String::from_utf8_lossy(content)));
    json!({
        "path": path.display().to_string(),
        "kind": facts.kind,
        "size": meta.len(),
        "time": facts.made,
        "uuid": facts.uuid,
        "access": facts.access,
        "members": facts.members,
        "protected": is_protected,
        "notes": notes,
        "verified": verified.map(|(time, state, checked)| json!({
            "time": time,
            "state": if state == "good" { "ok" } else { "damaged" },
            "checked": checked,
        })),
        "disks": facts.disks.iter().map(disk).collect::<Vec<_>>(),
        "configs": facts.configs.iter().map(config).collect::<serde_json::Map<_, _>>(),
    })
}
