//! What was handed to the notification system: a template that shows all data and a server that stores them stand for the
//! recording's own, and the node's `sendmail` for what went by mail.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Value, json};

use super::case::Case;
use super::normalise::lines;
use crate::lab::Node;
use crate::peers::http::Server;

const MAILS: &str = "/var/spool/mails";

/// The node's notifications, as they come.
pub struct Listener<'a> {
    node: &'a Node,
    server: Server,
    /// How many requests belong to runs before this one.
    seen: usize,
}

impl<'a> Listener<'a> {
    /// Makes everything that `node` tells go to a server of the test, with all its data.
    pub fn start(node: &'a Node) -> Self {
        let server = Server::start(Some("204 No Content"));
        let body = r#"{"severity": "{{severity}}", "fields": {{json fields}}, "data": {{message}}}"#;
        let config = format!(
            "webhook: test\n\tmethod post\n\turl http://127.0.0.1:{}/\n\tbody {}\n\nmatcher: default-matcher\n\ttarget test\n",
            server.port,
            base64(body)
        );
        let templates = "/etc/pve/notification-templates/default";
        std::fs::create_dir_all(node.path(templates)).unwrap();
        std::fs::write(node.path(&format!("{templates}/vzdump-body.txt.hbs")), "{{json this}}").unwrap();
        std::fs::write(node.path("/etc/pve/notifications.cfg"), config).unwrap();
        std::fs::write(node.path("/etc/resolv.conf"), "search example.com\n").unwrap();
        Self { node, server, seen: 0 }
    }

    /// What has been told before belongs to no run.
    pub fn forget(&mut self) {
        self.seen = self.server.requests().len();
        let mails = self.node.path(MAILS);
        if mails.exists() {
            std::fs::remove_dir_all(mails).unwrap();
        }
    }

    /// What this run told; `recorded` picks it where another run told something meanwhile.
    pub fn told(&self, recorded: &[String]) -> Vec<String> {
        let root = self.node.root().to_str().unwrap();
        let mut all: Vec<Vec<String>> = Vec::new();
        for request in &self.server.requests()[self.seen..] {
            let told: Value = serde_json::from_str(&request.body).unwrap_or_else(|e| panic!("{e}: {}", request.body));
            all.push(facts(&told["severity"], Some(&told["fields"]), &told["data"], &Way::System, root));
        }
        let head = Regex::new("(?m)^From: \"?([^\"<]*?)\"? <").unwrap();
        for entry in std::fs::read_dir(self.node.path(MAILS)).into_iter().flatten() {
            let mail = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            let (words, mail) = mail.split_once('\n').unwrap();
            let to = words.split_once(" -- ").map_or(words, |(_, to)| to);
            let author = head.captures(mail).map(|found| found[1].to_owned()).unwrap_or_default();
            let data = serde_json::from_str(&text_part(mail)).unwrap_or_else(|e| panic!("{e}: {mail}"));
            let way = Way::Mail(to.split(' ').map(str::to_owned).collect(), author);
            all.push(facts(&Value::Null, None, &data, &way, root));
        }
        let command = recorded.iter().find(|line| line.starts_with("logs: "));
        let of_run = |told: &&Vec<String>| command.is_none_or(|command| told.contains(command));
        if all.len() > 1 && all.iter().filter(of_run).count() == 1 {
            return all.iter().find(of_run).cloned().unwrap_or_default();
        }
        all.concat()
    }
}

/// How it was told.
enum Way {
    System,
    /// Receivers, author.
    Mail(Vec<String>, String),
}

/// What the recording says was told: by the run itself, where others told something meanwhile.
pub fn recorded(case: &Case) -> Vec<String> {
    let text = case.text("notify.jsonl");
    let all: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect();
    let own = case.pid();
    let by_pid = all.iter().find(|told| own.is_some() && told["pid"].as_i64() == own);
    let Some(told) = by_pid.or(all.first()) else { return Vec::new() };
    let template = told["template"].as_str().unwrap_or_default();
    if template != "vzdump" {
        return vec![format!("template '{template}' is not understood")];
    }
    let calls = told["config_calls"].as_array().into_iter().flatten();
    let endpoint = calls.into_iter().find(|call| call[0] == "add_sendmail_endpoint");
    let way = endpoint.map_or(Way::System, |call| {
        let to = call[2].as_array().into_iter().flatten().map(|to| to.as_str().unwrap_or_default().to_owned());
        Way::Mail(to.collect(), call[5].as_str().unwrap_or_default().to_owned())
    });
    facts(&told["severity"], Some(&told["fields"]), &told["data"], &way, "")
}

