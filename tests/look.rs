//! `vzkeep ls` and `vzkeep cat`: the program as users call it, on archives with and without a table of members.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use vzkeep::archive::Compression;
use vzkeep::host::{Cancel, Host};
use vzkeep::transfer::{DEFAULT_MEMORY, Output as To, TarFrom, TarPack, pack_tar};

/// An archive as `vzdump` makes it.
fn pack(tree: &Path, archive: &Path, compression: Compression) {
    let mut tar = Command::new("tar");
    tar.args(["cf", "-", "--sparse", "--acls", "--xattrs", "-C"]).arg(tree).arg("./").stdout(Stdio::piped());
    let mut tar = tar.spawn().unwrap();
    let host = Host::with_root("/".into());
    let how = TarPack { compression, bwlimit: None, memory: DEFAULT_MEMORY, host };
    let from = TarFrom::Fd(tar.stdout.take().unwrap().into(), "tar".into());
    let to = To::Writer(Box::new(fs::File::create(archive).unwrap()), archive.display().to_string());
    pack_tar(from, to, &how, &mut |_| {}, &Cancel::new()).unwrap();
    assert!(tar.wait().unwrap().success());
}

fn vzkeep(words: &[&str], archive: &Path, rest: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vzkeep"));
    command.args(words).arg(archive).args(rest).env_remove(Host::ROOT_VAR).output().unwrap()
}

#[test]
fn looking_into_an_archive() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("etc/network")).unwrap();
    fs::write(tree.join("etc/hostname"), "ct\n").unwrap();
    fs::write(tree.join("etc/odd\nname"), "").unwrap();
    std::os::unix::fs::symlink("hostname", tree.join("etc/link")).unwrap();
    let with = dir.path().join("vzdump-lxc-200.tar.zst");
    pack(&tree, &with, Compression::Zstd { threads: 2 });
    let plain = dir.path().join("plain.tar");
    pack(&tree, &plain, Compression::None);
    let foreign = dir.path().join("vzdump-openvz-200.tgz");
    fs::write(&foreign, Command::new("gzip").arg("-c").arg(&plain).output().unwrap().stdout).unwrap();
    for archive in [&with, &plain, &foreign] {
        let listed = vzkeep(&["ls"], archive, &["etc"]);
        let text = String::from_utf8(listed.stdout).unwrap();
        let lines: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(
            lines,
            [["-", "3", "hostname"], ["l", "0", "link"], ["d", "0", "network"], ["-", "0", "odd\\nname"]]
        );
        assert!(listed.status.success() && listed.stderr.is_empty());
        let raw = vzkeep(&["ls", "-0"], archive, &["./etc/"]);
        assert_eq!(raw.stdout, b"hostname\0link\0network\0odd\nname\0");
        assert_eq!(vzkeep(&["ls"], archive, &[]).stdout, b"d              0 etc\n");
        assert_eq!(vzkeep(&["cat"], archive, &["etc/hostname"]).stdout, b"ct\n");
        let missing = vzkeep(&["cat"], archive, &["etc/none"]);
        let said = format!("archive '{}' has no 'etc/none'\n", archive.display());
        assert_eq!((missing.status.code(), String::from_utf8(missing.stderr).unwrap()), (Some(255), said));
    }
}

#[test]
fn only_what_is_needed_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("a")).unwrap();
    let mut noise = vec![0; 24 << 20];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    for (number, piece) in noise.chunks(1 << 20).enumerate() {
        fs::write(tree.join(format!("a/{number:02}")), piece).unwrap();
    }
    fs::write(tree.join("a/last"), "found").unwrap();
    let archive = dir.path().join("a.tar.zst");
    pack(&tree, &archive, Compression::Zstd { threads: 2 });
    // Where something is destroyed that is not read, it is not missed.
    let good = fs::read(&archive).unwrap();
    let whole = vzkeep(&["ls"], &archive, &["a"]).stdout;
    let mut failed = 0;
    for from in (1 << 20..20 << 20).step_by(4 << 20) {
        let mut broken = good.clone();
        (from..from + (1 << 20)).step_by(4096).for_each(|at| broken[at] ^= 0xff);
        fs::write(&archive, &broken).unwrap();
        assert!(vzkeep(&["ls"], &archive, &["a"]).stdout == whole, "byte {from}");
        let found = vzkeep(&["cat"], &archive, &["a/last"]);
        if found.status.success() {
            assert_eq!(found.stdout, b"found");
        } else {
            failed += 1;
        }
    }
    // The file lies in one of the frames, wherever the directory's order has put it.
    assert!(failed <= 1, "{failed}");
}

#[test]
fn an_archive_may_be_a_volume_of_a_storage() {
    let dir = tempfile::tempdir().unwrap();
    let (root, tree) = (dir.path().join("root"), dir.path().join("tree"));
    for dir in [root.join("etc/pve"), root.join("srv/bk/dump"), tree.join("etc")] {
        fs::create_dir_all(dir).unwrap();
    }
    fs::write(tree.join("etc/hostname"), "ct\n").unwrap();
    fs::write(root.join("etc/pve/storage.cfg"), "dir: bk\n\tpath /srv/bk\n\tcontent backup\n").unwrap();
    let name = "vzdump-lxc-200-2026_11_22-09_26_26.tar.zst";
    pack(&tree, &root.join("srv/bk/dump").join(name), Compression::Zstd { threads: 1 });
    let run = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vzkeep"));
        command.args(words).env(Host::ROOT_VAR, &root).current_dir(dir.path()).output().unwrap()
    };
    let volid = format!("bk:backup/{name}");
    assert_eq!(run(&["cat", &volid, "etc/hostname"]).stdout, b"ct\n");
    assert_eq!(run(&["ls", "-0", &volid, "etc"]).stdout, b"hostname\0");
    for (volid, said) in [
        ("bk:backup/none.tar", "volume 'bk:backup/none.tar' does not exist\n"),
        ("bk:backup/../x", "'bk:backup/../x' is no volume of storage 'bk'\n"),
        ("no:backup/x.tar", "storage 'no' does not exist\n"),
    ] {
        let output = run(&["ls", volid]);
        assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(255), said));
    }
}
