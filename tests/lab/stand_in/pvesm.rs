//! `pvesm path|alloc|free` for directory and btrfs storages.

use super::storage::free_volume;
use super::{Machine, Storages, arguments, vmid};
use anyhow::{Context, Result, bail};

pub fn run(machine: &Machine, words: &[String]) -> Result<String> {
    let (plain, options) = arguments(words, &["format"])?;
    let storages = Storages::load(machine)?;
    match plain.as_slice() {
        ["path", volid] => Ok(format!("{}\n", storages.volume(volid)?.path.display())),
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
        other => bail!("pvesm {}: the stand-in knows path, alloc and free", other.join(" ")),
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
