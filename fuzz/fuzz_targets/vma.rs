//! VMA archives from anywhere: an answer, never a panic, never more memory than the input justifies.
#![no_main]

mod sealed;

use libfuzzer_sys::fuzz_target;
use vzkeep::archive::vma::{Checker, Reader};

fuzz_target!(|data: &[u8]| {
    let data = sealed::sealed(data);
    let Ok(mut reader) = Reader::new(data.as_slice()) else { return };
    let (mut checker, mut buf) = (Checker::new(reader.header()), Vec::new());
    while let Ok(Some(head)) = reader.next_extent(&mut buf) {
        if checker.extent(&head, reader.offset()).is_err() {
            return;
        }
    }
    checker.finish(reader.offset()).ok();
});
