//! bash: one function that looks at the line itself, because bash cuts words at `=` and `:` as it pleases.

use super::super::{Command, Opt};
use super::{Values, positionals, values};

const HEAD: &str = r#"# bash completion for @NAME@, made by: vzkeep completion @NAME@ --shell bash

_vzkeep_@ID@() {
    # The word before the cursor as it was typed, and the one before it.
    local line=${COMP_LINE:0:COMP_POINT} word option value lead= item
    local -a words items=() free=()
    word=${line##*[[:space:]]}
    read -ra words <<<"$line"
    [[ -n $word ]] || words+=("")
    option=${words[${#words[@]}-2]}
    value=$word
    COMPREPLY=()
    case $word in
        -*=*) option=${word%%=*} value=${word#*=} lead=$option= ;;
        -*) items=(@OPTIONS@); option= ;;
    esac
    if [[ ${#items[@]} -eq 0 ]]; then
        case -${option#-} in
"#;

const TAIL: &str = r#"        esac
    fi
    for item in "${items[@]}"; do
        item=${item%%$'\t'*}
        [[ $item == "$value"* ]] && COMPREPLY+=("$lead$item")
    done
    # Readline replaces only what follows the last of these.
    local typed=${word%"${word##*[:=]}"}
    COMPREPLY=("${COMPREPLY[@]#"$typed"}")
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then compopt -o nospace 2>/dev/null; fi
    if [[ ${#free[@]} -gt 0 ]]; then
        compopt -o filenames 2>/dev/null
        COMPREPLY+=("${free[@]}")
    fi
    return 0
}
complete -F _vzkeep_@ID@ @NAME@
"#;

pub(super) fn script(command: &Command) -> String {
    let options: Vec<_> = command.completable().map(|opt| format!("--{}", opt.name)).collect();
    let fill = |text: &str| {
        text.replace("@NAME@", command.name)
            .replace("@ID@", &command.name.replace('-', "_"))
            .replace("@OPTIONS@", &options.join(" "))
    };
    let mut script = fill(HEAD);
    for opt in command.completable() {
        script += &format!("            --{})\n{}                ;;\n", opt.name, action(opt, 16));
    }
    script += "            *)\n";
    let words = positionals(command);
    for opt in &words {
        script += &action(opt, 16);
    }
    script += "                ;;\n";
    script + &fill(TAIL)
}

/// Sets `items` and `free` for a value of `opt`.
fn action(opt: &Opt, indent: usize) -> String {
    let lines: Vec<String> = match values(opt) {
        Values::Words(words) => vec![format!("items+=({})", words.join(" "))],
        Values::Ask(source) => vec![ask(source.as_str())],
        Values::AskList(source) => {
            vec!["lead+=${value%\"${value##*,}\"} value=${value##*,}".to_owned(), ask(source.as_str())]
        }
        Values::Keys(keys) => {
            let mut lines =
                vec!["lead+=${value%\"${value##*,}\"} value=${value##*,}".to_owned(), "case $value in".to_owned()];
            for key in keys {
                lines.push(format!("    {}=*)", key.name));
                lines.push("        lead+=${value%%=*}= value=${value#*=}".to_owned());
                lines.extend(action(key, 8).lines().map(str::to_owned));
                lines.push("        ;;".to_owned());
            }
            let names: Vec<_> = keys.iter().map(|key| format!("{}=", key.name)).collect();
            lines.push(format!("    *) items+=({}) ;;", names.join(" ")));
            lines.push("esac".to_owned());
            lines
        }
        Values::Directory => vec![files("-d")],
        Values::File => vec![files("-f")],
        Values::Archive(source) => vec![ask(source.as_str()), files("-f")],
        Values::Free => vec![":".to_owned()],
    };
    lines.iter().map(|line| format!("{:indent$}{line}\n", "")).collect()
}

fn ask(source: &str) -> String {
    format!("mapfile -t -O ${{#items[@]}} items < <(vzkeep complete {source} 2>/dev/null)")
}

fn files(which: &str) -> String {
    format!("mapfile -t free < <(compgen {which} -- \"$value\")")
}
