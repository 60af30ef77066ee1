//! Why did a read from the snapshot fail? QEMU gives a snapshot up so that the guest can go on, and tells nobody.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A snapshot that broke: QEMU gave it up so that the guest could go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The disk, as the caller named it.
    pub device: String,
    /// The fleecing image.
    pub fleecing: PathBuf,
    /// Bytes free on the file system of the fleecing image, where that is known.
    pub free: Option<u64>,
    /// Time after which a write to the fleecing image counts as failed.
    pub timeout: Duration,
}

/// Below this the file system counts as full: QEMU writes clusters of 64 KiB and more, several at a time.
const FULL: u64 = 1 << 20;

impl Broken {
    /// Whether the fleecing space ran out, as far as we can know.
    pub fn is_full(&self) -> bool {
        self.free.is_some_and(|free| free < FULL)
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fleecing = self.fleecing.display();
        write!(f, "the snapshot of {} broke so that the guest could go on: ", self.device)?;
        if self.is_full() {
            write!(f, "no space left for fleecing in {fleecing}")
        } else {
            let seconds = self.timeout.as_secs();
            write!(f, "saving old data to the fleecing image {fleecing} failed or took longer than {seconds} s")
        }
    }
}

/// Whether an error that came over NBD is a broken snapshot's. QEMU's copy-before-write refuses such reads with EACCES,
/// for which NBD has no number: it arrives as EINVAL. A disk's own read error arrives as EIO.
pub(super) fn is_refused_read(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES))
        || matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::PermissionDenied)
}
