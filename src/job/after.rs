//! What happens to an archive that is complete: notes, protection, and the older ones that retention lets go.

use std::path::Path;

use super::guest_run::{GuestError, GuestRun};
use crate::archive::seek;
use crate::guest::held::Held;
use crate::guest::record::Intent;
use crate::host::files;
use crate::schema::{Keep, notes};
use crate::storage::{ArchiveName, Backup, Mark, entries, plan_prune};

impl GuestRun<'_> {
    /// Renders the notes, if any are wanted, and lets `write` put them beside the backup. They are no reason to lose it.
    pub(super) fn add_notes(&self, write: impl FnOnce(&str) -> Result<(), String>) {
        let job = self.job;
        let Some(template) = &job.options.notes_template else { return };
        job.log.info("adding notes to backup");
        let variables = notes::Variables {
            cluster: job.cluster_name(),
            guestname: self.env.hostname.clone().unwrap_or_default(),
            node: job.host.node().to_owned(),
            vmid: self.vmid.to_string(),
        };
        let rendered = notes::render(template, &variables).map_err(|reason| reason.to_string());
        if let Err(reason) = rendered.and_then(|text| write(&text)) {
            job.log.warn(&format!("unable to add notes - {reason}"));
        }
    }

    /// Writes notes and protection, then removes what retention does not keep.
    pub(super) fn dress(&self, held: &mut Held) -> Result<(), GuestError> {
        let Some(name) = &self.name else { return Ok(()) };
        let (job, options, dir) = (self.job, self.job.options, &self.job.destination.dump_dir);
        self.add_notes(|text| write(&name.notes(dir), text, held).map_err(|e| e.to_string()));
        if options.protected {
            job.log.info("marking backup as protected");
            write(&name.protected(dir), "", held).map_err(|e| GuestError::NotProtected(Box::new(e)))?;
        }
        let (keep, remove) = options.retention(job.destination.keep());
        if remove { self.prune(&keep, name) } else { Ok(()) }
    }

    fn prune(&self, keep: &Keep, fresh: &ArchiveName) -> Result<(), GuestError> {
        let (job, dir) = (self.job, &self.job.destination.dump_dir);
        job.log.info(&format!("prune older backups with retention: {}", keep.log_text()));
        let zone = jiff::tz::TimeZone::system();
        let names = job.destination.names(job.host)?;
        let found = entries(names.iter().map(String::as_str), &zone);
        // Archives that somebody gave another name are kept for a reason.
        let mine: Vec<(Backup, &ArchiveName)> = found
            .iter()
            .filter(|entry| entry.is_of(self.kind, self.vmid))
            .filter_map(|entry| {
                Some((Backup { ctime: entry.ctime?, protected: entry.protected }, entry.archive.standard.as_ref()?))
            })
            .collect();
        let backups: Vec<Backup> = mine.iter().map(|(backup, _)| *backup).collect();
        let (mut removed, mut failed) = (0, false);
        for ((_, name), mark) in mine.iter().zip(plan_prune(&backups, keep, &zone)) {
            // The archive just written stays, whatever the clock said when the others were made; and so does one that was
            // protected since the list was read.
            if mark != Mark::Remove || *name == fresh || name.protected(dir).try_exists().unwrap_or(true) {
                continue;
            }
            let path = name.path(dir);
            let volid = job.destination.storage_id().map(|storage| format!("{storage}:backup/{name}"));
            match &volid {
                Some(volid) => job.log.info(&format!("removing backup '{volid}'")),
                None => job.log.info(&format!("delete old backup '{}'", path.display())),
            }
            match (remove(&path), volid) {
                (Ok(()), _) => {
                    removed += 1;
                    self.remove_companions(name);
                }
                (Err(source), None) => return Err(GuestError::RemoveArchive { path, source }),
                (Err(source), Some(volid)) => {
                    failed = true;
                    let error = GuestError::RemoveArchive { path, source };
                    job.log.error(&format!("error when removing backup '{volid}' - {error}"));
                }
            }
        }
        if failed {
            return Err(GuestError::Prune);
        }
        let why = if removed > 0 { " not covered by keep-retention policy" } else { "" };
        job.log.info(&format!("pruned {removed} backup(s){why}"));
        Ok(())
    }

    /// Log, notes and what is kept about it go after their archive: they mean nothing without it, and it never lacks them.
    fn remove_companions(&self, name: &ArchiveName) {
        let dir = &self.job.destination.dump_dir;
        for path in [name.log(dir), name.notes(dir), seek::Beside::path(&name.path(dir))] {
            if let Err(error) = remove(&path) {
                self.job.log.warn(&format!("removing '{}' failed: {error}", path.display()));
            }
        }
    }
}

/// Removes a file; one that is gone already is fine.
fn remove(path: &Path) -> std::io::Result<()> {
    std::fs::remove_file(path).or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

/// Writes a small file of the archive's. What it is written as is noted: no later run would know to look for it.
fn write(path: &Path, text: &str, held: &mut Held) -> Result<(), GuestError> {
    let intent = Intent::File { path: files::beside(path), in_qemu: false };
    held.note(&intent)?;
    files::replace(path, text.as_bytes()).map_err(|source| GuestError::File {
        what: "writing",
        path: path.to_owned(),
        source,
    })?;
    Ok(held.done(&intent)?)
}
