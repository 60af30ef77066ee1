//! Reads the data of a compressed file at any place, by several threads at once.
//!
//! Data is had in pieces, which a cache keeps. A piece that is not there is decompressed from the nearest decoder that was
//! left standing in front of it, else from the nearest access point; pieces passed on the way are kept, too. While one
//! thread decompresses towards a place, others that want something on the way, or behind it before the next access point, wait
//! for it instead of doing the same again. Who reads piece after piece finds the next ones decompressed by another thread.
//! What cannot be read from two access points is damaged: whoever wants it again is told at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::points::{Entry, Points};
use super::{Decode, Method, Packed, SeekError, gzip, lzop, zstd};
use crate::archive::Bytes;
use crate::archive::cache::PieceCache;
use crate::host::{Cancel, Host};

/// Bytes of decompressed data that are kept.
const CACHE: usize = 48 << 20;
/// Decoders that are left standing, and their memory.
const MAX_STANDING: usize = 8;
const MAX_STANDING_BYTES: u64 = 32 << 20;
/// Threads that decompress at a time, however many want something: a decoder may take 8 MiB.
const MAX_ACTIVE: usize = 4;
/// Bytes before a place whose pieces are kept when they are passed.
const KEEP: u64 = 16 << 20;
/// Bytes that are decompressed ahead of who reads in order.
const AHEAD: u64 = 4 << 20;
/// Access points behind which damage is remembered.
const MAX_DAMAGED: usize = 4096;
/// Places that are remembered to tell who reads in order.
const RECENT: usize = 8;

/// The data of a compressed file.
pub(crate) struct Seekable {
    inner: Arc<Inner>,
    ahead: Mutex<Ahead>,
}

struct Inner {
    host: Host,
    file: Arc<dyn Packed>,
    points: Points,
    cancel: Cancel,
    /// Nobody reads any more.
    closed: Cancel,
    cache: PieceCache<Vec<u8>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Decoders nobody uses, the one that was used last at the end.
    standing: Vec<Standing>,
    active: Vec<Active>,
    /// Access points that turned out not to be any.
    bad: BTreeSet<usize>,
    /// The first piece that cannot be had from an access point and the one before it, nor can those behind it; and why.
    damaged: BTreeMap<usize, (u64, SeekError)>,
}

/// An access point from which a piece could not be had.
struct Failed {
    point: usize,
    /// The piece that was wrong.
    piece: u64,
}

struct Standing {
    decoder: Box<dyn Decode>,
    /// Where it is in the data.
    at: u64,
}

/// What a thread is decompressing.
#[derive(PartialEq, Eq, Clone, Copy)]
struct Active {
    /// The access point in front of what it wants.
    point: usize,
    /// The first piece it comes by.
    from: u64,
    /// The piece it wants.
    to: u64,
}

impl Seekable {
    /// The data of `file`, which `points` were made of. Reading ends when `cancel` is set.
    pub(crate) fn new(host: &Host, file: Arc<dyn Packed>, points: Points, cancel: &Cancel) -> Self {
        let inner = Inner {
            host: host.clone(),
            file,
            points,
            cancel: cancel.clone(),
            closed: Cancel::new(),
            cache: PieceCache::new(CACHE),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        Self { inner: Arc::new(inner), ahead: Mutex::default() }
    }
}

impl Bytes for Seekable {
    fn len(&self) -> u64 {
        self.inner.points.raw
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.len());
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        if buf.is_empty() {
            return Ok(());
        }
        let len = self.inner.points.piece_len();
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let piece = self.inner.piece(at / len)?;
            let data = piece.get((at % len) as usize..).filter(|data| !data.is_empty());
            let data = data.ok_or(SeekError::Changed { offset: at })?;
            let now = data.len().min(rest.len());
            rest[..now].copy_from_slice(&data[..now]);
            rest = &mut rest[now..];
            at += now as u64;
        }
        self.look_ahead(offset / len, (end - 1) / len);
        Ok(())
    }
}

/// What is known about who reads in order.
#[derive(Default)]
struct Ahead {
    recent: [u64; RECENT],
    next: usize,
    worker: Option<(SyncSender<u64>, JoinHandle<()>)>,
}

