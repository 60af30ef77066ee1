//! The tar data of an archive as a stream from any place on.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::unix::fs::FileExt;

use crate::archive::Indexed;
use crate::archive::frame::{Frame, Unpacker};

/// A file from an offset on.
pub(super) struct At {
    pub(super) file: File,
    pub(super) offset: u64,
}

impl Read for At {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buf, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// The data of frames from an offset on.
pub(super) struct Frames {
    file: File,
    unpacker: Unpacker,
    frames: std::vec::IntoIter<(Frame, u64)>,
    raw: Cursor<Vec<u8>>,
}

impl Frames {
    pub(super) fn from(indexed: &Indexed, file: File, offset: u64) -> io::Result<Self> {
        let (mut frames, mut first) = (Vec::new(), None);
        for placed in indexed.index.placed() {
            if !placed.frame.is_table() && placed.raw + u64::from(placed.frame.raw) > offset {
                first.get_or_insert(offset - placed.raw.min(offset));
                frames.push((placed.frame, placed.offset));
            }
        }
        let unpacker = Unpacker::new(indexed.container)?;
        let mut data = Self { file, unpacker, frames: frames.into_iter(), raw: Cursor::new(Vec::new()) };
        if let Some(first) = first {
            data.next_frame()?;
            data.raw.set_position(first);
        }
        Ok(data)
    }

    fn next_frame(&mut self) -> io::Result<bool> {
        let Some((frame, offset)) = self.frames.next() else { return Ok(false) };
        let mut packed = vec![0; frame.packed as usize];
        self.file.read_exact_at(&mut packed, offset)?;
        frame.check(&packed)?;
        self.unpacker.unpack(&packed, frame.raw as usize, self.raw.get_mut())?;
        self.raw.set_position(0);
        Ok(true)
    }
}

impl Read for Frames {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.raw.read(buf)? {
                0 if !buf.is_empty() => {
                    if !self.next_frame()? {
                        return Ok(0);
                    }
                }
                count => return Ok(count),
            }
        }
    }
}
