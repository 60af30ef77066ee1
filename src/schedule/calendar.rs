//! Calendar events such as `mon..fri 21:00`, in the dialect of the node's scheduler: the set of seconds each means, and the
//! next of them. Times are the clock on the wall of a time zone. When that is put forward, the times left out do not come
//! that day; when it is put back, the hour that comes twice counts once.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// A recurring time. Made by [`str::parse`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalendarEvent {
    /// Of Greenwich, whatever the time zone here.
    pub(super) utc: bool,
    /// Monday is bit 0.
    pub(super) days: u64,
    /// Sorted; `None` is any year.
    pub(super) years: Option<Vec<i16>>,
    pub(super) months: u64,
    pub(super) month_days: u64,
    pub(super) hours: u64,
    pub(super) minutes: u64,
    pub(super) seconds: u64,
}

/// The bits from `first` to `last`, both included.
pub(super) fn bits(first: u32, last: u32) -> u64 {
    (first..=last).fold(0, |set, bit| set | 1 << bit)
}

/// Where to look after a moment that is not it.
enum Step {
    Here,
    To(DateTime),
    Never,
}

impl CalendarEvent {
    /// The last year schedules can name; nothing is looked for beyond.
    pub(super) const LAST_YEAR: u32 = 2199;
    /// More steps than any date that exists needs: the rarest, a 29th of February on a given day of the week, takes some
    /// hundred.
    const STEPS: usize = 10_000;

    /// Every second there is; parsing narrows it.
    pub(super) fn always() -> Self {
        Self {
            utc: false,
            days: bits(0, 6),
            years: None,
            months: bits(1, 12),
            month_days: bits(1, 31),
            hours: bits(0, 23),
            minutes: bits(0, 59),
            seconds: bits(0, 59),
        }
    }

    /// The first moment after `after`; `None` when there is none any more.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let zone = if self.utc { &TimeZone::UTC } else { zone };
        let mut at = Timestamp::from_second(after.as_second().checked_add(1)?).ok()?;
        for _ in 0..Self::STEPS {
            match self.step(zone.to_datetime(at)) {
                Step::Here => return Some(at),
                Step::Never => return None,
                Step::To(civil) => at = moment(civil, at, zone)?,
            }
        }
        None
    }

    fn step(&self, here: DateTime) -> Step {
        let date = here.date();
        let (year, month) = (date.year(), to_bit(date.month()));
        if i64::from(year) > i64::from(Self::LAST_YEAR) {
            return Step::Never;
        }
        if let Some(years) = &self.years
            && !years.contains(&year)
        {
            let next = years.iter().find(|other| **other > year);
            return next.map_or(Step::Never, |next| to(Date::new(*next, 1, 1).ok()));
        }
        if !has(self.months, month) {
            return match after(self.months, month) {
                Some(next) => to(Date::new(year, next, 1).ok()),
                None => to(Date::new(year + 1, 1, 1).ok()),
            };
        }
        let day = to_bit(date.day());
        if !has(self.month_days, day) {
            let next = after(self.month_days, day).and_then(|next| Date::new(year, date.month(), next).ok());
            return to(next.or_else(|| date.last_of_month().tomorrow().ok()));
        }
        if !has(self.days, to_bit(date.weekday().to_monday_zero_offset())) {
            return to(date.tomorrow().ok());
        }
        let (hour, minute, second) = (to_bit(here.hour()), to_bit(here.minute()), to_bit(here.second()));
        if !has(self.hours, hour) {
            return match after(self.hours, hour) {
                Some(next) => Step::To(date.at(next, 0, 0, 0)),
                None => to(date.tomorrow().ok()),
            };
        }
        let this_hour = date.at(here.hour(), 0, 0, 0);
        if !has(self.minutes, minute) {
            return match after(self.minutes, minute) {
                Some(next) => Step::To(date.at(here.hour(), next, 0, 0)),
                None => this_hour.checked_add(1.hour()).map_or(Step::Never, Step::To),
            };
        }
        if !has(self.seconds, second) {
            return match after(self.seconds, second) {
                Some(next) => Step::To(date.at(here.hour(), here.minute(), next, 0)),
                None => date.at(here.hour(), here.minute(), 0, 0).checked_add(1.minute()).map_or(Step::Never, Step::To),
            };
        }
        Step::Here
    }
}

/// The beginning of a day.
fn to(date: Option<Date>) -> Step {
    date.map_or(Step::Never, |date| Step::To(date.at(0, 0, 0, 0)))
}

/// The moment after `at` at which the clock shows `civil`, or the first after it where it never does.
fn moment(civil: DateTime, at: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let ambiguous = zone.to_ambiguous_timestamp(civil);
    let first = ambiguous.compatible().ok()?;
    // In the second pass of an hour that comes twice, its first is over.
    let found = if first > at { first } else { ambiguous.later().ok()? };
    Some(found.max(at.checked_add(1.second()).ok()?))
}

fn to_bit(number: i8) -> u32 {
    number.unsigned_abs().into()
}

fn has(set: u64, bit: u32) -> bool {
    set >> bit & 1 == 1
}

/// The smallest member of `set` above `bit`.
fn after(set: u64, bit: u32) -> Option<i8> {
    let above = set & !bits(0, bit);
    (above != 0).then(|| above.trailing_zeros()).and_then(|bit| i8::try_from(bit).ok())
}
