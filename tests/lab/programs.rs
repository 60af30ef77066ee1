//! The programs the lab needs: where they are, and what happens when one is missing.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Whether every one of `programs` is found through `PATH`. A missing one fails the test in CI and skips it, by name,
/// elsewhere: `if !lab::require("round_trip", &["zstd"]) { return Ok(()) }`.
///
/// # Panics
/// In CI (environment variable `CI` set), when a program is missing.
pub fn require(test: &str, programs: &[&str]) -> bool {
    let Some(missing) = programs.iter().find(|program| find(program).is_none()) else { return true };
    assert!(std::env::var_os("CI").is_none(), "{test}: {missing} is missing; `make setup` installs it");
    println!("SKIPPED {test}: {missing} missing");
    false
}

/// What a guest needs on this machine.
pub fn require_guest(test: &str) -> bool {
    if !require(test, &["qemu-system-x86_64", "qemu-img", "busybox", "rustc"]) {
        return false;
    }
    let Err(error) = super::guest_image::kernel() else { return true };
    assert!(std::env::var_os("CI").is_none(), "{test}: {error}");
    println!("SKIPPED {test}: kernel missing");
    false
}

/// The program's path, looked up in `PATH` and the administrator's directories.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// The directory of this build: `target/debug` or `target/release`.
pub fn build_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let dir = exe.parent().context("the program lies in no directory")?;
    let nested = matches!(dir.file_name().and_then(|n| n.to_str()), Some("deps" | "examples"));
    Ok(if nested { dir.parent().unwrap_or(dir) } else { dir }.to_owned())
}

/// The project's directory.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The built `vzkeep`.
pub fn vzkeep() -> Result<PathBuf> {
    if let Some(path) = option_env!("CARGO_BIN_EXE_vzkeep") {
        return Ok(path.into());
    }
    let path = build_dir()?.join("vzkeep");
    if !path.is_file() {
        bail!("{} is missing: run `cargo build` first", path.display());
    }
    Ok(path)
}

/// The lab's own program. `cargo test` builds it; `cargo test --test x` does not, so it is built here when it is missing or
/// older than its sources.
pub fn lab() -> Result<PathBuf> {
    static LAB: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    LAB.get_or_init(|| build_lab().map_err(|error| format!("{error:#}"))).clone().map_err(anyhow::Error::msg)
}

fn build_lab() -> Result<PathBuf> {
    let dir = build_dir()?;
    let path = dir.join("examples/lab");
    if std::env::current_exe()?.starts_with(dir.join("examples")) {
        return Ok(path);
    }
    let built = path.metadata().and_then(|meta| meta.modified()).ok();
    let newest = newest_source(&project().join("tests/lab"))?;
    if built.is_none_or(|built| built < newest) {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.current_dir(project()).args(["build", "--quiet", "--example", "lab"]);
        if dir.file_name().is_some_and(|name| name == "release") {
            command.arg("--release");
        }
        let status = command.status().context("cargo cannot be started")?;
        if !status.success() {
            bail!("building the lab's program failed: {status}");
        }
    }
    Ok(path)
}

fn newest_source(dir: &Path) -> Result<std::time::SystemTime> {
    let mut newest = std::time::UNIX_EPOCH;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let time =
            if entry.file_type()?.is_dir() { newest_source(&entry.path())? } else { entry.metadata()?.modified()? };
        newest = newest.max(time);
    }
    Ok(newest)
}
