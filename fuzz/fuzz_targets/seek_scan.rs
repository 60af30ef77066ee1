//! Compressed files from anywhere: one pass over them gives data and access points, or an error; never a panic, never more memory
//! than there are bytes of data.
#![no_main]

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vzkeep::archive::seek::{Method, Packed, scan};
use vzkeep::host::{Cancel, Host};

fuzz_target!(|data: &[u8]| {
    // What lzop makes is decompressed by lzop.
    let Some(method) = Method::recognise(data).filter(|method| *method != Method::Lzop) else { return };
    let file: Arc<dyn Packed> = Arc::new(data.to_vec());
    let mut len = 0;
    let mut sink = |part: &[u8]| {
        len += part.len() as u64;
        if len > 64 << 20 { Err(ErrorKind::OutOfMemory.into()) } else { Ok(()) }
    };
    let (points, done) = scan(&Host::with_root(PathBuf::from("/")), &file, method, &mut sink, &Cancel::new());
    assert!(done.is_err() || points.raw() == len);
});
