use std::path::PathBuf;

use super::tables::{QMRESTORE, VZDUMP};
use super::*;

fn golden() -> Option<PathBuf> {
    crate::testdata::golden()
}

fn args(line: &[&str]) -> Vec<String> {
    line.iter().map(|&arg| arg.to_owned()).collect()
}

fn options(line: &[&str]) -> VzdumpOptions {
    VzdumpOptions::merge(&VzdumpRequest::parse(&args(line)).unwrap(), &Params::default()).unwrap()
}

#[test]
fn tables_are_sorted_and_defaults_pass_their_checks() {
    for command in [&VZDUMP, &QMRESTORE] {
        assert!(command.options.is_sorted_by_key(|opt| opt.name), "{}", command.name);
        for opt in command.options {
            if let Some(default) = opt.default {
                assert_eq!(check_value(opt, default).as_deref(), Ok(default), "{}", opt.name);
            }
            assert!(opt.requires.is_none_or(|other| command.option(other).is_some()));
        }
    }
}

#[test]
fn help_is_the_recorded_text() {
    let Some(golden) = golden() else { return };
    let recorded = std::fs::read_to_string(golden.join("vzdump/44-help/stderr.txt")).unwrap();
    assert_eq!(help(&VZDUMP), recorded);
}

/// Every recorded `vzdump` call: refused calls give the recorded text, accepted ones the recorded command line.
#[test]
fn recorded_command_lines() {
    let Some(golden) = golden() else { return };
    let mut seen = 0;
    for case in std::fs::read_dir(golden.join("vzdump")).unwrap() {
        let case = case.unwrap().path();
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let json: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(case.join("case.json")).unwrap()).unwrap();
        let argv: Vec<String> =
            json["argv"].as_array().unwrap().iter().map(|a| a.as_str().unwrap().to_owned()).collect();
        // The line feed of 34-notes-newline was lost when its arguments were written down.
        if argv[0] != "vzdump" || argv.get(1).is_some_and(|a| a == "help") || name == "34-notes-newline" {
            continue;
        }
        seen += 1;
        let read = |file: &str| std::fs::read_to_string(case.join(file)).unwrap_or_default();
        let stderr = read("stderr.txt");
        match VzdumpRequest::parse(&argv[1..]) {
            Err(error) => assert_eq!(error.to_string().trim_end(), stderr.trim_end(), "{name}"),
            Ok(request) => {
                assert!(!stderr.contains("400 "), "{name}: accepted, but recorded: {stderr}");
                // With --quiet only the task log has the line; 53-lockholder's task log is of the other job.
                let tasklog = read("stdout.txt") + &read("tasklog.txt");
                let Some(recorded) = tasklog.lines().find_map(|l| l.split_once("starting new backup job: vzdump"))
                else {
                    continue;
                };
                // The order of the options is not fixed: compare the words sorted.
                let sorted = |line: &str| {
                    let mut options: Vec<_> = line.split(" --").map(str::to_owned).collect();
                    options.sort();
                    options
                };
                let ours = request.command_line();
                assert_eq!(sorted(ours.strip_prefix("vzdump").unwrap()), sorted(recorded.1), "{name}");
            }
        }
    }
    assert!(seen > 90, "only {seen} recordings");
}

#[test]
fn getopt_rules() {
    let line = |line: &[&str]| VzdumpRequest::parse(&args(line)).map(|r| r.command_line());
    assert_eq!(line(&["-MODE=stop", "0102", "--stop", "--", "103"]).unwrap(), "vzdump 0102 103 --mode stop --stop 1");
    assert_eq!(
        line(&["102", "--protected", "no", "--sto", "bk"]).unwrap_err().to_string().lines().next(),
        Some("Option sto is ambiguous (stop, stopwait, storage)")
    );
    assert_eq!(line(&["102", "--stop", "--remove=off"]).unwrap(), "vzdump 102 --remove 0 --stop 1");
    assert_eq!(line(&["--exclude", "102", "--all", "0"]).unwrap(), "vzdump --all 1 --exclude 102");
    assert_eq!(line(&["--exclude", "102", "--pool", "p"]).unwrap(), "vzdump --exclude 102 --pool p");
    assert_eq!(
        line(&["102", "--storage"]).unwrap_err().to_string(),
        "Option storage requires an argument\n400 unable to parse option\nvzdump {<vmid>} [OPTIONS]\n"
    );
    assert_eq!(
        line(&["102", "--exclude-path", "a", "--exclude-path", "b c"]).unwrap(),
        "vzdump 102 --exclude-path a --exclude-path 'b c'"
    );
    assert_eq!(options(&["0102", "101"]).vmids.iter().map(|v| v.get()).collect::<Vec<_>>(), [102, 101]);
}

