//! Who reads first: reads that a client waits for go before those of a copy in the background.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A read in the background waits at most this long, so that it gets on even if the others never pause.
const MOST: Duration = Duration::from_millis(100);

/// The two lanes to the disks.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// Reads of the foreground that are under way.
    busy: Mutex<usize>,
    free: Condvar,
}

/// Held while a read is under way.
pub(super) struct Turn<'a>(Option<&'a Lanes>);

impl Lanes {
    /// Waits for the turn of a read.
    pub fn enter(&self, background: bool) -> Turn<'_> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if background {
            let waited = self.free.wait_timeout_while(busy, MOST, |busy| *busy > 0);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            return Turn(None);
        }
        *busy += 1;
        Turn(Some(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Some(lanes) = self.0 else { return };
        let mut busy = lanes.busy.lock().unwrap_or_else(PoisonError::into_inner);
        *busy -= 1;
        if *busy == 0 {
            lanes.free.notify_all();
        }
    }
}
