//! What all transfers in frames share: pieces on their way, workers that compress them, putting them back in order, and the
//! thread that watches.

use std::collections::BTreeMap;
use std::io;
use std::thread::Builder;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::TransferError;
use super::slot::Slot;
use super::stop::{Stop, StopOnPanic};
use crate::archive::frame::{Container, Packer};
use crate::host::Cancel;

/// How often progress is reported and the wish to stop looked at.
pub(super) const TICK: Duration = Duration::from_millis(50);

/// A piece of the archive on its way.
pub(super) struct Piece<T> {
    /// Its place among all.
    pub(super) sequence: u64,
    pub(super) slot: Slot,
    /// Bytes in `slot.raw`.
    pub(super) raw: usize,
    /// What else is known of it.
    pub(super) what: T,
}

/// The slots that are free, and where they are given back.
pub(super) type Slots = (Receiver<Slot>, Sender<Slot>);

/// As many free slots as `memory` allows, at most `useful` and at least two, each of `bytes`.
pub(super) fn slots(memory: u64, bytes: u64, useful: usize) -> Slots {
    let count = usize::try_from(memory / bytes).unwrap_or(useful).min(useful).max(2);
    let (give, free) = bounded(count);
    for _ in 0..count {
        give.try_send(Slot::default()).ok();
    }
    (free, give)
}

/// The body of a worker: compresses pieces until there are no more. `failed` makes an error of one.
pub(super) fn compress<T>(
    stop: &Stop,
    container: Option<Container>,
    pieces: &Receiver<Piece<T>>,
    ready: &Sender<Piece<T>>,
    failed: impl Fn(Option<&T>, io::Error) -> TransferError,
) -> Result<(), TransferError> {
    let mut packer = container.map(Packer::new).transpose().map_err(|e| failed(None, e))?;
    while let Some(mut piece) = stop.recv(pieces) {
        if let Some(packer) = &mut packer {
            let packed = packer.pack(&piece.slot.raw[..piece.raw], &mut piece.slot.packed);
            packed.map_err(|e| failed(Some(&piece.what), e))?;
        }
        // Nobody listens only when the transfer was stopped.
        if ready.send(piece).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Calls `each` with the pieces in their order and gives their slots back. Returns whether none is missing.
pub(super) fn in_order<T>(
    stop: &Stop,
    ready: &Receiver<Piece<T>>,
    slots: &Sender<Slot>,
    mut each: impl FnMut(&Piece<T>) -> Result<(), TransferError>,
) -> Result<bool, TransferError> {
    let (mut next, mut waiting) = (0, BTreeMap::new());
    while let Some(piece) = stop.recv(ready) {
        waiting.insert(piece.sequence, piece);
        while let Some(piece) = waiting.remove(&next) {
            next += 1;
            each(&piece)?;
            // Full or closed it is only when nobody needs the slot any more.
            slots.try_send(piece.slot).ok();
        }
    }
    Ok(waiting.is_empty())
}

/// Runs `work` in so many threads called `name` until all of them have ended, and `tick` every [`TICK`] meanwhile. The first error
/// stops them all, and so does a wish to stop.
pub(super) fn run(
    name: &str,
    workers: usize,
    stop: &Stop,
    cancel: &Cancel,
    work: &(dyn Fn() -> Result<(), TransferError> + Sync),
    tick: &mut dyn FnMut(),
) {
    std::thread::scope(|scope| {
        let _stop_on_panic = StopOnPanic(stop);
        let (ended, all_ended) = bounded::<()>(0);
        for number in 0..workers {
            let ended = ended.clone();
            let body = move || {
                let _ended = ended;
                stop.guard(name, work);
            };
            if let Err(e) = Builder::new().name(format!("{name} {number}")).spawn_scoped(scope, body) {
                stop.fail(TransferError::Thread(e));
            }
        }
        drop(ended);
        watch(stop, cancel, None, &all_ended, tick);
    });
}

/// Calls `tick` until the other end of `done` is gone. A wish to stop becomes the cause of the end, and whatever the cause,
/// waits for the input are ended.
pub(super) fn watch(stop: &Stop, cancel: &Cancel, input: Option<&Cancel>, done: &Receiver<()>, tick: &mut dyn FnMut()) {
    loop {
        if cancel.is_set() {
            stop.fail(TransferError::Cancelled);
        }
        if let Some(input) = input.filter(|_| stop.is_set()) {
            input.set();
        }
        match done.recv_timeout(TICK) {
            Err(RecvTimeoutError::Timeout) => tick(),
            _ => break,
        }
    }
    // Nobody needs it any more, and who waits for it would be waited for.
    if let Some(input) = input {
        input.set();
    }
}
