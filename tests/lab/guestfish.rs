//! `guestfish` as the tests use it: with the kernel of the guests where the machine has none of its own.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

/// Adds to `command` what libguestfs needs on this machine to build its own.
///
/// # Errors
/// When there is no kernel, or its modules cannot be listed.
pub fn prepare(command: &mut Command) -> Result<()> {
    let (kernel, modules) = super::guest_image::kernel()?;
    let modules = modules.parent().context("modules lie in no directory")?;
    let version = modules.file_name().context("a kernel without a version")?.to_string_lossy().into_owned();
    // Where it outlives the test: building takes longer than starting.
    command.env("LIBGUESTFS_CACHEDIR", "/var/tmp");
    if kernel.starts_with("/boot") {
        return Ok(());
    }
    if !modules.join("modules.dep").is_file() {
        // A package that was only unpacked has none: .../lib/modules/<version>, with or without usr.
        let root = modules.ancestors().nth(3).context("modules lie in no root")?;
        let base = if root.ends_with("usr") { root.parent().unwrap_or(root) } else { root };
        let depmod = super::programs::find("depmod").context("depmod is missing")?;
        let output = Command::new(depmod).arg("-b").arg(base).arg(&version).output()?;
        ensure!(output.status.success(), "depmod: {}", String::from_utf8_lossy(&output.stderr));
    }
    command.env("SUPERMIN_KERNEL", kernel).env("SUPERMIN_MODULES", modules).env("SUPERMIN_KERNEL_VERSION", version);
    Ok(())
}

/// Processes that have `word` among their arguments or in their environment.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn processes_with(word: &Path) -> Result<Vec<String>> {
    let word = word.to_string_lossy();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let read = |name: &str| {
            let bytes = std::fs::read(entry.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        let (line, environment) = (read("cmdline"), read("environ"));
        // What has ended and was not waited for has neither.
        if line.contains(&*word) || environment.contains(&*word) {
            found.push(line);
        }
    }
    Ok(found)
}
