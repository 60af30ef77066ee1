//! The view of a virtual machine's archive: its configuration files, log and notes, each disk as `drive-scsi0.raw`, and each
//! of its partitions as `drive-scsi0.p1.raw`.

use std::path::Path;
use std::sync::Arc;

use super::flat::{Flat, Owner, time};
use super::{MountError, beside};
use crate::archive::vma::Header;
use crate::filesystem::partition_table;
use crate::image::Image;

/// The view. What cannot be said about partitions is told with `say`; the disk is there all the same.
///
/// # Errors
/// When the log or the notes beside the archive cannot be read.
pub(super) fn view(
    archive: &Path,
    header: &Header,
    disks: &[Arc<dyn Image>],
    owner: Owner,
    say: &mut dyn FnMut(&str),
) -> Result<Flat, MountError> {
    let made = time(header.ctime, 0);
    let mut flat = Flat::new(owner, made);
    for (name, content) in &header.configs {
        flat.add_bytes(name, content.clone(), made);
    }
    beside::add(&mut flat, archive)?;
    for disk in disks {
        let name = disk.name();
        flat.add(&format!("{name}.raw"), Arc::clone(disk), made);
        let table = match partition_table(disk) {
            Ok(table) => table,
            Err(error) => {
                say(&format!("{name}: no partitions are shown: {error}"));
                continue;
            }
        };
        let Some(table) = table else { continue };
        for note in &table.notes {
            say(&format!("{name}: {note}"));
        }
        for partition in &table.partitions {
            let number = partition.number;
            match partition.open(disk) {
                Ok(image) => flat.add(&format!("{name}.p{number}.raw"), image, made),
                Err(error) => say(&format!("{name}: partition {number} is not shown: {error}")),
            }
        }
    }
    Ok(flat)
}
