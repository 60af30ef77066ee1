//! Whatever an NBD server sends after the handshake: no panic, no endless loop, no byte of a read unaccounted for.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    drop(vzkeep::nbd::rehearsal::rehearse(data));
});
