//! All disks of a machine together: their partitions, the logical volumes across them, and their file systems, under the
//! names that `vzkeep ls` shows: `drive-scsi0/p1`, `lvm/pve/root`.

use std::cell::{OnceCell, RefCell};
use std::sync::Arc;

use super::bytes::shown;
use super::files::Below;
use super::lvm::{VolumeGroup, volume_groups};
use super::probe::BTRFS;
use super::{FileKind, FileSystem, Found, FsError, Guestfish, Table, files, partition_table, probe, resolve};
use crate::image::Image;

/// The disks of a machine.
pub struct Machine {
    disks: Vec<Arc<dyn Image>>,
    guestfish: Guestfish,
    /// The file systems that it reads, by the names of their disks: starting it takes seconds.
    started: RefCell<Vec<(String, Arc<dyn FileSystem>)>>,
    lvm: OnceCell<(Vec<VolumeGroup>, Vec<String>)>,
}

/// Something that a path leads to, above the files of file systems.
pub enum Place {
    /// A level that has only others below it: their names, and bytes of those that have a size.
    Level(Vec<(String, u64)>),
    /// A file system, and the way in it.
    Files(Arc<dyn FileSystem>, Vec<u8>),
}

impl Machine {
    /// A machine with these disks, whose names are the first parts of paths. What is not read here, `guestfish` reads.
    pub fn new(disks: Vec<Arc<dyn Image>>, guestfish: Guestfish) -> Self {
        Self { disks, guestfish, started: RefCell::default(), lvm: OnceCell::new() }
    }

    /// What a disk holds, by its table; none when it has none.
    fn table(disk: &Arc<dyn Image>) -> Result<Option<Table>, FsError> {
        partition_table(disk).map_err(|e| about(disk.name(), e))
    }

    /// The volume groups on all disks, and what is wrong with some.
    fn lvm(&self) -> Result<&(Vec<VolumeGroup>, Vec<String>), FsError> {
        if let Some(known) = self.lvm.get() {
            return Ok(known);
        }
        let mut physical = Vec::new();
        for disk in &self.disks {
            // What is wrong with a table is said when its disk is looked at.
            let parts: Vec<_> = match partition_table(disk) {
                Ok(Some(table)) => table.partitions.iter().filter_map(|part| part.open(disk).ok()).collect(),
                Ok(None) => vec![disk.clone()],
                Err(e @ FsError::Image(_)) => return Err(e),
                Err(_) => Vec::new(),
            };
            for part in parts {
                if probe(&part)? == Found::Lvm {
                    physical.push(part);
                }
            }
        }
        let found = volume_groups(&physical)?;
        Ok(self.lvm.get_or_init(|| found))
    }

