//! A cache of decompressed pieces: bounded in bytes, shared by threads, and a piece that two of them want is decompressed
//! once.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Something that takes memory.
pub(crate) trait Weight {
    /// Bytes of memory it takes.
    fn weight(&self) -> usize;
}

impl Weight for Vec<u8> {
    fn weight(&self) -> usize {
        self.capacity()
    }
}

/// The least recently used pieces go first; the newest one stays, whatever its size.
pub(crate) struct PieceCache<P> {
    budget: usize,
    state: Mutex<State<P>>,
    changed: Condvar,
}

struct State<P> {
    pieces: HashMap<u64, Slot<P>>,
    bytes: usize,
    clock: u64,
}

enum Slot<P> {
    Loading,
    Ready { piece: Arc<P>, used: u64 },
}

impl<P: Weight> PieceCache<P> {
    /// Holds about `budget` bytes.
    pub(crate) fn new(budget: usize) -> Self {
        let state = State { pieces: HashMap::new(), bytes: 0, clock: 0 };
        Self { budget, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The piece `key`, from memory or by `load`. Whoever comes while another thread loads it waits for that one; if it fails,
    /// the next one tries for itself.
    pub(crate) fn get(&self, key: u64, load: impl FnOnce() -> io::Result<P>) -> io::Result<Arc<P>> {
        let mut state = self.lock();
        loop {
            state.clock += 1;
            let now = state.clock;
            match state.pieces.get_mut(&key) {
                Some(Slot::Ready { piece, used }) => {
                    *used = now;
                    return Ok(Arc::clone(piece));
                }
                Some(Slot::Loading) => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                None => break,
            }
        }
        state.pieces.insert(key, Slot::Loading);
        drop(state);
        let mut claim = Claim { cache: self, key, kept: false };
        let piece = Arc::new(load()?);
        claim.keep(&piece);
        Ok(piece)
    }

    /// The piece `key`, if it is there.
    pub(crate) fn peek(&self, key: u64) -> Option<Arc<P>> {
        let mut state = self.lock();
        state.clock += 1;
        let now = state.clock;
        match state.pieces.get_mut(&key) {
            Some(Slot::Ready { piece, used }) => {
                *used = now;
                Some(Arc::clone(piece))
            }
            Some(Slot::Loading) | None => None,
        }
    }

    /// Keeps a piece that came by, unless it is there already.
    pub(crate) fn put(&self, key: u64, piece: &Arc<P>) {
        let mut state = self.lock();
        if !state.pieces.contains_key(&key) {
            state.insert(key, piece);
            state.shrink(self.budget, key);
        }
    }

    /// Whether the piece is there or about to be.
    pub(crate) fn has(&self, key: u64) -> bool {
        self.lock().pieces.contains_key(&key)
    }

    fn lock(&self) -> MutexGuard<'_, State<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: Weight> State<P> {
    fn insert(&mut self, key: u64, piece: &Arc<P>) {
        self.clock += 1;
        self.bytes += piece.weight();
        self.pieces.insert(key, Slot::Ready { piece: Arc::clone(piece), used: self.clock });
    }

    /// Lets go of old pieces until there is room, but not of `newest`.
    fn shrink(&mut self, budget: usize, newest: u64) {
        while self.bytes > budget {
            let age = |(key, slot): (&u64, &Slot<P>)| match slot {
                Slot::Ready { used, .. } if *key != newest => Some((*used, *key)),
                _ => None,
            };
            let Some((_, oldest)) = self.pieces.iter().filter_map(age).min() else { return };
            if let Some(Slot::Ready { piece, .. }) = self.pieces.remove(&oldest) {
                self.bytes -= piece.weight();
            }
        }
    }
}

/// A piece that is being loaded. If that fails or panics, nobody waits for it any longer.
struct Claim<'a, P: Weight> {
    cache: &'a PieceCache<P>,
    key: u64,
    kept: bool,
}

impl<P: Weight> Claim<'_, P> {
    fn keep(&mut self, piece: &Arc<P>) {
        let mut state = self.cache.lock();
        state.insert(self.key, piece);
        state.shrink(self.cache.budget, self.key);
        self.kept = true;
    }
}

impl<P: Weight> Drop for Claim<'_, P> {
    fn drop(&mut self) {
        if !self.kept {
            self.cache.lock().pieces.remove(&self.key);
        }
        self.cache.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn two_readers_load_a_piece_once() {
        let cache = PieceCache::new(100);
        let loads = AtomicU32::new(0);
        let load = || {
            loads.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
            Ok(vec![7])
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(*cache.get(1, load).unwrap(), [7]));
            }
        });
        assert_eq!(loads.into_inner(), 1);
    }

    #[test]
    fn a_failure_is_nobody_elses() {
        let cache = PieceCache::new(100);
        assert!(cache.get(1, || Err(io::ErrorKind::InvalidData.into())).is_err());
        assert!(!cache.has(1));
        assert_eq!(*cache.get(1, || Ok(vec![1])).unwrap(), [1]);
    }

    #[test]
    fn the_oldest_go_and_the_newest_stays() {
        let cache = PieceCache::new(100);
        for key in 0..3 {
            cache.get(key, || Ok(vec![0; 40])).unwrap();
        }
        assert_eq!([cache.has(0), cache.has(1), cache.has(2)], [false, true, true]);
        cache.get(1, || unreachable!()).unwrap();
        cache.get(3, || Ok(vec![0; 40])).unwrap();
        assert_eq!([cache.has(1), cache.has(2), cache.has(3)], [true, false, true]);
        // Larger than everything.
        cache.get(4, || Ok(vec![0; 1000])).unwrap();
        assert_eq!([cache.has(1), cache.has(3), cache.has(4)], [false, false, true]);
        assert_eq!(cache.lock().bytes, 1000);
    }
}
