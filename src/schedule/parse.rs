//! Reading calendar events: `[days] [date] [time]` or one word for all of it. The dialect is the one of the node's scheduler,
//! which is close to systemd's; where they differ (`18` alone is a minute, not an hour) the node's holds, because the same
//! `jobs.cfg` must mean the same.

use std::str::FromStr;

use super::calendar::{CalendarEvent, bits};

/// A text is no calendar event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "schedule '{text}' cannot be read{}: expected days, a date and a time, of which any may be missing, like \
     'mon..fri 21:00', '*-*-01 02:30' or '*:0/15', or a word like 'daily'",
    if rest.is_empty() || rest == text { String::new() } else { format!(" from '{rest}' on") }
)]
pub struct CalendarError {
    text: String,
    rest: String,
}

impl FromStr for CalendarEvent {
    type Err = CalendarError;

    fn from_str(text: &str) -> Result<Self, CalendarError> {
        let whole = text.trim();
        let (body, utc) = match whole.strip_suffix("UTC") {
            Some(body) => (body.trim_end(), true),
            None => (whole, false),
        };
        let (mut event, rest) = word(body).map_or_else(|| composed(body), |event| (event, ""));
        if body.is_empty() || !rest.is_empty() {
            // What a name in jobs.cfg holds may be long; an error is one line.
            let short = |text: &str| text.chars().take(100).collect();
            return Err(CalendarError { text: short(whole), rest: short(rest) });
        }
        event.utc = utc;
        Ok(event)
    }
}

/// The events that have a name.
fn word(text: &str) -> Option<CalendarEvent> {
    let midnight = CalendarEvent { hours: 1, minutes: 1, seconds: 1, ..CalendarEvent::always() };
    let first = CalendarEvent { month_days: 1 << 1, ..midnight.clone() };
    let months = |months: &[u32]| months.iter().fold(0, |set, month| set | 1 << month);
    Some(match text {
        "minutely" => CalendarEvent { seconds: 1, ..CalendarEvent::always() },
        "hourly" => CalendarEvent { minutes: 1, seconds: 1, ..CalendarEvent::always() },
        "daily" => midnight,
        "weekly" => CalendarEvent { days: 1, ..midnight },
        "monthly" => first,
        "yearly" | "annually" => CalendarEvent { months: months(&[1]), ..first },
        "quarterly" => CalendarEvent { months: months(&[1, 4, 7, 10]), ..first },
        "semiannually" | "semi-annually" => CalendarEvent { months: months(&[1, 7]), ..first },
        _ => return None,
    })
}

/// Days, date and time, and what is left over.
fn composed(text: &str) -> (CalendarEvent, &str) {
    let mut event = CalendarEvent::always();
    let mut rest = text;
    if let Some((days, left)) = weekdays(rest) {
        event.days = days;
        rest = left.trim_start();
    }
    if let Some(left) = date(rest, &mut event) {
        rest = left.trim_start();
    }
    match time(rest, &mut event) {
        Some(left) => rest = left,
        None => (event.hours, event.minutes, event.seconds) = (1, 1, 1),
    }
    (event, rest)
}

fn weekdays(text: &str) -> Option<(u64, &str)> {
    let (mut days, mut rest) = weekday_range(text)?;
    while let Some((more, left)) = rest.strip_prefix(',').and_then(weekday_range) {
        days |= more;
        rest = left;
    }
    Some((days, rest))
}

fn weekday_range(text: &str) -> Option<(u64, &str)> {
    let (first, rest) = weekday(text)?;
    let Some((last, rest)) = rest.strip_prefix("..").and_then(weekday) else { return Some((1 << first, rest)) };
    // `fri..mon` goes over the end of the week.
    let days = if first <= last { bits(first, last) } else { bits(first, 6) | bits(0, last) };
    Some((days, rest))
}

fn weekday(text: &str) -> Option<(u32, &str)> {
    const NAMES: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
    let end = text.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let name = name.to_ascii_lowercase();
    let day = NAMES.iter().position(|day| *day == name || day[..3] == name)?;
    Some((u32::try_from(day).ok()?, rest))
}

