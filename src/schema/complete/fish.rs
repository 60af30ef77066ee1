//! fish: one `complete` command for each option.

use super::super::{Command, Kind, Opt};
use super::{Source, Values, positionals, summary, values};

pub(super) fn script(command: &Command) -> String {
    let name = command.name;
    let mut script = format!("# fish completion for {name}, made by: vzkeep completion {name} --shell fish\n");
    for opt in positionals(command) {
        let files = if matches!(values(opt), Values::Archive(_)) { "" } else { " -f" };
        // Several guests are words of their own here, not one list.
        let candidates = match values(opt) {
            Values::AskList(source) => Some(ask(source)),
            _ => candidates(opt),
        };
        if let Some(candidates) = candidates {
            script += &format!("complete -c {name}{files} -a {}\n", quote(&candidates));
        }
    }
    for opt in command.completable() {
        let mut line = format!("complete -c {name} -l {} -d {}", opt.name, quote(&summary(opt)));
        // The value of a boolean may be left out, so none is offered.
        if !matches!(opt.kind, Kind::Bool) {
            line += match values(opt) {
                Values::File | Values::Archive(_) => " -r -F",
                _ => " -x",
            };
            if let Some(candidates) = candidates(opt) {
                line += &format!(" -a {}", quote(&candidates));
            }
        }
        script += &(line + "\n");
    }
    script
}

fn candidates(opt: &Opt) -> Option<String> {
    match values(opt) {
        Values::Words(words) => Some(words.join(" ")),
        Values::Ask(source) => Some(ask(source)),
        Values::AskList(source) => Some(format!("(__fish_append , {})", ask(source))),
        Values::Keys(keys) => {
            let keys: Vec<_> = keys.iter().map(|key| format!("{}=", key.name)).collect();
            Some(format!("(__fish_append , {})", keys.join(" ")))
        }
        Values::Directory => Some("(__fish_complete_directories)".to_owned()),
        Values::Archive(source) => Some(ask(source)),
        Values::File | Values::Free => None,
    }
}

fn ask(source: Source) -> String {
    format!("(vzkeep complete {} 2>/dev/null)", source.as_str())
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
