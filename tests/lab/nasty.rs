//! A tree of everything that a file system may hold and a backup must keep.

use anyhow::{Context, Result, ensure};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

/// What may be in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// Device nodes as well.
    Yes,
    /// None: the container has no right to make any.
    No,
}

/// Makes the tree below `root`, with about `small` small files. Needs root.
///
/// # Errors
/// When a file cannot be made.
pub fn make(root: &Path, small: u32, devices: Devices) -> Result<()> {
    names(&root.join("names"))?;
    deep(&root.join("deep"))?;
    kinds(&root.join("kinds"), devices)?;
    rights(&root.join("rights"))?;
    holes(&root.join("holes"))?;
    for n in 0..small {
        let dir = root.join(format!("small/{}", n / 500));
        if n % 500 == 0 {
            std::fs::create_dir_all(&dir)?;
        }
        std::fs::write(dir.join(format!("file-{n}")), format!("{n}\n").repeat(n as usize % 40))?;
    }
    // Hard links across directories, and one to a file that has rights of its own.
    std::fs::create_dir_all(root.join("links/a/b"))?;
    std::fs::create_dir_all(root.join("links/c"))?;
    std::fs::write(root.join("links/a/b/one"), "linked three times")?;
    std::fs::hard_link(root.join("links/a/b/one"), root.join("links/c/two"))?;
    std::fs::hard_link(root.join("links/a/b/one"), root.join("links/three"))?;
    std::fs::hard_link(root.join("rights/capable"), root.join("links/capable"))?;
    Ok(())
}