    /// What of all disks is worth a word: tables that contradict themselves, damaged volume groups.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for disk in &self.disks {
            match partition_table(disk) {
                Ok(Some(table)) => notes.extend(table.notes.iter().map(|note| format!("{}: {note}", disk.name()))),
                Ok(None) => {}
                Err(e) => notes.push(about(disk.name(), e).to_string()),
            }
        }
        match self.lvm() {
            Ok((_, found)) => notes.extend(found.iter().cloned()),
            Err(e) => notes.push(e.to_string()),
        }
        notes
    }

    /// What `path` leads to: `""` is the level of the disks.
    ///
    /// # Errors
    /// When there is nothing of that name, or it cannot be read.
    pub fn place(&self, path: &[u8]) -> Result<Place, FsError> {
        let mut parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
        let missing = || FsError::Missing(shown(path));
        let rest = |parts: &mut dyn Iterator<Item = &[u8]>| parts.collect::<Vec<_>>().join(&b'/');
        let Some(first) = parts.next() else { return self.top() };
        if first == b"lvm" && !self.disks.iter().any(|disk| disk.name() == "lvm") {
            return self.volumes(&mut parts, path);
        }
        let disk = self.disks.iter().find(|disk| {
            let short = disk.name().strip_prefix("drive-").unwrap_or(disk.name());
            disk.name().as_bytes() == first || short.as_bytes() == first
        });
        let disk = disk.ok_or_else(missing)?;
        let Some(table) = Self::table(disk)? else {
            return Ok(Place::Files(self.file_system(disk)?, rest(&mut parts)));
        };
        let Some(part) = parts.next() else {
            return Ok(Place::Level(table.partitions.iter().map(|p| (format!("p{}", p.number), p.len)).collect()));
        };
        let part = table.partitions.iter().find(|p| format!("p{}", p.number).as_bytes() == part).ok_or_else(missing)?;
        let part = part.open(disk).map_err(|e| about(disk.name(), e))?;
        Ok(Place::Files(self.file_system(&part)?, rest(&mut parts)))
    }

    fn top(&self) -> Result<Place, FsError> {
        let mut names: Vec<_> = self.disks.iter().map(|disk| (disk.name().to_owned(), disk.size())).collect();
        if !self.lvm()?.0.is_empty() {
            names.push(("lvm".to_owned(), 0));
        }
        Ok(Place::Level(names))
    }

    fn volumes(&self, parts: &mut dyn Iterator<Item = &[u8]>, path: &[u8]) -> Result<Place, FsError> {
        let groups = &self.lvm()?.0;
        let missing = || FsError::Missing(shown(path));
        let Some(group) = parts.next() else {
            return match groups.is_empty() {
                true => Err(missing()),
                false => Ok(Place::Level(groups.iter().map(|group| (group.name.clone(), 0)).collect())),
            };
        };
        let group = groups.iter().find(|known| known.name.as_bytes() == group).ok_or_else(missing)?;
        let Some(name) = parts.next() else {
            let size = |image: &Result<Arc<dyn Image>, String>| image.as_ref().map_or(0, |image| image.size());
            return Ok(Place::Level(group.volumes.iter().map(|v| (v.name.clone(), size(&v.image))).collect()));
        };
        let volume = group.volumes.iter().find(|known| known.name.as_bytes() == name).ok_or_else(missing)?;
        let name = format!("lvm/{}/{}", group.name, volume.name);
        let image = volume.image.as_ref().map_err(|why| about(&name, FsError::Unsupported(why.clone())))?;
        // Some make partitions in volumes; of those, only file systems without are read.
        let rest = parts.collect::<Vec<_>>().join(&b'/');
        Ok(Place::Files(self.file_system(image)?, rest))
    }

    /// The file system on a disk, partition or volume, which is named if there is none.
    fn file_system(&self, image: &Arc<dyn Image>) -> Result<Arc<dyn FileSystem>, FsError> {
        let opened = match files::open(image.clone()) {
            Err(FsError::Foreign(what)) => self.by_guestfish(image, what),
            opened => opened,
        };
        opened.map_err(|e| about(image.name(), e))
    }

    /// The first of these that looks like the root of a system, or the part of one that does. Each starts a machine, which
    /// ends before the next one starts.
    fn foreign_root(&self, candidates: Vec<(String, Arc<dyn Image>)>) -> Result<Option<RootOf>, FsError> {
        let mut unread = None;
        for (name, image) in candidates {
            let fs = match self.file_system(&image) {
                Ok(fs) => fs,
                Err(e) => {
                    unread.get_or_insert(e);
                    continue;
                }
            };
            let parts = if fs.kind() == BTRFS { &ROOTS[..] } else { &ROOTS[..1] };
            for part in parts {
                let Ok(root) = resolve(&*fs, part.as_bytes(), false) else { continue };
                let tree: Arc<dyn FileSystem> = Arc::new(Below { whole: Arc::clone(&fs), root });
                if is_root(&*tree) {
                    return Ok(Some((format!("{name}{part}"), tree)));
                }
            }
            drop(fs);
            self.started.borrow_mut().retain(|(started, _)| *started != name);
        }
        unread.map_or(Ok(None), Err)
    }

    /// The file system as `guestfish` reads it.
    fn by_guestfish(&self, image: &Arc<dyn Image>, what: &'static str) -> Result<Arc<dyn FileSystem>, FsError> {
        let known = self.started.borrow().iter().find(|(name, _)| name == image.name()).map(|(_, fs)| Arc::clone(fs));
        if let Some(fs) = known {
            return Ok(fs);
        }
        let fs = self.guestfish.open(image, what)?;
        self.started.borrow_mut().push((image.name().to_owned(), Arc::clone(&fs)));
        Ok(fs)
    }

    /// The file system of the running guest, as far as that can be told: the one with `/etc/fstab`, `/etc/os-release` or
    /// `/Windows`; and its path.
    ///
    /// # Errors
    /// When there is none, or when there are several.
    pub fn root(&self) -> Result<RootOf, FsError> {
        let mut candidates: Vec<(String, Arc<dyn Image>)> = Vec::new();
        for disk in &self.disks {
            match partition_table(disk) {
                Ok(Some(table)) => {
                    let open = table.partitions.iter().filter_map(|part| part.open(disk).ok());
                    candidates.extend(open.map(|part| (part.name().to_owned(), part)));
                }
                Ok(None) => candidates.push((disk.name().to_owned(), disk.clone())),
                Err(_) => {}
            }
        }
        for group in &self.lvm()?.0 {
            let open = group.volumes.iter().filter_map(|volume| volume.image.as_ref().ok());
            candidates.extend(open.map(|image| (image.name().to_owned(), image.clone())));
        }
        let (mut found, mut foreign) = (Vec::new(), Vec::new());
        for (name, image) in candidates {
            match files::open(image.clone()) {
                Ok(fs) if is_root(&*fs) => found.push((name, fs)),
                Err(FsError::Foreign(_)) => foreign.push((name, image)),
                _ => {}
            }
        }
        if found.is_empty() {
            return self.foreign_root(foreign)?.ok_or_else(no_root);
        }
        let names = found.iter().map(|(name, _)| format!("'{name}'")).collect::<Vec<_>>().join(", ");
        match found.len() {
            1 => found.pop().ok_or_else(|| FsError::Missing("/".to_owned())),
            _ => Err(FsError::Unsupported(format!(
                "several file systems look like the root of a system: {names}; begin the path with one of them"
            ))),
        }
    }
}

/// A file system and its name.
type RootOf = (String, Arc<dyn FileSystem>);

/// Where the root of a system is in a file system: at its top, or on btrfs where Ubuntu, Debian, Fedora and openSUSE have it.
const ROOTS: [&str; 5] = ["", "/@", "/@rootfs", "/root", "/@/.snapshots/1/snapshot"];

fn no_root() -> FsError {
    FsError::Unsupported(
        "no file system on the archive's disks looks like the root of a system; begin the path with a disk".to_owned(),
    )
}

/// Whether this looks like the root of a system.
fn is_root(fs: &dyn FileSystem) -> bool {
    let has =
        |path: &[u8], kind| resolve(fs, path, true).and_then(|node| fs.metadata(node)).is_ok_and(|m| m.kind == kind);
    has(b"etc/fstab", FileKind::File)
        || has(b"etc/os-release", FileKind::File)
        || has(b"Windows/System32", FileKind::Directory)
}

/// An error, and what it is about.
fn about(name: &str, error: FsError) -> FsError {
    match error {
        FsError::Image(_) => error,
        error => FsError::About { name: name.to_owned(), source: Box::new(error) },
    }
}
