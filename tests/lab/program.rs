//! The lab as a program. Called `qm`, `pct`, `lxc-info`, `pvesm` or `vzkeep-pve-bridge` it is the stand-in of that name;
//! else the first word says what it does: `demo`, `check <disk>...` (the checker on raw disks), `keep <root>` (the leash of
//! a node, reads standard input to its end, then removes everything), `nasty <dir> <files>` (a tree of everything).

#[path = "mod.rs"]
mod lab;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let called =
        words.first().map(|word| Path::new(word).file_name().unwrap_or_default().to_string_lossy().into_owned());
    let mut verb = called.unwrap_or_default();
    if lab::stand_in::NAMES.contains(&verb.as_str()) {
        words.remove(0);
        return lab::stand_in::run(&verb, &words);
    }
    words.remove(0);
    verb = if words.is_empty() { String::new() } else { words.remove(0) };
    let done = match verb.as_str() {
        "demo" => lab::demo::run(),
        "keep" => lab::leash::keep(Path::new(words.first().map_or("", String::as_str))),
        "nasty" => make_nasty(&words),
        "check" => {
            let disks: Vec<PathBuf> = words.iter().map(PathBuf::from).collect();
            lab::checker::check(&disks).map(|verdict| println!("{verdict}")).map_err(anyhow::Error::from)
        }
        other => {
            Err(anyhow::anyhow!("unknown word '{other}': demo, check <disk>..., keep <root> or nasty <dir> <files>"))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn make_nasty(words: &[String]) -> anyhow::Result<()> {
    let [dir, files] = words else { anyhow::bail!("nasty <dir> <files>") };
    lab::nasty::make(Path::new(dir), files.parse()?, lab::nasty::Devices::No)
}
