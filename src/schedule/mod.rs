//! Which backup job is to run when, and that it does: calendar events, what is known of each job's last run, and the loop
//! that starts what is due.
//!
//! The words of `jobs.cfg` are [`crate::config`]'s; what a job does once it runs is [`crate::job`]'s. A running job is a
//! process of its own, so that the loop can be ended or can die without taking a backup with it.

mod calendar;
mod daemon;
mod node;
mod parse;
mod source;
mod state;

pub use calendar::CalendarEvent;
pub use daemon::{Daemon, DaemonError};
pub use node::other_scheduler;
pub use parse::CalendarError;
pub use source::{Source, SourceError, cron_runs_its_own};
pub use state::{ClaimError, JobState, JobStates, Phase, StateError};

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use crate::config::BackupJob;

/// When a job runs next as seen from `now`, whatever its node and whether it is enabled: for one that repeats what was
/// missed, counted from its last run, so that a time in the past means it is due. `None` when its schedule has no further
/// time, or there is none.
///
/// # Errors
/// When the schedule cannot be read.
pub fn next_run(job: &BackupJob, state: Option<&JobState>, now: &Zoned) -> Result<Option<Timestamp>, CalendarError> {
    let Some(schedule) = job.schedule() else { return Ok(None) };
    let event: CalendarEvent = schedule.parse()?;
    let last = state.filter(|_| job.repeats_missed()).and_then(JobState::last_run);
    // A last run in the future is one from before the clock was put back.
    let last = last.and_then(|last| Timestamp::from_second(last).ok()).filter(|last| *last <= now.timestamp());
    Ok(event.next(last.unwrap_or(now.timestamp()), now.time_zone()))
}

/// The next `count` times of a job after `after`.
///
/// # Errors
/// When the schedule cannot be read.
pub fn upcoming(
    job: &BackupJob,
    after: Timestamp,
    zone: &TimeZone,
    count: usize,
) -> Result<Vec<Timestamp>, CalendarError> {
    let Some(schedule) = job.schedule() else { return Ok(Vec::new()) };
    let event: CalendarEvent = schedule.parse()?;
    Ok(std::iter::successors(event.next(after, zone), |last| event.next(*last, zone)).take(count).collect())
}

#[cfg(test)]
mod tests;
