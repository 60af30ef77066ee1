//! What to keep: the typed form of `prune-backups`.

use std::fmt;

use super::{Properties, tables};

/// How many backups of each kind of period are kept. `all` excludes the others; nothing at all means keep all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Keep everything.
    pub all: bool,
    /// The newest ones.
    pub last: u64,
    /// One per hour.
    pub hourly: u64,
    /// One per day.
    pub daily: u64,
    /// One per ISO week.
    pub weekly: u64,
    /// One per month.
    pub monthly: u64,
    /// One per year.
    pub yearly: u64,
}

impl Keep {
    /// Keep everything.
    pub const ALL: Self = Self { all: true, last: 0, hourly: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0 };

    /// From a checked property string; zeros mean nothing, and nothing means everything.
    pub fn from_properties(given: &Properties) -> Self {
        let count = |key| given.number(key).unwrap_or(0);
        let keep = Self {
            all: false,
            last: count("keep-last"),
            hourly: count("keep-hourly"),
            daily: count("keep-daily"),
            weekly: count("keep-weekly"),
            monthly: count("keep-monthly"),
            yearly: count("keep-yearly"),
        };
        if given.flag("keep-all") || keep.total() == 0 { Self::ALL } else { keep }
    }

    /// Reads `keep-last=3,keep-daily=2`.
    ///
    /// # Errors
    /// What is wrong with it, after `invalid format - `.
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(Self::from_properties(&Properties::parse("prune-backups", text, &tables::PRUNE_BACKUPS)?))
    }

    /// The sum of all counts: how many backups of a guest there can be when none may be removed.
    pub fn total(&self) -> u64 {
        self.counts().iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// The counts by name, in the order in which retention looks at them.
    pub fn counts(&self) -> [(&'static str, u64); 6] {
        [
            ("keep-last", self.last),
            ("keep-hourly", self.hourly),
            ("keep-daily", self.daily),
            ("keep-weekly", self.weekly),
            ("keep-monthly", self.monthly),
            ("keep-yearly", self.yearly),
        ]
    }

    /// As in `prune older backups with retention: keep-daily=7, keep-last=3`.
    pub fn log_text(&self) -> String {
        self.to_string().replace(',', ", ")
    }
}

/// The property string, by name: `keep-daily=7,keep-last=3`.
impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.all {
            return f.write_str("keep-all=1");
        }
        let mut counts = self.counts();
        counts.sort_unstable();
        let given: Vec<_> =
            counts.iter().filter(|(_, count)| *count > 0).map(|(name, count)| format!("{name}={count}")).collect();
        f.write_str(&given.join(","))
    }
}
