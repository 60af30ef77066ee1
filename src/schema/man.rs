//! The man page of a command line, as roff.

use super::usage::{shown, type_text};
use super::{Command, Opt, usage_line};

/// The page for section 1. `version` stands in its footer.
pub fn man_page(command: &Command, version: &str) -> String {
    let name = command.name;
    let mut page = format!(
        ".TH {} 1 \"\" \"vzkeep {}\" \"vzkeep\"\n.SH NAME\n{} \\- {}\n.SH SYNOPSIS\n.B {} help\n.PP\n.B {}\n",
        name.to_uppercase(),
        escape(version),
        escape(name),
        escape(command.summary),
        escape(&shown(command)),
        escape(&usage_line(command)),
    );
    page += command.manual.0;
    page += ".SH ARGUMENTS\n";
    for opt in command.positionals() {
        page += &entry(&format!("<{}>", opt.name), opt);
    }
    page += ".SH OPTIONS\n";
    for opt in command.options {
        page += &entry(&format!("--{}", opt.name), opt);
    }
    page + command.manual.1
}

fn entry(name: &str, opt: &Opt) -> String {
    let default = opt.default.map(|default| format!(" (default={default})")).unwrap_or_default();
    let requires = opt.requires.map(|other| format!("\nRequires option(s): {other}")).unwrap_or_default();
    format!(
        ".TP\n\\fB{}\\fR {}\n{}{}\n",
        escape(name),
        escape(&(type_text(opt) + &default)),
        escape(&opt.full_description()),
        escape(&requires)
    )
}

/// Text that roff prints as it stands: backslashes, dashes, and dots or quotes that begin a line.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let lines: Vec<_> = text
        .lines()
        .map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() })
        .collect();
    let joined = lines.join("\n");
    if text.ends_with('\n') { joined + "\n" } else { joined }
}
