//! `vzkeep ls`, `vzkeep cat` and `vzkeep extract`: what is in an archive, without unpacking it: the tree of a container, or
//! the files on the disks of a virtual machine.

mod container;
mod outlet;
mod vm;

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::place::place_of_archive;
use super::{FAILED, complain};
use crate::archive::tar::{MemberError, TarArchive, printable};
use crate::archive::{Holds, holds};
use crate::filesystem::{FileKind, FsError, Metadata};
use crate::host::{Cancel, Host};
use outlet::{Outlet, WriteError};
use vm::Vm;

/// List what a directory in an archive holds: kind, size and name
///
/// Of a container: its tree. An archive vzkeep made has a table of its members, of which only a small part is read; any
/// other one is gone through. Of a virtual machine: its configuration, notes and log, its disks, the partitions of each
/// (drive-scsi0/p1), the volumes of LVM (lvm/<group>/<volume>), and the files on them: ext2, ext3, ext4, FAT and NTFS; others
/// (XFS, btrfs) if the program 'guestfish' is installed, which takes seconds to start. Kinds are those of 'ls -l', and h for a
/// hard link.
#[derive(Debug, Args)]
pub struct Ls {
    /// The archive, a path or a volume such as local:backup/<name>
    archive: PathBuf,
    /// The directory in it, such as etc/network or drive-scsi0/p1/etc; the top one without. In a virtual machine, one that
    /// begins with / is looked for on the disk its system is on
    #[arg(default_value = "")]
    directory: OsString,
    /// Only names as they are, each with a NUL byte behind it, for 'xargs -0'
    #[arg(short = '0', long, conflicts_with = "json")]
    null: bool,
    /// Also what is in the directories below, with the way to it
    #[arg(short = 'R', long)]
    recursive: bool,
    /// A JSON array of objects
    #[arg(long)]
    json: bool,
}

/// Write the content of one file in an archive to standard output
///
/// Reads what 'vzkeep ls' reads, and then only the part of the archive the file is in. Holes become zeros.
#[derive(Debug, Args)]
pub struct Cat {
    /// The archive, a path or a volume
    archive: PathBuf,
    /// The file in it, such as etc/hostname or drive-scsi0/p1/etc/hostname
    file: OsString,
}

/// Write files and directories of an archive below a directory
///
/// Each gets its own name there, as with 'cp -r': with permissions and times, with its owner when root calls, holes stay
/// holes. Nothing that is there is replaced, and a file has its name only when it is complete. Device nodes, pipes, sockets, ACLs and extended attributes are left out.
#[derive(Debug, Args)]
pub struct Extract {
    /// The archive, a path or a volume
    archive: PathBuf,
    /// What is wanted, such as drive-scsi0/p1/etc
    #[arg(required = true)]
    paths: Vec<OsString>,
    /// The directory they are written to; it is made if it is not there
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

/// What is shown of a file.
struct Shown {
    name: Vec<u8>,
    kind: char,
    size: u64,
    more: Option<Metadata>,
}

impl Shown {
    fn new(name: &[u8], kind: char, size: u64) -> Self {
        Self { name: name.to_vec(), kind, size, more: None }
    }

    fn of(name: &[u8], metadata: &Metadata) -> Self {
        let size = if metadata.kind == FileKind::Directory { 0 } else { metadata.size };
        Self::new(name, metadata.kind.sign(), size)
    }

