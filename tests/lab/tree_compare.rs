//! Compares two trees by all that a file can have, with eyes of its own: it uses nothing of what is tested.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

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
    let mut attributes = attributes(root)?;
    let mut inodes: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for (path, meta) in paths {
        let first = inodes.entry((meta.dev(), meta.ino())).or_insert_with(|| path.clone()).clone();
        let same_as = (!meta.is_dir() && meta.nlink() > 1).then_some(first);
        let what = describe(&root.join(&path), &meta)?;
        let attributes = attributes.remove(&path).unwrap_or_default();
        found.insert(path, Seen { what, same_as, attributes });
    }
    Ok(found)
}

fn describe(path: &Path, meta: &Metadata) -> Result<String> {
    let kind = meta.file_type();
    let mut text = format!("{:o} {}:{} {}", meta.mode(), meta.uid(), meta.gid(), meta.mtime());
    if kind.is_file() {
        let holes = meta.blocks() * 512 < meta.len() / 2;
        text += &format!(" {} bytes{} {}", meta.len(), if holes { ", sparse," } else { "" }, content(path, meta)?);
    } else if kind.is_symlink() {
        let target = std::fs::read_link(path)?;
        text += &format!(" to {:?}", target.as_os_str().as_bytes().escape_ascii().to_string());
    } else if kind.is_char_device() || kind.is_block_device() {
        text += &format!(" device {:#x}", meta.rdev());
    }
    Ok(text)
}

/// The digest of what can be read; of large sparse files, of their data only, with its offsets.
fn content(path: &Path, meta: &Metadata) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("{} cannot be opened", path.display()))?;
    let mut hash = Sha256::new();
    if meta.len() > 1 << 28 {
        let mut buf = vec![0; 1 << 16];
        let mut offset = 0;
        while let Some(data) = next_data(&file, offset) {
            let len = std::os::unix::fs::FileExt::read_at(&file, &mut buf, data)?;
            for (at, block) in buf[..len].chunks(4096).enumerate().filter(|(_, block)| block.iter().any(|b| *b != 0)) {
                hash.update((data + at as u64 * 4096).to_le_bytes());
                hash.update(block);
            }
            offset = data + len as u64;
        }
    } else {
        let mut buf = vec![0; 1 << 16];
        loop {
            let len = file.read(&mut buf).with_context(|| format!("{} cannot be read", path.display()))?;
            if len == 0 {
                break;
            }
            hash.update(&buf[..len]);
        }
    }
    Ok(hash.finalize().iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}")))
}

/// Where data comes next.
fn next_data(file: &File, offset: u64) -> Option<u64> {
    let at = nix::unistd::lseek(file, i64::try_from(offset).ok()?, nix::unistd::Whence::SeekData).ok()?;
    u64::try_from(at).ok()
}

/// Extended attributes, access lists and capabilities among them, as `getfattr` prints them.
fn attributes(root: &Path) -> Result<BTreeMap<PathBuf, Vec<String>>> {
    let output = Command::new("getfattr")
        .args(["-R", "-P", "-h", "-d", "-m", "-", "-e", "hex", "."])
        .current_dir(root)
        .output()
        .context("getfattr cannot be started")?;
    let mut found: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    let mut at = PathBuf::new();
    for line in output.stdout.split(|b| *b == b'\n') {
        if let Some(name) = line.strip_prefix(b"# file: ") {
            at = PathBuf::from(std::ffi::OsStr::from_bytes(&unescape(name)));
            if at == Path::new(".") {
                at = PathBuf::new();
            }
        } else if !line.is_empty() {
            found.entry(at.clone()).or_default().push(String::from_utf8_lossy(line).into_owned());
        }
    }
    for lines in found.values_mut() {
        lines.sort();
    }
    Ok(found)
}

/// `getfattr` writes bytes that are no text as `\012`.
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut at = 0;
    while let Some(byte) = name.get(at) {
        let octal = name.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *byte == b'\\') {
            Some(value) => {
                out.push(value);
                at += 4;
            }
            None => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    out
}
