//! Containers whose index comes from anywhere: found, refused or not there, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vzkeep::archive::frame::{Container, Index};

fuzz_target!(|data: &[u8]| {
    for container in [Container::Zstd, Container::Gzip] {
        let found = Index::find(container, data.len() as u64, &mut |buf, offset| {
            let from = data.get(offset as usize..).and_then(|d| d.get(..buf.len()));
            buf.copy_from_slice(from.ok_or(std::io::ErrorKind::UnexpectedEof)?);
            Ok(())
        });
        if let Ok(Some(index)) = found {
            assert!(index.iter().map(|f| u64::from(f.packed)).sum::<u64>() < data.len() as u64);
        }
    }
});
