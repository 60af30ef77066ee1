//! Where the frames lie: in the file, and their data in the stream that was cut into them.

use super::{Frame, Index};

/// A frame and its place.
#[derive(Debug, Clone, Copy)]
pub struct Placed {
    /// What the index says of it.
    pub frame: Frame,
    /// Its number.
    pub number: usize,
    /// Its offset in the file.
    pub offset: u64,
    /// The offset of its data in the stream.
    pub raw: u64,
}

/// The place of the next frame; at first that of the first one.
#[derive(Debug, Default, Clone, Copy)]
pub struct Places {
    /// Its number.
    pub number: usize,
    /// Its offset in the file.
    pub offset: u64,
    /// The offset of its data in the stream.
    pub raw: u64,
}

impl Places {
    /// Takes the next frame; `None` behind the last one.
    pub fn take(&mut self, index: &Index) -> Option<Placed> {
        let frame = index.frame(self.number)?;
        let placed = Placed { frame, number: self.number, offset: self.offset, raw: self.raw };
        self.number += 1;
        self.offset += u64::from(frame.packed);
        self.raw += u64::from(frame.raw);
        Some(placed)
    }
}

impl Index {
    /// All frames with their places, in the order of the container.
    pub fn placed(&self) -> impl Iterator<Item = Placed> + '_ {
        let mut places = Places::default();
        std::iter::from_fn(move || places.take(self))
    }
}
