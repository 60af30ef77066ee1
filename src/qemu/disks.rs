//! Which disks a running guest has, from the answer to `query-block`. No I/O.

use serde_json::Value;

/// A disk with a front end in the guest.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Disk {
    /// Path of the device for `qom-set ... drive`.
    pub(super) qdev: String,
    /// The node the device sits on, the topmost of the disk (a throttle node on newer Proxmox VE).
    pub(super) node: String,
    /// Size in bytes.
    pub(super) size: u64,
    /// Names the disk answers to.
    names: Vec<String>,
}

impl Disk {
    /// Whether the disk is meant by `device`: `drive-scsi0`, `scsi0`, or the node's name.
    pub(super) fn answers_to(&self, device: &str) -> bool {
        let short = device.strip_prefix("drive-").unwrap_or(device);
        self.names.iter().any(|n| n == device || n == short || n.strip_prefix("drive-") == Some(short))
    }

    /// The name for messages.
    pub(super) fn label(&self) -> &str {
        self.names.first().map_or(&self.node, String::as_str)
    }
}

/// The disks in an answer to `query-block`; empty drives and back ends without a device are left out.
pub(super) fn parse(query_block: &Value) -> Vec<Disk> {
    query_block.as_array().into_iter().flatten().filter_map(disk).collect()
}

fn disk(entry: &Value) -> Option<Disk> {
    let qdev = entry["qdev"].as_str().filter(|q| !q.is_empty())?.to_owned();
    let node = entry["inserted"]["node-name"].as_str()?.to_owned();
    let size = entry["inserted"]["image"]["virtual-size"].as_u64()?;
    // A device with an id is listed by that id alone.
    let qdev = if qdev.starts_with('/') { qdev } else { format!("/machine/peripheral/{qdev}") };
    let mut names: Vec<String> =
        entry["device"].as_str().filter(|d| !d.is_empty()).map(str::to_owned).into_iter().collect();
    // virtio-blk is asked for its back end: /machine/peripheral/virtio0/virtio-backend
    let id = qdev.split('/').rev().find(|part| *part != "virtio-backend");
    names.extend(id.filter(|i| !i.is_empty()).map(str::to_owned));
    names.push(node.clone());
    Some(Disk { qdev, node, size, names })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn finds_disks_by_all_their_names() {
        let answer = json!([
            {"device": "", "qdev": "scsi0", "inserted": {"node-name": "drive-scsi0", "image": {"virtual-size": 512}}},
            {"device": "", "qdev": "/machine/peripheral/virtio0/virtio-backend",
             "inserted": {"node-name": "drive-virtio0", "image": {"virtual-size": 1024}}},
            {"device": "drive-ide2", "qdev": "ide2"},
            {"device": "drive-sata0", "qdev": "/machine/peripheral/sata0",
             "inserted": {"node-name": "#block166", "image": {"virtual-size": 2048}}},
            {"device": "pflash1", "inserted": {"node-name": "x", "image": {"virtual-size": 1}}},
        ]);
        let disks = parse(&answer);
        assert_eq!(disks.iter().map(Disk::label).collect::<Vec<_>>(), ["scsi0", "virtio0", "drive-sata0"]);
        for (i, name) in [(0, "scsi0"), (0, "drive-scsi0"), (1, "virtio0"), (1, "drive-virtio0"), (2, "sata0")] {
            assert!(disks[i].answers_to(name), "{name}");
            assert_eq!(disks.iter().filter(|d| d.answers_to(name)).count(), 1, "{name}");
        }
        assert!(!disks.iter().any(|d| d.answers_to("ide2") || d.answers_to("scsi")));
    }
}