impl Seekable {
    /// Sees whether pieces `first` to `last` are the next ones of somebody who reads in order, and has more decompressed then.
    fn look_ahead(&self, first: u64, last: u64) {
        let Ok(mut ahead) = self.ahead.try_lock() else { return };
        let known = ahead.recent.iter().position(|&recent| recent == first || recent + 1 == first);
        let Some(known) = known else {
            let next = ahead.next;
            ahead.recent[next] = last;
            ahead.next = (next + 1) % RECENT;
            return;
        };
        let before = std::mem::replace(&mut ahead.recent[known], last);
        let wanted = last + 1;
        if before == last || wanted >= self.inner.points.sums.len() as u64 || self.inner.is_near(wanted) {
            return;
        }
        if ahead.worker.is_none() {
            let (give, wanted) = sync_channel(1);
            let inner = Arc::clone(&self.inner);
            let work = std::thread::Builder::new().name("read-ahead".into());
            // Without a thread everybody decompresses for himself.
            let Ok(thread) = work.spawn(move || inner.run_ahead(&wanted)) else { return };
            ahead.worker = Some((give, thread));
        }
        if let Some((give, _)) = &ahead.worker {
            // When it is busy, whoever wants more asks again.
            give.try_send(wanted).unwrap_or_default();
        }
    }
}

