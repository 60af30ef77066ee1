//! Finds the extents in bytes that may be damaged, and writes what is certainly right.
//!
//! A header has a checksum, data has none: an extent's data is only taken for right when the next header is where it has to
//! be, even if that one is damaged. When bytes are missing or too many within an extent, nobody knows which of its blocks are
//! still where they belong, and all of it counts as lost.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::losses::{Book, Losses};
use super::vma_error;
use crate::archive::vma::{
    CLUSTER, Checker, Damage, EXTENT_HEADER, ExtentHead, Header, MAX_EXTENT, Piece, VmaError, array,
};
use crate::host::Cancel;
use crate::image::Target;
use crate::transfer::TransferError;

/// Bytes that are looked at before something is decided: an extent, and the next header behind a damaged one.
const SIGHT: usize = 2 * MAX_EXTENT + EXTENT_HEADER;
const MAGIC: &[u8; 4] = b"VMAE";

/// Writes the clusters that are right.
pub(super) struct Saver<'a> {
    header: &'a Header,
    targets: &'a BTreeMap<u8, Arc<dyn Target>>,
    checker: Checker,
    book: Book,
    cancel: Cancel,
    /// Of the archive.
    name: &'a str,
}

impl<'a> Saver<'a> {
    pub(super) fn new(
        header: &'a Header,
        targets: &'a BTreeMap<u8, Arc<dyn Target>>,
        checker: Checker,
        book: Book,
        cancel: Cancel,
        name: &'a str,
    ) -> Self {
        Self { header, targets, checker, book, cancel, name }
    }

    /// Fails when somebody asked to stop.
    pub(super) fn go_on(&self) -> Result<(), TransferError> {
        if self.cancel.is_set() { Err(TransferError::Cancelled) } else { Ok(()) }
    }

    pub(super) fn damage(&mut self, what: String, offset: Option<u64>) {
        self.book.damage(what, offset);
    }

    /// What was saved of this part of the archive has no checksum that could be right.
    pub(super) fn unverified(&mut self, offset: u64) {
        self.book.doubtful = true;
        let what =
            "what is saved of the compressed data from here to the damage is not verified: its checksum is at its end";
        self.book.damage(what.to_owned(), Some(offset));
    }

    /// The clusters of a part of the archive that is lost.
    pub(super) fn lost(&mut self, device: u8, clusters: Range<u64>, why: String, offset: u64) {
        self.book.lost(device, clusters, &why, offset);
        self.book.damage(why, Some(offset));
    }

    fn piece(&mut self, piece: Piece, data: &[u8], offset: u64) -> Result<(), TransferError> {
        self.go_on()?;
        match self.checker.piece(piece) {
            Ok(()) => {}
            Err(Damage::TooScattered) => {
                return Err(vma_error(self.name, VmaError::Damaged { offset, damage: Damage::TooScattered }));
            }
            Err(damage) => {
                let first = matches!(damage, Damage::Duplicate { .. });
                self.book.doubtful |= first;
                let kept = if first { "; the first one is kept" } else { "" };
                self.book.damage(format!("{damage}{kept}"), Some(offset));
                return Ok(());
            }
        }
        let Some(target) = self.targets.get(&piece.device) else { return Ok(()) };
        let size = self.header.device(piece.device).map_or(0, |device| device.size);
        let start = u64::from(piece.number) * CLUSTER as u64;
        for run in piece.runs() {
            let (place, end) = (start + run.range.start as u64, size.min(start + run.range.end as u64));
            if place >= end {
                break;
            }
            match run.stored {
                Some(at) => target.write_at(&data[at..at + (end - place) as usize], place)?,
                None if !target.starts_zeroed() => target.write_zeroes(place..end)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Everything was read: what did not come is lost, and zero.
    pub(super) fn finish(self) -> Result<Losses, TransferError> {
        let missing = || self.checker.missing();
        for (device, clusters) in missing() {
            if let Some(target) = self.targets.get(&device.id).filter(|target| !target.starts_zeroed()) {
                let bytes = CLUSTER as u64;
                target.write_zeroes(clusters.start * bytes..device.size.min(clusters.end * bytes))?;
            }
        }
        Ok(self.book.settle(self.name, missing(), &|device| self.targets.contains_key(&device)))
    }
}

/// What is at a place where a header may be.
enum At {
    Extent(ExtentHead),
    /// One of another archive, of so many bytes.
    Foreign(usize),
    Nothing(Damage),
}

/// Goes through the bytes.
pub(super) struct Parser<'a> {
    saver: Saver<'a>,
    /// That of the archive; `None` until an extent tells it.
    uuid: Option<[u8; 16]>,
    /// Places are told as bytes of the stream: it is the file, or nothing is known of where in the file they come from.
    plain: bool,
    buf: Vec<u8>,
    /// Where the buffer begins in the stream of VMA bytes, counted over what was fed.
    start: u64,
    /// Places in the stream and the bytes of the file they came from.
    places: Vec<(u64, u64)>,
    /// Bytes to leave out: the archive's header.
    skip: u64,
    /// What could not be read, in the stream, and why.
    holes: Vec<(Range<u64>, String)>,
    /// The last cluster that was seen.
    last: Option<(u8, u32)>,
    /// A damaged part that has not ended: why, and where it began.
    open: Option<(String, u64)>,
}

impl<'a> Parser<'a> {
    pub(super) fn new(saver: Saver<'a>, uuid: Option<[u8; 16]>, plain: bool) -> Self {
        let (buf, places, holes) = (Vec::new(), Vec::new(), Vec::new());
        Self { saver, uuid, plain, buf, start: 0, places, skip: 0, holes, last: None, open: None }
    }

    pub(super) fn saver(&mut self) -> &mut Saver<'a> {
        &mut self.saver
    }

    pub(super) fn into_saver(mut self) -> Saver<'a> {
        self.close(None);
        self.saver
    }

