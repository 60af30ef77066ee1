//! Completion for bash: option names, and the words of enumerations.

use super::{Command, Kind};

/// A script to be sourced by bash (`/usr/share/bash-completion/completions/<name>`).
pub fn bash_completion(command: &Command) -> String {
    let name = command.name;
    let options: Vec<_> = command.options.iter().map(|opt| format!("--{}", opt.name)).collect();
    let mut script = format!(
        "_{name}_options() {{\n    local cur prev\n    cur=\"${{COMP_WORDS[COMP_CWORD]}}\"\n    \
         prev=\"${{COMP_WORDS[COMP_CWORD-1]}}\"\n    case \"$prev\" in\n"
    );
    for opt in command.options {
        let action = match opt.kind {
            Kind::Enum(words) => format!("COMPREPLY=($(compgen -W \"{}\" -- \"$cur\"))", words.join(" ")),
            Kind::Bool => continue,
            Kind::Text(_) if opt.name.ends_with("dir") => "COMPREPLY=($(compgen -d -- \"$cur\"))".to_owned(),
            Kind::Text(_) if opt.name == "script" => "COMPREPLY=($(compgen -f -- \"$cur\"))".to_owned(),
            _ => "COMPREPLY=()".to_owned(),
        };
        script += &format!("        --{}|-{}) {action}; return ;;\n", opt.name, opt.name);
    }
    script += &format!(
        "    esac\n    if [[ \"$cur\" == -* ]]; then\n        COMPREPLY=($(compgen -W \"{}\" -- \"$cur\"))\n    else\n        \
         COMPREPLY=($(compgen -f -- \"$cur\"))\n    fi\n}}\ncomplete -o filenames -F _{name}_options {name}\n",
        options.join(" ")
    );
    script
}
