//! Whatever an NBD client sends from its first byte on: no panic, no endless loop, no memory beyond a piece.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    drop(vzkeep::nbd::server::rehearsal::rehearse(data));
});
