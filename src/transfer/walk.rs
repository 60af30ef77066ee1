//! Goes over images side by side: cuts them into pieces of which it is known whether all of them are zero there. Extents are
//! asked for a GiB ahead.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::TransferError;
use crate::image::{ExtentKind, Image};

/// Bytes for which extents are asked at once.
const AHEAD: u64 = 1 << 30;
/// Bytes of the largest piece that has to be read.
pub(super) const PIECE: usize = 1 << 20;

/// A piece of all images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) range: Range<u64>,
    /// It is zero in every image, and need not be read.
    pub(super) zero: bool,
}

/// The pieces of some images within a range.
pub(super) struct Walk {
    images: Vec<Arc<dyn Image>>,
    asked: u64,
    end: u64,
    /// At most so many bytes to read at once.
    most: u64,
    ready: VecDeque<Stretch>,
}

impl Walk {
    pub(super) fn new(images: Vec<Arc<dyn Image>>, range: Range<u64>, most: usize) -> Self {
        Self { images, asked: range.start, end: range.end, most: most as u64, ready: VecDeque::new() }
    }

    /// The next piece; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Stretch>, TransferError> {
        if self.ready.is_empty() && self.asked < self.end {
            self.ask()?;
        }
        let Some(front) = self.ready.front_mut() else { return Ok(None) };
        if front.zero || front.range.end - front.range.start <= self.most {
            return Ok(self.ready.pop_front());
        }
        let cut = front.range.start + self.most;
        let piece = Stretch { range: front.range.start..cut, zero: false };
        front.range.start = cut;
        Ok(Some(piece))
    }

    fn ask(&mut self) -> Result<(), TransferError> {
        let window = self.asked..self.end.min(self.asked.saturating_add(AHEAD));
        let mut runs = Vec::new();
        for image in &self.images {
            runs.push(zeros(image.as_ref(), &window)?);
        }
        // Everything is zero where all of them are; the ends of their runs are where that can change.
        let mut at = window.start;
        while at < window.end {
            let (mut end, mut zero) = (window.end, true);
            for runs in &mut runs {
                while runs.front().is_some_and(|run| run.range.end <= at) {
                    runs.pop_front();
                }
                if let Some(run) = runs.front() {
                    end = end.min(run.range.end);
                    zero &= run.zero;
                }
            }
            match self.ready.back_mut() {
                Some(last) if last.zero == zero => last.range.end = end,
                _ => self.ready.push_back(Stretch { range: at..end, zero }),
            }
            at = end;
        }
        self.asked = window.end;
        Ok(())
    }
}

/// What is known of one image.
fn zeros(image: &dyn Image, window: &Range<u64>) -> Result<VecDeque<Stretch>, TransferError> {
    let (mut runs, mut at) = (VecDeque::new(), window.start);
    let wrong = |at| {
        let (image, start, end) = (image.name().to_owned(), window.start, window.end);
        TransferError::Extents { image, start, end, at }
    };
    for extent in image.extents(window.clone())? {
        if extent.offset != at || extent.len == 0 || extent.len > window.end - at {
            return Err(wrong(at));
        }
        at += extent.len;
        runs.push_back(Stretch { range: extent.offset..at, zero: extent.kind == ExtentKind::Zero });
    }
    if at == window.end { Ok(runs) } else { Err(wrong(at)) }
}
