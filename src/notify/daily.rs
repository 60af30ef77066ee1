//! A part of the day on some days of the week, as matchers of the calendar spell it: `8-17:30`, `mon..fri 8:00-15:30`,
//! `sat,sun 0-23:59`. The beginning belongs to it, the end does not.

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Minutes of the day on days of the week.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DailyDuration {
    /// Monday first.
    days: [bool; 7],
    /// Minutes since midnight.
    from: u32,
    to: u32,
}

impl DailyDuration {
    /// Reads `mon..fri 8:00-15:30`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim().to_ascii_lowercase();
        let at = text.find(|c: char| c.is_ascii_digit()).ok_or("hours are missing, as in 'mon..fri 8:00-15:30'")?;
        let (days, hours) = text.split_at(at);
        let days = days.trim();
        let days = if days.is_empty() { [true; 7] } else { parse_days(days)? };
        let (from, to) = hours.split_once('-').ok_or_else(|| format!("'{hours}' is no range, as in '8:00-15:30'"))?;
        let (from, to) = (minutes(from)?, minutes(to)?);
        if from > to {
            return Err(format!("'{hours}' ends before it begins"));
        }
        Ok(Self { days, from, to })
    }

    /// Whether `time` falls into it.
    pub fn contains(&self, time: &jiff::Zoned) -> bool {
        let day = usize::try_from(time.weekday().to_monday_zero_offset()).unwrap_or_default();
        let minute = u32::try_from(i32::from(time.hour()) * 60 + i32::from(time.minute())).unwrap_or_default();
        self.days.get(day).is_some_and(|on| *on) && (self.from..self.to).contains(&minute)
    }
}

/// `mon..fri,sun`
fn parse_days(text: &str) -> Result<[bool; 7], String> {
    let mut days = [false; 7];
    for item in text.split([',', ' ']).filter(|item| !item.is_empty()) {
        let (from, to) = item.split_once("..").unwrap_or((item, item));
        let (from, to) = (day(from)?, day(to)?);
        if from > to {
            return Err(format!("'{item}' ends before it begins"));
        }
        days.iter_mut().take(to + 1).skip(from).for_each(|on| *on = true);
    }
    Ok(days)
}

fn day(word: &str) -> Result<usize, String> {
    // Also the whole word: `monday`.
    let known = |name: &&str| word.starts_with(*name) && (word.len() == 3 || word.ends_with("day"));
    DAYS.iter().position(known).ok_or_else(|| format!("'{word}' is no day of the week"))
}

fn minutes(text: &str) -> Result<u32, String> {
    let wrong = || format!("'{}' is no time of the day", text.trim());
    let (hour, minute) = text.trim().split_once(':').unwrap_or((text.trim(), "0"));
    let (hour, minute): (u32, u32) = (hour.parse().map_err(|_| wrong())?, minute.parse().map_err(|_| wrong())?);
    if hour > 24 || minute > 59 || hour * 60 + minute > 24 * 60 { Err(wrong()) } else { Ok(hour * 60 + minute) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_hours() {
        // The first of June 2026 is a Monday.
        let at = |day: i8, hour: i8, minute: i8| {
            jiff::civil::date(2026, 6, day).at(hour, minute, 0, 0).in_tz("Europe/Vienna").unwrap()
        };
        for (text, time, expected) in [
            ("8-17:30", at(1, 8, 0), true),
            ("8-17:30", at(1, 7, 59), false),
            ("8-17:30", at(7, 17, 29), true),
            ("8-17:30", at(1, 17, 30), false),
            ("mon..fri 8:00 - 9", at(5, 8, 59), true),
            ("mon..fri 8:00-9", at(6, 8, 59), false),
            ("Sat,sun 0-24", at(6, 23, 59), true),
            ("tue,thu..sat 0-24", at(3, 12, 0), false),
            ("tue,thu..sat 0-24", at(4, 12, 0), true),
            ("monday 0-24", at(1, 0, 0), true),
            ("8-8", at(1, 8, 0), false),
        ] {
            assert_eq!(DailyDuration::parse(text).unwrap().contains(&time), expected, "{text} {time}");
        }
    }

    #[test]
    fn what_is_none_is_explained() {
        for (text, reason) in [
            ("", "hours are missing, as in 'mon..fri 8:00-15:30'"),
            ("mon..fri", "hours are missing, as in 'mon..fri 8:00-15:30'"),
            ("8", "'8' is no range, as in '8:00-15:30'"),
            ("17-8", "'17-8' ends before it begins"),
            ("fri..mon 8-9", "'fri..mon' ends before it begins"),
            ("blursday 8-9", "'blursday' is no day of the week"),
            ("8:60-9", "'8:60' is no time of the day"),
            ("8-25", "'25' is no time of the day"),
            ("8-24:01", "'24:01' is no time of the day"),
        ] {
            assert_eq!(DailyDuration::parse(text).unwrap_err(), reason, "{text}");
        }
    }
}