#[test]
fn defaults_and_conflicts() {
    let defaults = options(&["100"]);
    assert_eq!((defaults.mode, defaults.compress, defaults.ionice), (Mode::Snapshot, Compress::None, 7));
    assert_eq!((defaults.lockwait, defaults.stopwait, defaults.zstd), (180, 10, 1));
    assert_eq!((defaults.storage.as_deref(), defaults.remove), (Some("local"), true));
    assert_eq!(defaults.retention(None), (Keep::ALL, false));
    assert_eq!(options(&["100", "--compress", "1"]).compress, Compress::Lzo);
    let keep = options(&["100", "--prune-backups", "keep-last=2,keep-daily=1"]).retention(Some(Keep::ALL));
    assert_eq!((keep.0.to_string().as_str(), keep.1), ("keep-daily=1,keep-last=2", true));
    let merge = |line: &[&str]| {
        VzdumpOptions::merge(&VzdumpRequest::parse(&args(line)).unwrap(), &Params::default()).unwrap_err().to_string()
    };
    assert_eq!(
        merge(&["1000", "--storage", "bk", "--dumpdir", "/x"]),
        "cannot use options 'storage' and 'dumpdir' at the same time"
    );
    assert_eq!(
        merge(&["1000", "--storage", "bk", "--stdout"]),
        "cannot use options 'storage' and 'stdout' at the same time"
    );
    assert_eq!(Keep::parse("keep-last=3,keep-daily=7").unwrap().log_text(), "keep-daily=7, keep-last=3");
    assert_eq!(options(&["--exclude", "100,101"]).exclude.len(), 2);
    assert_eq!(options(&["100", "--fleecing", "1,storage=local"]).fleecing.storage.as_deref(), Some("local"));
}

#[test]
fn qmrestore_options() {
    let given =
        RestoreOptions::parse(&args(&["-", "300", "--storage", "local", "--unique", "--bwlimit", "1.5"])).unwrap();
    assert_eq!((given.archive.as_str(), given.vmid.get(), given.bwlimit), ("-", 300, Some(1536)));
    assert!(given.unique && !given.force);
    let limit = |kib: &str| RestoreOptions::parse(&args(&["-", "300", "--bwlimit", kib])).unwrap().bwlimit;
    assert_eq!((limit("0"), limit("0.0001")), (Some(0), Some(1)), "no limit is not a tiny one");
    let error = |line: &[&str]| RestoreOptions::parse(&args(line)).unwrap_err().to_string();
    assert_eq!(error(&["x"]), "400 not enough arguments\nqmrestore <archive> <vmid> [OPTIONS]\n");
    assert_eq!(error(&["x", "300", "y"]), "400 too many arguments\nqmrestore <archive> <vmid> [OPTIONS]\n");
    assert!(error(&["x", "12"]).contains("vmid: invalid format - value does not look like a valid VM ID"));
    assert!(error(&["-", "300", "--live-restore"]).contains("live-restore: standard input"));
    let live = |line: &[&str]| RestoreOptions::parse(&args(line)).unwrap().live;
    assert!(live(&["x", "300", "--live-restore"]) && !live(&["-", "300", "--live-restore", "0"]));
    assert!(error(&["x", "300", "--pool", "p"]).contains("pool: not supported"));
}

#[test]
fn man_page_and_completion_name_every_option() {
    for command in [&VZDUMP, &QMRESTORE] {
        let man = man_page(command, "0.1.0");
        let scripts = [(Shell::Bash, "--"), (Shell::Zsh, "--"), (Shell::Fish, "-l ")]
            .map(|(shell, dashes)| (completion(command, shell), dashes));
        for opt in command.options {
            assert!(man.contains(&format!("\\-\\-{}", opt.name.replace('-', "\\-"))), "{}", opt.name);
            for (script, dashes) in &scripts {
                assert!(script.contains(&format!("{dashes}{}", opt.name)), "{}: {script}", opt.name);
            }
        }
        assert!(man.lines().all(|line| !line.starts_with('\'')));
    }
    assert!(help(&QMRESTORE).starts_with("USAGE: qmrestore help\nUSAGE: qmrestore <archive> <vmid> [OPTIONS]\n"));
}

#[test]
fn deprecated_options_say_what_to_use_instead() {
    let deprecated: Vec<_> = VZDUMP.options.iter().filter(|opt| opt.deprecated.is_some()).map(|opt| opt.name).collect();
    assert_eq!(deprecated, ["mailnotification", "mailto"]);
    assert!(man_page(&VZDUMP, "0.1.0").contains("\nDeprecated: use notification targets/matchers instead. Specify"));
}

proptest::proptest! {
    #[test]
    fn any_command_line_is_answered(line in proptest::collection::vec("(--?)?[a-zA-Z0-9=,;é\n\u{0} -]{0,12}", 0..6)) {
        let _ = VzdumpRequest::parse(&line).map(|request| request.command_line());
        let _ = RestoreOptions::parse(&line);
    }

    /// Whatever pairs are accepted are printed as text, and as an object, that means the same.
    #[test]
    fn property_strings_round_trip(
        keep in proptest::collection::btree_map("keep-(all|last|daily|hourly|yearly)", 0u64..9, 0..5),
        fleece in "(enabled=)?[01]?,?(storage=[a-z]{2,5})?",
        workers in proptest::option::of(0u64..300),
    ) {
        let keep = keep.iter().map(|(key, n)| format!("{key}={n}")).collect::<Vec<_>>().join(",");
        let workers = workers.map(|n| format!("max-workers={n}")).unwrap_or_default();
        for (name, text) in [("prune-backups", keep), ("fleecing", fleece), ("performance", workers)] {
            let Some(Opt { kind: Kind::Property(shape), .. }) = VZDUMP.option(name) else { panic!("{name}") };
            let Ok(given) = Properties::parse(name, &text, shape) else { continue };
            proptest::prop_assert_eq!(&Properties::parse(name, &given.to_string(), shape).unwrap(), &given);
            let request = VzdumpRequest::from_pairs([("all", "1"), (name, text.as_str())]).unwrap();
            proptest::prop_assert_eq!(VzdumpRequest::from_json(&request.to_json()).unwrap(), request);
        }
    }
}

