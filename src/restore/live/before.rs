//! The small disks that have to be complete before the guest starts: firmware reads its variables without a driver that could
//! wait for them, and the TPM's state is a file of another program. As with the original.

use crate::host::Cancel;
use crate::image::{Image, Target};
use crate::transfer::{self, CopyOptions};
use std::sync::Arc;

/// Whether the disk with this key of a config is such a one.
pub(super) fn is_needed_before(key: &str) -> bool {
    ["efidisk", "tpmstate"].iter().any(|kind| key.starts_with(kind))
}

/// Copies all of `image` to `target` and makes it durable. False when it was told to stop.
///
/// # Errors
/// What cannot be read or written, with disk and offset.
pub(super) fn copy(image: &Arc<dyn Image>, target: &dyn Target, cancel: &Cancel) -> Result<bool, String> {
    match transfer::copy(image, target, CopyOptions::default(), &mut |_| {}, cancel) {
        Ok(_) => Ok(true),
        Err(_) if cancel.is_set() => Ok(false),
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{MemImage, MemTarget};

    #[test]
    fn every_byte_is_copied_unless_told_to_stop() {
        let mut bytes = vec![0; (2 << 20) + 1536];
        bytes[5..9].fill(7);
        bytes[(2 << 20) + 1000..].fill(9);
        let image: Arc<dyn Image> = Arc::new(MemImage::sparse("efidisk0", bytes.clone()));
        let target = MemTarget::new("t", bytes.len() as u64, false);
        assert_eq!(copy(&image, &target, &Cancel::new()), Ok(true));
        assert!(target.content() == bytes);
        let small = MemTarget::new("t", 512, true);
        assert!(copy(&image, &small, &Cancel::new()).is_err());
        let cancel = Cancel::new();
        cancel.set();
        assert_eq!(copy(&image, &MemTarget::new("t", bytes.len() as u64, true), &cancel), Ok(false));
        assert!(is_needed_before("efidisk0") && is_needed_before("tpmstate0") && !is_needed_before("scsi0"));
    }
}
