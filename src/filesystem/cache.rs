//! Keeps what was read last of an image: the tables and directories of a file system are small and asked for again and
//! again, and an archive gives a small piece at the price of a large one.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::image::{Extent, Image, ImageError};

/// Bytes of a piece.
const PIECE: u64 = 64 << 10;
/// Pieces that are kept: 16 MiB.
const MOST: usize = 256;

/// An image whose small reads are answered from memory where possible.
pub struct Cached {
    image: Arc<dyn Image>,
    pieces: Mutex<Pieces>,
}

#[derive(Default)]
struct Pieces {
    known: HashMap<u64, (u64, Arc<Vec<u8>>)>,
    clock: u64,
}

impl Cached {
    /// Over `image`, with nothing in it yet.
    pub fn new(image: Arc<dyn Image>) -> Self {
        Self { image, pieces: Mutex::default() }
    }

    fn piece(&self, number: u64) -> Result<Arc<Vec<u8>>, ImageError> {
        {
            let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
            pieces.clock += 1;
            let clock = pieces.clock;
            if let Some((used, bytes)) = pieces.known.get_mut(&number) {
                *used = clock;
                return Ok(bytes.clone());
            }
        }
        let start = number * PIECE;
        let mut bytes = vec![0; PIECE.min(self.image.size() - start) as usize];
        self.image.read_at(&mut bytes, start)?;
        let bytes = Arc::new(bytes);
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        if pieces.known.len() >= MOST {
            let oldest = pieces.known.iter().min_by_key(|(_, (used, _))| *used).map(|(number, _)| *number);
            oldest.and_then(|number| pieces.known.remove(&number));
        }
        let clock = pieces.clock;
        pieces.known.insert(number, (clock, bytes.clone()));
        Ok(bytes)
    }
}

impl Image for Cached {
    fn name(&self) -> &str {
        self.image.name()
    }

    fn size(&self) -> u64 {
        self.image.size()
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        self.image.extents(range)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let end = offset.saturating_add(buf.len() as u64);
        if buf.len() as u64 > PIECE || end > self.size() {
            return self.image.read_at(buf, offset);
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let Ok(piece) = self.piece(at / PIECE) else {
                // Perhaps only bytes beside those that are wanted cannot be read.
                return self.image.read_at(&mut buf[done..], at);
            };
            let from = (at % PIECE) as usize;
            let count = (piece.len() - from).min(buf.len() - done);
            buf[done..done + count].copy_from_slice(&piece[from..from + count]);
            done += count;
        }
        Ok(())
    }

    fn limit_requests(&self, most: usize) {
        self.image.limit_requests(most);
    }

    fn release(&self, range: Range<u64>) {
        self.image.release(range);
    }
}