/// `2026-*-01` or `*-01`.
fn date<'a>(text: &'a str, event: &mut CalendarEvent) -> Option<&'a str> {
    let with_year = || {
        let (years, rest) = list(text, 0, CalendarEvent::LAST_YEAR)?;
        let (months, rest) = list(rest.strip_prefix('-')?, 1, 12)?;
        let (days, rest) = list(rest.strip_prefix('-')?, 1, 31)?;
        Some((years, months, days, rest))
    };
    let without_year = || {
        let (months, rest) = list(text, 1, 12)?;
        let (days, rest) = list(rest.strip_prefix('-')?, 1, 31)?;
        Some((None, months, days, rest))
    };
    let (years, months, days, rest) = with_year().or_else(without_year)?;
    event.years = years.map(|years| {
        let mut years: Vec<i16> = years.iter().filter_map(|year| i16::try_from(*year).ok()).collect();
        years.sort_unstable();
        years.dedup();
        years
    });
    event.months = set(months).unwrap_or(event.months);
    event.month_days = set(days).unwrap_or(event.month_days);
    Some(rest)
}

/// `hour:minute:second`; seconds may be missing, and so may the hour.
fn time<'a>(text: &'a str, event: &mut CalendarEvent) -> Option<&'a str> {
    let hour = list(text, 0, 23).and_then(|(hours, rest)| Some((hours, rest.strip_prefix(':')?)));
    let (hours, rest) = hour.unwrap_or((None, text));
    let (minutes, rest) = list(rest, 0, 59)?;
    let second = rest.strip_prefix(':').and_then(|rest| list(rest, 0, 59));
    let (seconds, rest) = second.unwrap_or((Some(vec![0]), rest));
    event.hours = set(hours).unwrap_or(event.hours);
    event.minutes = set(minutes).unwrap_or(event.minutes);
    event.seconds = set(seconds).unwrap_or(event.seconds);
    Some(rest)
}

fn set(numbers: Option<Vec<u32>>) -> Option<u64> {
    numbers.map(|numbers| numbers.iter().fold(0, |set, number| set | 1 << number))
}

/// The numbers of a list, or `None` for all of them (`*`), and the rest of the text.
type Numbers<'a> = (Option<Vec<u32>>, &'a str);

fn list(text: &str, min: u32, max: u32) -> Option<Numbers<'_>> {
    if let Some(rest) = text.strip_prefix('*') {
        return match rest.strip_prefix('/').map(|rest| number(rest, max)) {
            Some(Some((step, rest))) if step > 0 => Some((Some(stepped(min, max, step)), rest)),
            Some(None) => None,
            _ => Some((None, rest)),
        };
    }
    let (mut numbers, mut rest) = item(text, min, max)?;
    while let Some((more, left)) = rest.strip_prefix(',').and_then(|rest| item(rest, min, max)) {
        numbers.extend(more);
        rest = left;
    }
    Some((Some(numbers), rest))
}

/// `5`, `8..17`, `0/15`, `8..17/3`.
fn item(text: &str, min: u32, max: u32) -> Option<(Vec<u32>, &str)> {
    let (first, rest) = number(text, max)?;
    let range = rest.strip_prefix("..").and_then(|rest| number(rest, max));
    if range.is_some_and(|(last, _)| last < first) {
        return None;
    }
    let (last, rest) = range.map_or((None, rest), |(last, rest)| (Some(last), rest));
    let (mut numbers, rest) = match rest.strip_prefix('/') {
        Some(rest) => {
            let (step, rest) = number(rest, max)?;
            (stepped(first, last.unwrap_or(max), step), rest)
        }
        None => (stepped(first, last.unwrap_or(first), 1), rest),
    };
    // A month or day 0 is read, and never comes.
    numbers.retain(|number| *number >= min);
    Some((numbers, rest))
}

fn stepped(first: u32, last: u32, step: u32) -> Vec<u32> {
    if step == 0 { vec![first] } else { (first..=last).step_by(step as usize).collect() }
}

fn number(text: &str, max: u32) -> Option<(u32, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let number = digits.parse().ok().filter(|number| *number <= max)?;
    Some((number, rest))
}
