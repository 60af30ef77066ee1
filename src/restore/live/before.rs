//! The small disks that have to be complete before the guest starts: firmware reads its variables without a driver that could
//! wait for them, and the TPM's state is a file of another program. As with the original.

use crate::host::Cancel;
use crate::image::{ExtentKind, Image, Target};

/// How much is looked at and copied at once.
const PIECE: u64 = 1 << 20;

/// Whether the disk with this key of a config is such a one.
pub(super) fn is_needed_before(key: &str) -> bool {
    ["efidisk", "tpmstate"].iter().any(|kind| key.starts_with(kind))
}

/// Copies all of `image` to `target` and makes it durable. False when it was told to stop.
///
/// # Errors
/// What cannot be read or written, with disk and offset.
pub(super) fn copy(image: &dyn Image, target: &dyn Target, cancel: &Cancel) -> Result<bool, String> {
    let mut buf = vec![0; usize::try_from(PIECE).unwrap_or_default()];
    for begin in (0..image.size()).step_by(buf.len()) {
        if cancel.is_set() {
            return Ok(false);
        }
        for extent in image.extents(begin..image.size().min(begin + PIECE)).map_err(|e| e.to_string())? {
            let (at, len) = (extent.offset, extent.len);
            let done = match extent.kind {
                ExtentKind::Zero if target.starts_zeroed() => Ok(()),
                ExtentKind::Zero => target.write_zeroes(at..at + len),
                ExtentKind::Data | ExtentKind::Unchanged => {
                    let piece = &mut buf[..usize::try_from(len).unwrap_or_default()];
                    image.read_at(piece, at).and_then(|()| target.write_at(piece, at))
                }
            };
            done.map_err(|e| e.to_string())?;
        }
    }
    target.flush().map_err(|e| e.to_string())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{MemImage, MemTarget};

    #[test]
    fn every_byte_is_copied_and_zeros_only_where_they_are_needed() {
        let mut bytes = vec![0; (PIECE * 2 + 1536) as usize];
        bytes[5..9].fill(7);
        bytes[PIECE as usize * 2 + 1000..].fill(9);
        for zeroed in [true, false] {
            let image = MemImage::sparse("efidisk0", bytes.clone());
            let target = MemTarget::new("t", bytes.len() as u64, zeroed);
            assert_eq!(copy(&image, &target, &Cancel::new()), Ok(true));
            assert!(target.content() == bytes);
        }
        let cancel = Cancel::new();
        cancel.set();
        let image = MemImage::sparse("efidisk0", bytes.clone());
        assert_eq!(copy(&image, &MemTarget::new("t", bytes.len() as u64, true), &cancel), Ok(false));
        assert!(is_needed_before("efidisk0") && is_needed_before("tpmstate0") && !is_needed_before("scsi0"));
    }
}
