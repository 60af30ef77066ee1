//! The configuration of a restored VM, from the one in the archive.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::Disk;
use super::blob::is_transient;
use super::guest::{header, key_value, pairs};

/// Where new identities come from: chance, or a function, so that tests know what they get.
pub struct Fresh<'a>(Box<dyn FnMut() -> Uuid + 'a>);

impl<'a> Fresh<'a> {
    /// Random ones.
    pub fn random() -> Self {
        Self::from(Uuid::new_v4)
    }

    /// Those that `next` gives.
    pub fn from(next: impl FnMut() -> Uuid + 'a) -> Self {
        Self(Box::new(next))
    }

    /// A new machine id.
    fn uuid(&mut self) -> String {
        (self.0)().to_string()
    }

    /// A new MAC address that begins with `prefix` (`BC:24:11`).
    fn mac(&mut self, prefix: &str) -> String {
        let random = (self.0)().into_bytes();
        let mut bytes: Vec<String> = prefix.split(':').take(6).map(str::to_uppercase).collect();
        // Bytes 6 and 8 of a version 4 UUID are not all random; the first ones are.
        bytes.extend(random.iter().take(6 - bytes.len()).map(|byte| format!("{byte:02X}")));
        bytes.join(":")
    }
}

/// What becomes of the configuration.
#[derive(Debug, Clone, Default)]
pub struct Rewrite {
    /// The new volume of each disk restored, by key: `scsi0` -> `local:300/vm-300-disk-0.qcow2`.
    pub volumes: BTreeMap<String, String>,
    /// New MAC addresses and a new SMBIOS uuid.
    pub unique: bool,
    /// How MAC addresses of this cluster begin (`mac_prefix` of datacenter.cfg); empty means PVE's default.
    pub mac_prefix: String,
}

/// PVE's own range of MAC addresses.
const MAC_PREFIX: &str = "BC:24:11";

/// The text of the restored VM's configuration file.
///
/// - map lines, `lock`, `parent` and `unusedN` are dropped, and so is everything from a section header on;
/// - a disk that was restored gets its new volume and loses `format=`, which may have changed;
/// - a disk with `backup=0` becomes a comment: the archive does not have it;
/// - other disk lines (CD-ROM drives) stay;
/// - a `vmgenid` other than 0 is made anew: the guest must notice that it went back in time;
/// - with `unique`, MAC addresses and the uuid of `smbios1` are made anew.
pub fn rewrite_for_restore(blob: &[u8], rewrite: &Rewrite, fresh: &mut Fresh<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(blob.len());
    for line in blob.split_inclusive(|byte| *byte == b'\n') {
        if header(line).is_some() {
            break;
        }
        if is_transient(line) {
            continue;
        }
        match rewrite_line(line, rewrite, fresh) {
            Some(new) => out.extend_from_slice(new.as_bytes()),
            None => out.extend_from_slice(line),
        }
        if !out.ends_with(b"\n") {
            out.push(b'\n');
        }
    }
    out
}

/// The new line, where it is another one.
fn rewrite_line(line: &[u8], rewrite: &Rewrite, fresh: &mut Fresh<'_>) -> Option<String> {
    let (key, value) = key_value(line)?;
    let name = key.trim_end_matches(|c: char| c.is_ascii_digit());
    let numbered = name.len() < key.len();
    match name {
        "ide" | "scsi" | "virtio" | "sata" | "efidisk" | "tpmstate" if numbered => {
            let mut disk = Disk::parse(&key, &value)?;
            if !disk.wants_backup() && !rewrite.volumes.contains_key(&key) {
                return Some(format!("#{key}: {value}\n"));
            }
            disk.volid = rewrite.volumes.get(&key)?.clone();
            disk.options.retain(|(option, _)| option != "format");
            Some(format!("{key}: {disk}\n"))
        }
        "vmgenid" if value != "0" => Some(format!("vmgenid: {}\n", fresh.uuid())),
        "net" if numbered && rewrite.unique => {
            let prefix = if rewrite.mac_prefix.is_empty() { MAC_PREFIX } else { &rewrite.mac_prefix };
            let parts = pairs(&value, "model").into_iter().map(|(option, text)| match option.as_str() {
                "model" if !value.contains("model=") => text,
                _ if is_mac(&text) => format!("{option}={}", fresh.mac(prefix)),
                _ => format!("{option}={text}"),
            });
            Some(format!("{key}: {}\n", parts.collect::<Vec<_>>().join(",")))
        }
        "smbios" if key == "smbios1" && rewrite.unique => {
            let mut parts = pairs(&value, "uuid");
            parts.retain(|(option, _)| option != "uuid");
            parts.insert(0, ("uuid".to_owned(), fresh.uuid()));
            let parts: Vec<_> = parts.iter().map(|(option, text)| format!("{option}={text}")).collect();
            Some(format!("{key}: {}\n", parts.join(",")))
        }
        _ => None,
    }
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<_> = text.split(':').collect();
    parts.len() == 6 && parts.iter().all(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
}
