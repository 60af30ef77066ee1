//! A logical volume as an image: pieces of physical volumes, one behind the other or in stripes.

use std::ops::Range;
use std::sync::Arc;

use crate::image::{Extent, Image, ImageError};

/// Takes the place of a piece, a stripe and an offset in its image, and the range of the volume that lies there.
type EachPiece<'a> = dyn FnMut(&Stripe, u64, Range<u64>) -> Result<(), ImageError> + 'a;

/// Where a stripe of a segment begins.
pub(super) struct Stripe {
    pub image: Arc<dyn Image>,
    pub offset: u64,
}

/// A part of a volume.
pub(super) struct Segment {
    /// First byte in the volume.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Bytes of a stripe before it is the next one's turn.
    pub width: u64,
    pub stripes: Vec<Stripe>,
}

/// The volume.
pub(super) struct Volume {
    name: String,
    size: u64,
    segments: Vec<Segment>,
}

impl Volume {
    /// A volume of these segments, which must follow each other without gaps and lie on their disks.
    pub fn new(name: &str, segments: Vec<Segment>) -> Result<Self, String> {
        let strange = || "is described in a way that makes no sense".to_owned();
        let mut size = 0_u64;
        for segment in &segments {
            let count = segment.stripes.len() as u64;
            let each = segment.len / count.max(1);
            let is_even =
                segment.len.is_multiple_of(count.max(1)) && each.is_multiple_of(segment.width.min(each.max(1)));
            if segment.start != size || !is_even {
                return Err(strange());
            }
            for stripe in &segment.stripes {
                if stripe.offset.checked_add(each).is_none_or(|end| end > stripe.image.size()) {
                    return Err(format!("reaches beyond the end of {}", stripe.image.name()));
                }
            }
            size = size.checked_add(segment.len).ok_or_else(strange)?;
        }
        Ok(Self { name: name.to_owned(), size, segments })
    }

    /// Where byte `at` lies, and how many bytes lie there together.
    fn place(&self, at: u64) -> Option<(&Stripe, u64, u64)> {
        let number = self.segments.partition_point(|segment| segment.start + segment.len <= at);
        let segment = self.segments.get(number)?;
        let (within, count) = (at - segment.start, segment.stripes.len() as u64);
        let (turn, rest) = (within / segment.width, within % segment.width);
        let stripe = segment.stripes.get((turn % count) as usize)?;
        let offset = stripe.offset + turn / count * segment.width + rest;
        Some((stripe, offset, (segment.width - rest).min(segment.len - within)))
    }

    /// Calls `each` for all pieces of a range.
    fn walk(&self, range: Range<u64>, each: &mut EachPiece<'_>) -> Result<(), ImageError> {
        let mut at = range.start;
        while at < range.end
            && let Some((stripe, offset, len)) = self.place(at)
        {
            let end = at.saturating_add(len).min(range.end);
            each(stripe, offset, at..end)?;
            at = end;
        }
        Ok(())
    }
}

impl Image for Volume {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        crate::image::check_range(&self.name, "block status", self.size, &range)?;
        let mut extents = Vec::new();
        self.walk(range, &mut |stripe, offset, piece| {
            for extent in stripe.image.extents(offset..offset + (piece.end - piece.start))? {
                let offset = piece.start + (extent.offset - offset);
                crate::image::push(&mut extents, Extent { offset, ..extent });
            }
            Ok(())
        })?;
        Ok(extents)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let range = offset..offset.saturating_add(buf.len() as u64);
        crate::image::check_range(&self.name, "read", self.size, &range)?;
        self.walk(range, &mut |stripe, place, piece| {
            let (from, to) = ((piece.start - offset) as usize, (piece.end - offset) as usize);
            stripe.image.read_at(&mut buf[from..to], place)
        })
    }

    fn limit_requests(&self, most: usize) {
        self.segments.iter().flat_map(|segment| &segment.stripes).for_each(|stripe| stripe.image.limit_requests(most));
    }
}
