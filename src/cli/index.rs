//! `vzkeep index`: reads a foreign compressed archive once and keeps beside it what it takes to read it at any place.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::place::place_of_archive;
use super::{FAILED, complain, say, sentence};
use crate::archive::seek::Beside;
use crate::archive::tar::TarArchive;
use crate::archive::{FirstPass, Holds, VmaArchive, holds};
use crate::host::{Cancel, Host};

/// Which archives.
#[derive(Debug, Args)]
pub(super) struct Index {
    /// Archives, paths or volumes such as local:backup/<name>
    #[arg(required = true)]
    archives: Vec<PathBuf>,
}

/// Runs the verb.
pub(super) fn run(given: &Index) -> ExitCode {
    let (host, cancel) = (Host::from_env(), Cancel::new());
    let mut code = ExitCode::SUCCESS;
    let signals = cancel.on_signals().context("signals cannot be handled");
    for archive in &given.archives {
        match signals.as_ref().map_err(|e| anyhow::anyhow!("{e:#}")).and_then(|()| index(&host, archive, &cancel)) {
            Ok(done) => say(&done),
            Err(e) => {
                complain(&format!("{}\n", sentence(&e)));
                code = ExitCode::from(FAILED);
            }
        }
    }
    code
}

/// Makes it for one archive, and says what there is now.
fn index(host: &Host, archive: &Path, cancel: &Cancel) -> Result<String> {
    let shown = archive.display();
    let path = place_of_archive(host, archive)?;
    let (note, is_random) = match holds(host, &path, cancel)? {
        Holds::Vm => {
            let opened = VmaArchive::open_with(host, &path, FirstPass::Keep, cancel)?;
            (opened.note().map(str::to_owned), true)
        }
        Holds::Container => {
            let opened = TarArchive::open_with(host, &path, FirstPass::Keep, cancel)?;
            (opened.note(), opened.is_random())
        }
    };
    let file = File::open(&path).with_context(|| format!("opening '{shown}' failed"))?;
    match Beside::load(&path, &file) {
        Ok(Some(beside)) => {
            let name = Beside::path(&path);
            let size = name.metadata().map_or(0, |meta| meta.len());
            let (count, raw) = (beside.points.count(), beside.points.raw());
            let slow = beside.points.notes().iter().map(|note| format!("{note}\n")).collect::<String>();
            Ok(format!("'{}': {size} bytes, {count} access points to {raw} bytes of data\n{slow}", name.display()))
        }
        Ok(None) if !is_random => {
            bail!("'{shown}' is compressed in a way that has no places to begin at: no index can be made of it")
        }
        // With a note, what was made could not be kept.
        Ok(None) => match note {
            Some(note) => bail!("'{shown}': {note}"),
            None => Ok(format!("'{shown}' needs no index beside it\n")),
        },
        Err(e) => bail!("'{}' {e}", Beside::path(&path).display()),
    }
}
