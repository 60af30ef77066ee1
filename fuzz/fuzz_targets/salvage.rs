//! Damaged archives: whatever is in them, salvage comes to an end, with a bounded list of what is lost.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use vzkeep::host::{Cancel, Host};
use vzkeep::transfer::salvage::Wreck;

fuzz_target!(|data: &[u8]| {
    let path = std::env::temp_dir().join(format!("vzkeep-fuzz-salvage-{}", std::process::id()));
    if std::fs::write(&path, data).is_err() {
        return;
    }
    if let Ok(wreck) = Wreck::open(&Host::with_root("/".into()), &path, &Cancel::new()) {
        wreck.save(&BTreeMap::new(), None, &mut |_, _| {}).ok();
    }
});