fn json(text: &str) -> Result<VzdumpRequest, UsageError> {
    VzdumpRequest::from_json(&serde_json::from_str(text).unwrap())
}

#[test]
fn a_request_from_the_api() {
    let given = json(
        r#"{"all": 1, "exclude": "101,102", "mode": "stop", "storage": "bk", "bwlimit": "100", "zstd": 4,
            "protected": true, "remove": false, "mailto": ["root", "a@x.y"], "exclude-path": ["/a b", "/c"],
            "prune-backups": {"keep-last": "3", "keep-daily": 2}, "fleecing": {"enabled": 1, "storage": "local"},
            "performance": "max-workers=4", "pool": null}"#,
    )
    .unwrap();
    assert_eq!(
        given.command_line(),
        "vzdump --all 1 --bwlimit 100 --exclude 101,102 --exclude-path '/a b' --exclude-path /c \
         --fleecing '1,storage=local' --mailto root,a@x.y --mode stop --performance 'max-workers=4' --protected 1 \
         --prune-backups 'keep-daily=2,keep-last=3' --remove 0 --storage bk --zstd 4"
    );
    assert_eq!(VzdumpRequest::from_json(&given.to_json()).unwrap(), given);
    let object = given.to_json();
    assert_eq!(object["prune-backups"], serde_json::json!({"keep-daily": 2, "keep-last": 3}));
    assert_eq!((&object["all"], &object["mailto"]), (&1.into(), &"root,a@x.y".into()));
    assert_eq!(json(r#"{"vmid": 100}"#).unwrap().command_line(), "vzdump 100");
}

#[test]
fn a_request_from_a_section() {
    let pairs = [("vmid", "100,101"), ("all", "0"), ("exclude-path", "/a b"), ("exclude-path", "/c"), ("quiet", "1")];
    let given = VzdumpRequest::from_pairs(pairs).unwrap();
    assert_eq!(given.command_line(), "vzdump 100 101 --all 0 --exclude-path '/a b' --exclude-path /c --quiet 1");
    assert_eq!(VzdumpRequest::from_json(&given.to_json()).unwrap(), given);
}

#[test]
fn requests_that_are_refused_say_which_keys() {
    let reasons = |given: Result<VzdumpRequest, UsageError>| -> Vec<String> {
        given.unwrap_err().reasons().map(|(name, reason)| format!("{name}: {reason}")).collect()
    };
    let section = |pairs: &[(&str, &str)]| reasons(VzdumpRequest::from_pairs(pairs.iter().copied()));
    let undefined = "property is not defined in schema and the schema does not allow additional properties";
    assert_eq!(section(&[("all", "1"), ("schedule", "daily")]), [format!("schedule: {undefined}")]);
    assert_eq!(section(&[("all", "1"), ("Mode", "stop")]), [format!("Mode: {undefined}")]);
    assert_eq!(section(&[("all", "1"), ("mode", "stop"), ("mode", "stop")]), ["mode: duplicate attribute"]);
    assert_eq!(section(&[("all", "maybe")]), ["all: type check ('boolean') failed - got 'maybe'"]);
    assert_eq!(section(&[("all", "1"), ("vmid", "100")]), ["all: option conflicts with option 'vmid'"]);
    assert_eq!(section(&[]), ["vmid: property is missing"]);
    for (text, reason) in [
        (r#"{"all": 1, "bwlimit": [1]}"#, "bwlimit: type check ('integer') failed - got ARRAY"),
        (r#"{"all": 1, "bwlimit": 1.5}"#, "bwlimit: type check ('integer') failed - got '1.5'"),
        (r#"{"all": {}}"#, "all: type check ('boolean') failed - got HASH"),
        (r#"{"all": 1, "protected": 1}"#, "storage: missing property required by 'protected'"),
        (
            r#"{"all": 1, "fleecing": {"enabled": 1, "storage": "a,enabled=0"}}"#,
            "fleecing: invalid format - format error\nfleecing.storage: invalid format - storage ID 'a,enabled=0' \
             contains illegal characters",
        ),
        (
            r#"{"all": 1, "prune-backups": {"keep-all": true, "keep-last": 1}}"#,
            "prune-backups: invalid format - keep-all cannot be set together with other options.",
        ),
    ] {
        assert_eq!(reasons(json(text)), [reason]);
    }
}
