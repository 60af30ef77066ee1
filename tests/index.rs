//! `vzkeep index`: archives of other programs, read once, and what is kept beside them.

#![expect(clippy::unwrap_used, reason = "tests")]

mod lab;

use std::path::Path;
use std::process::{Command, Output};

/// Runs a command line with the archive as its last word.
fn run(words: &[&str], dir: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vzkeep"));
    command.args(words).current_dir(dir).env("VZKEEP_ROOT", "/").output().unwrap()
}

fn said(output: &Output) -> (Option<i32>, String) {
    let both = [output.stdout.as_slice(), &output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&both).into_owned())
}

#[test]
fn a_foreign_archive_gets_an_index() {
    if !lab::require("a_foreign_archive_gets_an_index", &["tar", "zstd", "pigz", "lzop", "xz"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let tree = dir.join("tree");
    std::fs::create_dir(&tree).unwrap();
    let mut dice = lab::Dice::seeded(7);
    for n in 0..6 {
        std::fs::write(tree.join(format!("file-{n}")), dice.bytes(900_000)).unwrap();
    }
    std::fs::write(tree.join("last"), "the last file").unwrap();
    for (suffix, program) in [("zst", "zstd"), ("gz", "pigz"), ("lzo", "lzop"), ("xz", "xz -0")] {
        let name = format!("vzdump-lxc-100-2026_11_22-10_00_00.tar.{suffix}");
        let archive = dir.join(&name);
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(&archive).arg("-I").arg(program).arg("-C").arg(&tree).arg("--sort=name").arg(".");
        assert!(tar.status().unwrap().success());
        let before = said(&run(&["cat", &name, "last"], dir));
        assert_eq!(before, (Some(0), "the last file".into()), "{suffix}");
        let (code, text) = said(&run(&["index", &name], dir));
        let index = dir.join(format!("{name}.idx"));
        if suffix == "xz" {
            assert!(code == Some(255) && text.contains("no index can be made of it"), "{text}");
            assert!(!index.exists());
            continue;
        }
        assert!(code == Some(0) && text.contains(" access points to "), "{text}");
        // One that is of another time is not trusted.
        let time = archive.metadata().unwrap().modified().unwrap();
        let after = said(&run(&["cat", &name, "last"], dir));
        assert_eq!(after, (Some(0), "the last file".into()), "{suffix}");
        let file = std::fs::File::options().write(true).open(&archive).unwrap();
        file.set_modified(time + std::time::Duration::from_secs(1)).unwrap();
        let (code, text) = said(&run(&["cat", &name, "last"], dir));
        assert!(code == Some(0) && text.contains("the last file"), "{text}");
        assert!(text.contains("belongs to another archive, or the archive was changed since"), "{text}");
        // Made anew.
        let (code, text) = said(&run(&["index", &name], dir));
        assert!(code == Some(0) && text.contains(" access points to "), "{text}");
        assert_eq!(said(&run(&["cat", &name, "last"], dir)), (Some(0), "the last file".into()));
    }
    let (code, text) = said(&run(&["index", "missing.tar.zst"], dir));
    assert!(code == Some(255) && text.contains("missing.tar.zst"), "{text}");
}
