//! Splits a command line into options and words, by the rules of Perl's Getopt::Long as the original programs set it up:
//! `--name value`, `--name=value`, `-name value`; any unambiguous beginning of a name; upper or lower case; options and
//! words mixed; `--` ends the options. A boolean takes a value only if the next word is not an option.

use super::{Command, Kind, Opt};

/// What stood on the command line, unchecked.
#[derive(Debug, Default)]
pub(super) struct Split {
    /// Options in the order given.
    pub options: Vec<(&'static Opt, String)>,
    /// The other words.
    pub words: Vec<String>,
    /// Complaints, one line each; with any of them the rest counts for nothing.
    pub complaints: Vec<String>,
}

pub(super) fn split(command: &'static Command, args: &[String]) -> Split {
    let mut found = Split::default();
    let mut args = args.iter().peekable();
    while let Some(arg) = args.next() {
        if arg == "--" {
            found.words.extend(args.cloned());
            break;
        }
        let Some(text) = option_text(arg) else {
            found.words.push(arg.clone());
            continue;
        };
        // An equals sign that comes first is part of the name.
        let (name, attached) = match text.char_indices().find(|(at, c)| *at > 0 && *c == '=') {
            Some((at, _)) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        let name = name.to_ascii_lowercase();
        let opt = match lookup(command, &name) {
            Ok(opt) => opt,
            Err(complaint) => {
                found.complaints.push(complaint);
                continue;
            }
        };
        let value = if matches!(opt.kind, Kind::Bool) {
            match attached {
                Some(value) => value.to_owned(),
                None => args.next_if(|next| !looks_like_option(next)).cloned().unwrap_or_default(),
            }
        } else {
            match attached {
                Some("") => None,
                Some(value) => Some(value.to_owned()),
                None => args.next().cloned(),
            }
            .unwrap_or_else(|| {
                found.complaints.push(format!("Option {} requires an argument", opt.name));
                String::new()
            })
        };
        found.options.push((opt, value));
    }
    found
}

/// What follows the dashes. A lone dash is a word: standard input.
fn option_text(arg: &str) -> Option<&str> {
    arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).filter(|rest| !rest.is_empty())
}

/// Whether a word after a boolean is no value of it. A dash before a line feed is one, by an oddity of the pattern there.
fn looks_like_option(arg: &str) -> bool {
    arg.strip_prefix('-').is_some_and(|rest| !rest.is_empty() && !rest.starts_with('\n'))
}

fn lookup(command: &'static Command, name: &str) -> Result<&'static Opt, String> {
    let hits: Vec<_> = command.options.iter().filter(|opt| opt.name.starts_with(name)).collect();
    match hits.as_slice() {
        [] => Err(format!("Unknown option: {name}")),
        [opt] => Ok(opt),
        several => several.iter().find(|opt| opt.name == name).copied().ok_or_else(|| {
            let names: Vec<_> = several.iter().map(|opt| opt.name).collect();
            format!("Option {name} is ambiguous ({})", names.join(", "))
        }),
    }
}

#[cfg(test)]
mod tests;
