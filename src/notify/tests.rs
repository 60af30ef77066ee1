//! What the node's notification files mean, and that none of them can make us panic; templates.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::config::{Config, EndpointKind, SmtpMode};
use super::{MatcherMode, Notification, Severity, send, template};
use crate::host::Host;

/// A failed backup on Monday, the first of June 2026, at 9:30.
pub(super) fn notification() -> Notification {
    let fields = [("hostname", "pve1"), ("type", "vzdump")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    Notification {
        severity: Severity::Error,
        fields: fields.into(),
        timestamp: jiff::civil::date(2026, 6, 1).at(9, 30, 0, 0).in_tz("UTC").unwrap(),
        template: "vzdump".into(),
        data: json!({
            "error": null, "fqdn": "pve1.example.com", "hostname": "pve1", "logs": "vzdump 100\n\n100: a < b\n",
            "status-text": "backup failed", "total-size": 108_777_984, "total-time": 3725,
            "guest-table": {
                "schema": {"columns": [
                    {"id": "vmid", "label": "VMID"}, {"id": "name", "label": "Name"},
                    {"id": "time", "label": "Time", "renderer": "duration"},
                    {"id": "size", "label": "Size", "renderer": "human-bytes"},
                    {"id": "filename", "label": "Filename"},
                ]},
                "data": [
                    {"vmid": 100, "name": "a<b", "time": 62, "size": 1536, "filename": "/x.vma"},
                    {"vmid": 4_000_000, "name": "VM 4000000", "time": 0, "size": 0, "filename": null},
                ],
            },
        }),
    }
}

const PUBLIC: &str = "sendmail: mails\n\tcomment hi\n\tmailto a@example.com\n\tmailto b,c@example.com\n\tmailto-user root@pam\n\
    \tfrom-address f@example.com\n\tauthor The Node\n\n\
    smtp: relay\n\tserver mail.example.com\n\tmode starttls\n\tport 2525\n\tusername u\n\tmailto a@example.com\n\n\
    gotify: push\n\tserver http://localhost\n\tdisable true\n\n\
    webhook: hook\n\turl http://localhost/{{ secrets.path }}\n\tmethod put\n\theader name=X-A,value=YQ==\n\
    \theader value=e3sgc2V2ZXJpdHkgfX0,name=X-B\n\tbody e3sganNvbiBmaWVsZHMgfX0=\n\n\
    matcher: night\n\tmode any\n\tinvert-match 1\n\tmatch-severity info,notice\n\tmatch-severity error\n\
    \tmatch-field exact:type=vzdump\n\tmatch-calendar mon..fri 8-10\n\ttarget mails\n\ttarget relay\n\tdisable\n\n\
    matcher: default-matcher\n\ttarget push\n";
const PRIVATE: &str =
    "smtp: relay\n\tpassword pw\n\nwebhook: hook\n\tsecret name=path,value=YS9i\n\ngotify: push\n\ttoken t\n";

#[test]
fn the_whole_of_a_configuration() {
    for (public, private) in
        [(PUBLIC.to_owned(), PRIVATE.to_owned()), (PUBLIC.replace('\n', "\r\n"), PRIVATE.replace('\n', "\r\n"))]
    {
        let config = Config::parse(&public, &private);
        assert_eq!(config.warnings, Vec::<String>::new());
        let names: Vec<&str> = config.endpoints.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names, ["mails", "relay", "push", "hook", "mail-to-root"]);
        let kinds: Vec<&EndpointKind> = config.endpoints.iter().map(|e| &e.kind).collect();
        let [
            EndpointKind::Sendmail(mail),
            EndpointKind::Smtp(_, smtp),
            EndpointKind::Gotify { token, .. },
            EndpointKind::Webhook(hook),
            _,
        ] = kinds[..]
        else {
            panic!("{kinds:?}");
        };
        assert_eq!(mail.mailto, ["a@example.com", "b", "c@example.com"]);
        assert_eq!((mail.mailto_user[0].as_str(), mail.author.as_deref()), ("root@pam", Some("The Node")));
        assert_eq!((smtp.mode, smtp.port, smtp.password.as_deref()), (SmtpMode::StartTls, Some(2525), Some("pw")));
        assert_eq!((token.as_str(), config.endpoints[2].disabled), ("t", true));
        assert_eq!((hook.method, hook.body.as_str()), ("PUT", "{{ json fields }}"));
        let (said, _) = template::render(&Host::with_root("/nonexistent".into()), &notification());
        let request = template::request(hook, &said, &notification()).unwrap();
        assert_eq!(request.url, "http://localhost/a/b");
        assert_eq!(request.headers, [("X-A".into(), "a".to_owned()), ("X-B".into(), "error".to_owned())]);
        assert_eq!(
            serde_json::from_str::<Value>(&request.body).unwrap(),
            json!({"hostname": "pve1", "type": "vzdump"})
        );
        let night = &config.matchers[0];
        assert!(night.disabled && night.invert && night.mode == MatcherMode::Any && night.directives.len() == 4);
        assert_eq!(night.targets, ["mails", "relay"]);
        assert_eq!(config.matchers[1].targets, ["push"]);
    }
}