/// Makes the tree as the root of a container without privileges does, which has the node's users from 100000 on.
///
/// # Errors
/// When a file cannot be made.
pub fn make_as_container(root: &Path, small: u32) -> Result<()> {
    let mut command = Command::new(super::programs::find("lxc-usernsexec").context("lxc-usernsexec is missing")?);
    command.args(["-m", "u:0:100000:65536", "-m", "g:0:100000:65536", "--"]).arg(super::programs::lab()?);
    let output = command.arg("nasty").arg(root).arg(small.to_string()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn names(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let long = "n".repeat(255);
    let names: [&[u8]; 16] = [
        b"two\nlines",
        b"\xff\xfe not UTF-8 \x80",
        b" leading and trailing ",
        b"-rf",
        b"--checkpoint-action=exec=true",
        b"back\\slash\\n",
        b"quote'\"`$(true)",
        b"*?[a-z]",
        b"tab\there",
        b"\x01\x7f",
        b"...",
        b"name=value",
        b"#hash; and & more",
        "umlaut-äöü-\u{1f512}".as_bytes(),
        long.as_bytes(),
        b"GNUSparseFile.0",
    ];
    for name in names {
        std::fs::write(dir.join(OsStr::from_bytes(name)), name)?;
    }
    // More than the 100 bytes of a plain header, with and without a place to cut.
    std::fs::write(dir.join("a".repeat(99)), "99")?;
    std::fs::write(dir.join("b".repeat(100)), "100")?;
    std::fs::write(dir.join("c".repeat(101)), "101")?;
    symlink("t".repeat(101), dir.join("long target"))?;
    symlink("u".repeat(4000), dir.join("very long target"))?;
    symlink(OsStr::from_bytes(b"two\nlines"), dir.join("to two lines"))?;
    std::fs::create_dir(dir.join(OsStr::from_bytes(b"dir\nof two lines")))?;
    Ok(())
}

/// Directories in directories until the path has 3,800 bytes below `dir`.
fn deep(dir: &Path) -> Result<()> {
    let mut at = dir.to_owned();
    for level in 0..19 {
        at = at.join(format!("{level:02}{}", "d".repeat(197)));
    }
    std::fs::create_dir_all(&at)?;
    std::fs::write(at.join("bottom"), "deep down")?;
    std::fs::hard_link(at.join("bottom"), dir.join("top"))?;
    // Not many more: for what is to be excluded, GNU tar looks at all ends of every path.
    Ok(std::fs::create_dir_all((0..60).fold(dir.to_owned(), |at, _| at.join("n")))?)
}

fn kinds(dir: &Path, devices: Devices) -> Result<()> {
    std::fs::create_dir_all(dir.join("empty directory"))?;
    std::fs::write(dir.join("empty"), "")?;
    std::fs::write(dir.join("one byte"), "1")?;
    for len in [511, 512, 513, 10_239, 10_240, 10_241] {
        std::fs::write(dir.join(len.to_string()), vec![b'k'; len])?;
    }
    symlink("nowhere", dir.join("dangling"))?;
    symlink("/etc/passwd", dir.join("absolute"))?;
    symlink(".", dir.join("itself"))?;
    std::fs::hard_link(dir.join("dangling"), dir.join("dangling too"))?;
    let rights = Mode::from_bits_truncate(0o640);
    mknod(&dir.join("fifo"), SFlag::S_IFIFO, rights, 0)?;
    // No archive has sockets.
    mknod(&dir.join("socket"), SFlag::S_IFSOCK, rights, 0)?;
    if devices == Devices::Yes {
        mknod(&dir.join("character"), SFlag::S_IFCHR, rights, makedev(1, 3))?;
        mknod(&dir.join("block"), SFlag::S_IFBLK, rights, makedev(7, 200))?;
        mknod(&dir.join("large numbers"), SFlag::S_IFCHR, rights, makedev(4000, 0xf_ffff))?;
    }
    Ok(())
}

fn rights(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    for (name, mode) in
        [("setuid", 0o4755), ("setgid", 0o2755), ("sticky", 0o1644), ("none", 0o000), ("capable", 0o755)]
    {
        let file = dir.join(name);
        std::fs::write(&file, name)?;
        std::os::unix::fs::chown(&file, Some(1000), Some(50))?;
        std::fs::set_permissions(&file, PermissionsExt::from_mode(mode))?;
    }
    let shared = dir.join("shared directory");
    std::fs::create_dir(&shared)?;
    std::os::unix::fs::chown(&shared, Some(33), Some(33))?;
    std::fs::set_permissions(&shared, PermissionsExt::from_mode(0o3770))?;
    std::fs::create_dir(dir.join("shut directory"))?;
    std::fs::write(dir.join("shut directory/inside"), "x")?;
    std::fs::set_permissions(dir.join("shut directory"), PermissionsExt::from_mode(0o300))?;
    symlink("owned by somebody", dir.join("owned link"))?;
    std::os::unix::fs::lchown(dir.join("owned link"), Some(1234), Some(4321))?;
    for file in ["far", "big owner"] {
        std::fs::write(dir.join(file), file)?;
    }
    std::os::unix::fs::chown(dir.join("big owner"), Some(65_534), Some(60_000))?;
    run("setcap", &["cap_net_raw,cap_net_admin=ep"], &dir.join("capable"))?;
    std::fs::write(dir.join("listed"), "has an access list")?;
    run("setfacl", &["-m", "u:1000:rw,g:50:r,m::rwx"], &dir.join("listed"))?;
    run("setfacl", &["-m", "d:u:1000:rwx,u:1000:rx"], &shared)?;
    for (name, value) in [("user.plain", "value"), ("user.binary", "0x00ff0a3d00"), ("user.empty", "")] {
        run("setfattr", &["-n", name, "-v", value], &dir.join("far"))?;
    }
    run("setfattr", &["-n", "user.of.a.directory", "-v", "yes"], &shared)?;
    run("setfattr", &["-n", "user.long", "-v", &"x".repeat(2000)], &dir.join("listed"))?;
    // Times of their own: with nanoseconds, long ago, in the far future, and before there were computers.
    run("touch", &["-d", "2001-02-03 04:05:06.789012345"], &dir.join("far"))?;
    run("touch", &["-d", "2242-03-16 12:56:32.000000001"], &dir.join("setgid"))?;
    run("touch", &["-d", "1965-01-01 00:00:00"], &dir.join("big owner"))
}

fn holes(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let make = |name: &str, len: u64, parts: &[(u64, usize)]| -> Result<()> {
        let file = std::fs::File::create(dir.join(name))?;
        file.set_len(len)?;
        for (offset, size) in parts {
            file.write_all_at(&vec![b'h'; *size], *offset)?;
        }
        Ok(())
    };
    make("ten gigabytes", 10 << 30, &[(0, 4096), (5 << 30, 4096), ((10 << 30) - 4096, 4096)])?;
    make("only a hole", 1 << 20, &[])?;
    make("hole at the end", 3 << 20, &[(0, 100)])?;
    make("hole at the beginning", 3 << 20, &[((3 << 20) - 1, 1)])?;
    let many: Vec<(u64, usize)> = (0..60).map(|n| (n * 65_536, 4096)).collect();
    make("many holes", 60 * 65_536, &many)
}

fn run(program: &str, words: &[&str], file: &Path) -> Result<()> {
    let program = super::programs::find(program).with_context(|| format!("{program} is missing: run `make setup`"))?;
    let output = Command::new(&program).args(words).arg(file).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} {words:?} {}: {said}", program.display(), file.display());
    Ok(())
}
