//! When the copy's progress becomes a line of the log. Other programs read these lines, so form and pace are the original's:
//! at most one in three seconds and only when the percentage changed; `read` counts the disks' bytes, zeros included,
//! `write` what is left of them without zeros.

use std::time::Instant;

use crate::schema::size::{human, percent, progress_line, rate, sparse_line, transferred_line};
use crate::transfer::{Progress, TarProgress};

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

/// Seconds until the first line about a container, and between two of them, at least.
const TREE_PAUSE: u64 = 10;

/// Makes lines about a container's archive. How large it becomes nobody knows, and the original says nothing at all; ours are
/// few, so that they do not bury the rest: one in ten seconds at first, later when a tenth more time has passed.
#[derive(Debug)]
pub struct TreeLines {
    start: Instant,
    last_second: u64,
    last: TarProgress,
}

impl TreeLines {
    /// Starts the clock.
    pub fn start() -> Self {
        Self { start: Instant::now(), last_second: 0, last: TarProgress::default() }
    }

    /// The line for `now`, if one is due.
    pub fn due(&mut self, now: &TarProgress) -> Option<String> {
        self.due_at(now, self.start.elapsed().as_secs())
    }

    fn due_at(&mut self, now: &TarProgress, second: u64) -> Option<String> {
        let span = second.saturating_sub(self.last_second);
        if span < TREE_PAUSE.max(self.last_second / 10) {
            return None;
        }
        let (read, written) = (now.raw.saturating_sub(self.last.raw), now.written.saturating_sub(self.last.written));
        (self.last_second, self.last) = (second, *now);
        let (read, written) = (rate(read, span), rate(written, span));
        let (bytes, files) = (human(now.raw, 1), now.members);
        Some(format!("{bytes}, {files} files in {second}s, read: {read}, write: {written}"))
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

    #[test]
    fn a_container_has_few_lines() {
        let mut lines = TreeLines::start();
        assert_eq!(lines.due(&TarProgress::default()), None);
        let at = |second: u64| TarProgress { raw: second << 20, written: second << 19, members: second * 7 };
        let said: Vec<String> = (0..36_000).filter_map(|second| lines.due_at(&at(second), second)).collect();
        assert_eq!(said[0], "10.0 MiB, 70 files in 10s, read: 1.0 MiB/s, write: 512.0 KiB/s");
        assert_eq!(said[1], "20.0 MiB, 140 files in 20s, read: 1.0 MiB/s, write: 512.0 KiB/s");
        assert!((60..90).contains(&said.len()), "{} lines in ten hours", said.len());
    }
}
