//! `pvesm path|list|alloc|free` for directory, btrfs, LVM and LVM-thin storages.

use super::storage::free_volume;
use super::{Machine, Storages, arguments, vmid};
use anyhow::{Context, Result, bail};

pub fn run(machine: &Machine, words: &[String]) -> Result<String> {
    let (plain, options) = arguments(words, &["format", "vmid"])?;
    let storages = Storages::load(machine)?;
    match plain.as_slice() {
        // As for images that are not mapped, on a storage whose other commands nobody calls.
        ["path", volid] if volid.starts_with("ceph:") => Ok(format!("rbd:box/{}\n", volid.trim_start_matches("ceph:"))),
        ["path", volid] => Ok(format!("{}\n", storages.volume(volid)?.path.display())),
        // Only what of the original's table is read: the volumes' names in the first column.
        ["list", storage] => {
            let group = storages.group(storage).with_context(|| format!("storage '{storage}' is no volume group"))?;
            let vmid = options.iter().find(|(name, _)| *name == "vmid").map_or("", |(_, value)| *value);
            let of_guest = |name: &&String| vmid.is_empty() || name.starts_with(&format!("vm-{vmid}-"));
            let names = group.names()?;
            let lines = names.iter().filter(of_guest).map(|name| format!("{storage}:{name} raw rootdir\n"));
            Ok(format!("Volid Format Type\n{}", lines.collect::<String>()))
        }
        ["alloc", storage, id, name, size] => {
            let by_name = name.rsplit_once('.').map(|(_, format)| format);
            let format = options.iter().find(|(name, _)| *name == "format").map(|(_, value)| *value);
            let format = format.or(by_name).unwrap_or("raw");
            let volume = storages.alloc(storage, vmid(Some(id))?, name, size_in_bytes(size)?, format)?;
            Ok(format!("successfully created '{}'\n", volume.volid))
        }
        ["free", volid] => {
            let volume = storages.volume(volid)?;
            free_volume(&volume)?;
            Ok(format!("Removed volume '{volid}'\n"))
        }
        other => bail!("pvesm {}: the stand-in knows path, list, alloc and free", other.join(" ")),
    }
}

/// Sizes are in KiB unless they end in `M` or `G`.
fn size_in_bytes(size: &str) -> Result<u64> {
    let (digits, unit) = match size.as_bytes().last() {
        Some(b'M') => (size.trim_end_matches('M'), 1 << 20),
        Some(b'G') => (size.trim_end_matches('G'), 1 << 30),
        _ => (size, 1 << 10),
    };
    Ok(digits.parse::<u64>().with_context(|| format!("size '{size}' is no number of KiB"))? * unit)
}
