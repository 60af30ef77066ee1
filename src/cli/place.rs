//! Where the archives and files lie that a command line names: a path, or a volume of a storage such as `local:backup/<name>`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::restoring::read_or_empty;
use crate::config::StorageCfg;
use crate::host::Host;

/// There is no such archive.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoArchive {
    #[error("can't find file '{0}'")]
    File(String),
    #[error("volume '{0}' does not exist")]
    Volume(String),
}

/// Where the archive `name`, a path or a volume, is.
///
/// # Errors
/// When there is none.
pub(super) fn find_archive(host: &Host, storages: &StorageCfg, name: &str) -> Result<PathBuf> {
    let (path, missing) = match name.split_once(":backup/") {
        Some((id, file)) if !id.is_empty() && !id.contains('/') => {
            let storage = storages.usable(id, host.node())?;
            let dir = storage.dump_dir().with_context(|| format!("storage '{id}' keeps no backups as files"))?;
            if file.split('/').any(|part| part == "..") {
                bail!("'{name}' is no volume of storage '{id}'");
            }
            (dir.join(file), NoArchive::Volume(name.to_owned()))
        }
        _ => {
            let path = std::path::absolute(name).with_context(|| format!("'{name}' is no path"))?;
            let missing = NoArchive::File(path.display().to_string());
            (path, missing)
        }
    };
    if !host.path(&path).exists() {
        return Err(missing.into());
    }
    Ok(path)
}

/// Where the archive `name` of this node really is; see [`find_archive`].
///
/// # Errors
/// When there is none, or the storages cannot be read.
pub(super) fn archive_on(host: &Host, name: &str) -> Result<PathBuf> {
    let storages = StorageCfg::parse(&read_or_empty(&host.path(StorageCfg::PATH))?);
    Ok(host.path(find_archive(host, &storages, name)?))
}

/// Where a path given by the user really lies.
pub(super) fn place(host: &Host, path: &Path) -> PathBuf {
    host.path(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
}

/// Where an archive given by the user really lies: a volume of a storage, or a path. Whether anything is there finds out who
/// opens it.
///
/// # Errors
/// When the volume does not exist, or the storages cannot be read.
pub(super) fn place_of_archive(host: &Host, archive: &Path) -> Result<PathBuf> {
    match archive.to_str().filter(|name| name.contains(":backup/") && !archive.exists()) {
        Some(volid) => archive_on(host, volid),
        None => Ok(place(host, archive)),
    }
}