    /// The next bytes to come are the archive's header.
    pub(super) fn skip(&mut self, bytes: u64) {
        self.skip = bytes;
    }

    /// Bytes of a plain archive that could not be read; they are fed as zeros.
    pub(super) fn hole(&mut self, file: Range<u64>, why: &str) {
        match self.holes.last_mut() {
            Some((last, _)) if last.end == file.start => last.end = file.end,
            _ => self.holes.push((file.clone(), why.to_owned())),
        }
        self.saver.damage(format!("{} bytes cannot be read: {why}", file.end - file.start), Some(file.start));
    }

    /// The next bytes of the stream; `file` is where in the file they, or the compressed data they came from, begin.
    pub(super) fn feed(&mut self, mut bytes: &[u8], file: u64) -> Result<(), TransferError> {
        let left_out = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.skip -= left_out as u64;
        self.start += if self.buf.is_empty() { left_out as u64 } else { 0 };
        bytes = &bytes[left_out..];
        let at = self.start + self.buf.len() as u64;
        match self.places.last_mut() {
            Some((_, last)) if *last == file => {}
            // Nothing came from there, as from millions of empty frames.
            Some((start, last)) if *start == at => *last = file,
            _ => self.places.push((at, file)),
        }
        self.buf.extend_from_slice(bytes);
        if self.buf.len() >= 2 * SIGHT { self.parse(false) } else { Ok(()) }
    }

    /// The stream has ended, or is broken here: what comes next has nothing to do with what is here.
    pub(super) fn end(&mut self) -> Result<(), TransferError> {
        self.parse(true)?;
        self.start += self.buf.len() as u64;
        self.buf.clear();
        self.places.clear();
        Ok(())
    }

    /// The stream is broken: the compressed data at byte `file` of the archive is damaged.
    pub(super) fn broken_stream(&mut self, why: String, file: u64) -> Result<(), TransferError> {
        let before = self.open.take();
        self.end()?;
        self.open = before.or(Some((why, file)));
        Ok(())
    }

    /// Whole extents that came from one place of the file.
    pub(super) fn whole(&mut self, bytes: &[u8], file: u64) -> Result<(), TransferError> {
        self.feed(bytes, file)?;
        self.end()
    }

    /// Where in the file byte `at` of the buffer is.
    fn file_offset(&self, at: usize) -> u64 {
        let place = self.start + at as u64;
        if self.plain {
            return place;
        }
        let known = self.places.partition_point(|(start, _)| *start <= place);
        known.checked_sub(1).and_then(|i| self.places.get(i)).map_or(place, |(_, file)| *file)
    }

    fn at(&self, at: usize) -> At {
        let Some(head) = self.buf.get(at..at + EXTENT_HEADER) else {
            return At::Nothing(Damage::Truncated("an extent's header"));
        };
        let head: [u8; EXTENT_HEADER] = array(head, 0);
        let uuid = array(&head, 8);
        match ExtentHead::parse(&head, &uuid, 0) {
            Ok(found) if self.uuid.is_none_or(|own| own == uuid) => At::Extent(found),
            Ok(found) => At::Foreign(found.len()),
            Err(VmaError::Damaged { damage, .. }) => At::Nothing(damage),
            Err(_) => At::Nothing(Damage::ExtentMagic(array(&head, 0))),
        }
    }

    /// The next place from `from` to `to` where a good header of this archive is.
    fn search(&self, from: usize, to: usize) -> Option<usize> {
        let mut at = from;
        let end = to.min(self.buf.len().saturating_sub(EXTENT_HEADER - 1));
        while at < end {
            at += self.buf[at..end].iter().position(|byte| *byte == MAGIC[0])?;
            if self.buf[at..].starts_with(MAGIC) && matches!(self.at(at), At::Extent(_)) {
                return Some(at);
            }
            at += 1;
        }
        None
    }

