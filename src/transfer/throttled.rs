//! Targets with a limit of their own: disks on one storage share one, those on another have another.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::limit::Limiter;
use crate::host::Cancel;
use crate::image::{ImageError, Target};

/// How long a wait goes on before the wish to stop is looked at again.
const TICK: Duration = Duration::from_millis(50);

/// A limit in bytes of data a second, shared by the targets that have it.
pub struct Throttle(Limiter);

impl Throttle {
    /// `rate` in bytes a second; 0 is no limit.
    pub fn new(rate: u64) -> Self {
        Self(Limiter::new(Some(rate)))
    }
}

/// A target that is written to no faster than its limit.
pub struct Throttled {
    target: Arc<dyn Target>,
    limit: Arc<Throttle>,
    cancel: Cancel,
}

impl Throttled {
    /// Writes to `target` wait for `limit`; waiting ends when `cancel` is set.
    pub fn new(target: Arc<dyn Target>, limit: Arc<Throttle>, cancel: Cancel) -> Self {
        Self { target, limit, cancel }
    }
}

impl Target for Throttled {
    fn name(&self) -> &str {
        self.target.name()
    }

    fn size(&self) -> u64 {
        self.target.size()
    }

    fn starts_zeroed(&self) -> bool {
        self.target.starts_zeroed()
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), ImageError> {
        let len = buf.len() as u64;
        let mut wait = self.limit.0.pay(len);
        while !wait.is_zero() {
            if self.cancel.is_set() {
                let (image, source) = (self.name().to_owned(), io::Error::other("cancelled"));
                return Err(ImageError { image, op: "write", offset, len, source });
            }
            let nap = wait.min(TICK);
            std::thread::sleep(nap);
            wait -= nap;
        }
        self.target.write_at(buf, offset)
    }

    fn write_zeroes(&self, range: Range<u64>) -> Result<(), ImageError> {
        self.target.write_zeroes(range)
    }

    fn flush(&self) -> Result<(), ImageError> {
        self.target.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MemTarget;

    #[test]
    fn disks_of_a_group_share_their_limit_and_a_wait_ends() {
        let limit = Arc::new(Throttle::new(1));
        let cancel = Cancel::new();
        let (first, second) = (MemTarget::new("a", 64, true), MemTarget::new("b", 64, true));
        let first = Throttled::new(Arc::new(first), Arc::clone(&limit), cancel.clone());
        let second = Throttled::new(Arc::new(second), limit, cancel.clone());
        // 64 bytes at one a second: nothing is written before it is paid for.
        let stopper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            cancel.set();
        });
        let error = first.write_at(&[1; 64], 0).unwrap_err();
        assert_eq!(error.to_string(), "a: write of 64 bytes at offset 0 failed: cancelled");
        assert!(second.write_at(&[1; 64], 0).is_err());
        stopper.join().unwrap();
    }
}
