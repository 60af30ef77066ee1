//! Completion in the real shells: what bash, zsh and fish make of our scripts on a machine with guests and storages.

#![expect(clippy::unwrap_used, reason = "tests")]

mod lab;

use std::path::{Path, PathBuf};
use std::process::Command;

/// What is typed, and all candidates for its last word. zsh is asked only where there is one.
const LINES: &[(&str, &[&str])] = &[
    ("vzdump --mod", &["--mode"]),
    ("vzdump --mode s", &["snapshot", "stop", "suspend"]),
    ("vzdump --mode su", &["suspend"]),
    ("vzdump --mode=sto", &["--mode=stop"]),
    ("vzdump ", &["100", "205", "310"]),
    ("vzdump 100 2", &["205"]),
    ("vzdump --storage b", &["bk"]),
    ("vzdump --storage ", &["bk", "local", "other"]),
    ("vzdump --exclude 100,2", &["100,205"]),
    ("vzdump --pool p", &["prod"]),
    ("vzdump --node p", &["pve1"]),
    ("vzdump --prune-backups keep-last=1,keep-d", &["keep-last=1,keep-daily="]),
    ("vzdump --bwlimit x", &[]),
    ("qmrestore bk:b", &["bk:backup/vzdump-qemu-100-2026_11_22-09_14_25.vma.zst"]),
    ("qmrestore --storage o", &["other"]),
    ("qmrestore --uni", &["--unique"]),
    ("pct-restore 3", &["310"]),
    ("pct-restore 310 bk:b", &["bk:backup/vzdump-lxc-310-2026_11_22-09_14_26.tar"]),
    ("pct-restore --ignore", &["--ignore-unpack-errors"]),
];

/// A directory with a node's files below `root` and the scripts beside it.
fn node() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("etc/hostname", "pve1\n");
    write("etc/pve/nodes/pve1/qemu-server/100.conf", "name: web\n");
    write("etc/pve/nodes/pve1/qemu-server/205.conf", "name: db\n[snap]\nname: other\n");
    write("etc/pve/nodes/pve1/lxc/310.conf", "hostname: ct\n");
    write("etc/pve/nodes/pve1/lxc/x.conf.tmp", "");
    write("etc/pve/storage.cfg", "dir: bk\n\tpath /srv/bk\n\tcontent backup\n\ndir: other\n\tpath /srv/o\n");
    write("etc/pve/user.cfg", "user:root@pam:1:\npool:prod:the comment:100:bk:\n");
    for name in
        ["qemu-100-2026_11_22-09_14_25.vma.zst", "qemu-100-2026_11_22-09_14_25.log", "lxc-310-2026_11_22-09_14_26.tar"]
    {
        write(&format!("srv/bk/dump/vzdump-{name}"), "");
    }
    for program in ["vzdump", "qmrestore", "pct-restore"] {
        for shell in ["bash", "zsh", "fish"] {
            let script = vzkeep(&root, &["completion", program, "--shell", shell]);
            let name = if shell == "zsh" { format!("_{program}") } else { format!("{program}.{shell}") };
            std::fs::write(dir.path().join(name), script).unwrap();
        }
    }
    (dir, root)
}