    /// Whether what is at `at` was a header of this archive once.
    fn resembles(&self, at: usize) -> bool {
        let bytes = &self.buf[at.min(self.buf.len())..];
        bytes.starts_with(MAGIC) || bytes.get(8..24).is_some_and(|uuid| self.uuid.is_some_and(|own| own == uuid))
    }

    /// Takes what is certain off the buffer; `last`: nothing follows.
    fn parse(&mut self, last: bool) -> Result<(), TransferError> {
        let mut at = 0;
        while at < self.buf.len() && (last || self.buf.len() - at >= SIGHT) {
            at = match self.at(at) {
                At::Extent(head) => self.extent(&head, at, last)?,
                At::Foreign(len) => {
                    self.broken(Damage::ExtentUuid.to_string(), at);
                    // Its data may be cut, too: what looks like a header of ours within it is one.
                    let end = (at + len).min(self.buf.len());
                    self.search(at + 1, end).unwrap_or(end)
                }
                At::Nothing(damage) => {
                    self.broken(damage.to_string(), at);
                    match self.search(at + 1, self.buf.len()) {
                        Some(next) => next,
                        None if last => self.buf.len(),
                        // The rest may be the beginning of a header.
                        None => self.buf.len() - (EXTENT_HEADER - 1),
                    }
                }
            };
        }
        self.buf.drain(..at);
        self.start += at as u64;
        let known = self.places.partition_point(|(start, _)| *start <= self.start).saturating_sub(1);
        self.places.drain(..known);
        let start = self.start;
        self.holes.retain(|(range, _)| range.end > start);
        Ok(())
    }

    /// An extent at `at`. Returns where to go on.
    fn extent(&mut self, head: &ExtentHead, at: usize, last: bool) -> Result<usize, TransferError> {
        self.uuid.get_or_insert_with(|| array(&self.buf, at + 8));
        let first = head.pieces.first().map(|piece| (piece.device, piece.number));
        self.close(first);
        let end = at + head.len();
        let next = match self.buf.get(end..end + EXTENT_HEADER) {
            Some(_) if matches!(self.at(end), At::Extent(_) | At::Foreign(_)) => Some(end),
            None if last && end == self.buf.len() => Some(end),
            _ => self.search(at + EXTENT_HEADER, self.buf.len()),
        };
        // What cannot be read is as long as it is: everything behind it is in its place.
        let unread = self.start + end as u64..self.start + (end + EXTENT_HEADER) as u64;
        let unread = self.holes.iter().any(|(range, _)| range.start < unread.end && unread.start < range.end);
        let shifted = match next {
            Some(next) if next == end => false,
            Some(next) if next < end => true,
            // The end of the archive came in the middle of this extent.
            None if last && end >= self.buf.len() => false,
            None if last && self.buf[end..].iter().all(|byte| *byte == 0) => false,
            // Headers and blocks are multiples of 512 bytes.
            next => {
                !(unread || self.resembles(end)) || next.is_some_and(|next| !(next - end).is_multiple_of(EXTENT_HEADER))
            }
        };
        if let Some(last) = head.pieces.last() {
            self.last = Some((last.device, last.number));
        }
        if shifted {
            let why = "bytes are missing or too many within an extent".to_owned();
            let offset = self.file_offset(at);
            for piece in &head.pieces {
                let cluster = u64::from(piece.number);
                self.saver.book.lost(piece.device, cluster..cluster + 1, &why, offset);
            }
            self.saver.damage(why, Some(offset));
            return Ok(next.unwrap_or(end));
        }
        let mut told = false;
        for (piece, range) in head.places() {
            let (from, to) = (at + range.start, at + range.end);
            let offset = self.file_offset(from.min(self.buf.len().saturating_sub(1)));
            let (start, stop) = (self.start + from as u64, self.start + to as u64);
            let hole = self.holes.iter().find(|(range, _)| range.start < stop && start < range.end);
            let cluster = u64::from(piece.number);
            if let Some((_, why)) = hole {
                let why = format!("the archive cannot be read: {why}");
                self.saver.book.lost(piece.device, cluster..cluster + 1, &why, offset);
            } else if to <= self.buf.len() {
                let data = std::mem::take(&mut self.buf);
                let saved = self.saver.piece(piece, &data[from..to], offset);
                self.buf = data;
                saved?;
            } else {
                let why = Damage::Truncated("an extent's data").to_string();
                self.saver.book.lost(piece.device, cluster..cluster + 1, &why, self.file_offset(at));
                if !std::mem::replace(&mut told, true) {
                    self.saver.damage(why, Some(self.file_offset(at)));
                }
            }
        }
        Ok(end.min(self.buf.len()))
    }

    /// Something that is no extent begins here.
    fn broken(&mut self, why: String, at: usize) {
        let offset = self.file_offset(at);
        self.open.get_or_insert((why, offset));
    }

    /// It ends, with a cluster or with the archive.
    fn close(&mut self, after: Option<(u8, u32)>) {
        if let Some((why, offset)) = self.open.take() {
            self.saver.book.gap(why, offset, self.last, after);
        }
    }
}
