//! `vzkeep list`: the archives that are there.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::shelf::{Found, IndexAt, Shelf, shelves};
use super::{FAILED, complain, say, sentence};
use crate::host::Host;
use crate::schema::Vmid;
use crate::schema::size::human;
use crate::storage::GuestKind;

/// Which archives to list.
#[derive(Debug, Args)]
pub struct List {
    /// A directory with archives; without it and without --storage, all storages of this node that keep backups
    directory: Option<PathBuf>,
    /// The storage
    #[arg(long, conflicts_with = "directory")]
    storage: Option<String>,
    /// Only archives of this guest
    #[arg(long)]
    vmid: Option<Vmid>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Lists them.
pub fn run(args: &List) -> ExitCode {
    match list(&Host::from_env(), args) {
        Ok((text, troubles)) => {
            say(&text);
            troubles.iter().for_each(|trouble| complain(&format!("{trouble}\n")));
            if troubles.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
        }
        Err(error) => {
            complain(&format!("{}\n", sentence(&error)));
            ExitCode::from(FAILED)
        }
    }
}

fn list(host: &Host, args: &List) -> Result<(String, Vec<String>)> {
    let (shelves, mut troubles) = shelves(host, args.storage.as_deref(), args.directory.as_deref())?;
    let mut all = Vec::new();
    for shelf in &shelves {
        match shelf.archives(host) {
            Ok(found) => all.extend(found.into_iter().map(|found| (shelf, found))),
            Err(error) => troubles.push(sentence(&error)),
        }
    }
    all.retain(|(_, found)| args.vmid.is_none() || found.entry.archive.vmid() == args.vmid);
    if args.json {
        let array: Vec<Value> = all.iter().map(|(shelf, found)| as_json(shelf, found)).collect();
        return Ok((format!("{:#}\n", Value::from(array)), troubles));
    }
    let mut rows = vec![["GUEST", "TIME", "SIZE", "FORMAT", "STATE", "ARCHIVE", "NOTES"].map(str::to_owned)];
    rows.extend(all.iter().map(|(_, found)| row(host, found)));
    Ok((table(&rows), troubles))
}

fn as_json(shelf: &Shelf, found: &Found) -> Value {
    let archive = &found.entry.archive;
    json!({
        "archive": found.name,
        "path": found.path.display().to_string(),
        "storage": shelf.storage,
        "kind": archive.kind.as_str(),
        "vmid": archive.vmid().map(Vmid::get),
        "time": found.entry.ctime,
        "size": found.meta.len(),
        "format": archive.format,
        "compression": archive.compression,
        "index": found.index().map(|at| if at == IndexAt::End { "end" } else { "beside" }),
        "protected": found.entry.protected,
        "notes": found.notes,
        "verified": found.verdict.as_ref().map(|verdict| json!({
            "time": verdict.time,
            "state": if verdict.damage.is_empty() { "ok" } else { "damaged" },
            "checked": verdict.checked,
            "damage": verdict.damage,
        })),
    })
}

fn row(host: &Host, found: &Found) -> [String; 7] {
    let archive = &found.entry.archive;
    let kind = if archive.kind == GuestKind::Qemu { "vm" } else { "ct" };
    let mut format = archive.format.to_owned();
    if let Some(compression) = archive.compression {
        format += ".";
        format += compression;
    }
    match found.index() {
        Some(IndexAt::End) => format += ", indexed",
        Some(IndexAt::Beside) => format += ", index beside",
        None => {}
    }
    let mut state = Vec::new();
    if found.entry.protected {
        state.push("protected".to_owned());
    }
    if let Some(verdict) = &found.verdict {
        let word = if verdict.damage.is_empty() { "verified" } else { "DAMAGED" };
        state.push(format!("{word} {}", date(host, verdict.time)));
    }
    let notes = found.notes.as_deref().unwrap_or_default();
    let first: String = notes.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).collect();
    [
        archive.vmid().map_or_else(|| kind.to_owned(), |vmid| format!("{kind} {vmid}")),
        archive.standard.as_ref().map_or_else(|| "-".to_owned(), |name| name.time.to_string().replace('T', " ")),
        human(found.meta.len(), 1),
        format,
        if state.is_empty() { "-".to_owned() } else { state.join(", ") },
        found.name.clone(),
        first,
    ]
}

/// A day, as the node's clock has it.
fn date(host: &Host, seconds: i64) -> String {
    let zone = host.now().time_zone().clone();
    Timestamp::from_second(seconds).map_or_else(|_| "-".to_owned(), |time| time.to_zoned(zone).date().to_string())
}

/// Columns as wide as their widest cell; the sizes to the right.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| match column {
            2 => format!("{cell:>width$}"),
            _ => format!("{cell:<width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}
