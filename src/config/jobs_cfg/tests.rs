use proptest::prelude::*;

use super::*;
use crate::config::VzdumpCron;

const NIGHTLY: &str = "# made by hand\r\nvzdump: backup-nightly\r\n\tcomment n%C3%A4chtlich%3A 100%\r\n\tenabled 1\n\
    \tschedule 21:00\n\t# not a property\n\tstorage bk\n\tall 0\n\tvmid 101,102\n\tmode snapshot\n\tcompress zstd\n\
    \tnotes-template {{guestname}} nightly\n\tprune-backups keep-daily=7,keep-last=3\n\tscript /root/hook.pl\n\
    \texclude-path /tmp/a b\n\texclude-path /var/c\n\tsomething new\n\trepeat-missed 0\n\n\
    realm-sync: ad\n\trealm ad\n\tschedule daily\n\nvzdump: all\n\tall 1\n\tnode pve2\n\tstarttime 02:30\n\tdow mon,tue\n\tenabled 0\n";

#[test]
fn sections_become_jobs() {
    let cfg = JobsCfg::parse(NIGHTLY);
    assert_eq!(cfg.warnings, [""; 0]);
    assert_eq!(cfg.others, [("realm-sync".to_owned(), "ad".to_owned())]);
    let [nightly, all] = cfg.jobs.as_slice() else { panic!("{cfg:?}") };
    assert_eq!((nightly.id(), nightly.schedule().unwrap().as_str()), ("backup-nightly", "21:00"));
    assert_eq!(nightly.comment().unwrap(), "nächtlich: 100%");
    assert!(nightly.is_enabled() && !nightly.repeats_missed() && nightly.node().is_none());
    assert_eq!(nightly.get("something"), Some("new"));
    assert_eq!(
        (all.schedule().unwrap().as_str(), all.node(), all.is_enabled()),
        ("mon,tue 02:30", Some("pve2"), false)
    );
}

#[test]
fn a_job_means_a_command_line() {
    let job = JobsCfg::parse(NIGHTLY).jobs.remove(0);
    let request = job.request().unwrap();
    assert_eq!(request.params().text("job-id"), Some("backup-nightly"));
    assert_eq!(
        request.command_line(),
        "vzdump 101 102 --all 0 --compress zstd --exclude-path '/tmp/a b' --exclude-path /var/c --job-id backup-nightly --mode snapshot \
         --notes-template '{{guestname}} nightly' --prune-backups 'keep-daily=7,keep-last=3' --quiet 1 \
         --script /root/hook.pl --storage bk"
    );
    let round = JobsCfg::from_json(&job.to_json().to_string()).unwrap();
    assert_eq!(round.jobs[0].request().unwrap(), request);
}

#[test]
fn a_value_is_never_an_option() {
    let request = |value: &str| {
        let cfg = JobsCfg::parse(&format!("vzdump: a\n\tvmid 100\n\tstorage bk\n\tnotes-template {value}\n"));
        cfg.jobs[0].request().map(|request| request.params().text("notes-template").map(str::to_owned))
    };
    assert_eq!(request("--all 1").unwrap().as_deref(), Some("--all 1"));
    let cfg = JobsCfg::parse("vzdump: a\n\tvmid --all\n\tmode --stop\n");
    let error = cfg.jobs[0].request().unwrap_err().to_string();
    assert!(error.starts_with("job 'a' cannot run: mode: value '--stop'"), "{error}");
    assert!(error.contains("; vmid: ") && error.lines().count() == 1, "{error}");
    let twice = JobsCfg::parse("vzdump: a\n\tall 1\n\tmode stop\n\tmode suspend\n");
    assert_eq!(twice.jobs[0].request().unwrap().command_line(), "vzdump --all 1 --job-id a --mode suspend --quiet 1");
}

