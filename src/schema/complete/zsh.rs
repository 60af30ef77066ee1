//! zsh: a file for `fpath`, with specifications for `_arguments`.

use super::super::{Command, Kind, Opt, Positional};
use super::{Values, summary, values};

const HEAD: &str = r#"#compdef @NAME@
# zsh completion for @NAME@, made by: vzkeep completion @NAME@ --shell zsh

# Offers what the node has; with a comma as second word, several of them.
_vzkeep_@ID@_ask() {
    local -a found
    found=(${(f)"$(vzkeep complete $1 2>/dev/null)"})
    if [[ $2 == , ]]; then
        compset -P '*,'
        compadd -S '' -- ${found%%$'\t'*}
    else
        compadd -- ${found%%$'\t'*}
    fi
}

_vzkeep_@ID@_archives() {
    _alternative "volumes:volume: _vzkeep_@ID@_ask $1" 'files:file:_files'
}

"#;

const TAIL: &str = r#"_vzkeep_@ID@() {
    _arguments -S \
@ARGUMENTS@
}

_vzkeep_@ID@ "$@"
"#;

pub(super) fn script(command: &Command) -> String {
    let id = command.name.replace('-', "_");
    let fill = |text: &str| text.replace("@NAME@", command.name).replace("@ID@", &id);
    let mut specs = Vec::new();
    for opt in command.completable() {
        let repeat = if matches!(opt.kind, Kind::Array | Kind::List(_)) { "*" } else { "" };
        // A boolean stands alone or takes a value.
        let value = if matches!(opt.kind, Kind::Bool) { "::" } else { ":" };
        let head = format!("{repeat}--{}=[{}]", opt.name, escape(&summary(opt)));
        specs.push(format!("{head}{value}{}:{}", opt.name, action(opt, &id)));
    }
    match command.positional {
        Positional::Rest(opt) => specs.push(format!("*:{}: _vzkeep_{id}_ask guests", opt.name)),
        Positional::Words(opts) => {
            specs.extend(opts.iter().map(|opt| format!(":{}:{}", opt.name, action(opt, &id))));
        }
    }
    let functions: String = command.completable().filter_map(|opt| pairs(opt, &id)).collect();
    fill(HEAD) + &functions + &fill(TAIL).replace("@ARGUMENTS@", &arguments(&specs))
}

/// The function that offers the keys of a property string.
fn pairs(opt: &Opt, id: &str) -> Option<String> {
    let Values::Keys(keys) = values(opt) else { return None };
    let keys =
        keys.iter().map(|key| format!("{}[{}]:{}:{}", key.name, escape(&summary(key)), key.name, action(key, id)));
    Some(format!(
        "{} {{\n    _values -s , '{}' \\\n{}\n}}\n\n",
        function(opt, id),
        opt.name,
        arguments(&keys.collect::<Vec<_>>())
    ))
}

fn function(opt: &Opt, id: &str) -> String {
    format!("_vzkeep_{id}_{}()", opt.name.replace('-', "_"))
}

fn arguments(specs: &[String]) -> String {
    let quoted: Vec<_> = specs.iter().map(|spec| format!("        '{}'", spec.replace('\'', "'\\''"))).collect();
    quoted.join(" \\\n")
}

/// A blank in front keeps the caller from putting words of its own before ours.
fn action(opt: &Opt, id: &str) -> String {
    match values(opt) {
        Values::Words(words) => format!("({})", words.join(" ")),
        Values::Ask(source) => format!(" _vzkeep_{id}_ask {}", source.as_str()),
        Values::AskList(source) => format!(" _vzkeep_{id}_ask {} ,", source.as_str()),
        Values::Keys(_) => function(opt, id).trim_end_matches("()").to_owned(),
        Values::Directory => "_files -/".to_owned(),
        Values::File => "_files".to_owned(),
        Values::Archive(source) => format!(" _vzkeep_{id}_archives {}", source.as_str()),
        Values::Free => " ".to_owned(),
    }
}

/// Text between the brackets of a specification.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('[', "\\[").replace(']', "\\]").replace(':', "\\:").replace('"', "")
}
