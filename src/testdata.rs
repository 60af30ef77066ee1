//! Where tests find the recordings of the real tools.

use std::path::PathBuf;

/// The folder of recordings: `GOLDEN_DIR`, else `../shared/golden` beside the project. Without it a test says so and does
/// nothing, except in CI, where it fails.
pub(crate) fn golden() -> Option<PathBuf> {
    let default = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/golden"));
    let dir = std::env::var_os("GOLDEN_DIR").map_or(default, PathBuf::from);
    if dir.join("vzdump").is_dir() {
        return Some(dir);
    }
    assert!(std::env::var_os("CI").is_none(), "no recordings in {}: set GOLDEN_DIR", dir.display());
    eprintln!("skipped: no recordings in {}", dir.display());
    None
}