impl Drop for Seekable {
    fn drop(&mut self) {
        self.inner.closed.set();
        let ahead = self.ahead.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some((give, thread)) = ahead.worker.take() {
            drop(give);
            // It only read ahead: nobody waits for what it did.
            thread.join().unwrap_or_default();
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether half of what is read ahead from piece `wanted` on is there.
    fn is_near(&self, wanted: u64) -> bool {
        let half = (AHEAD / 2 / self.points.piece_len()).max(1);
        self.cache.has((wanted + half - 1).min(self.points.sums.len() as u64 - 1))
    }

    /// Decompresses what is asked for, until nobody can ask any more.
    fn run_ahead(&self, wanted: &Receiver<u64>) {
        let count = (AHEAD / self.points.piece_len()).max(1);
        for first in wanted {
            let last = (first + count).min(self.points.sums.len() as u64);
            for number in first..last {
                // What is wrong will be told to who reads it.
                if self.closed.is_set() || self.piece(number).is_err() {
                    break;
                }
            }
        }
    }

    /// Piece `number` of the data, which there is.
    fn piece(&self, number: u64) -> Result<Arc<Vec<u8>>, SeekError> {
        if let Some(piece) = self.cache.peek(number) {
            return Ok(piece);
        }
        let start = number << self.points.piece;
        let mut failed: Option<Failed> = None;
        let mut state = self.lock();
        loop {
            // Between the first look and now another may have been faster.
            if let Some(piece) = self.cache.peek(number) {
                return Ok(piece);
            }
            let nearest = self.point(&state, start)?;
            if let Some(error) = state.known(nearest, number) {
                return Err(error);
            }
            // The second try begins one access point earlier, and with nothing that came from the first one.
            let (point, latest) = match &failed {
                Some(failed) => (self.earlier(&state, failed.point)?, self.points.points[failed.point].raw),
                None => (nearest, start),
            };
            if state.active.len() == MAX_ACTIVE || state.active.iter().any(|active| active.passes(point, number)) {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // The farthest on that is not too far.
            let from = self.points.points[point].raw;
            let near = |standing: &Standing| standing.at <= latest && standing.at >= from;
            let best = (0..state.standing.len()).filter(|&i| near(&state.standing[i]));
            let best = best.max_by_key(|&i| state.standing[i].at);
            let standing = best.map(|i| state.standing.remove(i));
            let at = standing.as_ref().map_or(from, |standing| standing.at);
            let active = Active { point, from: at.div_ceil(self.points.piece_len()), to: number };
            state.active.push(active);
            drop(state);
            let mut claim = Claim { inner: self, active, standing: None };
            let mut reached = number;
            let error = match self.decompress(standing, point, number, &mut reached) {
                Ok((piece, standing)) => {
                    claim.standing = Some(standing);
                    if let Some(failed) = failed {
                        self.lock().bad.insert(failed.point);
                    }
                    return Ok(piece);
                }
                Err(error) => error,
            };
            let Some(told) = error.of_the_data() else { return Err(error) };
            let (blamed, piece) = match failed {
                None if self.may_be_to_blame(point) => {
                    failed = Some(Failed { point, piece: reached });
                    drop(claim);
                    state = self.lock();
                    continue;
                }
                None => (point, reached),
                // What is between these two can be had from one of them.
                Some(failed) => (failed.point, failed.piece.max(reached)),
            };
            // Those who wait for it are woken after this.
            self.lock().remember(blamed, piece, told);
            return Err(error);
        }
    }

    /// Whether an access point may be none. The start of a frame always is one.
    fn may_be_to_blame(&self, point: usize) -> bool {
        point > 0 && matches!(self.points.points[point].entry, Entry::Zstd { .. } | Entry::Gzip { .. })
    }

    /// Number of the nearest access point in front of `start` that is not known to be bad.
    fn point(&self, state: &State, start: u64) -> Result<usize, SeekError> {
        match self.points.before(start) {
            Some(point) if state.bad.contains(&point) => self.earlier(state, point),
            point => point.ok_or(SeekError::Changed { offset: start }),
        }
    }

    /// Number of the nearest access point in front of `point` that is not known to be bad.
    fn earlier(&self, state: &State, point: usize) -> Result<usize, SeekError> {
        let earlier = (0..point).rev().find(|earlier| !state.bad.contains(earlier));
        earlier.ok_or(SeekError::Changed { offset: self.points.points[point].raw })
    }

    /// Decompresses up to piece `wanted` and keeps those on the way. When it fails, `reached` is the piece that is wrong.
    fn decompress(
        &self,
        standing: Option<Standing>,
        point: usize,
        wanted: u64,
        reached: &mut u64,
    ) -> Result<(Arc<Vec<u8>>, Standing), SeekError> {
        *reached = self.points.points[point].raw / self.points.piece_len();
        let mut standing = match standing {
            Some(standing) => standing,
            None => self.open(point)?,
        };
        let len = self.points.piece_len();
        let mut skipped = Vec::new();
        loop {
            if self.cancel.is_set() || self.closed.is_set() {
                return Err(SeekError::Cancelled);
            }
            let number = standing.at / len;
            *reached = number;
            let end = ((number + 1) * len).min(self.points.raw);
            let mut data = std::mem::take(&mut skipped);
            data.resize((end - standing.at) as usize, 0);
            let part = standing.at % len != 0;
            let mut got = 0;
            while got < data.len() {
                match standing.decoder.decode(&mut data[got..])? {
                    0 => return Err(SeekError::Changed { offset: standing.at }),
                    count => {
                        got += count;
                        standing.at += count as u64;
                    }
                }
            }
            // An access point is rarely at the start of a piece: that one cannot be checked.
            if part {
                skipped = data;
                continue;
            }
            let want = self.points.sums.get(number as usize);
            if want != Some(&crc32fast::hash(&data)) {
                return Err(SeekError::Changed { offset: number * len });
            }
            if number == wanted {
                let piece = Arc::new(data);
                self.cache.put(number, &piece);
                return Ok((piece, standing));
            }
            if (wanted - number) * len <= KEEP {
                self.cache.put(number, &Arc::new(data));
                self.changed.notify_all();
            } else {
                skipped = data;
            }
        }
    }

    fn open(&self, point: usize) -> Result<Standing, SeekError> {
        let point = &self.points.points[point];
        let (packed, entry) = (point.packed, &point.entry);
        let decoder: Box<dyn Decode> = match self.points.method {
            Method::Zstd => Box::new(zstd::Decoder::open(Arc::clone(&self.file), packed, entry)?),
            Method::Gzip => Box::new(gzip::Decoder::open(&self.file, packed, entry)?),
            Method::Lzop => Box::new(lzop::Decoder::open(&self.host, &self.file, packed, entry, &self.cancel)?),
        };
        Ok(Standing { decoder, at: point.raw })
    }
}

impl Active {
    /// Whether it comes by piece `number`, or will soon stand in front of it, with no other access point between.
    fn passes(&self, point: usize, number: u64) -> bool {
        self.from <= number && (number <= self.to || self.point == point)
    }
}

impl State {
    /// What is wrong with piece `number`, of which `point` is the nearest access point; `None` when that is not known.
    fn known(&self, point: usize, number: u64) -> Option<SeekError> {
        let (_, error) = self.damaged.get(&point).filter(|(piece, _)| *piece <= number)?;
        error.of_the_data()
    }

    fn remember(&mut self, point: usize, piece: u64, error: SeekError) {
        if self.damaged.len() >= MAX_DAMAGED && !self.damaged.contains_key(&point) {
            self.damaged.pop_first();
        }
        if self.damaged.get(&point).is_none_or(|(known, _)| piece < *known) {
            self.damaged.insert(point, (piece, error));
        }
    }

    fn keep(&mut self, standing: Standing) {
        self.standing.push(standing);
        let weight = |all: &[Standing]| all.iter().map(|standing| standing.decoder.weight()).sum::<u64>();
        while self.standing.len() > MAX_STANDING
            || (self.standing.len() > 1 && weight(&self.standing) > MAX_STANDING_BYTES)
        {
            self.standing.remove(0);
        }
    }
}

/// An [`Active`] that is taken back however its thread ends.
struct Claim<'a> {
    inner: &'a Inner,
    active: Active,
    /// What is left standing.
    standing: Option<Standing>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.inner.lock();
        if let Some(at) = state.active.iter().position(|active| *active == self.active) {
            state.active.swap_remove(at);
        }
        if let Some(standing) = self.standing.take() {
            state.keep(standing);
        }
        drop(state);
        self.inner.changed.notify_all();
    }
}
