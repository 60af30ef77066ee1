//! The stand-ins for what a Proxmox node has and other machines don't: `qm`, `pct`, `pvesm` and the bridge. They do power,
//! locking and volumes, on real processes and files below `VZKEEP_ROOT`, and nothing else.

mod bridge;
mod command_line;
mod config;
mod live;
mod lvm;
mod lxc;
mod pct;
mod power;
mod pvesm;
mod qm;
mod storage;

pub use config::GuestConfig;
pub use lvm::lvm;
pub use storage::{Storages, create_volume};

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The names under which the lab's program is a stand-in.
pub const NAMES: &[&str] = &["qm", "pct", "lxc-info", "lxc-stop", "pvesm", "vzkeep-pve-bridge"];

/// The machine below the root prefix.
#[derive(Debug, Clone)]
pub struct Machine {
    root: PathBuf,
}

impl Machine {
    /// The machine below `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn from_env() -> Result<Self> {
        let root =
            std::env::var_os("VZKEEP_ROOT").context("VZKEEP_ROOT is not set: a stand-in works below a root only")?;
        let root = PathBuf::from(root);
        anyhow::ensure!(
            root.is_absolute() && root != Path::new("/"),
            "VZKEEP_ROOT is no root prefix: {}",
            root.display()
        );
        Ok(Self { root })
    }

    /// Where the machine's absolute path `path` really lies.
    pub fn path(&self, path: &str) -> PathBuf {
        if Path::new(path).starts_with(&self.root) {
            return path.into();
        }
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file of a guest in the run directory: `100.pid`, `100.qmp`.
    pub fn run_file(&self, vmid: u32, extension: &str) -> PathBuf {
        self.path(&format!("/run/qemu-server/{vmid}.{extension}"))
    }
}

/// Runs the stand-in `name`; returns its exit code.
pub fn run(name: &str, words: &[String]) -> ExitCode {
    if name == "vzkeep-pve-bridge" {
        return bridge::run(words);
    }
    let done = Machine::from_env().and_then(|machine| match name {
        "qm" => qm::run(&machine, words),
        "pct" => pct::run(&machine, words),
        "lxc-info" => pct::info(&machine, words),
        "lxc-stop" => pct::halt(&machine, words),
        _ => pvesm::run(&machine, words),
    });
    match done {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(255)
        }
    }
}

type Options<'a> = Vec<(&'a str, &'a str)>;

/// The words that are no options, and the options: `--timeout 5`, `--format=raw`, `--skiplock`.
fn arguments<'a>(words: &'a [String], valued: &[&str]) -> Result<(Vec<&'a str>, Options<'a>)> {
    let (mut plain, mut options) = (Vec::new(), Vec::new());
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match word.strip_prefix("--").or_else(|| word.strip_prefix('-').filter(|name| !name.is_empty())) {
            Some(option) => match option.split_once('=') {
                Some((name, value)) => options.push((name, value)),
                None if valued.contains(&option) => {
                    options.push((option, rest.next().with_context(|| format!("option {option} needs a value"))?));
                }
                None => options.push((option, "1")),
            },
            None => plain.push(word.as_str()),
        }
    }
    Ok((plain, options))
}

fn vmid(word: Option<&&str>) -> Result<u32> {
    let word = word.context("not enough arguments: the VMID is missing")?;
    word.parse().with_context(|| format!("'{word}' is no VMID"))
}
