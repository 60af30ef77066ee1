//! The program as it is called: which command line it picks, what it says where, its exit codes.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::process::{Command, Output, Stdio};

fn vzkeep(root: &std::path::Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vzkeep"));
    command.args(words).env("VZKEEP_ROOT", root).stdin(Stdio::null());
    command
}

/// Exit code, standard output, standard error.
fn said(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn help_and_refusals() {
    let root = tempfile::tempdir().unwrap();
    let run = |words: &[&str]| said(vzkeep(root.path(), words).output().unwrap());
    let (code, out, err) = run(&["help"]);
    assert!(code == 0 && out.contains("vzkeep qmrestore <archive> <vmid>") && err.is_empty());
    assert_eq!(run(&["--help"]), (0, out, String::new()));
    assert_eq!(run(&[]).0, 255);
    let (code, out, err) = run(&["vzbump"]);
    assert!(code == 255 && out.is_empty() && err.contains("unrecognized subcommand 'vzbump'"), "{err}");
    for name in ["vzdump", "qmrestore"] {
        // On standard error, as with the original.
        let (code, out, err) = run(&[name, "help"]);
        assert!(code == 0 && out.is_empty() && err.starts_with(&format!("USAGE: {name} help")), "{err}");
        assert!(run(&["man", name]).1.starts_with(&format!(".TH {} 1", name.to_uppercase())));
        for shell in ["bash", "zsh", "fish"] {
            let (code, script, err) = run(&["completion", name, "--shell", shell]);
            assert!(
                code == 0 && script.contains(&format!("{shell} completion for {name},")) && err.is_empty(),
                "{err}"
            );
        }
        assert_eq!(run(&["completion", name, "--shell", "elvish"]).0, 255);
        let (code, out, err) = run(&[name, "--foo"]);
        assert!(code == 255 && out.is_empty() && err.starts_with("Unknown option: foo\n"), "{err}");
    }
    assert_eq!(run(&["man", "x"]).0, 255);
}

#[test]
fn a_reader_that_goes_away_is_no_reason_to_panic() {
    let root = tempfile::tempdir().unwrap();
    for words in [&["help"][..], &["man", "vzdump"], &["vzdump", "help"], &["vzdump", "--foo"], &["vzdump", "100"]] {
        let mut command = vzkeep(root.path(), words);
        // Pipes that nobody reads: whoever writes finds them broken.
        let closed = || std::io::pipe().unwrap().1;
        let code = command.stdout(closed()).stderr(closed()).status().unwrap().code();
        assert!(matches!(code, Some(0 | 255)), "{words:?}: {code:?}");
    }
    let index = std::fs::read_to_string(root.path().join("var/log/pve/tasks/index")).unwrap();
    assert!(index.ends_with(" job errors\n"), "the task's record is complete: {index}");
}

#[test]
fn stop_without_a_job_is_done_at_once() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(said(vzkeep(root.path(), &["vzdump", "--stop"]).output().unwrap()), (0, String::new(), String::new()));
    assert!(!root.path().join("var").exists(), "there was nothing to do");
}

#[test]
fn a_storage_that_is_not_mounted_gets_no_archive() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("etc/pve")).unwrap();
    let storages = "dir: usb\n\tpath /mnt/usb\n\tcontent backup\n\tis_mountpoint 1\n\nnfs: far\n\tserver s\n\texport /x\n\tcontent backup\n";
    std::fs::write(root.path().join("etc/pve/storage.cfg"), storages).unwrap();
    for storage in ["usb", "far"] {
        let output = vzkeep(root.path(), &["vzdump", "100", "--storage", storage]).output().unwrap();
        let (code, _, err) = said(output);
        let wanted = format!("unable to activate storage '{storage}' - directory is expected to be a mount point");
        assert!(code == 255 && err.contains(&wanted), "{err}");
    }
    assert!(!root.path().join("mnt").exists());
}
