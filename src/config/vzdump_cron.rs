//! `/etc/pve/vzdump.cron`, where nodes kept their backup jobs before `jobs.cfg`: lines of a crontab that call `vzdump`. Each
//! becomes a job with a schedule. What cannot be said as one, or calls anything else, is told and left out.

use std::collections::HashSet;

use md5::{Digest, Md5};

use super::BackupJob;
use crate::schema::tables::VZDUMP;
use crate::schema::words::split_words;
use crate::schema::{Kind, parse};

/// The jobs of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VzdumpCron {
    /// One job for each line.
    pub jobs: Vec<BackupJob>,
    /// What could not be read, one message each.
    pub warnings: Vec<String>,
}

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

impl VzdumpCron {
    /// Where the file lies.
    pub const PATH: &'static str = "/etc/pve/vzdump.cron";

    /// Reads the text of the file; an absent file is an empty one.
    pub fn parse(text: &str) -> Self {
        let mut cron = Self::default();
        let mut known = HashSet::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            let is_path = line.strip_prefix("PATH").is_some_and(|rest| rest.trim_start().starts_with('='));
            if line.is_empty() || line.starts_with('#') || is_path {
                continue;
            }
            match job(line) {
                // The same line twice is one backup, as the second would find the first one's lock.
                Ok(job) if known.insert(job.id().to_owned()) => cron.jobs.push(job),
                Ok(_) => {}
                Err(why) => {
                    let shown: String = line.chars().take(80).collect();
                    cron.warnings.push(format!("line {} is ignored: {why}: '{shown}'", number + 1));
                }
            }
        }
        cron
    }
}

/// `minute hour day month weekday root vzdump ...`; a `#` before the command switches it off.
fn job(line: &str) -> Result<BackupJob, String> {
    let mut rest = line;
    let mut field = || {
        let (field, left) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        rest = left.trim_start();
        field
    };
    let [minute, hour, day, month, weekday, user] = std::array::from_fn(|_| field());
    if user != "root" {
        return Err("expected five fields of time, 'root' and a call of vzdump".into());
    }
    let (call, enabled) = rest.strip_prefix('#').map_or((rest, true), |call| (call.trim_start(), false));
    let words = split_words(call);
    let Some((_, words)) = words.split_first().filter(|(program, _)| program.rsplit('/').next() == Some("vzdump"))
    else {
        return Err("it calls something else than vzdump".into());
    };
    let params = parse(&VZDUMP, words).map_err(|e| e.to_string().lines().take(2).collect::<Vec<_>>().join(" "))?;
    let schedule = schedule([minute, hour, day, month, weekday])?;
    let mut properties = vec![("enabled".into(), u8::from(enabled).to_string()), ("schedule".into(), schedule)];
    for (name, values) in params.iter() {
        match VZDUMP.option(name).map(|opt| opt.kind) {
            Some(Kind::Array) => properties.extend(values.iter().map(|value| (name.to_owned(), value.clone()))),
            _ => properties.extend(values.first().map(|value| (name.to_owned(), value.clone()))),
        }
    }
    // Named by what it does and when, so that its history stays its own when other lines come and go.
    let identity = format!("{minute} {hour} {day} {month} {weekday} {}", words.join(" "));
    let name: String = Md5::digest(identity.as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    Ok(BackupJob::new(&format!("cron-{name}"), properties))
}

/// The calendar event of five fields of cron.
fn schedule([minute, hour, day, month, weekday]: [&str; 5]) -> Result<String, String> {
    let minutes = numbers(minute, 0, 59, &[])?.ok_or("it would run every minute")?;
    let hours = numbers(hour, 0, 23, &[])?;
    let days = numbers(day, 1, 31, &[])?;
    let months =
        numbers(month, 1, 12, &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"])?;
    // Sunday is 0 and 7.
    let weekdays = numbers(weekday, 0, 7, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"])?;
    if days.is_some() && weekdays.is_some() {
        return Err("cron takes a day of the month and a day of the week for either, which no schedule can say".into());
    }
    let mut event = String::new();
    if let Some(weekdays) = weekdays {
        let chosen = |day: usize| weekdays.iter().any(|number| (*number as usize + 6) % 7 == day);
        let names: Vec<&str> = (0..7).filter(|day| chosen(*day)).map(|day| DAYS[day]).collect();
        if names.len() < DAYS.len() {
            event = names.join(",") + " ";
        }
    }
    let list = |numbers: Option<Vec<u32>>| {
        numbers.map_or_else(|| "*".to_owned(), |n| n.iter().map(u32::to_string).collect::<Vec<_>>().join(","))
    };
    if days.is_some() || months.is_some() {
        event += &format!("*-{}-{} ", list(months), list(days));
    }
    Ok(event + &format!("{}:{}", list(hours), list(Some(minutes))))
}

/// The numbers of a field; `None` for all of them.
fn numbers(field: &str, min: u32, max: u32, names: &[&str]) -> Result<Option<Vec<u32>>, String> {
    if field == "*" {
        return Ok(None);
    }
    let wrong = || format!("'{field}' is no field of time from {min} to {max}");
    let number = |word: &str| {
        let named = names.iter().position(|name| name.eq_ignore_ascii_case(word));
        let number = match named {
            Some(at) => u32::try_from(at).ok()? + min,
            None => word.parse().ok()?,
        };
        (min..=max).contains(&number).then_some(number)
    };
    let mut all = Vec::new();
    for part in field.split(',') {
        let (range, step) = part.split_once('/').map_or((part, Some(1)), |(range, step)| (range, step.parse().ok()));
        let step = step.filter(|step: &usize| *step > 0).ok_or_else(wrong)?;
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (min, max),
            Some((first, last)) => (number(first).ok_or_else(wrong)?, number(last).ok_or_else(wrong)?),
            None => {
                let first = number(range).ok_or_else(wrong)?;
                (first, if part.contains('/') { max } else { first })
            }
        };
        if first > last {
            return Err(wrong());
        }
        all.extend((first..=last).step_by(step));
    }
    all.sort_unstable();
    all.dedup();
    Ok(Some(all))
}
