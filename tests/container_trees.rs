//! A container's tree, there and back: everything that a file system may hold comes out of a restore as it was.

mod lab;

use anyhow::{Result, ensure};
use lab::container_node::require_container;
use lab::nasty::{self, Devices};
use lab::tree_compare::{count, differences};
use lab::{Container, Node, mib};
use nix::sys::resource::{UsageWho, getrusage};
use std::path::Path;
use std::time::Instant;

fn required(test: &str) -> bool {
    require_container(test) && lab::require(test, &["setfacl", "setfattr", "setcap", "zstd"])
}

fn small_files() -> u32 {
    if std::env::var_os("VZKEEP_SOAK").is_some() { 1_000_000 } else { 10_000 }
}

#[test]
fn the_comparer_sees_every_difference() -> Result<()> {
    if !required("the_comparer_sees_every_difference") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (left, right) = (dir.path().join("left"), dir.path().join("right"));
    nasty::make(&left, 10, Devices::Yes)?;
    let copied = std::process::Command::new("cp").arg("-a").arg(&left).arg(&right).status()?;
    ensure!(copied.success(), "cp failed");
    assert_eq!(differences(&left, &right, &[])?, Vec::<String>::new());
    assert!(count(&left)? > 80);
    let spoils: [(&str, &str); 13] = [
        ("kinds/empty", "chmod 600"),
        ("rights/setuid", "chown 7:50"),
        ("rights/owned link", "chown -h 7"),
        ("rights/capable", "setcap -r"),
        ("rights/listed", "setfacl -b"),
        ("rights/shared directory", "setfacl -k"),
        ("rights/far", "setfattr -x user.binary"),
        ("kinds/513", "truncate -s 512"),
        ("names/two\nlines", "rm"),
        ("links/three", "sed -i s/x/y/"),
        ("holes/many holes", "fallocate -l 4M"),
        ("deep/top", "touch"),
        ("kinds/one byte", "touch -d 2001-02-03T04:05:06.5"),
    ];
    // Less than a second is a difference, too.
    let touched = |dir: &Path| {
        let file = dir.join("kinds/one byte");
        std::process::Command::new("touch").args(["-d", "2001-02-03T04:05:06"]).arg(file).status()
    };
    ensure!(touched(&left)?.success() && touched(&right)?.success(), "touch failed");
    for (number, (path, spoil)) in spoils.iter().enumerate() {
        let mut words = spoil.split(' ');
        let mut command = std::process::Command::new(words.next().unwrap_or_default());
        ensure!(command.args(words).arg(right.join(path)).status()?.success(), "{spoil} {path}");
        let found = differences(&left, &right, &[])?;
        let name = format!("{:?}", Path::new(path));
        ensure!(found.iter().any(|line| line.starts_with(&name)), "{spoil} {path} is not seen: {found:?}");
        ensure!(found.len() > number, "{spoil} {path}: {found:?}");
    }
    Ok(())
}

/// The memory of the largest process so far that has ended, in MiB; those that our children started are included.
fn largest_process() -> Result<i64> {
    Ok(getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss() >> 10)
}

/// Prints how long it took since `begun`. No process may have needed more memory than the disks of virtual machines do, however
/// many files there are; `before` is what an earlier one needed that is none of ours, as a compiler.
fn told(what: &str, begun: Instant, before: i64) -> Result<()> {
    let peak = largest_process()?;
    println!("{what}: {:.1} s, largest process so far {peak} MiB", begun.elapsed().as_secs_f64());
    ensure!(peak <= before.max(256), "{what}: a process needed {peak} MiB");
    Ok(())
}

fn there_and_back(unprivileged: bool, compress: &str) -> Result<()> {
    let container = if unprivileged { Container::new(200).unprivileged() } else { Container::new(200) };
    let container = container.rootfs(0).subvolume().mp(0, "/mnt/data", 0, "backup=1").subvolume();
    let node = Node::new()?.container(container.mp(1, "/none", mib(8), ""))?;
    let (root, data) = (node.ct_volume(200, "rootfs")?, node.ct_volume(200, "mp0")?);
    let many = if unprivileged { 500 } else { small_files() };
    for (volume, small) in [(&root, many), (&data, 0)] {
        if unprivileged {
            nasty::make_as_container(&volume.join("tree"), small)?;
        } else {
            nasty::make(&volume.join("tree"), small, Devices::Yes)?;
        }
    }
    let (begun, before) = (Instant::now(), largest_process()?);
    let (archive, _) = node.backup(200, &["--mode", "stop", "--compress", compress])?;
    told("backup", begun, before)?;
    let inner = node.inner(&archive).display().to_string();
    // mkfs makes an inode for every 16 KiB.
    let volumes = ["--rootfs", if many > 100_000 { "local:24" } else { "local:1" }, "--mp0", "local:1,mp=/mnt/data"];
    node.ok("vzkeep", &[&["pct-restore", "201", &inner, "--storage", "local"], &volumes[..]].concat())?;
    told("backup and restore", begun, before)?;
    let tree = node.ct_tree(201)?;
    for (from, to) in [(&root, ""), (&data, "mnt/data")] {
        let but = ["lost+found", "mnt/data", "diary", "clean-shutdown"];
        let found = differences(from, &tree.root().join(to), &but)?;
        ensure!(found.is_empty(), "{to}: {} differences:\n{}", found.len(), found.join("\n"));
    }
    Ok(())
}