#[test]
fn without_a_configuration_root_gets_mail() {
    for text in ["", "\n# nothing\n", "matcher: other\n\tdisable true\n"] {
        let config = Config::parse(text, "");
        let matcher = config.matchers.iter().find(|m| m.name == "default-matcher").unwrap();
        assert!(matcher.matches(&notification()) && matcher.targets == ["mail-to-root"]);
        let EndpointKind::Sendmail(mail) = &config.endpoints[0].kind else { panic!() };
        assert_eq!(mail.mailto_user, ["root@pam"]);
    }
    let off = Config::parse("sendmail: mail-to-root\n\tdisable true\n\nmatcher: default-matcher\n\tdisable 1\n", "");
    assert!(off.endpoints.len() == 1 && off.endpoints[0].disabled && off.matchers[0].disabled);
}

#[test]
fn what_is_wrong_is_said_and_the_rest_counts() {
    let config = Config::parse(
        "junk\n\tmailto x\nsmtp: a\n\tserver s\n\tmode ssl\n\ncarrier-pigeon: b\n\nwebhook: c\n\turl u\n\tbody &\n\ngotify: d\n\tserver s\n\n\
         matcher: m\n\tmatch-field hostname=x\n\ttarget a\n\ttarget gone\n\nsendmail: a\n\n",
        "secret-password-line\n",
    );
    assert_eq!(
        config.warnings,
        [
            "/etc/pve/notifications.cfg: line 1 is ignored: 'junk'",
            "/etc/pve/notifications.cfg: line 2 is ignored: 'mailto'",
            "/etc/pve/notifications.cfg: 'a' is there twice, the first one counts",
            "/etc/pve/priv/notifications.cfg: line 1 is ignored",
            "notification matcher 'm' matches everything: 'hostname=x' is neither 'exact:FIELD=VALUE' nor 'regex:FIELD=EXPRESSION'",
        ]
    );
    let reasons: Vec<String> = config.endpoints[..4].iter().map(|e| format!("{:?}", e.kind)).collect();
    for (reason, wanted) in reasons.iter().zip([
        "mode 'ssl' is none of 'insecure', 'starttls', 'tls'",
        "endpoints of type 'carrier-pigeon' are not known",
        "body is not base64",
        "its token is not in '/etc/pve/priv/notifications.cfg'",
    ]) {
        assert_eq!(*reason, format!("Unusable({wanted:?})"));
    }
    let dir = tempfile::tempdir().unwrap();
    let report = send(&Host::with_root(dir.path().into()), &config, &notification(), Duration::from_secs(5));
    assert_eq!(report.sent, Vec::<String>::new());
    assert_eq!(report.hints, ["no notification was sent: user 'root@pam' has no mail address"]);
    let mut failed: Vec<&String> = report.warnings.iter().filter(|w| w.starts_with("notification via")).collect();
    failed.sort();
    assert_eq!(
        failed,
        [
            "notification via target 'a' failed: it cannot be used: mode 'ssl' is none of 'insecure', 'starttls', 'tls'",
            "notification via target 'gone' failed: there is no such target",
        ]
    );
}

#[test]
fn a_file_that_cannot_be_read_counts_as_absent() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::with_root(dir.path().into());
    std::fs::create_dir_all(host.path(Config::PATH)).unwrap();
    let config = Config::load(&host);
    assert!(config.warnings[0].starts_with("cannot read '/etc/pve/notifications.cfg': "), "{:?}", config.warnings);
    assert_eq!(config.endpoints[0].name, "mail-to-root");
}

#[test]
fn every_cut_of_the_files_is_read_without_panic() {
    for at in (0..PUBLIC.len()).filter(|at| PUBLIC.is_char_boundary(*at)) {
        let config = Config::parse(&PUBLIC[..at], &PRIVATE[..at.min(PRIVATE.len())]);
        assert!(config.endpoints.iter().any(|e| e.name == "mail-to-root"));
        let matching = config.matchers.iter().filter(|matcher| matcher.matches(&notification())).count();
        assert!(matching <= config.matchers.len());
    }
}