    fn json(&self) -> Value {
        let mut object = json!({
            "name": String::from_utf8_lossy(&self.name),
            "kind": self.kind.to_string(),
            "size": self.size,
        });
        if let Some(more) = &self.more {
            object["mode"] = json!(format!("{:04o}", more.mode));
            object["uid"] = json!(more.uid);
            object["gid"] = json!(more.gid);
            object["mtime"] = json!(more.modified.0);
        }
        object
    }
}

/// An open archive.
enum Opened {
    Container(TarArchive),
    Vm(Vm),
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Member(#[from] MemberError),
    #[error("archive '{archive}': {source}")]
    Disk { archive: String, source: FsError },
    #[error("reading '{}' failed: {source}", path.display())]
    Beside { path: PathBuf, source: io::Error },
    #[error("writing {0}")]
    Write(#[from] WriteError),
    #[error("'{0}' is left out: it is a device, a pipe or a socket")]
    Left(String),
    #[error("'{0}' is left out: its name would lead out of the directory")]
    Refused(String),
    #[error("{0} of the files could not be taken out")]
    Some(u64),
    #[error("reading the file from byte {offset} on failed: {source}")]
    Content { offset: u64, source: io::Error },
    #[error("writing to standard output failed: {0}")]
    Output(#[from] io::Error),
    #[error("interrupted")]
    Interrupted,
    #[error("interrupted: files that have their names are complete, the rest is not there")]
    Stopped,
    #[error("signals cannot be handled: {0}")]
    Signals(io::Error),
}

/// Lists a directory of the archive.
pub fn list(args: &Ls) -> ExitCode {
    let directory = args.directory.as_bytes();
    answer(&args.archive, &Cancel::new(), |archive| {
        let mut out = io::BufWriter::new(io::stdout().lock());
        let mut objects = Vec::new();
        let mut show = |shown: Shown| {
            if args.json {
                objects.push(shown.json());
            } else if args.null {
                out.write_all(&shown.name)?;
                out.write_all(b"\0")?;
            } else {
                writeln!(out, "{} {:>14} {}", shown.kind, shown.size, printable(&shown.name))?;
            }
            Ok(())
        };
        let listed = match archive {
            Opened::Container(archive) => container::list(archive, directory, args.recursive, &mut show),
            Opened::Vm(vm) => vm.list(directory, args.recursive, &mut show),
        };
        if args.json {
            writeln!(out, "{}", Value::Array(objects))?;
        }
        out.flush()?;
        listed
    })
}

/// Writes the content of a file of the archive to standard output.
pub fn cat(args: &Cat) -> ExitCode {
    let file = args.file.as_bytes();
    answer(&args.archive, &Cancel::new(), |archive| match archive {
        Opened::Container(archive) => container::cat(archive, file),
        Opened::Vm(vm) => vm.cat(file, &mut io::stdout().lock()),
    })
}

/// Writes files of the archive below a directory.
pub fn extract(args: &Extract) -> ExitCode {
    let cancel = Cancel::new();
    if let Err(error) = cancel.on_signals() {
        complain(&format!("{}\n", Failed::Signals(error)));
        return ExitCode::from(FAILED);
    }
    answer(&args.archive, &cancel, |archive| {
        let mut outlet = Outlet::open(&args.to)?;
        let mut failures = 0;
        let mut note = |failed: &Failed| {
            failures += u64::from(!matches!(failed, Failed::Left(_)));
            complain(&format!("{failed}\n"));
        };
        let done = args.paths.iter().try_for_each(|path| match archive {
            Opened::Container(archive) => container::extract(archive, path.as_bytes(), &mut outlet, &mut note, &cancel),
            Opened::Vm(vm) => vm.extract(path.as_bytes(), &mut outlet, &mut note),
        });
        // Directories get their permissions whatever became of what is in them.
        let finished = outlet.finish();
        outlet.note().iter().for_each(|note| complain(&format!("{note}\n")));
        // Whatever a wait that was ended says of it.
        interrupted(&cancel).map_err(|_| Failed::Stopped)?;
        done?;
        finished?;
        if failures > 0 { Err(Failed::Some(failures)) } else { Ok(()) }
    })
}

fn interrupted(cancel: &Cancel) -> Result<(), Failed> {
    if cancel.is_set() { Err(Failed::Interrupted) } else { Ok(()) }
}

/// The last name of a path; none of the top directory.
fn last_name(path: &[u8]) -> Option<Vec<u8>> {
    let last = path.split(|byte| *byte == b'/').rfind(|part| !part.is_empty() && *part != b".");
    last.filter(|name| *name != b"..").map(<[u8]>::to_vec)
}

fn open(host: &Host, path: &Path, cancel: &Cancel) -> Result<(Opened, Option<String>), Failed> {
    match holds(host, path, cancel).map_err(MemberError::from)? {
        Holds::Vm => vm::open(host, path, cancel).map(|(vm, note)| (Opened::Vm(vm), note)),
        Holds::Container => {
            let archive = TarArchive::open(host, path, cancel).map_err(MemberError::from)?;
            Ok((Opened::Container(archive), None))
        }
    }
}

fn answer(path: &Path, cancel: &Cancel, work: impl FnOnce(&Opened) -> Result<(), Failed>) -> ExitCode {
    let host = Host::from_env();
    let path = match place_of_archive(&host, path) {
        Ok(path) => path,
        Err(error) => {
            complain(&format!("{error:#}\n"));
            return ExitCode::from(FAILED);
        }
    };
    let done = open(&host, &path, cancel).and_then(|(archive, note)| {
        let done = work(&archive);
        // Why it took long, and what is strange.
        let notes = match &archive {
            Opened::Container(archive) => archive.note().into_iter().collect(),
            Opened::Vm(vm) => vm.notes(),
        };
        note.into_iter().chain(notes).for_each(|note| complain(&format!("{note}\n")));
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
