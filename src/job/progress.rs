//! When the copy's progress becomes a line of the log. Other programs read these lines, so form and pace are the original's:
//! at most one in three seconds and only when the percentage changed; `read` counts the disks' bytes, zeros included,
//! `write` what is left of them without zeros.

use std::time::Instant;

use crate::schema::size::{percent, progress_line, sparse_line, transferred_line};
use crate::transfer::Progress;

/// Seconds between two lines, at least.
const PAUSE: u64 = 3;

/// Makes progress lines; knows when the last one was made.
#[derive(Debug)]
pub struct ProgressLines {
    start: Instant,
    last_second: u64,
    last: Progress,
}

impl ProgressLines {
    /// Starts the clock.
    pub fn start() -> Self {
        Self { start: Instant::now(), last_second: 0, last: Progress::default() }
    }

    /// The line for `now`, if one is due.
    pub fn due(&mut self, now: &Progress) -> Option<String> {
        let second = self.start.elapsed().as_secs();
        let changed = percent(now.read, now.total) != percent(self.last.read, self.last.total.max(1));
        (second >= self.last_second + PAUSE && changed).then(|| self.line(now, second))
    }

    /// The last line, and how many seconds it all took.
    pub fn last(&mut self, now: &Progress) -> (String, u64) {
        // The original looks once a second, so its shortest copy takes one.
        let seconds = self.start.elapsed().as_secs().max(1);
        (self.line(now, seconds), seconds)
    }

    /// The lines at the end of a copy that succeeded: 100 %, how sparse it was, how long it took.
    pub fn end(&mut self, now: &Progress) -> Vec<String> {
        let (line, seconds) = self.last(now);
        let mut lines = vec![line];
        if now.zero > 0 {
            lines.push(sparse_line(now.zero, now.total));
        }
        lines.push(transferred_line(now.total, seconds));
        lines
    }

    fn line(&mut self, now: &Progress, second: u64) -> String {
        let data = |p: &Progress| p.read.saturating_sub(p.zero);
        let read = now.read.saturating_sub(self.last.read);
        let written = data(now).saturating_sub(data(&self.last));
        let span = second.saturating_sub(self.last_second).max(1);
        (self.last_second, self.last) = (second, *now);
        progress_line(now.read, now.total, second, read, written, span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_due_at_once_and_the_end_says_it_all() {
        let mut lines = ProgressLines::start();
        let half = Progress { total: 400 << 20, read: 200 << 20, zero: 100 << 20, written: 5 };
        assert_eq!(lines.due(&half), None);
        let done = Progress { total: 400 << 20, read: 400 << 20, zero: 100 << 20, written: 9 };
        let end = lines.end(&done);
        assert_eq!(end[0], "100% (400.0 MiB of 400.0 MiB) in 1s, read: 400.0 MiB/s, write: 300.0 MiB/s");
        assert_eq!(end[1], "backup is sparse: 100.00 MiB (25%) total zero data");
        assert_eq!(end[2], "transferred 400.00 MiB in 1 seconds (400.0 MiB/s)");
    }
}
