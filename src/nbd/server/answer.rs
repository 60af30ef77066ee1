//! Carries a request out: takes its payload off the stream, asks the disk, sends the reply.
//!
//! Whatever a request asks for, a worker holds [`PIECE`] bytes of it at a time: long reads go out in several chunks, long
//! writes go to the disk as they come in.

use std::io::Read;
use std::io::Write;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::error::Fault;
use super::export::Export;
use super::handshake::{CONTEXT, Session};
use super::output::Output;
use super::priority::Lanes;
use super::request::Request;
use super::{Ended, Event};
use crate::image::{Disk, Extent, ExtentKind, ImageError};
use crate::nbd::vocabulary::*;
use crate::nbd::wire::{Command, DONT_FRAGMENT};
use crate::nbd::{STATE_HOLE, STATE_ZERO};

/// The most a worker holds in memory.
pub(super) const PIECE: usize = 256 << 10;
/// Shorter reads are answered with what is there; asking for holes takes longer than sending them.
const HOLES_FROM: u32 = 64 << 10;
/// Shorter holes are sent as zeros, so that a reply does not consist of crumbs.
const MIN_HOLE: u64 = 32 << 10;
/// Block status is asked for this much at a time, until there are [`MAX_STATUS`] extents.
const STATUS_WINDOW: u64 = 256 << 20;
const MAX_STATUS: usize = 4096;

/// Everything it takes to answer the requests of one connection.
pub(super) struct Desk<'a, W> {
    pub client: u64,
    pub export: &'a Export,
    pub session: Session,
    pub output: Output<W>,
    pub lanes: &'a Lanes,
    /// Held by the one read that needs more than [`PIECE`] bytes, because its client takes no chunks.
    pub long_read: &'a Mutex<()>,
    pub report: &'a (dyn Fn(&Event<'_>) + Send + Sync),
    pub patience: Duration,
}

/// A request whose payload is off the stream.
pub(super) struct Taken {
    request: Request,
    verdict: Result<Command, Fault>,
    /// What the buffer holds of a write that is not at the disk yet.
    rest: Range<u64>,
}

