//! What happens to an archive that is complete: notes, protection, and the older ones that retention lets go.

use std::path::Path;

use super::guest_run::{GuestError, GuestRun};
use crate::guest::held::Held;
use crate::guest::record::Intent;
use crate::guest::vm::Vm;
use crate::host::files;
use crate::schema::{Keep, notes};
use crate::storage::{ArchiveName, Entry, GuestKind, Mark, list, plan_prune};

impl GuestRun<'_> {
    /// Writes notes and protection, then removes what retention does not keep.
    pub(super) fn dress(&self, vm: &Vm, held: &mut Held) -> Result<(), GuestError> {
        let Some(name) = &self.name else { return Ok(()) };
        let (job, options, dir) = (self.job, self.job.options, &self.job.destination.dump_dir);
        if let Some(template) = &options.notes_template {
            job.log.info("adding notes to backup");
            let variables = notes::Variables {
                cluster: job.cluster_name(),
                guestname: vm.config.name().unwrap_or_default(),
                node: job.host.node().to_owned(),
                vmid: self.vmid.to_string(),
            };
            // Notes are no reason to lose the backup.
            let written = notes::render(template, &variables).map_err(|reason| reason.to_string());
            let written = written.and_then(|text| write(&name.notes(dir), &text, held).map_err(|e| e.to_string()));
            if let Err(reason) = written {
                job.log.warn(&format!("unable to add notes - {reason}"));
            }
        }
        if options.protected {
            job.log.info("marking backup as protected");
            write(&name.protected(dir), "", held)?;
        }
        let (keep, remove) = options.retention(job.destination.keep());
        if remove { self.prune(&keep, name) } else { Ok(()) }
    }

    fn prune(&self, keep: &Keep, fresh: &ArchiveName) -> Result<(), GuestError> {
        let (job, dir) = (self.job, &self.job.destination.dump_dir);
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| GuestError::File { what, path, source }
        };
        job.log.info(&format!("prune older backups with retention: {}", keep.to_string().replace(',', ", ")));
        let zone = jiff::tz::TimeZone::system();
        let mine = |entry: &Entry| entry.name.kind == GuestKind::Qemu && entry.name.vmid == self.vmid;
        let entries: Vec<Entry> = list(dir, &zone).map_err(failed("listing", dir))?.into_iter().filter(mine).collect();
        let backups: Vec<_> = entries.iter().map(Entry::backup).collect();
        let mut removed = 0;
        for (entry, mark) in entries.iter().zip(plan_prune(&backups, keep, &zone)) {
            // The archive just written stays, whatever the clock says.
            if mark != Mark::Remove || entry.name == *fresh {
                continue;
            }
            let shown = match job.destination.storage_id() {
                Some(storage) => format!("{storage}:backup/{}", entry.name),
                None => entry.name.path(dir).display().to_string(),
            };
            job.log.info(&format!("removing backup '{shown}'"));
            let archive = entry.name.path(dir);
            for file in [archive, entry.name.notes(dir), entry.name.log(dir)] {
                match std::fs::remove_file(&file) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed("removing", &file)(e)),
                    _ => {}
                }
            }
            removed += 1;
        }
        if removed > 0 {
            job.log.info(&format!("pruned {removed} backup(s) not covered by keep-retention policy"));
        }
        Ok(())
    }
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
