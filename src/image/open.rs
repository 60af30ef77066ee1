//! Opens a disk by path and format: raw files and block devices directly, everything else through `qemu-nbd`.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::raw::open_error;
use super::{Image, ImageError, NbdImage, NbdTarget, QemuNbd, RawImage, RawTarget, Target};
use crate::host::Host;

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

fn close_door(server: &mut QemuNbd, path: &Path, name: &str) -> Result<(), ImageError> {
    server.close_door().map_err(|e| {
        let e = io::Error::new(e.kind(), format!("the socket of qemu-nbd cannot be removed: {e}"));
        open_error(name, path, e)
    })
}
