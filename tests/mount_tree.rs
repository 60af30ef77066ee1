//! `vzkeep mount` of containers' archives: the tree as it was, seen by a comparer with eyes of its own.

mod lab;

use anyhow::{Result, ensure};
use lab::archives::make_tar;
use lab::mounted::{MountPoint, require_fuse};
use lab::nasty::{self, Devices};
use lab::tree_compare::{count, differences};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use vzkeep::archive::Compression;

fn required(test: &str) -> bool {
    require_fuse(test) && lab::require(test, &["setfacl", "setfattr", "setcap", "tar", "gzip", "zstd", "lzop"])
}

#[test]
fn everything_a_file_can_have() -> Result<()> {
    if !required("everything_a_file_can_have") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let tree = dir.path().join("tree");
    nasty::make(&tree, 200, Devices::Yes)?;
    std::fs::create_dir_all(tree.join("etc/vzdump"))?;
    std::fs::write(tree.join("etc/vzdump/pct.conf"), "arch: amd64\nhostname: ct\n")?;
    let compressions = [
        (Compression::None, None),
        (Compression::Zstd { threads: 2 }, None),
        (Compression::Gzip { threads: 2 }, None),
        // Made by others: without an index.
        (Compression::None, Some("zstd")),
        (Compression::Lzo, None),
    ];
    for (compression, packer) in compressions {
        let suffix = packer.map_or(compression.suffix().trim_start_matches('.'), |_| "zst");
        let archive =
            dir.path().join(format!("vzdump-lxc-200-x.tar{}{suffix}", if suffix.is_empty() { "" } else { "." }));
        make_tar(&archive, &tree, compression)?;
        if let Some(packer) = packer {
            let packed = Command::new(packer).arg("-c").arg(&archive).output()?;
            ensure!(packed.status.success(), "{packer} failed");
            std::fs::write(&archive, packed.stdout)?;
        }
        std::fs::write(format!("{}.notes", archive.display()), "a note")?;
        let point = MountPoint::new(dir.path(), &format!("mount {suffix} {}", packer.is_some()))?;
        assert_eq!(point.mount(&archive)?, "");
        let mut names: Vec<_> =
            std::fs::read_dir(point.path())?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
        names.sort();
        assert_eq!(names, ["notes", "pct.conf", "rootfs"]);
        assert_eq!(std::fs::read_to_string(point.join("pct.conf"))?, "arch: amd64\nhostname: ct\n");
        ensure!(count(&tree)? > 280, "a small tree");
        let found = differences(&tree, &point.join("rootfs"), &[])?;
        ensure!(found.is_empty(), "{}: {} differences:\n{}", archive.display(), found.len(), found.join("\n"));
        // Another order than that of the archive, and files that are looked at one by one.
        let sparse = point.join("rootfs/holes/ten gigabytes").metadata()?;
        ensure!(sparse.len() == 10 << 30 && sparse.blocks() < 100, "{} blocks", sparse.blocks());
        let one = |name: &str| point.join("rootfs/links").join(name).metadata().map(|meta| (meta.ino(), meta.nlink()));
        ensure!(one("three")? == one("a/b/one")? && one("three")?.1 == 3, "{:?} {:?}", one("three"), one("a/b/one"));
        if compression == Compression::None && packer.is_none() {
            let copy = dir.path().join("copy");
            let copied =
                Command::new("cp").args(["-a", "--sparse=always"]).arg(point.join("rootfs")).arg(&copy).output()?;
            ensure!(copied.status.success(), "cp: {}", String::from_utf8_lossy(&copied.stderr));
            let found = differences(&tree, &copy, &[])?;
            ensure!(found.is_empty(), "cp: {} differences:\n{}", found.len(), found.join("\n"));
            std::fs::remove_dir_all(&copy)?;
        }
        point.unmount()?;
    }
    Ok(())
}

#[test]
fn odd_archives() -> Result<()> {
    if !required("odd_archives") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("a/b"))?;
    for (name, text) in [("a/b/file", "first"), ("a/one", "1"), ("two", "2")] {
        std::fs::write(tree.join(name), text)?;
    }
    std::fs::hard_link(tree.join("two"), tree.join("three"))?;
    let plain = dir.path().join("plain.tar");
    let tar = |words: &[&str]| -> Result<()> {
        let output = Command::new("tar").arg("-C").arg(&tree).args(words).output()?;
        ensure!(output.status.success(), "tar {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let name = plain.display().to_string();
    // Without directories, with a second version of a file, with a name that leads outside, with a link to what is missing.
    tar(&["-cf", &name, "a/b/file", "two", "three"])?;
    std::fs::write(tree.join("a/b/file"), "second, and longer")?;
    tar(&["-rf", &name, "a/b/file", "a/one"])?;
    tar(&["-rPf", &name, "--transform=s,one,../outside,", "a/one"])?;
    tar(&["-rPf", &name, "--transform=flags=h;s,two,gone,", "--transform=flags=r;s,two,other,", "two", "three"])?;
    let point = MountPoint::new(dir.path(), "point")?;
    let said = point.mount(&plain)?;
    ensure!(said.contains("1 members are not shown") && said.contains("1 hard links lead to nothing"), "{said}");
    let root = point.join("rootfs");
    assert_eq!(std::fs::read_to_string(root.join("a/b/file"))?, "second, and longer");
    assert_eq!(root.join("a").metadata()?.mode(), 0o40_755);
    assert_eq!(std::fs::read_to_string(root.join("other"))?, "2");
    let lost = std::fs::read(root.join("three"));
    ensure!(lost.is_err_and(|e| e.raw_os_error() == Some(libc::EIO)), "a link to nothing was read");
    point.unmount()?;
    // What can only be read from its start on.
    let packed = dir.path().join("plain.tar.xz");
    if lab::programs::find("xz").is_some() {
        std::fs::write(&packed, Command::new("xz").arg("-c").arg(&plain).output()?.stdout)?;
        let output = point.command(&packed)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(255) && said.contains("decompress it first"), "{said}");
    }
    Ok(())
}

#[test]
fn a_damaged_archive_of_a_container() -> Result<()> {
    if !required("a_damaged_archive_of_a_container") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(&tree)?;
    let mut dice = lab::Dice::seeded(3);
    for n in 0..12 {
        std::fs::write(tree.join(format!("file-{n:02}")), dice.bytes(2 << 20))?;
    }
    let archive: PathBuf = dir.path().join("ct.tar.zst");
    make_tar(&archive, &tree, Compression::Zstd { threads: 2 })?;
    let mut bytes = std::fs::read(&archive)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&archive, bytes)?;
    let point = MountPoint::new(dir.path(), "point")?;
    point.mount(&archive)?;
    let (mut good, mut bad) = (0, 0);
    for n in 0..12 {
        let name = format!("file-{n:02}");
        match std::fs::read(point.join("rootfs").join(&name)) {
            Ok(bytes) => {
                ensure!(bytes == std::fs::read(tree.join(&name))?, "{name} differs");
                good += 1;
            }
            Err(e) => {
                ensure!(e.raw_os_error() == Some(libc::EIO), "{name}: {e}");
                bad += 1;
            }
        }
    }
    ensure!(good >= 4 && bad >= 1, "{good} good and {bad} bad");
    point.unmount()
}