#[test]
fn json_of_the_interface() {
    let one = r#"{"all":0,"comment":"nightly job","compress":"zstd","enabled":1,"mode":"snapshot",
        "prune-backups":{"keep-last":"3","keep-daily":"7"},"schedule":"21:00","type":"vzdump","vmid":"101,102","x":null}"#;
    let listed = format!(r#"[{{"id":"a",{}, {{"id":"r","type":"realm-sync"}}]"#, &one[1..]);
    let single = format!(r#"{{"id":"a",{}"#, &one[1..]);
    let named = format!(r#"{{"a":{one}}}"#);
    for text in [listed, single, named] {
        let cfg = JobsCfg::from_json(&text).unwrap();
        assert_eq!(cfg.jobs.len(), 1, "{text}");
        let request = cfg.get("a").unwrap().request().unwrap();
        assert_eq!(
            request.command_line(),
            "vzdump 101 102 --all 0 --compress zstd --job-id a --mode snapshot --prune-backups 'keep-daily=7,keep-last=3' \
             --quiet 1"
        );
    }
    assert!(JobsCfg::from_json("[]").unwrap().jobs.is_empty());
    for wrong in ["", "3", "[3]", "{\"a\":3}", "[{}]"] {
        assert!(JobsCfg::from_json(wrong).is_err(), "{wrong}");
    }
    let cfg = JobsCfg::from_json(r#"[{"id":"../../etc/x"},{"id":"a"},{"id":"a"}]"#).unwrap();
    assert_eq!((cfg.jobs.len(), cfg.warnings.len()), (1, 2));
}

#[test]
fn bad_lines_are_told_and_left_out() {
    let cfg =
        JobsCfg::parse("junk\n\tall 1\n\n\tall 1\nvzdump: a\n\tall 1\nvzdump: a\n\tall 0\nvzdump: a/b\nvzdump:\n");
    assert_eq!(cfg.jobs.len(), 1);
    assert_eq!(cfg.jobs[0].get("all"), Some("1"));
    assert_eq!(cfg.warnings.len(), 6, "{:?}", cfg.warnings);
    assert_eq!(cfg.warnings[3], "line 7: job 'a' is ignored: defined twice");
}

#[test]
fn lines_of_the_old_cron_file() {
    let text = "# cluster wide vzdump cron schedule\n# Automatically generated file - do not edit\n\n\
        PATH=\"/usr/sbin:/usr/bin:/sbin:/bin\"\n\n\
        0 2 * * 6           root vzdump --all 1 --mode snapshot --quiet 1 --storage bk\n\
        30 21 * * mon-fri   root /usr/bin/vzdump 100 101 --compress zstd --notes-template '{{guestname}} x' --storage bk\r\n\
        15 1 * * *          root #vzdump 102 --storage bk\n\
        */20 8-10,20 1 * *  root vzdump 103\n\
        0 0 1 * 1           root vzdump 103\n\
        0 25 * * *          root vzdump 103\n\
        0 1 * * *           root rm -rf /\n\
        @daily root vzdump 103\n\
        5 1 * * 5-7 root vzdump 104 --no-such 1\n";
    let cron = VzdumpCron::parse(text);
    let schedules: Vec<_> = cron.jobs.iter().map(|job| job.schedule().unwrap()).collect();
    assert_eq!(schedules, ["sat 2:0", "mon,tue,wed,thu,fri 21:30", "1:15", "*-*-1 8,9,10,20:0,20,40"]);
    assert!(schedules.iter().all(|schedule| schedule.parse::<crate::schedule::CalendarEvent>().is_ok()));
    let lines: Vec<_> = cron.jobs.iter().map(|job| job.request().unwrap().command_line()).collect();
    let names: Vec<_> = cron.jobs.iter().map(BackupJob::id).collect();
    assert_eq!(lines[0], format!("vzdump --all 1 --job-id {} --mode snapshot --quiet 1 --storage bk", names[0]));
    assert_eq!(
        lines[1],
        format!(
            "vzdump 100 101 --compress zstd --job-id {} --notes-template '{{{{guestname}}}} x' --quiet 1 --storage bk",
            names[1]
        )
    );
    assert!(cron.jobs[1].is_enabled() && !cron.jobs[2].is_enabled());
    assert_eq!(cron.warnings.len(), 5, "{:?}", cron.warnings);
    // Names do not depend on what else stands in the file.
    let again = VzdumpCron::parse(text.lines().nth(6).unwrap());
    assert_eq!(again.jobs[0].id(), cron.jobs[1].id());
    assert_eq!(VzdumpCron::parse("0 2 * * 6 root vzdump 1000\n".repeat(2).as_str()).jobs.len(), 1);
}

proptest! {
    #[test]
    fn nothing_panics(text in "((vzdump|x): ?[a-z]{0,3}\r?\n|\t[a-z%0-9 ]{0,12}\n|\\PC{0,20}\n|[0-9*/,-]{1,4} [0-9]{1,2} \\* \\* [0-7] root vzdump [0-9]{3}\n){0,20}", cut in 0_usize..400) {
        let cut = text.char_indices().map(|(i, _)| i).take_while(|i| *i <= cut).last().unwrap_or(0);
        for text in [text.as_str(), &text[..cut]] {
            for job in JobsCfg::parse(text).jobs.iter().chain(&VzdumpCron::parse(text).jobs) {
                let _ = (job.request(), job.comment(), job.schedule(), job.to_json());
            }
        }
        let _ = JobsCfg::from_json(&text);
    }
}

#[test]
fn ten_megabytes() {
    let jobs: String =
        (0..150_000).map(|i| format!("vzdump: j{i}\n\tall 1\n\tschedule daily\n\tcomment {i}\n\n")).collect();
    assert_eq!(JobsCfg::parse(&jobs).jobs.len(), 150_000);
    let junk = "\u{fffd}".repeat(4 << 20);
    assert_eq!(JobsCfg::parse(&junk).warnings.len(), 1);
    assert_eq!(VzdumpCron::parse(&junk).warnings.len(), 1);
}

#[test]
fn a_switch_that_is_neither_on_nor_off_is_said() {
    let wanted = "job 'a': enabled is neither 0 nor 1: 'ture'; taken as 1";
    let cfg = JobsCfg::parse("vzdump: a\n\tschedule daily\n\tenabled ture\n");
    assert_eq!(cfg.warnings, [format!("line 1: {wanted}")]);
    assert!(cfg.jobs[0].is_enabled());
    assert_eq!(JobsCfg::from_json(r#"[{"id":"a","enabled":"ture"}]"#).unwrap().warnings, [wanted]);
}