/// A notification as lines that can be compared.
fn facts(severity: &Value, fields: Option<&Value>, data: &Value, way: &Way, root: &str) -> Vec<String> {
    let mut facts = match way {
        // A mail shows neither.
        Way::System => {
            vec![format!("severity: {severity}"), format!("fields: {}", sorted(fields.unwrap_or(&Value::Null)))]
        }
        Way::Mail(to, author) => vec![format!("mail from {author} to {to:?}")],
    };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), |text| lines(text, root).join("\n"));
    for (key, value) in sorted_pairs(data) {
        match key.as_str() {
            "guest-table" => {
                facts.push(format!("schema: {}", sorted(&value["schema"])));
                for row in value["data"].as_array().into_iter().flatten() {
                    let cells = sorted_pairs(row).into_iter().map(|(key, cell)| match key.as_str() {
                        "time" | "size" => format!("{key}={}", number(&key, &cell)),
                        _ => format!("{key}={}", text(&cell)),
                    });
                    facts.push(format!("guest: {}", cells.collect::<Vec<_>>().join(" ")));
                }
            }
            "logs" => facts.extend(logs(value.as_str().unwrap_or_default(), root)),
            "total-time" | "total-size" => facts.push(format!("{key}: {}", number(&key, &value))),
            _ => facts.push(format!("{key}: {}", text(&value))),
        }
    }
    facts
}

/// Sizes and times differ from run to run; whether a size is one does not.
fn number(key: &str, value: &Value) -> &'static str {
    match value.as_u64() {
        None => "none",
        Some(0) if key.contains("size") => "0",
        Some(_) => "N",
    }
}

/// The command line, then the lines of the job's hooks and of each guest.
fn logs(text: &str, root: &str) -> Vec<String> {
    let (command, rest) = text.split_once('\n').unwrap_or((text, ""));
    let command = lines(&format!("starting new backup job: {command}"), root).concat();
    let mut facts = vec![format!("logs: {command}")];
    let guest = Regex::new(r"^(\d+): (.*)$").unwrap();
    let parts: Vec<(String, String)> = rest
        .lines()
        .map(|line| {
            guest.captures(line).map_or((String::new(), line.to_owned()), |m| (m[1].to_owned(), m[2].to_owned()))
        })
        .collect();
    for chunk in parts.chunk_by(|a, b| a.0 == b.0) {
        let text: Vec<&str> = chunk.iter().map(|(_, line)| line.as_str()).collect();
        facts.extend(lines(&text.join("\n"), root).into_iter().map(|line| format!("logs: {}: {line}", chunk[0].0)));
    }
    facts
}

fn sorted_pairs(value: &Value) -> BTreeMap<String, Value> {
    value.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// JSON in which the order of keys does not matter.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(_) => {
            json!(sorted_pairs(value).into_iter().map(|(k, v)| (k, sorted(&v))).collect::<BTreeMap<_, _>>())
        }
        Value::Array(all) => all.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

/// The plain text of a mail.
fn text_part(mail: &str) -> String {
    let start = mail.find("Content-Type: text/plain").unwrap_or_else(|| panic!("no text: {mail}"));
    let (head, body) = mail[start..].split_once("\n\n").unwrap();
    let end = mail.split("boundary=\"").nth(1).and_then(|rest| rest.split('"').next());
    let body = end.and_then(|end| body.split_once(&format!("\n--{end}"))).map_or(body, |(body, _)| body);
    if head.contains("base64") {
        use base64::Engine;
        let joined: String = body.split_whitespace().collect();
        return String::from_utf8(base64::engine::general_purpose::STANDARD.decode(joined).unwrap()).unwrap();
    }
    if !head.contains("quoted-printable") {
        return body.to_owned();
    }
    let joined = body.replace("=\n", "");
    let (mut bytes, mut rest) = (Vec::new(), joined.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'=' {
            bytes.push(u8::from_str_radix(std::str::from_utf8(&after[..2]).unwrap(), 16).unwrap());
            rest = &after[2..];
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}
