//! What the guests boot: a Debian cloud kernel and an initramfs of busybox, drivers and the witness; in the other variant
//! also the real `qemu-ga` and `mke2fs` with their libraries. Built once and kept in `target/lab/`.

use super::programs;
use anyhow::{Context, Result, bail};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

const WITNESS: &str = include_str!("witness/witness.rs");
const RECORD: &str = include_str!("record.rs");
const INIT: &str = include_str!("witness/init");

/// In the order in which they are loaded. What a kernel has built in or lacks is left out.
const MODULES: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "scsi_common",
    "scsi_mod",
    "crc-t10dif",
    "crct10dif_common",
    "crc64",
    "crc64-rocksoft",
    "t10-pi",
    "sd_mod",
    "virtio_blk",
    "virtio_scsi",
    "button",
    "evdev",
    "virtio_console",
    "crc32c_generic",
    "libcrc32c",
    "crc16",
    "mbcache",
    "jbd2",
    "ext4",
];

/// What to boot.
#[derive(Debug, Clone)]
pub struct Boot {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs with the witness.
    pub witness: PathBuf,
    /// The same with the guest agent; `None` where the agent is not installed.
    pub agent: Option<PathBuf>,
}

/// Builds what is not there yet.
///
/// # Errors
/// When kernel, busybox or a compiler is missing.
pub fn boot() -> Result<Boot> {
    let (kernel, modules) = kernel()?;
    let cache = programs::project().join("target/lab");
    std::fs::create_dir_all(&cache)?;
    let busybox = programs::find("busybox").context("busybox is missing: run `make setup`")?;
    let agent = programs::find("qemu-ga").zip(programs::find("mke2fs"));

    let mut hasher = DefaultHasher::new();
    (WITNESS, RECORD, INIT, MODULES, &kernel, env!("CARGO_PKG_VERSION")).hash(&mut hasher);
    for path in [Some(&busybox), agent.as_ref().map(|(ga, _)| ga)].into_iter().flatten() {
        path.metadata()?.modified()?.hash(&mut hasher);
    }
    let key = format!("{:016x}", hasher.finish());
    let plain = cache.join(format!("witness-{key}.img"));
    let with_agent = cache.join(format!("agent-{key}.img"));
    if !plain.exists() || (agent.is_some() && !with_agent.exists()) {
        let witness = build_static(&programs::project().join("tests/lab/witness/witness.rs"), &cache)?;
        let mut files = vec![
            ("init".to_owned(), INIT.as_bytes().to_vec()),
            ("witness".to_owned(), witness),
            ("bin/busybox".to_owned(), std::fs::read(&busybox)?),
        ];
        files.extend(driver_files(&modules, MODULES)?);
        store(&plain, &cpio(&files)?)?;
        if let Some((ga, mke2fs)) = &agent {
            files.extend(with_libraries(ga, "usr/sbin/qemu-ga")?);
            files.extend(with_libraries(mke2fs, "sbin/mke2fs")?);
            files.sort();
            files.dedup_by(|a, b| a.0 == b.0);
            store(&with_agent, &cpio(&files)?)?;
        }
    }
    let bare = cache.join(format!("kernel-{key}"));
    if !bare.exists() {
        let image = std::fs::read(&kernel)?;
        store(&bare, &super::guest_kernel::unpack(&image).unwrap_or(image))?;
    }
    Ok(Boot { kernel: bare, witness: plain, agent: agent.map(|_| with_agent) })
}

