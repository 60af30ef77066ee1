//! The configuration as an archive holds it (`qemu-server.conf`): what holds now, and one line per disk that tells a
//! restore where it came from.

use super::guest::header;
use super::{BackupVolume, GuestConfig};

const MAP: &str = "#qmdump#map:";

/// Where a disk of the archive came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapLine {
    /// The disk's key in the configuration: `scsi0`.
    pub key: String,
    /// Its name in the archive: `drive-scsi0`.
    pub device: String,
    /// The storage; empty for a disk that was on none.
    pub storage: String,
    /// `raw`, `qcow2`, ...; may be empty.
    pub format: String,
}

/// The text stored in the archive. `formats` says a disk's image format where the configuration does not.
///
/// Left out: everything from the first section on, `lock`, `parent`, `unusedN` and map lines of an earlier backup.
pub fn config_blob(
    config: &GuestConfig,
    volumes: &[BackupVolume],
    format: impl Fn(&BackupVolume) -> String,
) -> Vec<u8> {
    let mut blob = Vec::new();
    for (_, line) in config.lines() {
        if header(line).is_some() {
            break;
        }
        if !is_transient(line) {
            blob.extend_from_slice(line);
        }
    }
    if blob.last().is_some_and(|last| *last != b'\n') {
        blob.push(b'\n');
    }
    for volume in volumes.iter().filter(|volume| volume.excluded.is_none()) {
        let disk = &volume.disk;
        let storage = disk.storage().unwrap_or_default();
        let line = format!("{MAP}{}:{}:{storage}:{}:\n", disk.key, disk.device(), format(volume));
        blob.extend_from_slice(line.as_bytes());
    }
    blob
}

/// Lines about the moment or the node rather than the guest.
pub(super) fn is_transient(line: &[u8]) -> bool {
    let text = String::from_utf8_lossy(line);
    let unused = text.strip_prefix("unused").is_some_and(|rest| {
        rest.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with(':') && !rest.starts_with(':')
    });
    unused || ["#qmdump#", "#vzdump#", "lock:", "parent:"].iter().any(|start| text.starts_with(start))
}

/// The map lines of a stored configuration.
pub fn map_lines(blob: &[u8]) -> Vec<MapLine> {
    let text = String::from_utf8_lossy(blob);
    let read = |line: &str| {
        let mut parts = line.trim_end().strip_prefix(MAP)?.split(':').map(str::to_owned);
        let map = MapLine { key: parts.next()?, device: parts.next()?, storage: parts.next()?, format: parts.next()? };
        (!map.key.is_empty() && !map.device.is_empty()).then_some(map)
    };
    text.lines().filter_map(read).collect()
}
