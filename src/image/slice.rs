//! A part of a disk that is a disk itself: a partition, say. Nothing is copied; what is asked of it is asked of the whole.

use std::ops::Range;
use std::sync::Arc;

use super::{Extent, Image, ImageError, check_range};

/// A range of another image.
pub struct Slice {
    image: Arc<dyn Image>,
    name: String,
    start: u64,
    len: u64,
}

impl Slice {
    /// The bytes `range` of `image`; `name` is its name in messages.
    ///
    /// # Errors
    /// When the range is not inside the image.
    pub fn new(image: Arc<dyn Image>, range: Range<u64>, name: &str) -> Result<Self, ImageError> {
        check_range(image.name(), "open", image.size(), &range)?;
        Ok(Self { image, name: name.into(), start: range.start, len: range.end - range.start })
    }
}

impl Image for Slice {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.len
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        check_range(&self.name, "block status", self.len, &range)?;
        let mut extents = self.image.extents(self.start + range.start..self.start + range.end)?;
        extents.iter_mut().for_each(|extent| extent.offset -= self.start);
        Ok(extents)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
        check_range(&self.name, "read", self.len, &(offset..offset.saturating_add(buf.len() as u64)))?;
        self.image.read_at(buf, self.start + offset)
    }

    fn limit_requests(&self, most: usize) {
        self.image.limit_requests(most);
    }

    fn release(&self, range: Range<u64>) {
        let (start, end) = (range.start.min(self.len), range.end.min(self.len));
        if start < end {
            self.image.release(self.start + start..self.start + end);
        }
    }
}
