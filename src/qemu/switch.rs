//! The instant: all disks change over to their filters at once, while the guest runs.
//!
//! `qom-set` changes one device after the other. Pausing the guest for that is not safe: in QEMU 10.0.2 `stop` can take away
//! the interrupt of a virtio-blk request that completes in an I/O thread at that moment, and the guest waits for it for ever.
//! `blockdev-reopen` gives many nodes new children in one transaction under one drain, but resets every option it is not
//! told, so it is used on nodes of our own only: a `throttle` filter without limits, the "top", goes between each device
//! and its disk, one after the other, which changes nothing; then all tops get their copy-before-write filters at once. That
//! works over any disk, and no option of a node that is not ours has to be known.
//!
//! On the way back no instant is needed: the sweep sets each device to the filter, removes the top, sets the device to its disk.
//! Unlike a reopen that flushes nothing, so it also frees a guest from a disk on which a flush fails.

use std::time::Duration;

use serde_json::{Value, json};

use super::disks::Disk;
use super::names::{Names, UNLIMITED};
use super::{QemuError, Qmp};

/// A reopen flushes the disks before it changes anything; a slow storage may need its time for that.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Makes a top over each disk and puts it under the device. The object [`UNLIMITED`] must exist.
pub(super) fn insert_tops(qmp: &mut Qmp, vmid: u32, disks: &[(&Names, &Disk)]) -> Result<(), QemuError> {
    for (names, disk) in disks {
        make_top(qmp, names, disk)?;
    }
    // Beyond the end of the node a guest's write is an error: no device gets one that is not as large as its disk.
    let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true }))?;
    for (names, disk) in disks {
        let node = nodes.as_array().into_iter().flatten().find(|n| n["node-name"] == names.top.as_str());
        let size = node.and_then(|n| n["image"]["virtual-size"].as_u64()).unwrap_or(0);
        if size != disk.size {
            let (top, label, right) = (&names.top, disk.label(), disk.size);
            let detail = format!("QEMU gives node {top} {size} bytes instead of the {right} of {label} below it");
            return Err(QemuError::Spec { vmid, detail });
        }
    }
    disks.iter().try_for_each(|(names, disk)| set_drive(qmp, &disk.qdev, &names.top))
}

fn make_top(qmp: &mut Qmp, names: &Names, disk: &Disk) -> Result<(), QemuError> {
    // Not made over the disk at once: QEMU (seen with 10.0.2) crashes when a throttle node is added over a node in an I/O
    // thread, because it moves to that thread before it knows its group. This inner node goes with the first reopen. It is
    // as large as the disk: a node learns its size when it is opened, not when it is reopened (seen with 7.2).
    let empty = json!({ "driver": "null-co", "size": disk.size, "read-zeroes": true });
    qmp.execute("blockdev-add", top(names, empty))?;
    let over_disk = top(names, disk.node.as_str().into());
    qmp.execute_within("blockdev-reopen", json!({ "options": [over_disk] }), TIMEOUT).map(drop)
}

/// Puts the filter of every disk under its top: the instant of several disks.
pub(super) fn switch_tops<'a>(qmp: &mut Qmp, disks: impl Iterator<Item = &'a Names>) -> Result<(), QemuError> {
    let tops: Vec<Value> = disks.map(|names| top(names, names.filter.as_str().into())).collect();
    qmp.execute_within("blockdev-reopen", json!({ "options": tops }), TIMEOUT).map(drop)
}

/// Gives a device another node; QEMU drains it for that, so for one disk this is an instant.
pub(super) fn set_drive(qmp: &mut Qmp, qdev: &str, node: &str) -> Result<(), QemuError> {
    qmp.execute("qom-set", json!({ "path": qdev, "property": "drive", "value": node })).map(drop)
}

/// All options of a top, the same whenever it is opened. Discards pass it: what becomes of them is not its business.
fn top(names: &Names, file: Value) -> Value {
    json!({
        "driver": "throttle",
        "node-name": names.top,
        "throttle-group": UNLIMITED,
        "file": file,
        "discard": "unmap",
    })
}
