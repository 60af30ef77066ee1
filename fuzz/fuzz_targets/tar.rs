//! Tar data from anywhere, and tables of members: an answer, never a panic, never more memory than the input justifies.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| vzkeep::archive::tar::rehearse(data));
