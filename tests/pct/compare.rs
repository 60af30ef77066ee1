//! Compares two trees by what the kernel says about them: no archiver has a hand in it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use sha2::{Digest, Sha256};

/// Volumes of a container, mounted one in the other; unmounted when dropped.
pub struct Mounted {
    dir: tempfile::TempDir,
    places: Vec<PathBuf>,
}

impl Mounted {
    pub fn new(volumes: &[(PathBuf, &str)]) -> Self {
        let mut mounted = Self { dir: tempfile::tempdir().unwrap(), places: Vec::new() };
        for (image, place) in volumes {
            mounted.mount(image, place, "loop,ro");
        }
        mounted
    }

    pub fn writable(image: &Path) -> Self {
        let mut mounted = Self { dir: tempfile::tempdir().unwrap(), places: Vec::new() };
        mounted.mount(image, "", "loop");
        mounted
    }

    fn mount(&mut self, image: &Path, place: &str, options: &str) {
        let place = self.dir.path().join("top").join(place);
        fs::create_dir_all(&place).unwrap();
        let out = Command::new("mount").args(["-o", options]).arg(image).arg(&place).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        self.places.push(place);
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("top")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for place in self.places.iter().rev() {
            Command::new("umount").arg(place).status().unwrap();
        }
    }
}

/// What differs between the tree `source` and the tree `restored`, whose ids are `shift` higher. Names that `ignored` says,
/// relative to the top, are left out with all below them, and so are sockets.
pub fn differences(source: &Path, restored: &Path, shift: u32, ignored: &dyn Fn(&[u8]) -> bool) -> Vec<String> {
    let one = Tree::read(source, 0, ignored);
    let two = Tree::read(restored, shift, ignored);
    let names: BTreeSet<&Vec<u8>> = one.entries.keys().chain(two.entries.keys()).collect();
    let mut found = Vec::new();
    for name in names {
        let (a, b) = (one.entries.get(name), two.entries.get(name));
        if a != b {
            let shown = name.escape_ascii().to_string();
            found.push(format!("{}:\n  {a:?}\n  {b:?}", &shown[..shown.len().min(200)]));
        }
    }
    if one.links != two.links {
        found.push(format!("hard links:\n  {:?}\n  {:?}", one.links, two.links));
    }
    found
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    ids: (u32, u32),
    size: u64,
    modified: (i64, i64),
    device: u64,
    target: Vec<u8>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    content: Vec<u8>,
    sparse: bool,
}

#[derive(Default)]
struct Tree {
    entries: BTreeMap<Vec<u8>, Entry>,
    /// Groups of names of one file.
    links: BTreeSet<Vec<Vec<u8>>>,
}

impl Tree {
    fn read(top: &Path, shift: u32, ignored: &dyn Fn(&[u8]) -> bool) -> Self {
        let mut tree = Self::default();
        let mut groups: HashMap<(u64, u64), Vec<Vec<u8>>> = HashMap::new();
        let mut todo = vec![Vec::new()];
        while let Some(name) = todo.pop() {
            let path = top.join(std::ffi::OsStr::from_bytes(&name));
            let meta = path.symlink_metadata().unwrap();
            if meta.file_type().is_socket() {
                continue;
            }
            if meta.is_dir() {
                for entry in fs::read_dir(&path).unwrap() {
                    let mut below = name.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend(entry.unwrap().file_name().into_vec());
                    if !ignored(&below) {
                        todo.push(below);
                    }
                }
            } else if meta.nlink() > 1 {
                groups.entry((meta.dev(), meta.ino())).or_default().push(name.clone());
            }
            tree.entries.insert(name, Entry::read(&path, &meta, shift));
        }
        tree.links = groups
            .into_values()
            .map(|mut names| {
                names.sort();
                names
            })
            .collect();
        tree
    }
}

impl Entry {
    fn read(path: &Path, meta: &fs::Metadata, shift: u32) -> Self {
        let is_file = meta.is_file();
        let is_device = meta.file_type().is_char_device() || meta.file_type().is_block_device();
        let mut attributes = BTreeMap::new();
        for name in xattr::list(path).unwrap() {
            let value = xattr::get(path, &name).unwrap().unwrap_or_default();
            let name = name.into_vec();
            let value = if name == b"security.capability" { without_namespace(value, shift) } else { value };
            let value = if name.starts_with(b"system.posix_acl") { shifted(value, shift) } else { value };
            attributes.insert(name, value);
        }
        Self {
            mode: meta.mode(),
            ids: (meta.uid().wrapping_sub(shift), meta.gid().wrapping_sub(shift)),
            // How large a directory is is up to the file system.
            size: if meta.is_dir() { 0 } else { meta.size() },
            modified: (meta.mtime(), meta.mtime_nsec()),
            device: if is_device { meta.rdev() } else { 0 },
            target: if meta.is_symlink() {
                fs::read_link(path).unwrap().into_os_string().into_vec()
            } else {
                Vec::new()
            },
            attributes,
            content: if is_file { content(path, meta.size()) } else { Vec::new() },
            // Files of a few blocks may be packed otherwise by another file system.
            sparse: is_file && meta.size() > 1 << 20 && meta.blocks() * 512 < meta.size() / 2,
        }
    }
}

/// A file's capabilities as the container sees them: those that were set in it carry the id of its root on the node.
fn without_namespace(value: Vec<u8>, shift: u32) -> Vec<u8> {
    if value.len() != 24 || value[3] != 3 {
        return value;
    }
    assert_eq!(value[20..24], shift.to_le_bytes(), "capabilities of somebody else's root");
    let mut value = value[..20].to_vec();
    value[3] = 2;
    value
}

/// An ACL as the container sees it: entries of 8 bytes behind a version, of which those for named users and groups have an id.
fn shifted(mut value: Vec<u8>, shift: u32) -> Vec<u8> {
    for entry in value[4..].chunks_exact_mut(8) {
        if matches!(entry[0], 2 | 8) {
            let id = u32::from_le_bytes(entry[4..8].try_into().unwrap()).wrapping_sub(shift);
            entry[4..8].copy_from_slice(&id.to_le_bytes());
        }
    }
    value
}

/// A digest of where a file has bytes that are not zero, and which.
fn content(path: &Path, size: u64) -> Vec<u8> {
    const BLOCK: u64 = 4096;
    let file = File::open(path).unwrap_or_else(|e| {
        assert_ne!(e.kind(), ErrorKind::NotFound);
        panic!("{}: {e}", path.display())
    });
    let mut digest = Sha256::new();
    let mut at = 0_i64;
    let mut block = vec![0; BLOCK as usize];
    while let Ok(start) = lseek(&file, at, Whence::SeekData) {
        let end = lseek(&file, start, Whence::SeekHole).unwrap();
        let mut offset = start as u64 / BLOCK * BLOCK;
        while offset < (end as u64).min(size) {
            let length = BLOCK.min(size - offset) as usize;
            file.read_exact_at(&mut block[..length], offset).unwrap();
            if block[..length].iter().any(|byte| *byte != 0) {
                digest.update(offset.to_le_bytes());
                digest.update(&block[..length]);
            }
            offset += BLOCK;
        }
        // What is left of the last block was looked at.
        at = (end as u64).next_multiple_of(BLOCK) as i64;
    }
    assert!(matches!(lseek(&file, at, Whence::SeekData), Err(Errno::ENXIO)), "{}", path.display());
    digest.finalize().to_vec()
}
