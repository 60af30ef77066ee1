//! The rate limit: a clock that runs ahead by the time each piece is worth. A piece is paid for before it is moved, so that a
//! transfer is never faster than its limit, however short it is.
//!
//! What counts are the bytes of the disks, zeros included, as with the original: a limit of 100 MiB/s shows as at most
//! 100 MiB/s in the log, and a job takes as long as the administrator planned.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::stop::{Stop, lock};

/// Time that may be saved up while nobody reads; keeps the average right after a pause without a burst.
const SAVED: Duration = Duration::from_millis(50);
/// How many pieces a second: few enough that sleeping costs nothing, many enough that the flow is even.
const PIECES: u64 = 20;

/// The clock alone. Times are counted from any fixed moment, so that tests can make their own.
#[derive(Debug)]
struct Pace {
    rate: u64,
    /// Up to when everything that was moved is paid for.
    paid: Duration,
}

impl Pace {
    /// How long to wait from `now` on before `bytes` may be moved.
    fn pay(&mut self, now: Duration, bytes: u64) -> Duration {
        let worth = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        self.paid = self.paid.max(now.saturating_sub(SAVED)) + worth;
        self.paid.saturating_sub(now)
    }
}

/// Limits all readers of a transfer together.
pub(super) struct Limiter {
    begun: Instant,
    pace: Option<Mutex<Pace>>,
    rate: u64,
}

impl Limiter {
    /// `rate` in bytes per second.
    pub(super) fn new(rate: Option<u64>) -> Self {
        let rate = rate.unwrap_or_default();
        let pace = (rate > 0).then(|| Mutex::new(Pace { rate, paid: Duration::ZERO }));
        Self { begun: Instant::now(), pace, rate }
    }

    /// The largest piece to take at once, whole pieces of `grid`.
    pub(super) fn piece(&self, most: usize, grid: usize) -> usize {
        if self.pace.is_none() {
            return most;
        }
        let even = usize::try_from(self.rate / PIECES).unwrap_or(most);
        (even / grid * grid).clamp(grid, most)
    }

    /// How many bytes the limit allows in a second; `None` without a limit.
    pub(super) fn rate(&self) -> Option<u64> {
        self.pace.as_ref().map(|_| self.rate)
    }

    /// Pays for `bytes` and says how long to wait before they may be moved.
    pub(super) fn pay(&self, bytes: u64) -> Duration {
        self.pace.as_ref().map_or(Duration::ZERO, |pace| lock(pace).pay(self.begun.elapsed(), bytes))
    }

    /// Waits until `bytes` may be moved. Returns false when the transfer was stopped meanwhile.
    pub(super) fn take(&self, bytes: u64, stop: &Stop) -> bool {
        let Some(pace) = &self.pace else { return !stop.is_set() };
        let wait = lock(pace).pay(self.begun.elapsed(), bytes);
        if wait.is_zero() { !stop.is_set() } else { stop.sleep(wait) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Seconds between two lines of the log: what an administrator can see of the rate.
    const WINDOW: f64 = 3.0;
    const FIVE_PERCENT: f64 = 0.05;

    /// Plays `readers` that take pieces of `size` bytes one after the other, each of which takes as many milliseconds longer
    /// as `held_up` says for the time it waited: when how many bytes were moved, in seconds.
    fn play(
        rate: u64,
        size: u64,
        readers: usize,
        seconds: f64,
        mut held_up: impl FnMut(Duration) -> u16,
    ) -> Vec<(f64, u64)> {
        let limiter = Limiter::new(Some(rate));
        let piece = limiter.piece(size as usize, 1) as u64;
        let mut pace = Pace { rate, paid: Duration::ZERO };
        let mut ready = vec![Duration::ZERO; readers];
        let mut moved = Vec::new();
        loop {
            // Whoever has been ready for longest takes the next piece.
            let (reader, now) = ready.iter().copied().enumerate().min_by_key(|(_, at)| *at).unwrap();
            if now.as_secs_f64() > seconds {
                moved.sort_by(|a: &(f64, u64), b| a.0.total_cmp(&b.0));
                return moved;
            }
            let wait = pace.pay(now, piece);
            moved.push(((now + wait).as_secs_f64(), piece));
            ready[reader] = now + wait + Duration::from_millis(held_up(wait).into());
        }
    }

    proptest! {
        #[test]
        fn no_window_has_more_than_the_limit_and_five_percent(
            rate in 1u64 << 20..1 << 28,
            size in 1u64 << 18..4 << 20,
            readers in 1usize..9,
            pauses in prop::collection::vec(prop_oneof![9 => Just(0u16), 1 => 0u16..5000], 1..40),
        ) {
            let mut pauses = pauses.iter().copied().cycle();
            let moved = play(rate, size, readers, 12.0, |_| pauses.next().unwrap());
            let most = rate as f64 * WINDOW * (1.0 + FIVE_PERCENT);
            let mut first = 0;
            let mut sum = 0;
            for (at, bytes) in &moved {
                sum += bytes;
                while moved[first].0 <= at - WINDOW {
                    sum -= moved[first].1;
                    first += 1;
                }
                prop_assert!(sum as f64 <= most, "{sum} bytes in the three seconds before {at}, at most {most}");
            }
        }

        #[test]
        fn readers_that_never_wait_for_anything_else_get_the_limit(
            rate in 1u64 << 20..1 << 28,
            size in 1u64 << 18..4 << 20,
            readers in 1usize..9,
            late in prop::collection::vec(0u16..20, 1..40),
        ) {
            // Every sleep ends a little late, as on a busy machine; the limit is kept all the same.
            let mut late = late.iter().copied().cycle();
            let moved =
                play(rate, size, readers, 10.0, |wait| if wait.is_zero() { 0 } else { late.next().unwrap() });
            let sum: u64 = moved.iter().filter(|(at, _)| *at <= 10.0).map(|(_, bytes)| bytes).sum();
            let least = rate as f64 * 10.0 * (1.0 - FIVE_PERCENT);
            prop_assert!(sum as f64 >= least, "{sum} bytes in ten seconds, at least {least}");
        }

        #[test]
        fn nothing_is_moved_before_it_is_paid_for(rate in 1u64..1 << 40, sizes in prop::collection::vec(1u64..1 << 40, 1..20)) {
            let mut pace = Pace { rate, paid: Duration::ZERO };
            let mut now = Duration::ZERO;
            for bytes in &sizes {
                now += pace.pay(now, *bytes);
            }
            let ideal = sizes.iter().sum::<u64>() as f64 / rate as f64;
            prop_assert!(now.as_secs_f64() >= ideal * 0.999, "{now:?}, ideal {ideal} s");
        }
    }

    #[test]
    fn a_limit_of_nothing_is_none() {
        assert_eq!((Limiter::new(Some(0)).rate(), Limiter::new(None).piece(77, 1)), (None, 77));
        // A limit below one piece of the grid still moves one at a time.
        assert_eq!(Limiter::new(Some(1024)).piece(1 << 20, 1 << 16), 1 << 16);
    }
}
