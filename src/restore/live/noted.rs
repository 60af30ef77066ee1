//! An image that remembers why it could not be read first. Whoever reads it over NBD learns no more than that it failed.

use crate::image::{Extent, Image, ImageError};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// The first failure of some images.
#[derive(Debug, Clone, Default)]
pub(super) struct Failure(Arc<Mutex<Option<String>>>);

impl Failure {
    /// What it was.
    pub(super) fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note<T>(&self, result: Result<T, ImageError>) -> Result<T, ImageError> {
        if let Err(error) = &result {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.to_string());
        }
        result
    }
}

/// An image and where its failures are noted.
pub(super) struct Noted {
    pub(super) image: Arc<dyn Image>,
    pub(super) failure: Failure,
}

impl Image for Noted {
    fn name(&self) -> &str {
        self.image.name()
    }

    fn size(&self) -> u64 {
        self.image.size()
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        self.failure.note(self.image.extents(range))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
        self.failure.note(self.image.read_at(buf, offset))
    }

    fn limit_requests(&self, most: usize) {
        self.image.limit_requests(most);
    }

    fn release(&self, range: Range<u64>) {
        self.image.release(range);
    }
}