impl<W: Write> Desk<'_, W> {
    /// Checks a request and takes its payload off the stream. All pieces but the last go to the disk at once; what the
    /// request was refused for, or failed at, is said later: the stream has to stay in step.
    pub fn take(&self, request: Request, input: &mut impl Read, buf: &mut Vec<u8>) -> Result<Taken, Ended> {
        let mut verdict = request.check(self.export, &self.session);
        let mut rest = 0..0;
        let (mut at, mut left) = (request.offset, request.payload() as usize);
        while left > 0 {
            let len = left.min(PIECE);
            input.read_exact(room(buf, len)).map_err(|e| Ended::from_io(e, self.patience))?;
            left -= len;
            let piece = at..at.saturating_add(len as u64);
            at = piece.end;
            match (&verdict, &self.export.disk) {
                (Ok(_), Some(_)) if left == 0 => rest = piece,
                (Ok(_), Some(disk)) => {
                    if let Err(error) = disk.write_at(&buf[..len], piece.start) {
                        verdict = Err(self.failed(&request, &error));
                    }
                }
                _ => {}
            }
        }
        Ok(Taken { request, verdict, rest })
    }

    /// Answers a request.
    pub fn answer(&self, taken: Taken, buf: &mut Vec<u8>) -> Result<(), Ended> {
        let Taken { request, verdict, rest } = taken;
        let cookie = request.cookie;
        let done = match (verdict, &self.export.disk) {
            (Err(fault), _) => Err(fault),
            (Ok(Command::Read), _) => return self.read(&request, buf),
            (Ok(Command::BlockStatus), _) => match self.status(&request) {
                Ok(extents) => return self.output.status(cookie, CONTEXT, &extents),
                Err(fault) => Err(fault),
            },
            (Ok(command), Some(disk)) => self.change(disk.as_ref(), command, &request, &rest, buf),
            // A flush of what cannot be written.
            (Ok(_), None) => Ok(()),
        };
        match done {
            Ok(()) => self.output.done(cookie),
            Err(fault) => self.output.fault(cookie, &fault),
        }
    }

    fn change(
        &self,
        disk: &dyn Disk,
        command: Command,
        request: &Request,
        rest: &Range<u64>,
        buf: &[u8],
    ) -> Result<(), Fault> {
        let work = || {
            match command {
                Command::Write if !rest.is_empty() => {
                    disk.write_at(&buf[..(rest.end - rest.start) as usize], rest.start)?;
                }
                // What a trimmed range reads as is up to us, and zeros need no space. That they need none is also why
                // the wish for no hole is not looked at.
                Command::Trim | Command::WriteZeroes => disk.write_zeroes(request.range())?,
                _ => {}
            }
            match command == Command::Flush || request.has(FLAG_FUA) {
                true => disk.flush(),
                false => Ok(()),
            }
        };
        work().map_err(|error| self.failed(request, &error))
    }

    fn read(&self, request: &Request, buf: &mut Vec<u8>) -> Result<(), Ended> {
        let (cookie, range) = (request.cookie, request.range());
        if range.is_empty() {
            return self.output.done(cookie);
        }
        if !self.output.structured() {
            return self.read_simple(request, buf);
        }
        let whole = request.has(DONT_FRAGMENT);
        if whole && request.len as usize > PIECE {
            let what = format!("{} bytes do not fit one chunk, {PIECE} do", request.len);
            return self.output.fault(cookie, &Fault::refused(EOVERFLOW, what));
        }
        let parts = match whole || request.len < HOLES_FROM {
            true => vec![(range.clone(), false)],
            // Without extents all is read; if the disk is in trouble, that tells.
            false => parts(&range, &self.export.image.extents(range.clone()).unwrap_or_default()),
        };
        for (part, zero) in parts {
            let last = part.end == range.end;
            if zero {
                self.output.hole(cookie, &part, last)?;
                continue;
            }
            let data = room(buf, (part.end - part.start) as usize);
            if let Err(fault) = self.fill(request, data, part.start) {
                return self.output.fault(cookie, &fault);
            }
            self.output.data(cookie, part.start, data, last)?;
        }
        Ok(())
    }

    /// A reply without chunks says first whether all is well, so all has to be there.
    fn read_simple(&self, request: &Request, buf: &mut Vec<u8>) -> Result<(), Ended> {
        let len = request.len as usize;
        let (mut long, _only_one);
        let data = if len <= PIECE {
            room(buf, len)
        } else {
            _only_one = self.long_read.lock().unwrap_or_else(PoisonError::into_inner);
            long = vec![0; len];
            &mut long[..]
        };
        match self.fill(request, data, request.offset) {
            Ok(()) => self.output.simple_data(request.cookie, data),
            Err(fault) => self.output.fault(request.cookie, &fault),
        }
    }

    fn fill(&self, request: &Request, data: &mut [u8], offset: u64) -> Result<(), Fault> {
        let _turn = self.lanes.enter(self.export.background);
        self.export.image.read_at(data, offset).map_err(|error| self.failed(request, &error))
    }

    fn status(&self, request: &Request) -> Result<Vec<(u32, u32)>, Fault> {
        let range = request.range();
        let most = if request.has(FLAG_REQ_ONE) { 1 } else { MAX_STATUS };
        let mut found: Vec<(u64, u32)> = Vec::new();
        let mut at = range.start;
        // One more than is sent: only then is the last one complete.
        while at < range.end && found.len() <= most {
            let window = at..range.end.min(at + STATUS_WINDOW);
            let extents = self.export.image.extents(window.clone()).map_err(|error| self.failed(request, &error))?;
            for Extent { len, kind, .. } in extents {
                let flags = if kind == ExtentKind::Zero { STATE_HOLE | STATE_ZERO } else { 0 };
                match found.last_mut() {
                    Some((sum, last)) if *last == flags => *sum += len,
                    _ => found.push((len, flags)),
                }
            }
            at = window.end;
        }
        // None is longer than what was asked for, which has 32 bits.
        Ok(found.into_iter().take(most).map(|(len, flags)| (len as u32, flags)).collect())
    }

    /// Reports what the disk could not do, and words it for the client.
    fn failed(&self, request: &Request, error: &ImageError) -> Fault {
        (self.report)(&Event::Failed { client: self.client, error });
        let mut fault = Fault::image(error);
        let range = request.range();
        // What failed may lie beside what was asked for, such as the rest of a block that was written in part.
        fault.offset = fault.offset.filter(|offset| range.contains(offset));
        fault
    }
}

