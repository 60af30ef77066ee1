//! What the volumes of containers hold: a root file system of busybox and the diarist, and the images and directories that
//! are made of it. Nothing is mounted for that.

use super::container::{Container, Keep, Volume};
use super::guest_image::{build_static, store};
use super::stand_in::{Storages, create_volume};
use super::{diary, programs};
use anyhow::{Context, Result, ensure};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

const DIARIST: &str = include_str!("witness/diarist.rs");
const DIARY: &str = include_str!("diary.rs");

/// The first user of the node that containers without privileges get.
const FIRST_USER: &str = "100000";

/// The diarist, built once and kept in `target/lab/`.
///
/// # Errors
/// When it cannot be built.
pub fn diarist() -> Result<PathBuf> {
    let cache = programs::project().join("target/lab");
    std::fs::create_dir_all(&cache)?;
    let mut hasher = DefaultHasher::new();
    (DIARIST, DIARY).hash(&mut hasher);
    let path = cache.join(format!("diarist-{:016x}", hasher.finish()));
    if !path.exists() {
        store(&path, &build_static(&programs::project().join("tests/lab/witness/diarist.rs"), &cache)?)?;
    }
    Ok(path)
}

/// Writes the root file system of a container below `root`.
///
/// # Errors
/// When a part of it is missing.
pub fn root_tree(root: &Path, diaries: &str, ballast: u64) -> Result<()> {
    for dir in ["bin", "sbin", "dev", "proc", "sys", "run", "tmp", "var/tmp", "var/log", "etc", "home/u", "root", "srv"]
    {
        std::fs::create_dir_all(root.join(dir))?;
    }
    let busybox = programs::find("busybox").context("busybox is missing: run `make setup`")?;
    std::fs::copy(busybox, root.join("bin/busybox"))?;
    for name in ["sh", "sleep", "cat"] {
        symlink("busybox", root.join("bin").join(name))?;
    }
    std::fs::copy(diarist()?, root.join("sbin/init"))?;
    std::fs::set_permissions(root.join("sbin/init"), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    std::fs::write(root.join(diary::LIST.trim_start_matches('/')), diaries)?;
    for path in diaries.lines() {
        std::fs::create_dir_all(root.join(path.trim_start_matches('/')).parent().unwrap_or(root))?;
    }
    let mut dice = super::Dice::seeded(200);
    let (mut left, mut number) = (ballast, 0);
    while left > 0 {
        let part = left.min(256 << 10);
        let file = root.join(format!("var/ballast/{}/{number}", number / 100));
        std::fs::create_dir_all(file.parent().unwrap_or(root))?;
        std::fs::write(file, dice.bytes(usize::try_from(part)?))?;
        (left, number) = (left - part, number + 1);
    }
    Ok(())
}

/// Makes the volumes of a container; returns what its config says of each.
///
/// # Errors
/// When one cannot be made.
pub fn make(storages: &Storages, container: &Container, tmp: &Path) -> Result<Vec<String>> {
    let mut sources = Vec::new();
    for volume in &container.volumes {
        if volume.keep == Keep::Bind {
            sources.push(volume.storage.clone());
            continue;
        }
        let staging = tempfile::Builder::new().prefix("volume-").tempdir_in(tmp)?;
        let tree = staging.path();
        if volume.key == "rootfs" {
            root_tree(tree, &container.diaries(), container.ballast)?;
            for inner in container.volumes.iter().filter(|inner| inner.key != "rootfs") {
                std::fs::create_dir_all(tree.join(inner.mp.trim_start_matches('/')))?;
            }
        }
        if let Some(content) = &volume.content {
            copy(content, tree)?;
        }
        sources.push(fill(storages, container, volume, tree)?);
    }
    Ok(sources)
}

fn fill(storages: &Storages, container: &Container, volume: &Volume, tree: &Path) -> Result<String> {
    std::fs::set_permissions(tree, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    if container.unprivileged {
        shift(tree)?;
    }
    let format = if volume.keep == Keep::Subvolume { "subvol" } else { "raw" };
    let made = storages.alloc(&volume.storage, container.vmid, "", volume.bytes, format)?;
    if volume.keep == Keep::Subvolume {
        copy(tree, &made.path)?;
    } else {
        make_ext4(&made.path, tree)?;
        if made.group.is_some() {
            // As a node makes them: no other one may mount it.
            done(Command::new("tune2fs").args(["-O", "mmp"]).arg(&made.path))?;
        }
    }
    Ok(made.volid)
}

/// Makes an ext4 file system with the content of `tree` in an image that is there already.
///
/// # Errors
/// When it does not fit or `mke2fs` fails.
pub fn make_ext4(image: &Path, tree: &Path) -> Result<()> {
    let mut command = Command::new(programs::find("mke2fs").context("mke2fs is missing: run `make setup`")?);
    // The owner of the top directory is the one thing that it does not take from the tree.
    let owner = tree.metadata()?;
    let owner = format!("root_owner={}:{}", owner.uid(), owner.gid());
    command.args(["-q", "-F", "-t", "ext4", "-E", &owner, "-d"]).arg(tree).arg(image);
    done(&mut command)
}

/// The volumes of a recorded container, as its config says, with root file system and diarist.
///
/// # Errors
/// When one cannot be made.
pub fn make_recorded(storages: &Storages, config: &str, tmp: &Path) -> Result<()> {
    let lines: Vec<(&str, &str)> = config.lines().filter_map(|line| line.split_once(": ")).collect();
    let property = |value: &str, name: &str| {
        value.split(',').find_map(|property| property.strip_prefix(&format!("{name}="))).map(str::to_owned)
    };
    let points: Vec<String> =
        lines.iter().filter(|(key, _)| key.starts_with("mp")).filter_map(|(_, value)| property(value, "mp")).collect();
    for (key, value) in &lines {
        let volid = value.split(',').next().unwrap_or_default();
        let (Some(size), Ok(volume)) = (property(value, "size"), storages.volume(volid)) else { continue };
        create_volume(&volume, super::guest::bytes(&size)?)?;
        let staging = tempfile::Builder::new().prefix("volume-").tempdir_in(tmp)?;
        if *key == "rootfs" {
            root_tree(staging.path(), "/diary\n", 0)?;
            for point in &points {
                std::fs::create_dir_all(staging.path().join(point.trim_start_matches('/')))?;
            }
        }
        std::fs::set_permissions(staging.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        make_ext4(&volume.path, staging.path())?;
    }
    Ok(())
}

/// Gives a tree to the first user of a container without privileges.
fn shift(tree: &Path) -> Result<()> {
    let mut command = Command::new("chown");
    command.args(["-R", "-h", &format!("{FIRST_USER}:{FIRST_USER}")]).arg(tree);
    done(&mut command)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    command.arg("-a").arg(from.join(".")).arg(to);
    done(&mut command)
}

fn done(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?} cannot be started"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
