//! Checks the maps of sparse files: GNU tar reads as many blocks as the map says, not as many as the header says. Were they
//! not the same, it would find other members behind the file than were vetted.

use super::{BLOCK, pax::decimal};

/// What a map came to so far.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tally {
    blocks: u64,
}

impl Tally {
    /// Adds a piece of a file of `size` bytes.
    pub(super) fn add(&mut self, at: u64, len: u64, size: u64) -> Result<(), String> {
        if at.checked_add(len).is_none_or(|end| end > size) {
            return Err("a piece of a sparse file lies behind its end".to_owned());
        }
        let blocks = self.blocks.checked_add(len.div_ceil(BLOCK as u64));
        self.blocks = blocks.ok_or("the pieces of a sparse file are too large")?;
        Ok(())
    }

    /// Whether the pieces fill `stored` bytes of data, whole blocks each.
    pub(super) fn fills(&self, stored: u64) -> Result<(), String> {
        if self.blocks == stored.div_ceil(BLOCK as u64) {
            return Ok(());
        }
        Err(format!("the pieces of a sparse file have {} blocks, but its data {stored} bytes", self.blocks))
    }
}

/// Reads a map in front of the data (GNU sparse format 1.0) as it passes by: its numbers are not kept.
#[derive(Debug)]
pub(super) struct MapCheck {
    size: u64,
    stored: u64,
    taken: u64,
    digits: Vec<u8>,
    /// Numbers to come; none before the first, which says how many pieces there are.
    left: Option<u64>,
    at: Option<u64>,
    tally: Tally,
}

impl MapCheck {
    /// Of a file of `size` bytes, of which with its map `stored` are in the archive.
    pub(super) fn new(size: u64, stored: u64) -> Self {
        Self { size, stored, taken: 0, digits: Vec::new(), left: None, at: None, tally: Tally::default() }
    }

    /// Takes the next byte. When the map is complete, returns how many bytes of data and of what fills their last block
    /// are left.
    pub(super) fn take(&mut self, byte: u8) -> Result<Option<u64>, String> {
        self.taken += 1;
        if byte != b'\n' {
            self.digits.push(byte);
            if self.digits.len() > 20 || self.taken >= self.stored {
                return Err("the map of a sparse file has something that is no number".to_owned());
            }
            return Ok(None);
        }
        let number = decimal(&self.digits).ok_or("the map of a sparse file has something that is no number")?;
        self.digits.clear();
        let left = match self.left {
            None => number.checked_mul(2).ok_or("the map of a sparse file is too long")?,
            Some(left) => {
                match self.at.take() {
                    None => self.at = Some(number),
                    Some(at) => self.tally.add(at, number, self.size)?,
                }
                left - 1
            }
        };
        self.left = Some(left);
        if left > 0 {
            return if self.taken < self.stored {
                Ok(None)
            } else {
                Err("the map of a sparse file has no end".to_owned())
            };
        }
        let map = self.taken.next_multiple_of(BLOCK as u64);
        self.tally.fills(self.stored.saturating_sub(map))?;
        Ok(Some(self.stored.next_multiple_of(BLOCK as u64).saturating_sub(self.taken)))
    }
}
