//! A tree with all that makes archivers stumble.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::mkfifo;

/// Version 2 of the kernel's form: effective, cap_net_raw permitted.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// What [`spoil`] can do.
pub const SPOILED: [&str; 7] = ["content", "attribute", "owner", "time", "name", "link", "hole"];

/// A container's tree of a few megabytes.
pub fn small_tree(top: &Path) {
    for dir in ["etc", "data", "usr/lib", "dev"] {
        fs::create_dir_all(top.join(dir)).unwrap();
    }
    fs::write(top.join("etc/hostname"), "ct01\n").unwrap();
    fs::write(top.join("data/db"), noise(300_000, 3)).unwrap();
    for n in 0..24 {
        fs::write(top.join(format!("usr/lib/lib{n}.so")), noise(500_000, n)).unwrap();
    }
    lchown(top.join("data"), Some(105), Some(106)).unwrap();
    fs::set_permissions(top.join("data"), fs::Permissions::from_mode(0o2750)).unwrap();
    for dir in ["etc", "data", "usr/lib", "usr", ""] {
        set_time(&top.join(dir), 1_000_000_000);
    }
}

/// A tree with `files` small files among all the rest.
pub fn nasty_tree(top: &Path, files: usize) {
    small_tree(top);
    let dirs = files.div_ceil(100);
    for dir in 0..dirs {
        let path = top.join(format!("many/{}/{dir}", dir % 7));
        fs::create_dir_all(&path).unwrap();
        for n in 0..files.min(100) {
            fs::write(path.join(format!("{n}")), format!("{dir} {n}\n")).unwrap();
        }
    }
    let names = top.join("names");
    fs::create_dir_all(&names).unwrap();
    let long = [b'x'; 255];
    let odd: [&[u8]; 9] = [
        b"a\nnew line",
        b"-rf",
        b"back\\slash",
        b"\xff\xfe\x80",
        b" ",
        b"tab\t\"quotes\"'",
        b"*?[a]",
        "\u{202e}\u{1f600}".as_bytes(),
        &long,
    ];
    for name in odd {
        fs::write(names.join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
        symlink(
            std::ffi::OsStr::from_bytes(name),
            names.join(std::ffi::OsStr::from_bytes(&[b"l", &name[..name.len() - 1]].concat())),
        )
        .unwrap();
    }
    // As deep as a path can be: 4096 bytes with the one above it.
    let room = 4000 - top.as_os_str().len();
    let mut deep = top.join("deep");
    while deep.as_os_str().len() - top.as_os_str().len() + 201 < room {
        deep.push("d".repeat(200));
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), "deep").unwrap();
    // Not longer: a file system of 1 KiB blocks has links of less than that.
    symlink("../".repeat(300), deep.join("up")).unwrap();
    let mut nested = top.join("nested");
    for _ in 0..500 {
        nested.push("n");
    }
    fs::create_dir_all(&nested).unwrap();

    let srv = top.join("srv");
    fs::create_dir_all(&srv).unwrap();
    let sparse = File::create(srv.join("sparse")).unwrap();
    for at in [0, 5 << 30, (10 << 30) - 3000] {
        sparse.write_all_at(&noise(3000, 9), at).unwrap();
    }
    File::create(srv.join("hole")).unwrap().set_len(1 << 30).unwrap();
    fs::write(srv.join("empty"), "").unwrap();
    for (name, mode) in [("setuid", 0o4755), ("setgid", 0o2755), ("nothing", 0), ("all", 0o777)] {
        fs::write(srv.join(name), name).unwrap();
        lchown(srv.join(name), Some(1000), Some(60_000)).unwrap();
        fs::set_permissions(srv.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    for (name, mode) in [("sticky", 0o1777), ("shut", 0o300)] {
        fs::create_dir(srv.join(name)).unwrap();
        fs::write(srv.join(name).join("inside"), "x").unwrap();
        fs::set_permissions(srv.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(srv.join("ping"), "can").unwrap();
    xattr::set(srv.join("ping"), "security.capability", &CAPABILITY).unwrap();
    fs::write(srv.join("attributed"), "").unwrap();
    xattr::set(srv.join("attributed"), "user.note", b"with\0zero\nand line").unwrap();
    xattr::set(srv.join("attributed"), "user.empty", b"").unwrap();
    xattr::set(&srv, "user.dir", b"\xff").unwrap();
    let named = |id: u32| {
        acl(&[(1, 6, u32::MAX), (2, 4, id), (4, 4, u32::MAX), (8, 6, 2000), (16, 7, u32::MAX), (32, 0, u32::MAX)])
    };
    fs::write(srv.join("acl"), "").unwrap();
    xattr::set(srv.join("acl"), "system.posix_acl_access", &named(1000)).unwrap();
    fs::create_dir(srv.join("inherit")).unwrap();
    xattr::set(srv.join("inherit"), "system.posix_acl_default", &named(1001)).unwrap();
    fs::write(srv.join("inherit/child"), "").unwrap();
    fs::hard_link(srv.join("setuid"), top.join("etc/setuid")).unwrap();
    fs::hard_link(srv.join("attributed"), top.join("names/linked")).unwrap();
    symlink("nowhere", srv.join("dangling")).unwrap();
    fs::hard_link(srv.join("dangling"), srv.join("dangling2")).unwrap();
    lchown(srv.join("dangling"), Some(7), Some(8)).unwrap();
    symlink("/etc/passwd", srv.join("absolute")).unwrap();
    mkfifo(&srv.join("fifo"), Mode::from_bits_truncate(0o640)).unwrap();
    drop(UnixListener::bind(srv.join("socket")).unwrap());
    let node = |name: &str, kind, major, minor| {
        mknod(&top.join(name), kind, Mode::from_bits_truncate(0o620), makedev(major, minor)).unwrap()
    };
    node("srv/console", SFlag::S_IFCHR, 5, 1);
    node("srv/disk", SFlag::S_IFBLK, 259, 70_000);
    node("dev/null", SFlag::S_IFCHR, 1, 3);
    set_time(&srv.join("empty"), 1);
    set_time(&srv.join("all"), 1 << 33);
    for dir in ["srv/sticky", "srv/shut", "srv", "names", "etc", "dev", ""] {
        set_time(&top.join(dir), 1_111_111_111);
    }
    // Of the mount point itself, too.
    xattr::set(top.join("data"), "user.root", b"of a volume").unwrap();
    xattr::set(top.join("data"), "system.posix_acl_default", &named(1002)).unwrap();
}

/// Makes a restored tree another one.
pub fn spoil(top: &Path, how: &str) {
    let srv = top.join("srv");
    match how {
        "content" => {
            File::options().write(true).open(srv.join("sparse")).unwrap().write_all_at(b"!", (5 << 30) + 9).unwrap()
        }
        "attribute" => xattr::remove(srv.join("attributed"), "user.note").unwrap(),
        "owner" => lchown(srv.join("dangling"), Some(7), Some(9)).unwrap(),
        "time" => set_time(&srv.join("empty"), 0),
        "name" => fs::rename(top.join("names/-rf"), top.join("names/-rfx")).unwrap(),
        "link" => {
            fs::copy(srv.join("setuid"), srv.join("copy")).unwrap();
            fs::rename(srv.join("copy"), top.join("etc/setuid")).unwrap();
        }
        "hole" => File::options().write(true).open(srv.join("hole")).unwrap().set_len((1 << 30) + 1).unwrap(),
        other => panic!("{other}"),
    }
}

/// An ACL in the kernel's form: tag, permissions, id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn set_time(path: &Path, seconds: i64) {
    let time = TimeSpec::new(seconds, 123_456_789);
    utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
}

/// Bytes that do not compress.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}
