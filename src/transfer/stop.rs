//! Stopping: the first error of any thread, and waits that end when there is one.

use std::any::Any;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};

use super::TransferError;
use crate::host::Cancel;

/// Shared by all threads of a transfer.
pub(super) struct Stop {
    stopped: AtomicBool,
    /// Nothing is ever sent; dropping the sender wakes everybody who waits.
    alive: Mutex<Option<Sender<Infallible>>>,
    wake: Receiver<Infallible>,
    cause: Mutex<Option<TransferError>>,
    cancel: Cancel,
}

/// Locks even when another thread panicked while holding it: the panic is reported elsewhere.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stop {
    pub(super) fn new(cancel: &Cancel) -> Self {
        let (alive, wake) = bounded(0);
        let (stopped, cause) = (AtomicBool::new(false), Mutex::new(None));
        Self { stopped, alive: Mutex::new(Some(alive)), wake, cause, cancel: cancel.clone() }
    }

    pub(super) fn is_set(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Ends all waits; the first cause is kept. What breaks after somebody asked to stop breaks because of that.
    pub(super) fn fail(&self, cause: TransferError) {
        let cause = if self.cancel.is_set() { TransferError::Cancelled } else { cause };
        lock(&self.cause).get_or_insert(cause);
        self.stopped.store(true, Ordering::Relaxed);
        lock(&self.alive).take();
    }

    /// Reports what a thread's work came to while the thread still holds its queues: who sees one of them closed without a
    /// cause can rely on that the work is complete.
    pub(super) fn told(&self, result: Result<(), TransferError>) -> Result<(), TransferError> {
        if let Err(cause) = result {
            self.fail(cause);
        }
        Ok(())
    }

    pub(super) fn into_result(self) -> Result<(), TransferError> {
        match self.cause.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(cause) => Err(cause),
            None => Ok(()),
        }
    }

    /// The next of `queue`; `None` when its senders are gone or the transfer was stopped.
    pub(super) fn recv<T>(&self, queue: &Receiver<T>) -> Option<T> {
        if self.is_set() {
            return None;
        }
        select! {
            recv(queue) -> item => item.ok(),
            recv(self.wake) -> _ => None,
        }
    }

    /// Returns false as soon as the transfer was stopped.
    pub(super) fn sleep(&self, time: Duration) -> bool {
        matches!(self.wake.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }

    /// Runs the body of a thread: its error or panic stops the transfer.
    pub(super) fn guard(&self, thread: &str, body: impl FnOnce() -> Result<(), TransferError>) {
        match catch_unwind(AssertUnwindSafe(body)) {
            Ok(Ok(())) => {}
            Ok(Err(cause)) => self.fail(cause),
            Err(panic) => {
                let message = panic_message(panic.as_ref());
                self.fail(TransferError::Panic { thread: thread.to_owned(), message });
            }
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked".to_owned())
}

/// Stops the transfer when the thread that shows its progress panics, so that the others can be joined.
pub(super) struct StopOnPanic<'a>(pub(super) &'a Stop);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(TransferError::Cancelled);
        }
    }
}
