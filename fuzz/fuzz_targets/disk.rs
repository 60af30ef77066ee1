//! Disks from anywhere: partition tables, LVM labels and descriptions, file systems. An answer, never a panic or a hang.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| vzkeep::filesystem::rehearse(data));
