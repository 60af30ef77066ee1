//! Compares files that were read without mounting their file system with the tree it was made of.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use vzkeep::filesystem::{Content, FileKind, FileSystem, Metadata, Node};

/// The names in a directory and what they are.
pub fn names(fs: &dyn FileSystem, directory: Node) -> BTreeMap<Vec<u8>, Node> {
    fs.read_dir(directory).unwrap().into_iter().map(|entry| (entry.name, entry.node)).collect()
}

/// Bytes of a file that may be data by what is known of it; everything else is zero in both.
fn assert_content(content: &Content, real: &File, path: &Path) {
    assert_eq!(content.size(), real.metadata().unwrap().len(), "{}", path.display());
    let (mut buf, mut wanted) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let (mut at, mut hole) = (0, 0);
    while let Some(data) = content.data_from(at) {
        let len = buf.len().min((data.end - data.start) as usize);
        assert_eq!(content.read_at(&mut buf[..len], data.start).unwrap(), len);
        real.read_exact_at(&mut wanted[..len], data.start).unwrap();
        assert!(buf[..len] == wanted[..len], "{} differs from byte {} on", path.display(), data.start);
        hole += data.start - at;
        at = data.start + len as u64;
    }
    hole += content.size() - at.min(content.size());
    // What is no data here has no blocks there.
    let stored = real.metadata().unwrap().blocks() * 512;
    assert!(stored <= content.size() - hole + 65536, "{}: {stored} bytes stored", path.display());
}

fn kind(metadata: &fs::Metadata) -> FileKind {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => FileKind::Directory,
        () if kind.is_symlink() => FileKind::Symlink,
        () if kind.is_char_device() => FileKind::Character,
        () if kind.is_block_device() => FileKind::Block,
        () if kind.is_fifo() => FileKind::Fifo,
        () if kind.is_socket() => FileKind::Socket,
        () => FileKind::File,
    }
}

/// Compares everything that both have to have; returns how many files that were.
pub fn compare(fs: &dyn FileSystem, node: Node, real: &Path, same: &dyn Fn(&Metadata, &fs::Metadata) -> bool) -> usize {
    let (found, wanted) = (fs.metadata(node).unwrap(), fs::symlink_metadata(real).unwrap());
    assert_eq!(found.kind, kind(&wanted), "{}", real.display());
    assert!(same(&found, &wanted), "{}: {found:?} is not {wanted:?}", real.display());
    match found.kind {
        FileKind::Symlink => {
            assert_eq!(fs.read_link(node).unwrap(), fs::read_link(real).unwrap().as_os_str().as_bytes())
        }
        FileKind::File => assert_content(&fs.open(node).unwrap(), &File::open(real).unwrap(), real),
        FileKind::Directory => {
            let mut names = names(fs, node);
            names.remove(&b"lost+found"[..]);
            let entries = fs::read_dir(real).unwrap().map(|entry| entry.unwrap().file_name());
            let real_names: BTreeSet<_> = entries.map(|name| name.as_bytes().to_vec()).collect();
            assert!(names.keys().eq(&real_names), "{}: {:?}", real.display(), names.keys());
            let each = names.iter().map(|(name, node)| compare(fs, *node, &real.join(OsStr::from_bytes(name)), same));
            return 1 + each.sum::<usize>();
        }
        _ => {}
    }
    1
}

/// Whether two files are the same by what a file system of Unix keeps of them.
pub fn same_as_unix(found: &Metadata, wanted: &fs::Metadata) -> bool {
    let size = matches!(found.kind, FileKind::File | FileKind::Symlink).then_some(wanted.len());
    size.is_none_or(|size| size == found.size)
        && found.mode == wanted.mode() & 0o7777
        && (found.uid, found.gid) == (wanted.uid(), wanted.gid())
        // mke2fs keeps whole seconds; which bits of them, depends on the size of inodes.
        && (found.modified.0 as u32) == (wanted.mtime() as u32)
        // It makes links of their own of several names of a symbolic link.
        && (found.kind != FileKind::File || found.links == wanted.nlink())
}

/// Whether two files are the same by what FAT and NTFS keep of them.
pub fn same_as_windows(found: &Metadata, wanted: &fs::Metadata) -> bool {
    let is_file = found.kind == FileKind::File;
    // FAT counts two seconds at a time, and its top directory has no time.
    !is_file || found.size == wanted.len() && (found.modified.0 - wanted.mtime()).abs() < 3
}
