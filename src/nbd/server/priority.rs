//! Who reads first: reads that a client waits for go before those of a copy in the background.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The two lanes to the disks.
#[derive(Debug)]
pub(super) struct Lanes {
    /// A read in the background waits at most this long, so that it gets on even if the others never pause.
    most: Duration,
    /// Reads of the foreground that are under way.
    busy: Mutex<usize>,
    free: Condvar,
}

/// Held while a read is under way.
pub(super) struct Turn<'a>(Option<&'a Lanes>);

impl Default for Lanes {
    fn default() -> Self {
        Self::new(Duration::from_millis(100))
    }
}

impl Lanes {
    fn new(most: Duration) -> Self {
        Self { most, busy: Mutex::default(), free: Condvar::new() }
    }

    /// Waits for the turn of a read.
    pub fn enter(&self, background: bool) -> Turn<'_> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if background {
            let waited = self.free.wait_timeout_while(busy, self.most, |busy| *busy > 0);
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn the_background_waits_for_the_foreground_but_not_for_ever() {
        let lanes = Lanes::new(Duration::from_secs(3600));
        let (entered, heard) = mpsc::channel();
        std::thread::scope(|scope| {
            let (first, second) = (lanes.enter(false), lanes.enter(false));
            scope.spawn(|| {
                drop(lanes.enter(true));
                entered.send(()).unwrap();
            });
            drop(first);
            assert!(heard.recv_timeout(Duration::from_millis(50)).is_err(), "one is still under way");
            drop(second);
            heard.recv_timeout(Duration::from_secs(60)).unwrap();
        });
        let impatient = Lanes::new(Duration::from_millis(5));
        let _busy = impatient.enter(false);
        drop(impatient.enter(true));
    }
}
