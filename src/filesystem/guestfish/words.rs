//! The language of `guestfish`: how words are written to it, and what it prints about files.

use super::super::{FileKind, Metadata};

/// A word of any bytes but NUL. What is not plain is written as a number, so that nothing in a name is ever a command.
pub(super) fn quoted(word: &[u8]) -> Vec<u8> {
    let mut text = vec![b'"'];
    for byte in word {
        if is_plain(*byte) {
            text.push(*byte);
        } else {
            text.extend(format!("\\x{byte:02x}").bytes());
        }
    }
    text.push(b'"');
    text
}

/// Bytes that mean nothing but themselves.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/._-+=:,@".contains(&byte)
}

/// Bytes that [`quoted`] makes of it, without the quotes.
pub(super) fn quoted_len(word: &[u8]) -> usize {
    word.iter().map(|byte| if is_plain(*byte) { 1 } else { 4 }).sum()
}

/// A list of words that hold no quote and no backslash.
pub(super) fn list_of<'a>(words: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let words: Vec<Vec<u8>> = words.map(|word| [b"'", word, b"'"].concat()).collect();
    quoted(&words.join(&b' '))
}

/// What it tells about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub device: i64,
    pub inode: i64,
    pub metadata: Metadata,
}

/// The answer to `lstatns`: a field in each line.
pub(super) fn found(answer: &[u8]) -> Option<Found> {
    let text = std::str::from_utf8(answer).ok()?;
    let field = |name: &str| -> Option<i64> {
        let lines = text.lines().map(str::trim);
        lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).next()?.parse().ok()
    };
    let mode = u32::try_from(field("st_mode")?).ok()?;
    let kind = match mode & libc::S_IFMT {
        libc::S_IFREG => FileKind::File,
        libc::S_IFDIR => FileKind::Directory,
        libc::S_IFLNK => FileKind::Symlink,
        libc::S_IFCHR => FileKind::Character,
        libc::S_IFBLK => FileKind::Block,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        _ => FileKind::Other,
    };
    let has_size = matches!(kind, FileKind::File | FileKind::Symlink);
    let size = u64::try_from(field("st_size")?).ok()?;
    Some(Found {
        device: field("st_dev")?,
        inode: field("st_ino")?,
        metadata: Metadata {
            kind,
            size: if has_size { size } else { 0 },
            mode: mode & 0o7777,
            uid: u32::try_from(field("st_uid")?).ok()?,
            gid: u32::try_from(field("st_gid")?).ok()?,
            modified: (field("st_mtime_sec")?, u32::try_from(field("st_mtime_nsec")?).ok()?),
            links: u64::try_from(field("st_nlink")?).ok()?,
        },
    })
}

/// The answer to `lstatnslist`: such fields in brackets, for each file. One of which nothing is known has inode -1.
pub(super) fn listed(answer: &[u8]) -> Option<Vec<Option<Found>>> {
    let text = std::str::from_utf8(answer).ok()?;
    let mut all = Vec::new();
    let mut rest = text.trim_end();
    while !rest.is_empty() {
        let (one, behind) = rest.strip_prefix(&format!("[{}] = {{\n", all.len()))?.split_once("}")?;
        let found = found(one.as_bytes())?;
        all.push((found.inode != -1).then_some(found));
        rest = behind.trim_start();
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    // As guestfish 1.48 prints it.
    const FILE: &str = "  st_dev: 2048\n  st_ino: 225\n  st_mode: 35309\n  st_nlink: 2\n  st_uid: 7\n  st_gid: 8\n  st_rdev: 0\n  st_size: 95\n  st_blksize: 4096\n  st_blocks: 8\n  st_atime_sec: 1\n  st_atime_nsec: 2\n  st_mtime_sec: -3\n  st_mtime_nsec: 4\n  st_ctime_sec: 5\n  st_ctime_nsec: 6\n  st_spare1: 0\n";

    #[test]
    fn files_are_what_is_printed() {
        let file = found(FILE.as_bytes()).unwrap();
        assert_eq!((file.device, file.inode), (2048, 225));
        let Metadata { kind, size, mode, uid, gid, modified, links } = file.metadata.clone();
        assert_eq!((kind, size, mode, uid, gid), (FileKind::File, 95, 0o4755, 7, 8));
        assert_eq!((modified, links), ((-3, 4), 2));
        let lost = FILE.replace("st_ino: 225", "st_ino: -1");
        let both = format!("[0] = {{\n{FILE}}}\n[1] = {{\n{lost}}}\n");
        assert_eq!(listed(both.as_bytes()), Some(vec![Some(file), None]));
        assert_eq!(listed(b""), Some(Vec::new()));
        for bad in ["", "st_mode: 1", &FILE.replace("st_uid: 7", "st_uid: x")] {
            assert_eq!(found(bad.as_bytes()), None);
        }
        assert_eq!(listed(both.replace("[1]", "[2]").as_bytes()), None);
        assert_eq!(listed(&both.as_bytes()[..both.len() - 3]), None);
    }

    #[test]
    fn odd_bytes_are_numbers() {
        assert_eq!(quoted(b"/a\n\"\\"), br#""/a\x0a\x22\x5c""#);
        assert_eq!(list_of([&b"a"[..], b" "].into_iter()), br#""\x27a\x27\x20\x27\x20\x27""#);
        let all: Vec<u8> = (1..=255).collect();
        assert_eq!(quoted(&all).len(), quoted_len(&all) + 2);
    }
}
