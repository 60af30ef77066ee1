//! `help`: the usage text, laid out to the byte like the original's (Perl's Text::Wrap, 76 columns, tabs for blanks).

use super::{Command, Format, Kind, Opt, Positional, PropertyString};

const COLUMNS: usize = 76;
const INDENT: &str = "             ";

/// `vzdump {<vmid>} [OPTIONS]`.
pub fn usage_line(command: &Command) -> String {
    let words = match command.positional {
        Positional::Rest(opt) => format!("{{<{}>}}", opt.name),
        Positional::Words(names) => names.iter().map(|opt| format!("<{}>", opt.name)).collect::<Vec<_>>().join(" "),
    };
    format!("{} {words} [OPTIONS]", shown(command))
}

/// What is typed: `pct-restore` is a word of `pct`.
pub(super) fn shown(command: &Command) -> String {
    command.name.replace('-', " ")
}

/// The text of `<program> help`.
pub fn help(command: &Command) -> String {
    let mut text = format!("USAGE: {} help\nUSAGE: {}\n", shown(command), usage_line(command));
    for opt in command.positionals() {
        text += &entry(&format!("<{}>", opt.name), opt);
    }
    for opt in command.options {
        text += &entry(&format!("--{}", opt.name), opt);
    }
    text + "\n\n"
}

fn entry(name: &str, opt: &Opt) -> String {
    let default = opt.default.map(|default| format!("   (default={default})")).unwrap_or_default();
    let head = format!("  {name:<10} {}{default}\n", type_text(opt));
    let mut text = wrap("", INDENT, &head) + &wrap(INDENT, INDENT, &opt.full_description()) + "\n\n";
    if let Some(other) = opt.requires {
        text += &(wrap(INDENT, INDENT, &format!("Requires option(s): {other}")) + "\n\n");
    }
    text
}

/// What kind of value an option takes: `<integer> (0 - N)`, `<snapshot | stop | suspend>`.
pub(super) fn type_text(opt: &Opt) -> String {
    if let Some(text) = opt.typetext {
        return text.to_owned();
    }
    match opt.kind {
        Kind::Bool => "<boolean>".to_owned(),
        Kind::Integer { min: None, max: None } => "<integer>".to_owned(),
        Kind::Integer { min, max } => {
            let bound = |bound: Option<i64>| bound.map_or_else(|| "N".to_owned(), |bound| bound.to_string());
            format!("<integer> ({} - {})", bound(min), bound(max))
        }
        Kind::Number => "<number> (0 - N)".to_owned(),
        Kind::Text(Format::StorageId) => "<storage ID>".to_owned(),
        Kind::Text(_) | Kind::List(_) => "<string>".to_owned(),
        Kind::Array => "<array>".to_owned(),
        Kind::Enum(words) => {
            let mut words = words.to_vec();
            words.sort_unstable();
            format!("<{}>", words.join(" | "))
        }
        Kind::Property(shape) => property_text(shape),
    }
}

fn property_text(shape: &PropertyString) -> String {
    let value = |key: &Opt| match key.kind {
        Kind::Bool => "<1|0>".to_owned(),
        Kind::Integer { .. } if key.typetext.is_none() => "<integer>".to_owned(),
        _ => type_text(key),
    };
    let default = shape.default_key.and_then(|name| shape.key(name));
    let first = default.map(|key| format!("[{}=]{}", key.name, value(key)));
    let named = shape.keys.iter().filter(|key| Some(key.name) != shape.default_key);
    let parts: Vec<_> = first.into_iter().chain(named.map(|key| format!("{}={}", key.name, value(key)))).collect();
    let parts: Vec<_> = parts
        .iter()
        .enumerate()
        .map(|(i, part)| if i == 0 { format!("[{part}]") } else { format!("[,{part}]") })
        .collect();
    parts.join(" ")
}

/// Fills lines of at most 75 columns. One white space is taken at each break, so that several of them leave blanks.
fn wrap(first: &str, rest: &str, text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let (mut out, mut lead, mut newline, mut tail) = (String::new(), first, "", String::new());
    let mut at = 0;
    while chars[at..].iter().any(|c| !c.is_whitespace()) {
        let room = COLUMNS - 1 - lead.len();
        let line = chars[at..].iter().take(room).take_while(|c| **c != '\n').count();
        let breaks = |n: &usize| chars.get(at + n).is_none_or(|c| c.is_whitespace());
        let taken = (0..=line).rev().find(breaks);
        let end = at + taken.unwrap_or(line.max(1));
        let words: String = chars[at..end].iter().collect();
        out += &unexpand(&format!("{newline}{lead}{words}"));
        let gap = usize::from(taken.is_some() && end < chars.len());
        tail = chars[end..end + gap].iter().collect();
        at = end + gap;
        (lead, newline) = (rest, "\n");
    }
    out + &tail
}

/// Blanks before a tab stop become a tab, where that saves something.
fn unexpand(text: &str) -> String {
    let lines: Vec<String> = text
        .split('\n')
        .map(|line| {
            let chars: Vec<char> = line.chars().collect();
            let pieces = chars.chunks(8).map(|piece| {
                let piece: String = piece.iter().collect();
                if piece.chars().count() == 8 && piece.ends_with("  ") {
                    format!("{}\t", piece.trim_end_matches(' '))
                } else {
                    piece
                }
            });
            pieces.collect()
        })
        .collect();
    lines.join("\n")
}
