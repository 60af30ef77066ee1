//! Retention as a pure function: which backups of one guest stay.
//!
//! The rules are PVE's: for each kind of period, newest backups first. A period that already has a kept backup is
//! covered; of every other one the newest backup is kept, until the count is reached.

use std::collections::HashSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::schema::Keep;

/// A backup, as far as retention cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backup {
    /// When it was made, seconds since 1970.
    pub ctime: i64,
    /// Protected backups are neither counted nor removed.
    pub protected: bool,
}

/// What becomes of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// It stays.
    Keep,
    /// It is removed.
    Remove,
    /// It stays because it is protected.
    Protected,
}

/// The marks of `backups` (in any order), in the same order. All must be of the same guest.
pub fn plan_prune(backups: &[Backup], keep: &Keep, zone: &TimeZone) -> Vec<Mark> {
    let mut marks: Vec<Option<Mark>> =
        backups.iter().map(|backup| backup.protected.then_some(Mark::Protected)).collect();
    let mut newest_first: Vec<usize> = (0..backups.len()).filter(|i| !backups[*i].protected).collect();
    newest_first.sort_by_key(|i| std::cmp::Reverse(backups[*i].ctime));

    if keep.all || keep.total() == 0 {
        return marks.into_iter().map(|mark| mark.unwrap_or(Mark::Keep)).collect();
    }
    for (name, count) in keep.counts() {
        if count > 0 {
            mark(&newest_first, &mut marks, count, |i| period(name, i, backups[i].ctime, zone));
        }
    }
    marks.into_iter().map(|mark| mark.unwrap_or(Mark::Remove)).collect()
}

fn mark(order: &[usize], marks: &mut [Option<Mark>], count: u64, period: impl Fn(usize) -> String) {
    let covered: HashSet<String> =
        order.iter().filter(|i| marks[**i] == Some(Mark::Keep)).map(|i| period(*i)).collect();
    let mut kept = HashSet::new();
    for &i in order.iter() {
        if marks[i].is_some() {
            continue;
        }
        let period = period(i);
        if covered.contains(&period) {
            continue;
        }
        if kept.contains(&period) {
            marks[i] = Some(Mark::Remove);
        } else if (kept.len() as u64) < count {
            kept.insert(period);
            marks[i] = Some(Mark::Keep);
        } else {
            break;
        }
    }
}

/// The period a backup falls into: equal texts are equal periods.
fn period(name: &str, index: usize, ctime: i64, zone: &TimeZone) -> String {
    let Ok(moment) = Timestamp::from_second(ctime) else { return index.to_string() };
    let local = moment.to_zoned(zone.clone()).datetime();
    let week = local.date().iso_week_date();
    match name {
        "keep-hourly" => format!("{}-{}-{}-{}", local.year(), local.month(), local.day(), local.hour()),
        "keep-daily" => format!("{}-{}-{}", local.year(), local.month(), local.day()),
        "keep-weekly" => format!("{}-{}", week.year(), week.week()),
        "keep-monthly" => format!("{}-{}", local.year(), local.month()),
        "keep-yearly" => local.year().to_string(),
        // Of the newest ones, each is a period of its own.
        _ => index.to_string(),
    }
}
