//! The rate limit: a clock that runs ahead by the time each piece is worth.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::stop::{Stop, lock};

/// Time that may be saved up while nobody reads; keeps the average right after a pause without a burst.
const SAVED: Duration = Duration::from_millis(50);

/// Limits all readers of a transfer together.
pub(super) struct Limiter {
    rate: Option<u64>,
    next: Mutex<Instant>,
}

impl Limiter {
    /// `rate` in bytes per second.
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.filter(|r| *r > 0), next: Mutex::new(Instant::now()) }
    }

    /// The largest piece to take at once: what a tenth of a second is worth, so that the flow is even.
    pub(super) fn piece(&self, most: usize, grid: usize) -> usize {
        let Some(rate) = self.rate else { return most };
        let tenth = usize::try_from(rate / 10).unwrap_or(most);
        (tenth / grid * grid).clamp(grid, most)
    }

    /// Waits until `bytes` may be moved. Returns false when the transfer was stopped meanwhile.
    pub(super) fn take(&self, bytes: usize, stop: &Stop) -> bool {
        let Some(rate) = self.rate else { return !stop.is_set() };
        let now = Instant::now();
        let start = {
            let mut next = lock(&self.next);
            let start = (*next).max(now.checked_sub(SAVED).unwrap_or(now));
            *next = start + Duration::from_secs_f64(bytes as f64 / rate as f64);
            start
        };
        match start.checked_duration_since(now) {
            Some(wait) if !wait.is_zero() => stop.sleep(wait),
            _ => !stop.is_set(),
        }
    }
}
