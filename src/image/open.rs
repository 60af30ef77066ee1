//! Opens a disk by path and format: raw files and block devices directly, everything else through `qemu-nbd`.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use super::qemu_nbd::FORMATS;
use super::raw::open_error;
use super::{Image, ImageError, NbdImage, NbdTarget, QemuNbd, RawImage, RawTarget, Target};
use crate::host::{Host, child};

/// How long it may take to find out what a disk is; storages that hang are no reason to hang, too.
const DETECTING: Duration = Duration::from_secs(60);

/// Opens the disk at `path`, of QEMU's format `format`, for reading. `path` is taken as it is, no root prefix is added.
///
/// # Errors
/// When it cannot be opened, is in use by a running guest, or has another format.
pub fn open_image(host: &Host, path: &Path, format: &str, name: &str) -> Result<Arc<dyn Image>, ImageError> {
    if format == "raw" {
        return Ok(Arc::new(RawImage::open(path, name)?));
    }
    let mut server = QemuNbd::serve(host, path, format, true).map_err(|e| open_error(name, path, e))?;
    let image = NbdImage::connect(server.socket(), "", name)?;
    close_door(&mut server, path, name)?;
    Ok(Arc::new(image.with_server(server)))
}

/// Opens the disk at `path`, which must exist with its final size, for writing. `starts_zeroed`: it is known to read as
/// zeros.
///
/// # Errors
/// As [`open_image`].
pub fn open_target(
    host: &Host,
    path: &Path,
    format: &str,
    name: &str,
    starts_zeroed: bool,
) -> Result<Arc<dyn Target>, ImageError> {
    if format == "raw" {
        return Ok(Arc::new(RawTarget::open(path, name, starts_zeroed)?));
    }
    let mut server = QemuNbd::serve(host, path, format, false).map_err(|e| open_error(name, path, e))?;
    let target = NbdTarget::connect(server.socket(), "", name, starts_zeroed)?;
    close_door(&mut server, path, name)?;
    Ok(Arc::new(target.with_server(server)))
}

/// What `qemu-img` takes the disk at `path` for. Only for disks that no guest has written to as raw ones: a guest can write any
/// header into those.
///
/// # Errors
/// One sentence, when the program is missing, fails, or finds a format that is not known here.
pub fn detect_format(host: &Host, path: &Path) -> Result<String, String> {
    // An absolute path, because QEMU takes `word:rest` for a protocol.
    let path = std::path::absolute(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut command = host.command("qemu-img");
    command.args(["info", "--output=json", "--force-share", "--"]).arg(&path);
    let said = child::said(&mut command, Stdio::null(), Some(DETECTING))?;
    let info: serde_json::Value = serde_json::from_str(&said)
        .map_err(|e| format!("qemu-img says nothing usable about {}: {e}", path.display()))?;
    match info["format"].as_str() {
        Some(format) if FORMATS.contains(&format) => Ok(format.to_owned()),
        _ => Err(format!("{} has the format {}, not one of {}", path.display(), info["format"], FORMATS.join(", "))),
    }
}

fn close_door(server: &mut QemuNbd, path: &Path, name: &str) -> Result<(), ImageError> {
    server.close_door().map_err(|e| {
        let e = io::Error::new(e.kind(), format!("the socket of qemu-nbd cannot be removed: {e}"));
        open_error(name, path, e)
    })
}