#[test]
fn everything_comes_back() -> Result<()> {
    if required("everything_comes_back") { there_and_back(false, "zstd") } else { Ok(()) }
}

#[test]
fn everything_of_a_container_without_privileges_comes_back() -> Result<()> {
    let name = "everything_of_a_container_without_privileges_comes_back";
    if required(name) { there_and_back(true, "gzip") } else { Ok(()) }
}

#[test]
fn stock_tar_reads_the_archive() -> Result<()> {
    if !required("stock_tar_reads_the_archive") {
        return Ok(());
    }
    let node = Node::new()?.container(Container::new(200).rootfs(0).subvolume())?;
    let root = node.ct_volume(200, "rootfs")?;
    nasty::make(&root.join("tree"), 100, Devices::Yes)?;
    for compress in ["zstd", "gzip", "0"] {
        let (archive, _) = node.backup(200, &["--mode", "stop", "--compress", compress])?;
        let to = node.path("/tmp/unpacked");
        std::fs::create_dir(&to)?;
        let words = ["--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*", "--sparse", "-C"];
        let (to_word, from) = (to.display().to_string(), archive.display().to_string());
        node.ok("tar", &[&["-xpf", &from], &words[..], &[&to_word]].concat())?;
        ensure!(to.join("etc/vzdump/pct.conf").is_file(), "{compress}: no config");
        let found = differences(&root, &to, &["lost+found", "etc"])?;
        ensure!(found.is_empty(), "{compress}: {} differences:\n{}", found.len(), found.join("\n"));
        std::fs::remove_dir_all(&to)?;
        std::fs::remove_file(&archive)?;
    }
    Ok(())
}

#[test]
fn stock_tar_reads_standard_output() -> Result<()> {
    if !required("stock_tar_reads_standard_output") || !lab::require("stock_tar_reads_standard_output", &["lzop"]) {
        return Ok(());
    }
    let container = Container::new(200).rootfs(0).subvolume().mp(0, "/data", 0, "backup=1").subvolume();
    let node = Node::new()?.container(container)?;
    let root = node.ct_volume(200, "rootfs")?;
    nasty::make(&node.ct_volume(200, "mp0")?.join("tree"), 20, Devices::Yes)?;
    for compress in ["0", "lzo", "gzip", "zstd"] {
        let archive = node.path("/tmp/archive");
        let mut command = node.command("vzdump");
        command.args(["200", "--stdout", "--mode", "stop", "--compress", compress, "--bwlimit", "100000"]);
        let output = command.stdout(std::fs::File::create(&archive)?).output()?;
        let log = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && log.contains("INFO: sending archive to stdout"), "{compress}:\n{log}");
        ensure!(log.contains("INFO: Total bytes written: "), "{compress}:\n{log}");
        let to = node.path("/tmp/unpacked");
        std::fs::create_dir(&to)?;
        let words = ["--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*", "--sparse", "-C"];
        let (to_word, from) = (to.display().to_string(), archive.display().to_string());
        node.ok("tar", &[&["-xpf", &from], &words[..], &[&to_word]].concat())?;
        let found = differences(&root, &to, &["lost+found", "etc", "data"])?;
        ensure!(found.is_empty(), "{compress}: {} differences:\n{}", found.len(), found.join("\n"));
        let found = differences(&node.ct_volume(200, "mp0")?, &to.join("data"), &["lost+found"])?;
        ensure!(found.is_empty(), "{compress}: {} differences:\n{}", found.len(), found.join("\n"));
        std::fs::remove_dir_all(&to)?;
        ensure!(node.archives("local", 200)?.is_empty(), "an archive in the storage, too");
        let left = node.ct_leftovers_on_disk(200)?;
        ensure!(left.is_empty(), "left behind: {left:?}");
    }
    Ok(())
}

#[test]
fn sockets_are_named() -> Result<()> {
    if !required("sockets_are_named") {
        return Ok(());
    }
    let node = Node::new()?.container(Container::new(200).rootfs(0).subvolume())?;
    let root = node.ct_volume(200, "rootfs")?;
    let mut sockets = Vec::new();
    std::fs::create_dir(root.join("srv/s"))?;
    // A short name: a socket's path has room for a hundred bytes only.
    let short = tempfile::tempdir_in("/tmp")?;
    let link = short.path().join("s");
    std::os::unix::fs::symlink(root.join("srv/s"), &link)?;
    for number in 0..23 {
        sockets.push(std::os::unix::net::UnixListener::bind(link.join(format!("socket{number}")))?);
    }
    std::fs::write(root.join("srv/s/file"), "kept")?;
    let (archive, output) = node.backup(200, &["--mode", "stop", "--compress", "zstd"])?;
    let named = output
        .stdout
        .lines()
        .filter(|line| line.starts_with("INFO: tar: ./srv/s/socket") && line.ends_with(": socket ignored"));
    ensure!(named.count() == 20, "{}", output.stdout);
    output.says(&["INFO: tar: and 3 more sockets ignored", "INFO: Finished Backup of VM 200"])?;
    let listing = node.ok("tar", &["-tf", &archive.display().to_string()])?.stdout;
    ensure!(listing.contains("./srv/s/file\n") && !listing.contains("socket"), "{listing}");
    Ok(())
}