fn command(program: impl AsRef<std::ffi::OsStr>, root: &Path) -> Command {
    let ours = Path::new(env!("CARGO_BIN_EXE_vzkeep")).parent().unwrap();
    let path = std::env::join_paths(
        [ours.to_owned()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    );
    let mut command = Command::new(program);
    command.env("VZKEEP_ROOT", root).env("HOME", root).env("PATH", path.unwrap()).current_dir(root);
    command
}

fn output(mut command: Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn vzkeep(root: &Path, words: &[&str]) -> String {
    let mut vzkeep = command(env!("CARGO_BIN_EXE_vzkeep"), root);
    vzkeep.args(words);
    output(vzkeep)
}

#[test]
fn the_program_lists_what_the_node_has() {
    let (_dir, root) = node();
    let list = |what: &str| vzkeep(&root, &["complete", what]);
    assert_eq!(list("guests"), "100\tweb\n205\tdb\n310\tct\n");
    assert_eq!(list("storages"), "bk\tdir\nlocal\tdir\nother\tdir\n");
    assert_eq!(list("archives"), "bk:backup/vzdump-qemu-100-2026_11_22-09_14_25.vma.zst\n");
    assert_eq!(list("container-archives"), "bk:backup/vzdump-lxc-310-2026_11_22-09_14_26.tar\n");
    assert_eq!((list("pools").as_str(), list("nodes").as_str()), ("prod\n", "pve1\n"));
    let nowhere = tempfile::tempdir().unwrap();
    for what in ["guests", "pools", "nodes", "archives"] {
        assert_eq!(vzkeep(nowhere.path(), &["complete", what]), "", "{what}");
    }
    assert!(!vzkeep(&root, &["help"]).contains("complete "), "it is for scripts only");
}

/// bash shows only what follows the last `=` or `:`, because that is what readline replaces.
#[test]
fn bash_completes() {
    if !lab::require("bash_completes", &["bash"]) {
        return;
    }
    let (dir, root) = node();
    for (line, wanted) in LINES {
        let program = line.split(' ').next().unwrap();
        let id = program.replace('-', "_");
        let script = format!(
            "source {}/{program}.bash; [[ $(complete -p {program}) == *_vzkeep_{id}* ]] || exit 1\n\
             COMP_LINE=$1 COMP_POINT=${{#1}}; _vzkeep_{id}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            dir.path().display()
        );
        let mut bash = command("bash", &root);
        bash.args(["--norc", "-c", &script, "bash", line]);
        let found = output(bash);
        let typed = line.rsplit(' ').next().unwrap();
        let kept = typed.rfind([':', '=']).map_or(0, |at| at + 1);
        let mut found: Vec<_> = found.lines().filter(|line| !line.is_empty()).collect();
        found.sort_unstable();
        let wanted: Vec<_> = wanted.iter().map(|word| &word[kept..]).collect();
        assert_eq!(found, wanted, "{line}");
    }
}

#[test]
fn fish_completes() {
    if !lab::require("fish_completes", &["fish"]) {
        return;
    }
    let (dir, root) = node();
    for (line, wanted) in LINES {
        let program = line.split(' ').next().unwrap();
        let script = format!("source {}/{program}.fish; complete -C '{line}'", dir.path().display());
        let mut fish = command("fish", &root);
        fish.args(["-N", "-c", &script]);
        let found = output(fish);
        let mut found: Vec<_> = found.lines().filter_map(|line| line.split('\t').next()).collect();
        found.sort_unstable();
        assert_eq!(found, *wanted, "{line}");
    }
}

/// An interactive zsh on a terminal of its own: the line is typed, completed with the tab key and run.
const ZSH: &str = r#"
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1= PS2=; fpath=($1 \$fpath); autoload -Uz compinit; compinit -u -D; bindkey '^I' complete-word
    vzdump() { print -r -- \"RAN<vzdump \$*>\" }; qmrestore() { print -r -- \"RAN<qmrestore \$*>\" }
    pct-restore() { print -r -- \"RAN<pct-restore \$*>\" }; print REA''DY"
zpty -r -m shell seen '*READY*'
shift
for line; do
    zpty -w -n shell "$line"$'\t\n'
    zpty -r -m shell seen '*RAN<*>*'
    print -r -- ${${seen##*RAN<}%%>*}
done
zpty -d shell
"#;

#[test]
fn zsh_completes() {
    if !lab::require("zsh_completes", &["zsh", "timeout"]) {
        return;
    }
    let (dir, root) = node();
    let lines: Vec<_> = LINES.iter().filter(|(_, wanted)| wanted.len() == 1).collect();
    // What never answers is not waited for for ever.
    let mut zsh = command("timeout", &root);
    zsh.args(["120", "zsh", "-f", "-c", ZSH, "zsh"]).arg(dir.path()).args(lines.iter().map(|(line, _)| line));
    let found = output(zsh);
    let wanted: Vec<_> =
        lines.iter().map(|(line, wanted)| format!("{} {}", line.rsplit_once(' ').unwrap().0, wanted[0])).collect();
    // zsh puts a blank behind a whole word, which the shell then drops.
    assert_eq!(found.lines().map(str::trim_end).collect::<Vec<_>>(), wanted);
}

/// The completions and the page of `vzkeep` itself are clap's; the shells read them without a complaint.
#[test]
fn every_script_and_page_is_read_without_a_complaint() {
    let (dir, root) = node();
    for program in ["vzkeep", "vzdump", "qmrestore", "pct-restore", "vma"] {
        for shell in ["bash", "zsh", "fish"] {
            if lab::require("every_script_and_page_is_read_without_a_complaint", &[shell]) {
                let file = dir.path().join("script");
                std::fs::write(&file, vzkeep(&root, &["completion", program, "--shell", shell])).unwrap();
                let mut check = command(shell, &root);
                check.arg("-n").arg(&file);
                assert_eq!(output(check), "", "{program} {shell}");
            }
        }
        let page = dir.path().join("page.1");
        std::fs::write(&page, vzkeep(&root, &["man", program])).unwrap();
        if lab::require("every_script_and_page_is_read_without_a_complaint", &["mandoc"]) {
            let mut lint = command("mandoc", &root);
            lint.args(["-T", "lint", "-W", "error"]).arg(&page);
            assert_eq!(output(lint), "", "{program}");
            let mut show = command("mandoc", &root);
            show.args(["-T", "utf8", "-O", "width=200"]).arg(&page);
            // Bold letters are printed twice, with a backspace between.
            let mut text = String::new();
            for c in output(show).chars() {
                match c {
                    '\u{8}' => text.truncate(text.len() - text.chars().last().map_or(0, char::len_utf8)),
                    c => text.push(c),
                }
            }
            for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "ENVIRONMENT", "FILES", "SEE ALSO"] {
                assert!(text.contains(section), "{program}: {section}");
            }
        }
    }
}
