//! Damaged archives: whatever is in them, salvage comes to an end, with a bounded list of what is lost.
#![no_main]

mod sealed;

use std::collections::BTreeMap;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vzkeep::host::{Cancel, Host};
use vzkeep::image::{MemTarget, Target};
use vzkeep::transfer::salvage::Wreck;

fuzz_target!(|data: &[u8]| {
    let path = std::env::temp_dir().join(format!("vzkeep-fuzz-salvage-{}", std::process::id()));
    if std::fs::write(&path, sealed::sealed(data)).is_err() {
        return;
    }
    if let Ok(wreck) = Wreck::open(&Host::with_root("/".into()), &path, &Cancel::new()) {
        let header = wreck.header().clone();
        let small = header.devices.iter().filter(|device| device.size <= 1 << 20);
        let target = |size| Arc::new(MemTarget::new("target", size, false)) as Arc<dyn Target>;
        let targets: BTreeMap<_, _> = small.map(|device| (device.id, target(device.size))).collect();
        if let Ok(losses) = wreck.save(&targets, None, &mut |_, _| {}) {
            assert!(
                losses.lost.iter().all(|loss| targets.get(&loss.device).is_some_and(|t| loss.range.end <= t.size()))
            );
            header.devices.iter().for_each(|device| drop(losses.map(&header, device)));
        }
    }
});
