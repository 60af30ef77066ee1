//! Tests of the disks: in memory and raw files everywhere, QEMU's formats against the real programs.

mod formats;
mod local;
mod overlay;
mod server;

use std::path::Path;
use std::process::Command;

use super::*;
use crate::host::Host;

/// Whether the programs a test needs are there. In CI a missing one is a failure, elsewhere the test says so and is left out.
fn have(test: &str, programs: &[&str]) -> bool {
    let missing: Vec<&&str> = programs.iter().filter(|p| !Host::from_env().has_command(p)).collect();
    for program in &missing {
        assert!(std::env::var_os("CI").is_none(), "{test}: {program} missing");
        println!("SKIPPED {test}: {program} missing");
    }
    missing.is_empty()
}

/// Bytes that do not compress and depend on their place.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len.div_ceil(8))
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take(len)
        .collect()
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// All of an image, read in odd steps.
fn read_all(image: &dyn Image) -> Vec<u8> {
    let mut all = vec![0xee; image.size() as usize];
    for (i, part) in all.chunks_mut(777_777).enumerate() {
        image.read_at(part, i as u64 * 777_777).unwrap();
    }
    all
}

/// The extents cover the disk without gaps, and what they call zero is zero in `content`.
fn check_extents(image: &dyn Image, content: &[u8]) -> u64 {
    let mut at = 0;
    let mut data = 0;
    for extent in image.extents(0..image.size()).unwrap() {
        assert_eq!(extent.offset, at);
        assert!(extent.len > 0);
        at += extent.len;
        match extent.kind {
            ExtentKind::Zero => assert!(content[extent.offset as usize..at as usize].iter().all(|b| *b == 0)),
            _ => data += extent.len,
        }
    }
    assert_eq!(at, image.size());
    data
}
