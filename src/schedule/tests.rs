use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::testdata::golden;

#[test]
fn recorded_calendar_events() {
    let Some(golden) = golden() else { return };
    let text = std::fs::read(golden.join("calendar-events.json")).unwrap();
    let recorded: Vec<Value> = serde_json::from_slice(&text).unwrap();
    assert!(recorded.len() > 100);
    for case in &recorded {
        let event = case["event"].as_str().unwrap().parse::<CalendarEvent>();
        if case.get("error").is_some() {
            assert!(event.is_err(), "{case}");
            continue;
        }
        let event = event.unwrap_or_else(|e| panic!("{case}: {e}"));
        let zone = TimeZone::get(case["tz"].as_str().unwrap()).unwrap();
        let mut at = Timestamp::from_second(case["after"].as_i64().unwrap()).unwrap();
        for expected in case["next"].as_array().unwrap() {
            let next = event.next(at, &zone);
            assert_eq!(next.map(Timestamp::as_second), expected.as_i64(), "{case}");
            at = next.unwrap_or(at);
        }
    }
}

fn times(schedule: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
    let event: CalendarEvent = schedule.parse().unwrap();
    let zone = TimeZone::get(zone).unwrap();
    let after: Timestamp = after.parse().unwrap();
    let times = std::iter::successors(event.next(after, &zone), |last| event.next(*last, &zone));
    times.take(count).map(|at| at.to_zoned(zone.clone()).strftime("%F %T %z").to_string()).collect()
}

#[test]
fn a_clock_put_forward_leaves_out_and_one_put_back_does_not_repeat() {
    let vienna = "Europe/Vienna";
    assert_eq!(
        times("02:30", vienna, "2024-03-29T12:00:00Z", 2),
        ["2024-03-30 02:30:00 +0100", "2024-04-01 02:30:00 +0200"]
    );
    assert_eq!(
        times("hourly", vienna, "2024-10-26T23:30:00Z", 3),
        ["2024-10-27 02:00:00 +0200", "2024-10-27 03:00:00 +0100", "2024-10-27 04:00:00 +0100"]
    );
    // Asked within the second pass of the hour, the answer lies after the question.
    assert_eq!(times("*:0/20", vienna, "2024-10-27T01:15:00Z", 1), ["2024-10-27 02:20:00 +0100"]);
    assert_eq!(
        times("*:0/15", "Australia/Lord_Howe", "2024-10-05T15:20:00Z", 2),
        ["2024-10-06 02:30:00 +1100", "2024-10-06 02:45:00 +1100"]
    );
}

#[test]
fn what_the_recordings_do_not_have() {
    let utc = |schedule, count| times(schedule, "UTC", "2024-01-01T00:00:00Z", count);
    assert_eq!(utc("mon *-2-29 0:0", 1), ["2044-02-29 00:00:00 +0000"]);
    assert_eq!(utc("*-2-30 0:0", 1), [""; 0]);
    assert_eq!(utc("2030-*-*", 1), ["2030-01-01 00:00:00 +0000"]);
    // A step that does not divide the hour begins anew in each.
    assert_eq!(
        utc("*:0/40", 3),
        ["2024-01-01 00:40:00 +0000", "2024-01-01 01:00:00 +0000", "2024-01-01 01:40:00 +0000"]
    );
    assert_eq!(utc("*/30", 2), ["2024-01-01 00:30:00 +0000", "2024-01-01 01:00:00 +0000"]);
    assert_eq!(utc("fri..mon 12:00", 2), ["2024-01-01 12:00:00 +0000", "2024-01-05 12:00:00 +0000"]);
    assert_eq!(times("12:00 UTC", "Asia/Kolkata", "2024-01-01T00:00:00Z", 1), ["2024-01-01 17:30:00 +0530"]);
    let error = "mon..fri 21:00 sharp".parse::<CalendarEvent>().unwrap_err().to_string();
    assert!(error.contains("'mon..fri 21:00 sharp'") && error.contains("from ' sharp' on"), "{error}");
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
        let _ = text.parse::<CalendarEvent>();
    }

    #[test]
    fn texts_of_the_right_letters_lie_in_the_future(
        text in "((mon|sat\\.\\.tue|sun,wed) )?((\\*|20[0-9]{2})?-?[0-9*]{1,2}-[0-9*]{1,2} )?[0-9*/,.]{1,5}(:[0-9*/.,]{1,5}){0,2}",
        after in 0_i64..4_000_000_000,
        zone in prop::sample::select(vec!["UTC", "Europe/Vienna", "Australia/Lord_Howe", "America/Sao_Paulo"]),
    ) {
        let after = Timestamp::from_second(after).unwrap();
        if let Ok(event) = text.parse::<CalendarEvent>()
            && let Some(next) = event.next(after, &TimeZone::get(zone).unwrap())
        {
            prop_assert!(next > after, "{text} {after} {next}");
        }
    }

    /// Compared with trying every second of the hours after.
    #[test]
    fn no_time_is_left_out(
        minute in 0_u32..60, step in 1_u32..60, second in 0_u32..60, after in 1_700_000_000_i64..1_800_000_000,
    ) {
        let event: CalendarEvent = format!("*:{minute}/{step}:{second}").parse().unwrap();
        let fits = |at: &i64| {
            let (m, s) = ((at / 60 % 60) as u32, (at % 60) as u32);
            s == second && m >= minute && (m - minute).is_multiple_of(step)
        };
        let expected = (after + 1..after + 7300).find(fits);
        let next = event.next(Timestamp::from_second(after).unwrap(), &TimeZone::UTC);
        prop_assert_eq!(next.map(Timestamp::as_second), expected);
    }
}
