//! What lies beside an archive and is shown with it: the log of the backup and the notes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::flat::Flat;
use crate::image::{ImageError, RawImage};
use crate::storage::ArchiveInfo;

/// Adds `log` and `notes`, as far as they are there.
///
/// # Errors
/// When one is there, but cannot be read.
pub(super) fn add(flat: &mut Flat, archive: &Path) -> Result<(), ImageError> {
    for (name, path) in files(archive) {
        // Nothing else is opened: a pipe would wait for somebody to write to it.
        let Some(meta) = path.metadata().ok().filter(std::fs::Metadata::is_file) else { continue };
        let mtime = meta.modified().unwrap_or(std::time::UNIX_EPOCH);
        flat.add(name, Arc::new(RawImage::open(&path, name)?), mtime);
    }
    Ok(())
}

/// Where they are, by the archive's name; an archive whose name is none of vzdump's has none.
pub(crate) fn files(archive: &Path) -> Vec<(&'static str, PathBuf)> {
    let info = archive.file_name().and_then(|name| ArchiveInfo::parse(name.to_str()?));
    let Some(info) = info else { return Vec::new() };
    // The extension begins with what kind of archive it is.
    let base = [".vma", ".tar", ".tgz"].iter().filter_map(|extension| info.file.rfind(extension)).max();
    let log = format!("{}.log", &info.file[..base.unwrap_or(info.file.len())]);
    vec![("log", archive.with_file_name(log)), ("notes", archive.with_file_name(info.notes()))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::{Owner, TOP, View};

    #[test]
    fn by_the_name_of_the_archive() {
        let of = |archive: &str| {
            let found = files(Path::new(archive));
            found.into_iter().map(|(_, path)| path.display().to_string()).collect::<Vec<_>>()
        };
        let base = "/d/vzdump-qemu-100-2026_11_22-09_14_25";
        assert_eq!(of(&format!("{base}.vma.zst")), [format!("{base}.log"), format!("{base}.vma.zst.notes")]);
        assert_eq!(of("/d/vzdump-lxc-a.tar.b.tgz"), ["/d/vzdump-lxc-a.tar.b.log", "/d/vzdump-lxc-a.tar.b.tgz.notes"]);
        assert!(of("/d/other.vma").is_empty());
    }

    #[test]
    fn only_files_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("vzdump-qemu-100-x.vma");
        std::fs::write(dir.path().join("vzdump-qemu-100-x.vma.notes"), "a note").unwrap();
        std::fs::create_dir(dir.path().join("vzdump-qemu-100-x.log")).unwrap();
        let mut flat = Flat::new(Owner { uid: 0, gid: 0, mode: 0o444 }, std::time::UNIX_EPOCH);
        add(&mut flat, &archive).unwrap();
        let names: Vec<_> = flat.entries(TOP, 0, 9).unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, [b"notes"]);
    }
}