/// The first `len` bytes of the buffer, which grows to that.
fn room(buf: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buf.len() < len {
        buf.resize(len, 0);
    }
    &mut buf[..len]
}

/// Cuts a read into holes and pieces of data. Whatever the extents do not tell is data.
fn parts(range: &Range<u64>, extents: &[Extent]) -> Vec<(Range<u64>, bool)> {
    let mut parts = Vec::new();
    let data = |parts: &mut Vec<(Range<u64>, bool)>, data: Range<u64>| {
        let mut at = data.start;
        while at < data.end {
            let end = data.end.min(at + PIECE as u64);
            parts.push((at..end, false));
            at = end;
        }
    };
    let mut at = range.start;
    for Extent { offset, len, kind } in extents.iter().copied() {
        let hole = offset.max(at)..(offset.saturating_add(len)).min(range.end);
        if kind == ExtentKind::Zero && hole.start < hole.end && hole.end - hole.start >= MIN_HOLE {
            data(&mut parts, at..hole.start);
            at = hole.end;
            parts.push((hole, true));
        }
    }
    data(&mut parts, at..range.end);
    parts
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::image::Image;

    /// 8 GiB, of which the first 3 are data.
    struct Huge;

    impl Image for Huge {
        fn name(&self) -> &str {
            "huge"
        }

        fn size(&self) -> u64 {
            8 << 30
        }

        fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
            let cut = (3u64 << 30).clamp(range.start, range.end);
            let parts = [(range.start..cut, ExtentKind::Data), (cut..range.end, ExtentKind::Zero)];
            let extent =
                |(part, kind): (Range<u64>, _)| Extent { offset: part.start, len: part.end - part.start, kind };
            Ok(parts.into_iter().map(extent).filter(|extent| extent.len > 0).collect())
        }

        fn read_at(&self, _: &mut [u8], _: u64) -> Result<(), ImageError> {
            Ok(())
        }
    }

    #[test]
    fn block_status_of_all_that_one_request_can_ask_for() {
        let desk = Desk {
            client: 1,
            export: &Export::read_only("huge", Arc::new(Huge)),
            session: Session { export: 0, structured: true, status: true },
            output: Output::new(Vec::new(), true, Duration::ZERO),
            lanes: &Lanes::default(),
            long_read: &Mutex::default(),
            report: &|_| {},
            patience: Duration::ZERO,
        };
        let status =
            |flags, offset| desk.status(&Request { flags, code: 7, cookie: 1, offset, len: u32::MAX }).unwrap();
        assert_eq!(status(0, 0), [(3 << 30, 0), (u32::MAX - (3 << 30), 3)]);
        assert_eq!(status(FLAG_REQ_ONE, 0), [(3 << 30, 0)]);
        assert_eq!(status(0, 4 << 30), [(u32::MAX, 3)]);
    }

    #[test]
    fn a_read_is_cut_into_holes_and_pieces() {
        let kib = |n: u64| n << 10;
        let extent = |offset, len, kind| Extent { offset: kib(offset), len: kib(len), kind };
        let extents = [
            extent(0, 100, ExtentKind::Data),
            extent(100, 4, ExtentKind::Zero),
            extent(104, 396, ExtentKind::Data),
            extent(500, 400, ExtentKind::Zero),
        ];
        let cut = |range: Range<u64>, extents: &[Extent]| -> Vec<_> {
            let cut = parts(&(kib(range.start)..kib(range.end)), extents);
            cut.into_iter().map(|(part, zero)| (part.start >> 10, part.end >> 10, zero)).collect()
        };
        assert_eq!(cut(0..900, &extents), [(0, 256, false), (256, 500, false), (500, 900, true)]);
        assert_eq!(cut(10..520, &extents), [(10, 266, false), (266, 520, false)]);
        assert_eq!(cut(600..700, &extents), [(600, 700, true)]);
        // An image that says nothing is read.
        assert_eq!(cut(0..300, &[]), [(0, 256, false), (256, 300, false)]);
    }
}
