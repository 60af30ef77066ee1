//! The archive of a container, looked at: its tree.

use std::collections::HashSet;
use std::io::{self, Read, Write};

use super::outlet::{Marks, Outlet, Way, WriteError, write_data};
use super::{Failed, Shown, interrupted, last_name};
use crate::archive::ArchiveError;
use crate::archive::tar::{Kind, Listed, Member, MemberError, TarArchive, components, normal, printable};
use crate::host::Cancel;

/// Bytes that are read at once.
const PIECE: usize = 64 << 10;

/// What a directory holds; all that is below it when `recursive` is set.
pub(super) fn list(
    archive: &TarArchive,
    directory: &[u8],
    recursive: bool,
    each: &mut dyn FnMut(Shown) -> Result<(), Failed>,
) -> Result<(), Failed> {
    let mut show = |listed: Listed, name: &[u8]| each(Shown::new(name, listed.kind, listed.size));
    if !recursive {
        return archive.list(directory)?.into_iter().try_for_each(|listed| show(listed.clone(), &listed.name));
    }
    let directory = normal(directory);
    for (name, (_, listed)) in archive.below(&directory)? {
        let rest = name.strip_prefix(directory.as_slice()).unwrap_or(&name);
        let rest = rest.strip_prefix(b"/").unwrap_or(rest);
        if !rest.is_empty() {
            show(listed, rest)?;
        }
    }
    Ok(())
}

/// Writes the content of a file.
pub(super) fn cat(archive: &TarArchive, file: &[u8]) -> Result<(), Failed> {
    let (mut content, size) = archive.read(file)?;
    let (mut out, mut written, mut buf) = (io::stdout().lock(), 0, vec![0; 128 << 10]);
    loop {
        let count = content.read(&mut buf).map_err(|source| Failed::Content { offset: written, source })?;
        if count == 0 {
            break;
        }
        out.write_all(&buf[..count])?;
        written += count as u64;
    }
    if written < size {
        return Err(Failed::Content { offset: written, source: io::ErrorKind::UnexpectedEof.into() });
    }
    Ok(())
}

impl From<ArchiveError> for Failed {
    fn from(error: ArchiveError) -> Self {
        MemberError::from(error).into()
    }
}

/// Writes a file, or a directory with everything in it, to `outlet`. What cannot be written is given to `complain`, and the
/// rest is written all the same.
pub(super) fn extract(
    archive: &TarArchive,
    path: &[u8],
    outlet: &mut Outlet,
    complain: &mut dyn FnMut(&Failed),
    cancel: &Cancel,
) -> Result<(), Failed> {
    let path = normal(path);
    let mut places: Vec<_> = archive.below(&path)?.into_values().map(|(place, _)| place).collect();
    places.sort_unstable();
    let base: Way = last_name(&path).into_iter().collect();
    let mut written = HashSet::new();
    archive.take_members(&places, &mut |member, content| {
        let name = normal(&member.path);
        let done = way(&path, &base, &name).and_then(|way| {
            let link = link(&path, &base, member, &written);
            put(archive, member, &way, link, content, outlet, cancel)?;
            if member.kind == Kind::File || member.kind == Kind::HardLink {
                written.insert(name.clone());
            }
            Ok(())
        });
        match done {
            // The archive itself, or a full disk.
            Err(e @ (Failed::Content { .. } | Failed::Interrupted | Failed::Member(MemberError::Archive(_)))) => Err(e),
            Err(Failed::Write(e)) if !e.is_of_one_file() => Err(e.into()),
            Err(e) => {
                complain(&e);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    })
}

/// Where a member goes.
fn way(path: &[u8], base: &Way, name: &[u8]) -> Result<Way, Failed> {
    let rest: Vec<_> = components(name.strip_prefix(path).unwrap_or(name)).map(<[u8]>::to_vec).collect();
    if rest.iter().any(|part| part == b"..") {
        return Err(Failed::Refused(printable(name)));
    }
    Ok(base.iter().cloned().chain(rest).collect())
}

/// Where the file of a hard link was written, if it was.
fn link(path: &[u8], base: &Way, member: &Member, written: &HashSet<Vec<u8>>) -> Option<Way> {
    let target = normal(&member.link);
    (member.kind == Kind::HardLink && written.contains(&target)).then(|| way(path, base, &target).ok())?
}

fn put(
    archive: &TarArchive,
    member: &Member,
    way: &Way,
    link: Option<Way>,
    content: &mut dyn Read,
    outlet: &mut Outlet,
    cancel: &Cancel,
) -> Result<(), Failed> {
    interrupted(cancel)?;
    let known = member.attributes.as_deref().cloned().unwrap_or_default();
    let marks = Marks { mode: known.mode.into(), uid: known.uid, gid: known.gid, modified: known.mtime };
    match member.kind {
        Kind::Directory => Ok(outlet.directory(way, marks)?),
        Kind::Symlink => Ok(outlet.symlink(way, &member.link, marks)?),
        Kind::File => outlet.file(way, marks, &mut |file, failed| copy(content, member.size, file, failed, cancel)),
        Kind::HardLink => match link {
            Some(link) => Ok(outlet.hard_link(way, &link)?),
            // The file it is another name of was not asked for.
            None => {
                let (mut content, size) = archive.read(&member.path)?;
                outlet.file(way, marks, &mut |file, failed| copy(&mut content, size, file, failed, cancel))
            }
        },
        _ => Err(Failed::Left(printable(&member.path))),
    }
}

/// Copies what is not zero; the rest becomes holes.
fn copy(
    content: &mut dyn Read,
    size: u64,
    file: &std::fs::File,
    failed: &dyn Fn(io::Error) -> WriteError,
    cancel: &Cancel,
) -> Result<(), Failed> {
    file.set_len(size).map_err(failed)?;
    let (mut at, mut buf) = (0, vec![0; PIECE]);
    while at < size {
        interrupted(cancel)?;
        let len = buf.len().min(usize::try_from(size - at).unwrap_or(usize::MAX));
        content.read_exact(&mut buf[..len]).map_err(|source| Failed::Content { offset: at, source })?;
        write_data(file, &buf[..len], at).map_err(failed)?;
        at += len as u64;
    }
    Ok(())
}
