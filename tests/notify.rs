//! Notifications of real runs of the program, to real peers: a `sendmail` that stores its input, SMTP servers with and without
//! TLS, HTTP servers. The guest has no disks, so a run is short.

#![expect(clippy::unwrap_used, reason = "tests")]

mod lab;
mod peers {
    pub mod http;
    pub mod smtp;
}

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use lab::{Guest, Node};
use peers::{http, smtp};
use serde_json::Value;
use vzkeep::host::Host;
use vzkeep::notify::{self, Config, Notification, Severity};

/// What one run said: exit code, standard output, standard error.
type Said = (i32, String, String);

/// A node with guest 102, which has no disks.
fn node() -> Node {
    let node = Node::new().unwrap().guest(Guest::new(102).name("diskless")).unwrap();
    std::fs::create_dir_all(node.path("/etc/pve/priv")).unwrap();
    std::fs::create_dir_all(node.path("/etc/pve/notification-templates/default")).unwrap();
    write(&node, "/etc/resolv.conf", "nameserver 192.0.2.1\nsearch example.com example.org\n");
    node
}

fn write(node: &Node, path: &str, text: &str) {
    std::fs::write(node.path(path), text).unwrap();
}

fn vzdump(node: &Node, words: &[&str]) -> Said {
    let mut command = node.command("vzdump");
    command.args(words).env("SSL_CERT_FILE", node.path("/etc/ca.pem"));
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The mails that `sendmail` was given: the words of its call, and the message.
fn sent(node: &Node) -> Vec<(String, String)> {
    let dir = node.path("/var/spool/mails");
    let mails = std::fs::read_dir(&dir).into_iter().flatten().map(|entry| {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let (words, mail) = text.split_once('\n').unwrap();
        (words.to_owned(), mail.to_owned())
    });
    let mails = mails.collect();
    if dir.exists() {
        std::fs::remove_dir_all(dir).unwrap();
    }
    mails
}

/// A shell script of the node.
fn program(node: &Node, path: &str, script: &str) {
    write(node, path, &format!("#!/bin/sh\n{script}\n"));
    std::fs::set_permissions(node.path(path), PermissionsExt::from_mode(0o755)).unwrap();
}

/// A port at which nobody listens any more.
fn closed_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[test]
fn without_any_configuration_root_gets_mail() {
    let node = node();
    let (code, out, err) = vzdump(&node, &["102", "--storage", "backup"]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    let mails = sent(&node);
    let [(words, mail)] = &mails[..] else { panic!("{mails:?}") };
    assert_eq!(words, "-i -f root -- root@example.com");
    assert!(!mail.contains('\r'), "local programs have lines without");
    for head in [
        "From: \"Proxmox VE\" <root@pve1.example.com>",
        "To: root@example.com",
        "Subject: vzdump backup status (pve1.example.com): backup successful",
        "Auto-Submitted: auto-generated",
        "Content-Type: multipart/alternative;",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Type: text/html; charset=utf-8",
    ] {
        assert!(mail.contains(head), "{head} is missing in\n{mail}");
    }
    assert!(mail.contains("102: ") && mail.contains("INFO: Finished Backup of VM 102"), "{mail}");

    // A job that fails is told, too, and a setting of the cluster says who writes.
    write(&node, "/etc/pve/datacenter.cfg", "email_from: backup@example.com\n");
    let (code, ..) = vzdump(&node, &["999", "--storage", "backup"]);
    let mails = sent(&node);
    let [(words, mail)] = &mails[..] else { panic!("{mails:?}") };
    assert!(code == 255 && words == "-i -f backup@example.com -- root@example.com", "{words}");
    assert!(mail.contains(": backup failed\n") && mail.contains("999: no log available"), "{mail}");
    let (code, ..) = vzdump(&node, &["102", "--storage", "nosuch"]);
    assert!(code == 255 && sent(&node)[0].1.contains(": backup failed: multiple\n problems\n"));
}

#[test]
fn mail_of_the_old_way() {
    let node = node();
    // What the notification system says does not matter then.
    write(&node, "/etc/pve/notifications.cfg", "matcher: default-matcher\n\ttarget nobody\n");
    let base = ["102", "--storage", "backup", "--mailto", "a@example.com,root"];
    let (code, _, err) = vzdump(&node, &base);
    assert_eq!((code, err.as_str()), (0, ""));
    let mails = sent(&node);
    let [(words, mail)] = &mails[..] else { panic!("{mails:?}") };
    assert_eq!(words, "-i -f root -- a@example.com root");
    assert!(mail.contains("From: \"vzdump backup tool\" <root@pve1.example.com>\n"), "{mail}");

    let quiet = ["--mailnotification", "failure"];
    assert_eq!(vzdump(&node, &[&base[..], &quiet].concat()).0, 0);
    assert_eq!(sent(&node), []);
    assert_eq!(vzdump(&node, &["999", "--mailto", "a@example.com", "--mailnotification", "failure"]).0, 255);
    assert_eq!(sent(&node).len(), 1);
    assert_eq!(vzdump(&node, &["102", "--storage", "backup", "--notification-mode", "legacy-sendmail"]).0, 0);
    assert_eq!(sent(&node), []);
    let (code, out, err) = vzdump(&node, &[&base[..], &["--notification-mode", "notification-system"]].concat());
    assert!(code == 0 && sent(&node).is_empty() && err == "Task finished with 1 warning(s)!\n", "{err}");
    assert!(out.ends_with("WARN: notification via target 'nobody' failed: there is no such target\n"), "{out}");
}

#[test]
fn a_target_that_fails_is_a_warning_and_the_others_get_theirs() {
    let node = node();
    let (good, bad) = (http::Server::start(Some("204 No Content")), http::Server::start(Some("500 Oops")));
    let closed = closed_port();
    write(
        &node,
        "/etc/pve/notifications.cfg",
        &format!(
            "webhook: good\n\turl http://127.0.0.1:{}/x\n\tmethod get\n\ngotify: bad\n\tserver http://127.0.0.1:{}/\n\n\
             webhook: closed\n\turl http://127.0.0.1:{closed}/{{{{ secrets.token }}}}\n\n\
             sendmail: mail\n\tmailto a@example.com\n\n\
             matcher: default-matcher\n\ttarget good\n\ttarget bad\n\ttarget closed\n\ttarget mail\n",
            good.port, bad.port
        ),
    );
    let private =
        format!("webhook: closed\n\tsecret name=token,value={}\n\ngotify: bad\n\ttoken abc\n", base64("hush"));
    write(&node, "/etc/pve/priv/notifications.cfg", &private);
    program(&node, "/usr/sbin/sendmail", "echo first >&2; echo no queue >&2; exit 75");

    let (code, out, err) = vzdump(&node, &["102", "--storage", "backup"]);
    assert_eq!((code, err.as_str()), (0, "Task finished with 3 warning(s)!\n"), "{out}");
    let mut warnings: Vec<&str> = out.lines().filter(|line| line.starts_with("WARN: ")).collect();
    warnings.sort_unstable();
    assert_eq!(warnings.len(), 3);
    for (warning, wanted) in warnings.iter().zip([
        "'bad' failed: the server answered with HTTP status 500",
        "'closed' failed: ",
        "'mail' failed: sendmail: exit status: 75: no queue",
    ]) {
        assert!(warning.starts_with(&format!("WARN: notification via target {wanted}")), "{warning}");
    }
    assert!(!out.contains("hush"), "a secret is in the log");
    assert_eq!(good.requests()[0].line, "GET /x HTTP/1.1");
    let asked = bad.requests().remove(0);
    assert_eq!((asked.line.as_str(), asked.header("x-gotify-key")), ("POST /message HTTP/1.1", Some("abc")));
    let body: Value = serde_json::from_str(&asked.body).unwrap();
    let title = Value::from("vzdump backup status (pve1.example.com): backup successful");
    assert_eq!((&body["title"], &body["priority"]), (&title, &Value::from(1)));
    let archives = std::fs::read_dir(node.path("/mnt/backup/dump")).unwrap().count();
    assert_eq!(archives, 2, "the archive and its log");
}

/// With a shorter patience than that of a job.
#[test]
fn nobody_waits_for_ever() {
    let node = node();
    let silent = http::Server::start(None);
    program(&node, "/usr/sbin/sendmail", "sleep 60 & sleep 60");
    let public = format!(
        "webhook: silent\n\turl http://127.0.0.1:{0}\n\nsendmail: hanging\n\tmailto b@example.com\n\n\
         smtp: mute\n\tserver 127.0.0.1\n\tport {0}\n\tmode insecure\n\tmailto a@example.com\n\n\
         matcher: default-matcher\n\ttarget silent\n\ttarget hanging\n\ttarget mute\n",
        silent.port
    );
    let notification = Notification {
        severity: Severity::Info,
        fields: std::collections::BTreeMap::new(),
        timestamp: jiff::Zoned::now(),
        template: "test".into(),
        data: Value::Null,
    };
    let host = Host::with_root(node.root().to_owned());
    let begun = Instant::now();
    let mut report = notify::send(&host, &Config::parse(&public, ""), &notification, Duration::from_secs(2));
    assert!(begun.elapsed() < Duration::from_secs(9));
    report.warnings.sort();
    let texts = ["hanging", "mute", "silent"]
        .map(|name| format!("notification via target '{name}' failed: no answer within 2 s"));
    assert_eq!((report.warnings, report.sent), (texts.to_vec(), Vec::new()));
}

#[test]
fn a_webhook_gets_the_whole_data() {
    let node = node();
    let server = http::Server::start(Some("200 OK"));
    let body = base64(
        "{\"f\": {{ json fields }}, \"m\": {{ message }}, \"s\": \"{{ severity }}\", \"t\": {{ timestamp }}, \"x\": \"{{ escape title }}\"}",
    );
    write(
        &node,
        "/etc/pve/notifications.cfg",
        &format!(
            "webhook: hook\n\turl http://localhost:{}/{{{{ url-encode secrets.id }}}}?s={{{{ severity }}}}\n\tmethod put\n\
             \theader name=Authorization,value={}\n\tbody {body}\n\nmatcher: errors\n\tmatch-severity error\n\
             \tmatch-field exact:job-id=nightly\n\ttarget hook\n\nmatcher: default-matcher\n\tdisable true\n",
            server.port,
            base64("Bearer {{ secrets.token }}"),
        ),
    );
    let secrets = format!("\tsecret name=token,value={}\n\tsecret name=id,value={}\n", base64("t&<"), base64("a/b"));
    write(&node, "/etc/pve/priv/notifications.cfg", &format!("webhook: hook\n{secrets}"));
    write(&node, "/etc/pve/notification-templates/default/vzdump-body.txt.hbs", "{{json this}}");
    for words in [&["102", "--storage", "backup", "--job-id", "nightly"][..], &["999", "--storage", "backup"]] {
        vzdump(&node, words);
        assert_eq!(server.requests(), [], "{words:?}");
    }
    program(&node, "/hook", "echo says \"$@\"");
    let hook = node.path("/hook");
    let words = ["999", "102", "--storage", "backup", "--job-id", "nightly", "--script", hook.to_str().unwrap()];
    assert_eq!(vzdump(&node, &words).0, 255);
    let asked = server.requests().remove(0);
    assert_eq!(asked.line, "PUT /a%2Fb?s=error HTTP/1.1");
    assert_eq!(asked.header("authorization"), Some("Bearer t&<"));
    let body: Value = serde_json::from_str(&asked.body).unwrap();
    assert_eq!(body["f"], serde_json::json!({"hostname": "pve1", "job-id": "nightly", "type": "vzdump"}));
    assert_eq!(body["x"], "vzdump backup status (pve1.example.com): backup failed");
    assert!(body["t"].as_i64().unwrap() > 1_700_000_000);
    let data = &body["m"];
    assert_eq!(
        (&data["status-text"], &data["error"], &data["fqdn"]),
        (&"backup failed".into(), &"".into(), &"pve1.example.com".into())
    );
    let guests = data["guest-table"]["data"].as_array().unwrap();
    let (done, unknown) = (&guests[0], &guests[1]);
    assert_eq!(
        (&done["status"], &done["name"], &data["total-size"]),
        (&"ok".into(), &"diskless".into(), &done["size"])
    );
    let archive = done["filename"].as_str().unwrap();
    assert_eq!(std::fs::metadata(archive).unwrap().len(), done["size"].as_u64().unwrap());
    assert_eq!(
        *unknown,
        serde_json::json!({"vmid": 999, "name": "VM 999", "status": "err", "time": 0, "size": 0, "filename": null})
    );
    // Each line without its time.
    let stamp = regex::Regex::new(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ").unwrap();
    let logs = stamp.replace_all(data["logs"].as_str().unwrap(), "@").into_owned();
    let command = logs.lines().next().unwrap();
    assert!(command.starts_with("vzdump 999 102 ") && command.contains("--job-id nightly"), "{command}");
    let rest = logs[command.len()..].to_owned();
    let start = "\n\n@INFO: says job-init\n@INFO: says job-start\n\n102: @INFO: Starting Backup of VM 102 (qemu)\n102: @INFO: status = stopped\n";
    assert!(rest.starts_with(start), "{rest}");
    let end = "102: @INFO: says backup-end stop 102\n102: @INFO: Finished Backup of VM 102 (00:00:00)\n\n999: no log available\n\n@INFO: says job-end\n";
    assert!(rest.ends_with(end), "{rest}");

    // A template that does not render, a configuration that cannot be read: the backup is there, and so is the warning.
    write(&node, "/etc/pve/notification-templates/default/vzdump-body.txt.hbs", "{{#each}}");
    let (code, out, _) = vzdump(&node, &["999", "--storage", "backup", "--job-id", "nightly"]);
    assert!(
        code == 255
            && out.contains("WARN: the template '/etc/pve/notification-templates/default/vzdump-body.txt.hbs' "),
        "{out}"
    );
    std::fs::write(node.path("/etc/pve/notifications.cfg"), b"\xff\xfe: \x00\n\t\xff\r\nsendmail").unwrap();
    let (code, out, err) = vzdump(&node, &["102", "--storage", "backup"]);
    assert_eq!((code, err.as_str()), (0, "Task finished with 2 warning(s)!\n"), "{out}");
    assert_eq!(sent(&node).len(), 1, "root is told");
}

#[test]
fn smtp_with_and_without_tls() {
    let node = node();
    let authority = smtp::Authority::new();
    write(&node, "/etc/ca.pem", &authority.pem);
    let password = base64("\0user\0secret").leak() as &'static str;
    let config = |mode: &str, server: &str, port: u16, more: &str| {
        let text = format!(
            "smtp: relay\n\tserver {server}\n\tport {port}\n\tmode {mode}\n\tmailto a@example.com\n\tmailto-user root@pam\n\
             \tfrom-address node@example.com\n\tauthor Jörg's node\n{more}\nmatcher: default-matcher\n\ttarget relay\n"
        );
        write(&node, "/etc/pve/notifications.cfg", &text);
    };
    write(&node, "/etc/pve/priv/notifications.cfg", "smtp: relay\n\tpassword secret\n");
    for (mode, word) in [(smtp::Mode::Plain, "insecure"), (smtp::Mode::StartTls, "starttls"), (smtp::Mode::Tls, "tls")]
    {
        let with_password = mode != smtp::Mode::Plain;
        let server = smtp::Server::start(mode, &authority, with_password.then_some(password));
        config(word, "localhost", server.port, if with_password { "\tusername user\n" } else { "" });
        let (code, out, err) = vzdump(&node, &["102", "--storage", "backup"]);
        assert_eq!((code, err.as_str()), (0, ""), "{word}: {out}");
        let mails = server.wait_for_mail();
        let [mail] = &mails[..] else { panic!("{mails:?}") };
        assert_eq!((mail.encrypted, mail.auth.is_some()), (with_password, with_password), "{word}");
        assert!(mail.from.starts_with("FROM:<node@example.com>"), "{}", mail.from);
        assert_eq!(mail.to, ["TO:<a@example.com>", "TO:<root@example.com>"]);
        assert!(mail.text.contains("Subject: vzdump backup status"), "{}", mail.text);
        assert!(mail.text.contains("From: =?utf-8?b?") && mail.text.contains("<node@example.com>"), "{}", mail.text);
    }
    // A server whose certificate nobody we trust has signed, one that has no STARTTLS, a wrong password, no certificate for the name.
    let stranger = smtp::Authority::new();
    let refused: [(smtp::Mode, &str, &str, &smtp::Authority, Option<&'static str>); 4] = [
        (smtp::Mode::Tls, "tls", "localhost", &stranger, None),
        (smtp::Mode::Plain, "starttls", "localhost", &authority, None),
        (smtp::Mode::StartTls, "starttls", "localhost", &authority, Some("AHgAeQ==")),
        (smtp::Mode::Tls, "tls", "127.0.0.1", &authority, None),
    ];
    for (mode, word, name, authority, password) in refused {
        let server = smtp::Server::start(mode, authority, password);
        config(word, name, server.port, if password.is_some() { "\tusername user\n" } else { "" });
        let (code, out, err) = vzdump(&node, &["102", "--storage", "backup"]);
        assert_eq!((code, err.as_str()), (0, "Task finished with 1 warning(s)!\n"), "{word} {out}");
        assert!(out.contains("WARN: notification via target 'relay' failed: "), "{out}");
        println!("{}", out.lines().last().unwrap());
        assert!(!out.contains("secret") && server.mails().is_empty(), "{out}");
    }
}

/// The test's own eyes: the mail is one that another program can read.
#[test]
fn the_parts_of_a_mail_can_be_read_by_others() {
    if !lab::require("the_parts_of_a_mail_can_be_read_by_others", &["python3"]) {
        return;
    }
    let node = node();
    write(
        &node,
        "/etc/pve/notification-templates/default/vzdump-subject.txt.hbs",
        "Sicherung für {{hostname}}: {{status-text}} ✓",
    );
    write(
        &node,
        "/etc/pve/notification-templates/default/vzdump-body.txt.hbs",
        &format!("ä {}\n.\nend", "x".repeat(2000)),
    );
    assert_eq!(vzdump(&node, &["102", "--storage", "backup"]).0, 0);
    let (_, mail) = sent(&node).remove(0);
    write(&node, "/tmp/mail", &mail);
    let script = "import email, email.policy, sys\n\
        m = email.message_from_binary_file(open(sys.argv[1], 'rb'), policy=email.policy.default)\n\
        sys.stdout.reconfigure(encoding='utf-8')\n\
        print(m['subject']); print(m['from'].addresses[0].display_name)\n\
        print([p.get_content_type() for p in m.walk()])\n\
        t = m.get_body(('plain',)).get_content(); print(len(t.splitlines()), t.startswith('ä xxx'), t.splitlines()[-1])\n";
    let output =
        std::process::Command::new("python3").args(["-c", script]).arg(node.path("/tmp/mail")).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        said,
        "Sicherung für pve1: backup successful ✓\nProxmox VE\n['multipart/alternative', 'text/plain', 'text/html']\n3 True end\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
