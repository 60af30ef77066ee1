//! A directory of a few files, each an image: the view of a virtual machine, and the top of that of a container.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::view::{Attributes, Entry, Inode, Kind, TOP, View, ViewError, Xattrs, data_bytes};
use crate::image::{Image, MemImage};

/// Who the files belong to, and who may read them: whoever may read the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permissions to read, such as 0o440.
    pub mode: u16,
}

impl Owner {
    /// That of a file.
    pub fn of(archive: &Metadata) -> Self {
        Self { uid: archive.uid(), gid: archive.gid(), mode: (archive.mode() & 0o444) as u16 }
    }

    /// Of a directory, which has to be entered, too.
    fn directory(self) -> u16 {
        self.mode | self.mode >> 2
    }
}

struct File {
    name: Vec<u8>,
    image: Arc<dyn Image>,
    data: u64,
    mtime: SystemTime,
}

/// See the module.
pub struct Flat {
    owner: Owner,
    time: SystemTime,
    files: Vec<File>,
}

/// Seconds since 1970 as a time; one that none can be is 1970.
pub(super) fn time(seconds: i64, nanos: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = match seconds {
        0.. => SystemTime::UNIX_EPOCH.checked_add(whole),
        _ => SystemTime::UNIX_EPOCH.checked_sub(whole),
    };
    time.and_then(|time| time.checked_add(Duration::from_nanos(nanos.into()))).unwrap_or(SystemTime::UNIX_EPOCH)
}

impl Flat {
    /// Without files, of this time.
    pub fn new(owner: Owner, time: SystemTime) -> Self {
        Self { owner, time, files: Vec::new() }
    }

    /// Adds a disk or another large file. One that cannot tell where its holes are has none; it is shown all the same, since
    /// most of it may be readable.
    pub fn add(&mut self, name: &str, image: Arc<dyn Image>, mtime: SystemTime) {
        let data = data_bytes(image.as_ref()).unwrap_or(image.size());
        self.push(name, image, data, mtime);
    }

    /// Adds a small file.
    pub fn add_bytes(&mut self, name: &str, bytes: Vec<u8>, mtime: SystemTime) {
        let data = bytes.len() as u64;
        self.push(name, Arc::new(MemImage::new(name, bytes)), data, mtime);
    }

    /// The first file of a name stays. What an archive calls its disks may have a slash in it, or be no name of a file.
    fn push(&mut self, name: &str, image: Arc<dyn Image>, data: u64, mtime: SystemTime) {
        let mut name = name.replace(['/', '\0'], "_").into_bytes();
        name.truncate(255);
        let free =
            |name: &[u8]| self.files.iter().all(|file| file.name != name) && ![&b""[..], b".", b".."].contains(&name);
        let mut free_name = name.clone();
        for number in 2.. {
            if free(&free_name) {
                break;
            }
            name.truncate(248);
            free_name = [&name[..], format!("_{number}").as_bytes()].concat();
        }
        self.files.push(File { name: free_name, image, data, mtime });
    }

    /// How many files there are; their inodes follow that of the top directory.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    fn file(&self, inode: Inode) -> Result<&File, ViewError> {
        if inode == TOP {
            return Err(ViewError::Unfit);
        }
        let number = inode.checked_sub(TOP + 1).and_then(|number| usize::try_from(number).ok());
        number.and_then(|number| self.files.get(number)).ok_or(ViewError::Missing)
    }
}

impl View for Flat {
    fn is_known(&self, _inode: Inode) -> bool {
        true
    }

    fn attributes(&self, inode: Inode) -> Result<Attributes, ViewError> {
        let Owner { uid, gid, mode } = self.owner;
        let top = Attributes {
            inode,
            kind: Kind::Directory,
            mode: self.owner.directory(),
            uid,
            gid,
            size: 0,
            data: 0,
            mtime: self.time,
            links: 2,
            rdev: 0,
        };
        if inode == TOP {
            return Ok(top);
        }
        let file = self.file(inode)?;
        let (size, data, mtime) = (file.image.size(), file.data, file.mtime);
        Ok(Attributes { kind: Kind::File, mode, size, data, mtime, links: 1, ..top })
    }

    fn lookup(&self, directory: Inode, name: &[u8]) -> Result<Inode, ViewError> {
        if directory != TOP {
            return self.file(directory).and(Err(ViewError::Unfit));
        }
        let number = self.files.iter().position(|file| file.name == name).ok_or(ViewError::Missing)?;
        Ok(TOP + 1 + number as u64)
    }

    fn entries(&self, directory: Inode, from: u64, most: usize) -> Result<Vec<Entry>, ViewError> {
        if directory != TOP {
            return self.file(directory).and(Err(ViewError::Unfit));
        }
        let files = self.files.iter().zip(TOP + 1..).skip(usize::try_from(from).unwrap_or(usize::MAX)).take(most);
        Ok(files.map(|(file, inode)| Entry { inode, kind: Kind::File, name: file.name.clone() }).collect())
    }

    fn parent(&self, _directory: Inode) -> Inode {
        TOP
    }

    fn content(&self, inode: Inode) -> Result<Arc<dyn Image>, ViewError> {
        Ok(Arc::clone(&self.file(inode)?.image))
    }

    fn link(&self, inode: Inode) -> Result<Vec<u8>, ViewError> {
        self.attributes(inode).and(Err(ViewError::Unfit))
    }

    fn xattrs(&self, inode: Inode) -> Result<Xattrs, ViewError> {
        self.attributes(inode).map(|_| Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_in_a_directory() {
        let owner = Owner { uid: 7, gid: 8, mode: 0o440 };
        let mut flat = Flat::new(owner, time(1_000_000_000, 0));
        flat.add("disk.raw", Arc::new(MemImage::sparse("disk", [vec![1; 4096], vec![0; 8192]].concat())), time(7, 0));
        flat.add_bytes("notes", b"hello".to_vec(), time(-5, 7));
        flat.add_bytes("../x", Vec::new(), time(0, 0));
        flat.add_bytes("notes", Vec::new(), time(0, 0));
        flat.add_bytes("..", Vec::new(), time(0, 0));
        let names: Vec<_> = flat.entries(TOP, 0, 100).unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, [&b"disk.raw"[..], b"notes", b".._x", b"notes_2", b".._2"]);
        assert_eq!(flat.entries(TOP, 3, 1).unwrap()[0].inode, 5);
        let top = flat.attributes(TOP).unwrap();
        assert_eq!((top.kind, top.mode, top.uid, top.links), (Kind::Directory, 0o550, 7, 2));
        let disk = flat.attributes(flat.lookup(TOP, b"disk.raw").unwrap()).unwrap();
        assert_eq!((disk.kind, disk.mode, disk.size, disk.data, disk.links), (Kind::File, 0o440, 12288, 4096, 1));
        let notes = flat.lookup(TOP, b"notes").unwrap();
        assert!(flat.attributes(notes).unwrap().mtime < SystemTime::UNIX_EPOCH);
        let mut content = [0; 5];
        flat.content(notes).unwrap().read_at(&mut content, 0).unwrap();
        assert_eq!(&content, b"hello");
        assert!(matches!(flat.lookup(TOP, b"nix"), Err(ViewError::Missing)));
        assert!(matches!(flat.lookup(notes, b"x"), Err(ViewError::Unfit)));
        assert!(matches!(flat.content(TOP), Err(ViewError::Unfit)));
        assert!(matches!(flat.attributes(99), Err(ViewError::Missing)));
        assert!(matches!(flat.attributes(0), Err(ViewError::Missing)));
    }
}