/// The kernel and the directory of its modules: unpacked by `make setup` into `target/lab/kernel`, or an installed
/// cloud kernel.
///
/// # Errors
/// When there is none.
pub fn kernel() -> Result<(PathBuf, PathBuf)> {
    for base in [programs::project().join("target/lab/kernel"), PathBuf::from("/")] {
        let mut names: Vec<String> = std::fs::read_dir(base.join("boot"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with("vmlinuz-") && name.contains("-cloud-"))
            .collect();
        names.sort();
        for name in names.iter().rev() {
            let version = name.trim_start_matches("vmlinuz-");
            for lib in ["lib/modules", "usr/lib/modules"] {
                let modules = base.join(lib).join(version).join("kernel");
                if modules.is_dir() {
                    return Ok((base.join("boot").join(name), modules));
                }
            }
        }
    }
    bail!("no Debian cloud kernel found, neither in target/lab/kernel nor in /boot: run `make setup`")
}

/// Writes a file at once, or not at all.
///
/// # Errors
/// When it cannot be written.
pub fn store(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut beside = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    std::io::Write::write_all(&mut beside, bytes)?;
    beside.persist(path)?;
    Ok(())
}

/// Builds a program of one source file that needs no library at run time.
///
/// # Errors
/// When there is no compiler or it complains.
pub fn build_static(source: &Path, cache: &Path) -> Result<Vec<u8>> {
    let out = tempfile::Builder::new().prefix("build-").tempdir_in(cache)?;
    let program = out.path().join("program");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = Command::new(rustc)
        .args(["--edition", "2024", "-A", "warnings", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols"])
        .arg(source)
        .arg("-o")
        .arg(&program)
        .output()
        .context("rustc cannot be started")?;
    if !built.status.success() {
        bail!("{} cannot be built: {}", source.display(), String::from_utf8_lossy(&built.stderr));
    }
    Ok(std::fs::read(&program)?)
}

/// The drivers `names` below the directory `modules`, as files of an initramfs in their order.
pub(super) fn driver_files(modules: &Path, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let Some(path) = find_module(modules, name)? else { continue };
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let bytes = match extension {
            "xz" => output(Command::new("busybox").args(["xz", "-dc"]).arg(&path))?,
            "zst" => output(Command::new("zstd").args(["-q", "-dc"]).arg(&path))?,
            "gz" => output(Command::new("busybox").args(["gzip", "-dc"]).arg(&path))?,
            _ => std::fs::read(&path)?,
        };
        files.push((format!("modules/{i:02}-{name}.ko"), bytes));
    }
    Ok(files)
}

fn find_module(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if let Some(found) = find_module(&path, name)? {
                return Ok(Some(found));
            }
        } else if file.split(".ko").next() == Some(name) && file.contains(".ko") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn output(command: &mut Command) -> Result<Vec<u8>> {
    let done = command.output().with_context(|| format!("{command:?} cannot be started"))?;
    if !done.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(done.stdout)
}

/// A program and what `ldd` says it needs, each where the loader looks for it.
fn with_libraries(program: &Path, name: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = vec![(name.to_owned(), std::fs::read(program)?)];
    let listing = output(Command::new("ldd").arg(program))?;
    for word in String::from_utf8_lossy(&listing).split_whitespace() {
        if word.starts_with('/') {
            files.push((word.trim_start_matches('/').to_owned(), std::fs::read(word)?));
        }
    }
    Ok(files)
}

/// An archive in the kernel's `newc` format: files with mode 755, their directories, a few empty ones and the console.
pub(super) fn cpio(files: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut dirs: Vec<String> = ["dev", "proc", "sys", "mnt", "run", "tmp"].map(str::to_owned).to_vec();
    for (name, _) in files {
        dirs.extend(Path::new(name).ancestors().skip(1).map(|dir| dir.display().to_string()));
    }
    dirs.retain(|dir| !dir.is_empty());
    dirs.sort();
    dirs.dedup();
    let mut out = Vec::new();
    let mut inode = 1;
    let mut entry = |name: &str, mode: u32, device: (u32, u32), data: &[u8]| -> Result<()> {
        let fields = [
            inode,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(data.len()).context("file too large for the initramfs")?,
            0,
            0,
            device.0,
            device.1,
            u32::try_from(name.len() + 1)?,
            0,
        ];
        inode += 1;
        out.extend_from_slice(b"070701");
        for field in fields {
            out.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        out.extend_from_slice(name.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(4), 0);
        Ok(())
    };
    for dir in &dirs {
        entry(dir, 0o040_755, (0, 0), &[])?;
    }
    entry("dev/console", 0o020_600, (5, 1), &[])?;
    for (name, data) in files {
        entry(name, 0o100_755, (0, 0), data)?;
    }
    entry("TRAILER!!!", 0, (0, 0), &[])?;
    Ok(out)
}