proptest! {
    #[test]
    fn no_bytes_make_us_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), words in proptest::collection::vec(
        prop::sample::select(vec!["smtp:", "matcher: a", "\n", "\n\t", " ", "match-field ", "regex:", "x=(", "match-calendar ", "mon..", "8-9",
            "target ", "header ", "name=", ",value=", "body ", "==", "\r", "port ", "99999", "mailto ", "é", "\0"]), 0..60)) {
        for text in [String::from_utf8_lossy(&bytes).into_owned(), words.concat()] {
            let config = Config::parse(&text, &text);
            let matching = config.matchers.iter().filter(|matcher| matcher.matches(&notification())).count();
            assert!(matching <= config.matchers.len());
        }
    }
}

#[test]
fn the_built_in_templates() {
    let (said, warnings) = template::render(&Host::with_root("/nonexistent".into()), &notification());
    assert!(warnings.is_empty());
    assert_eq!(said.subject, "vzdump backup status (pve1.example.com): backup failed");
    assert_eq!(
        said.text,
        "Details\n=======\n\
         VMID       Name          Time     Size         Filename\n\
         100        a<b           1m 2s    1.500 KiB    /x.vma\n\
         4000000    VM 4000000    0s       0 B\n\n\
         Total running time: 1h 2m 5s\nTotal size: 103.739 MiB\n\nLogs\n====\nvzdump 100\n\n100: a < b\n\n"
    );
    let html = said.html.unwrap();
    assert!(html.contains(">a&lt;b</td>") && html.contains("100: a &lt; b") && !html.contains("Problems"), "{html}");
    let mut with_error = notification();
    with_error.data["error"] = "two\nlines".into();
    let (said, _) = template::render(&Host::with_root("/nonexistent".into()), &with_error);
    assert!(said.text.starts_with("Problems\n========\ntwo\nlines\n\nDetails\n"), "{}", said.text);
    assert!(said.html.unwrap().contains("<pre>two\nlines</pre>"));
}

#[test]
fn templates_of_the_administrator() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::with_root(dir.path().into());
    let overrides = host.path(template::OVERRIDES);
    std::fs::create_dir_all(&overrides).unwrap();
    let write = |name: &str, text: &str| std::fs::write(overrides.join(name), text).unwrap();
    write("vzdump-subject.txt.hbs", "{{hostname}}:\n {{status-text}}\r\nBcc: x");
    write("vzdump-body.txt.hbs", "{{json this}}");
    write("vzdump-body.html.hbs", "{{#if}}");
    let (said, warnings) = template::render(&host, &notification());
    assert_eq!(said.subject, "pve1: backup failed Bcc: x", "no line feed gets into a header");
    assert_eq!(serde_json::from_str::<Value>(&said.text).unwrap(), notification().data);
    assert!(said.html.unwrap().contains("<h3>Details</h3>"));
    let start = "the template '/etc/pve/notification-templates/default/vzdump-body.html.hbs' cannot be rendered, the built-in one is used: ";
    assert!(warnings.len() == 1 && warnings[0].starts_with(start) && !warnings[0].contains('\n'), "{warnings:?}");

    write(
        "vzdump-body.txt.hbs",
        "{{url-encode 'a b/é'}} {{escape 'say \"x\"'}} {{timestamp 0}} {{duration 90061}} {{human-bytes '2048'}} {{json error}}",
    );
    let (said, _) = template::render(&host, &notification());
    assert!(said.text.starts_with("a%20b%2F%C3%A9 say \\\"x\\\" 19"), "{}", said.text);
    assert!(said.text.ends_with(":00 1d 1h 1m 1s 2.000 KiB null"), "{}", said.text);
    for wrong in ["{{table hostname}}", "{{human-bytes hostname}}", "{{duration}}", "{{nope 1}}", "{{> nope}}"] {
        write("vzdump-body.txt.hbs", wrong);
        let (said, warnings) = template::render(&host, &notification());
        assert!(said.text.starts_with("Details") && warnings.len() == 2, "{wrong}: {warnings:?}");
    }
    let other = Notification { template: "other".into(), ..notification() };
    let (said, _) = template::render(&host, &other);
    assert_eq!((said.subject.as_str(), said.html), ("other", None));
    assert_eq!(serde_json::from_str::<Value>(&said.text).unwrap(), other.data);
}
