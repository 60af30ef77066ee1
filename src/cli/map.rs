//! `vzkeep map`: hands out the disks of an archive over NBD, until it is told to stop.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::place::place_of_archive;
use super::{FAILED, complain, say, sentence};
use crate::archive::{Holds, VmaArchive, holds};
use crate::host::{Cancel, Host};
use crate::image::{Image, OverlayImage, open_image};
use crate::nbd::server::{Event, Export, Exports, Listener, Server, Settings};
use crate::schema::size::human;

/// A client that reads a broken disk again and again shall not fill a log.
const MOST_TROUBLES: usize = 1000;

/// What to serve, and where.
#[derive(Debug, Args)]
pub struct Map {
    /// The archive of a virtual machine, a path or a volume such as local:backup/<name>; or a disk: .raw, .img, .qcow2 or a block device
    archive: PathBuf,
    /// The disk that clients get which name none, such as scsi0; the only one without
    #[arg(long)]
    disk: Option<String>,
    /// Path of the unix socket; only its owner can connect
    #[arg(long)]
    socket: PathBuf,
    /// Let clients write; what they write is kept beside the archive as long as this runs, and then gone
    #[arg(long)]
    overlay: bool,
    /// Where what is written is kept, in files without a name
    #[arg(long, value_name = "DIR", requires = "overlay", default_value = "/var/tmp")]
    overlay_dir: PathBuf,
}

/// Serves until a signal comes.
pub fn run(args: &Map) -> ExitCode {
    match map(&Host::from_env(), args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{}\n", sentence(&error)));
            ExitCode::from(FAILED)
        }
    }
}

fn map(host: &Host, args: &Map) -> Result<()> {
    let (path, cancel) = (place_of_archive(host, &args.archive)?, Cancel::new());
    cancel.on_signals().context("signals cannot be handled")?;
    let disks = disks(host, &path, &cancel)?;
    let default = match &args.disk {
        Some(name) => Some(chosen(&disks, name)?),
        None => None,
    };
    // Before anything is made: a path that is taken is the most likely mistake.
    let listener = Listener::bind(&args.socket)?;
    let (mut list, mut lines) = (Vec::new(), String::new());
    for disk in disks {
        let (name, size) = (disk.name().to_owned(), disk.size());
        let how = if args.overlay { "writable" } else { "read-only" };
        let mut export = match args.overlay {
            true => Export::writable(&name, Arc::new(OverlayImage::new(disk, &args.overlay_dir)?)),
            false => Export::read_only(&name, disk),
        };
        export = export.description(&format!("{name} of {}", path.display()));
        if let Some(short) = short(&name) {
            export = export.alias(short);
        }
        list.push(export);
        lines += &format!("{name} {} {how} {}\n", human(size, 2), uri(&name, listener.path()));
    }
    let mut exports = Exports::new(list);
    if let Some(name) = default {
        exports = exports.with_default(&name);
    }
    let server = Server::start(listener, exports, Settings::default(), Box::new(reporter()), &cancel)
        .context("the server cannot be started")?;
    say(&lines);
    server.wait().context("serving failed")
}

/// The disks of an archive, or the one that the path is.
fn disks(host: &Host, path: &Path, cancel: &Cancel) -> Result<Vec<Arc<dyn Image>>> {
    let looked = path.metadata().with_context(|| format!("looking at '{}' failed", path.display()))?;
    let is_device = std::os::unix::fs::FileTypeExt::is_block_device(&looked.file_type());
    let format = match path.extension().and_then(|extension| extension.to_str()) {
        _ if is_device => Some("raw"),
        Some("raw" | "img") => Some("raw"),
        Some("qcow2") => Some("qcow2"),
        _ => None,
    };
    if let Some(format) = format {
        return Ok(vec![open_image(host, path, format, "disk")?]);
    }
    if holds(host, path, cancel)? == Holds::Container {
        bail!(
            "'{}' holds a container, and only a virtual machine has disks; 'vzkeep ls' shows its files",
            path.display()
        );
    }
    let archive = VmaArchive::open(host, path, cancel)?;
    // Why it took long.
    archive.note().iter().for_each(|note| complain(&format!("{note}\n")));
    let disks = archive.disks();
    if disks.is_empty() {
        bail!("'{}' holds no disk", path.display());
    }
    Ok(disks)
}

/// The whole name of the disk called `name`.
fn chosen(disks: &[Arc<dyn Image>], name: &str) -> Result<String> {
    let names: Vec<&str> = disks.iter().map(|disk| disk.name()).collect();
    let found = names.iter().find(|whole| **whole == name).or_else(|| names.iter().find(|w| short(w) == Some(name)));
    match found {
        Some(whole) => Ok((*whole).to_owned()),
        None => bail!("there is no disk '{name}', only {}", names.join(", ")),
    }
}

/// A disk's name as the guest's configuration has it.
fn short(name: &str) -> Option<&str> {
    name.strip_prefix("drive-").filter(|short| !short.is_empty())
}

/// Trouble, a line each.
fn reporter() -> impl Fn(&Event<'_>) + Send + Sync {
    let told = AtomicUsize::new(0);
    move |event| {
        if !event.is_trouble() {
            return;
        }
        match told.fetch_add(1, Ordering::Relaxed) {
            n if n < MOST_TROUBLES => complain(&format!("{event}\n")),
            MOST_TROUBLES => complain("more such errors are not shown\n"),
            _ => {}
        }
    }
}

/// What QEMU's and other programs take for this disk.
fn uri(name: &str, socket: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    format!("nbd+unix:///{}?socket={}", encoded(name.as_bytes(), b""), encoded(socket.as_os_str().as_bytes(), b"/"))
}

fn encoded(bytes: &[u8], also: &[u8]) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || also.contains(&byte);
    bytes.iter().map(|byte| if plain(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_hold_any_path() {
        assert_eq!(uri("drive-scsi0", Path::new("/run/s")), "nbd+unix:///drive-scsi0?socket=/run/s");
        let odd = uri("a b/ü", Path::new("/tmp/x &y/ß"));
        assert_eq!(odd, "nbd+unix:///a%20b%2F%C3%BC?socket=/tmp/x%20%26y/%C3%9F");
    }
}
