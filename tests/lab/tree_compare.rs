//! Compares two trees by all that a file can have, with eyes of its own: it uses nothing of what is tested.

use anyhow::{Context, Result};
use nix::unistd::{Whence, lseek};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// By so much data is read: holes that are smaller are nobody's business.
const BLOCK: usize = 4096;

/// Everything that is compared of a file, ready to print.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    what: String,
    /// The first path of those that are the same file.
    same_as: Option<PathBuf>,
    attributes: Vec<String>,
}

/// The differences between two trees, one a line, sockets and the paths in `but` (relative, with all below) aside. Empty
/// when they are equal.
///
/// # Errors
/// When one cannot be read.
pub fn differences(left: &Path, right: &Path, but: &[&str]) -> Result<Vec<String>> {
    let (left, right) = (look(left, but)?, look(right, but)?);
    let mut found = Vec::new();
    for (path, seen) in &left {
        match right.get(path) {
            None => found.push(format!("{path:?}: missing; it was {}", seen.what)),
            Some(other) if other != seen => found.push(format!("{path:?}: {}", difference(seen, other))),
            Some(_) => {}
        }
    }
    found.extend(right.keys().filter(|path| !left.contains_key(*path)).map(|path| format!("{path:?}: too much")));
    Ok(found)
}

/// How many paths a tree has.
///
/// # Errors
/// When it cannot be read.
pub fn count(root: &Path) -> Result<usize> {
    let mut paths = Vec::new();
    walk(root, Path::new(""), &[], &mut paths)?;
    Ok(paths.len())
}

fn difference(seen: &Seen, other: &Seen) -> String {
    let mut parts = Vec::new();
    if seen.what != other.what {
        parts.push(format!("{} is now {}", seen.what, other.what));
    }
    if seen.same_as != other.same_as {
        parts.push(format!("was the same file as {:?}, is now as {:?}", seen.same_as, other.same_as));
    }
    if seen.attributes != other.attributes {
        parts.push(format!("attributes {:?} are now {:?}", seen.attributes, other.attributes));
    }
    parts.join("; ")
}

fn walk(root: &Path, at: &Path, but: &[&str], paths: &mut Vec<(PathBuf, Metadata)>) -> Result<()> {
    let here = root.join(at);
    let meta = here.symlink_metadata().with_context(|| format!("{} cannot be looked at", here.display()))?;
    if meta.file_type().is_socket() || but.iter().any(|path| Path::new(path) == at) {
        return Ok(());
    }
    let is_dir = meta.is_dir();
    paths.push((at.to_owned(), meta));
    if is_dir {
        for entry in std::fs::read_dir(&here).with_context(|| format!("{} cannot be listed", here.display()))? {
            walk(root, &at.join(entry?.file_name()), but, paths)?;
        }
    }
    Ok(())
}

fn look(root: &Path, but: &[&str]) -> Result<BTreeMap<PathBuf, Seen>> {
    let mut paths = Vec::new();
    walk(root, Path::new(""), but, &mut paths)?;
    paths.sort_by(|a, b| a.0.cmp(&b.0));
    let mut inodes: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for (path, meta) in paths {
        let first = inodes.entry((meta.dev(), meta.ino())).or_insert_with(|| path.clone()).clone();
        let same_as = (!meta.is_dir() && meta.nlink() > 1).then_some(first);
        let what = describe(&root.join(&path), &meta)?;
        let attributes = attributes(&root.join(&path))?;
        found.insert(path, Seen { what, same_as, attributes });
    }
    Ok(found)
}

fn describe(path: &Path, meta: &Metadata) -> Result<String> {
    let kind = meta.file_type();
    let mut text = format!("{:o} {}:{} {}.{:09}", meta.mode(), meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec());
    if kind.is_file() {
        // Another file system may pack files of a few blocks otherwise.
        let holes = meta.len() >= 1 << 20 && meta.blocks() * 512 < meta.len() / 2;
        text += &format!(" {} bytes{} {}", meta.len(), if holes { ", sparse," } else { "" }, content(path, meta)?);
    } else if kind.is_symlink() {
        let target = std::fs::read_link(path)?;
        text += &format!(" to {:?}", target.as_os_str().as_bytes().escape_ascii().to_string());
    } else if kind.is_char_device() || kind.is_block_device() {
        text += &format!(" device {:#x}", meta.rdev());
    }
    Ok(text)
}

/// A digest of where the file has bytes that are not zero, and which.
fn content(path: &Path, meta: &Metadata) -> Result<String> {
    let file = File::open(path).with_context(|| format!("{} cannot be opened", path.display()))?;
    let mut hash = Sha256::new();
    let mut buf = vec![0; 16 * BLOCK];
    let mut offset = 0;
    while let Some(data) = next_data(&file, offset) {
        let begin = data / BLOCK as u64 * BLOCK as u64;
        let wanted = buf.len().min(usize::try_from(meta.len() - begin).unwrap_or(usize::MAX));
        let read = file.read_exact_at(&mut buf[..wanted], begin);
        read.with_context(|| format!("{} cannot be read", path.display()))?;
        let blocks = buf[..wanted].chunks(BLOCK).enumerate();
        for (at, block) in blocks.filter(|(_, block)| block.iter().any(|byte| *byte != 0)) {
            hash.update((begin + (at * BLOCK) as u64).to_le_bytes());
            hash.update(block);
        }
        offset = begin + wanted as u64;
    }
    Ok(hash.finalize().iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}")))
}

/// Where data comes next.
fn next_data(file: &File, offset: u64) -> Option<u64> {
    let at = lseek(file, i64::try_from(offset).ok()?, Whence::SeekData).ok()?;
    u64::try_from(at).ok()
}

/// Extended attributes as the kernel gives them, access lists and capabilities among them.
fn attributes(path: &Path) -> Result<Vec<String>> {
    let asked = || format!("{} cannot be asked for its attributes", path.display());
    let mut found = Vec::new();
    for name in xattr::list(path).with_context(asked)? {
        let value = xattr::get(path, &name).with_context(asked)?.unwrap_or_default();
        found.push(format!("{}={}", name.as_bytes().escape_ascii(), value.escape_ascii()));
    }
    found.sort();
    Ok(found)
}
