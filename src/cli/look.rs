//! `vzkeep ls` and `vzkeep cat`: what is in the archive of a container, without unpacking it.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::restoring::{find_archive, read_or_empty};
use super::{FAILED, complain};
use crate::archive::tar::{Listed, MemberError, TarArchive, printable};
use crate::config::StorageCfg;
use crate::host::{Cancel, Host};

/// Lists a directory of the archive, a line for each: kind, size, name.
pub fn list(archive: &Path, directory: &OsStr, null: bool) -> ExitCode {
    answer(archive, |archive| {
        let mut out = io::stdout().lock();
        for Listed { name, kind, size } in archive.list(directory.as_bytes())? {
            if null {
                out.write_all(&name)?;
                out.write_all(b"\0")?;
            } else {
                writeln!(out, "{kind} {size:>14} {}", printable(&name))?;
            }
        }
        Ok(())
    })
}

/// Writes the content of a file of the archive to standard output.
pub fn cat(archive: &Path, member: &OsStr) -> ExitCode {
    answer(archive, |archive| {
        let (mut content, size) = archive.read(member.as_bytes())?;
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
    })
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Member(#[from] MemberError),
    #[error("reading the file from byte {offset} on failed: {source}")]
    Content { offset: u64, source: io::Error },
    #[error("writing to standard output failed: {0}")]
    Output(#[from] io::Error),
}

/// Where the archive lies: a volume of a storage, or a path.
pub(super) fn find(host: &Host, archive: &Path) -> anyhow::Result<PathBuf> {
    let found = match archive.to_str().filter(|name| name.contains(":backup/") && !archive.exists()) {
        Some(volid) => find_archive(host, &StorageCfg::parse(&read_or_empty(&host.path(StorageCfg::PATH))?), volid)?,
        None => std::path::absolute(archive).unwrap_or_else(|_| archive.to_owned()),
    };
    Ok(host.path(found))
}

fn answer(path: &Path, work: impl FnOnce(&TarArchive) -> Result<(), Failed>) -> ExitCode {
    let host = Host::from_env();
    let path = match find(&host, path) {
        Ok(path) => path,
        Err(error) => {
            complain(&format!("{error:#}\n"));
            return ExitCode::from(FAILED);
        }
    };
    let opened = TarArchive::open(&host, &path, &Cancel::new());
    let done = opened.map_err(|e| Failed::Member(e.into())).and_then(|archive| {
        let done = work(&archive);
        // Why it took long.
        if let Some(note) = archive.note() {
            complain(&format!("{note}\n"));
        }
        done.and_then(|()| io::stdout().flush().map_err(Failed::Output))
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that went away has what it wanted.
        Err(Failed::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error}\n"));
            ExitCode::from(FAILED)
        }
    }
}
