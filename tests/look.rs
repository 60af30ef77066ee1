//! `vzkeep ls`, `vzkeep cat` and `vzkeep extract`: the program as users call it, on archives with and without a table of members.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "lab/archives.rs"]
mod archives;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use vzkeep::archive::Compression;
use vzkeep::host::Host;
use vzkeep::image::RawImage;
use vzkeep::transfer::{Backup, BackupDisk};

fn pack(tree: &Path, archive: &Path, compression: Compression) {
    archives::make_tar(archive, tree, compression).unwrap();
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

/// A tree with what is worth taking out.
fn guest_tree(tree: &Path, sparse_len: u64) {
    fs::create_dir_all(tree.join("etc/ssh")).unwrap();
    fs::create_dir_all(tree.join("var/big")).unwrap();
    fs::write(tree.join("etc/hostname"), "guest\n").unwrap();
    fs::write(tree.join("etc/fstab"), "").unwrap();
    fs::write(tree.join("etc/odd\nname"), "odd").unwrap();
    fs::write(tree.join("etc/ssh/key"), "secret").unwrap();
    fs::set_permissions(tree.join("etc/ssh/key"), PermissionsExt::from_mode(0o600)).unwrap();
    fs::set_permissions(tree.join("etc/ssh"), PermissionsExt::from_mode(0o750)).unwrap();
    std::os::unix::fs::chown(tree.join("etc/ssh/key"), Some(1234), Some(4321)).unwrap();
    fs::hard_link(tree.join("etc/hostname"), tree.join("etc/same")).unwrap();
    symlink("/etc/hostname", tree.join("etc/link")).unwrap();
    symlink("/nowhere/at/all", tree.join("etc/dangling")).unwrap();
    nix::unistd::mkfifo(&tree.join("etc/pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let noise: Vec<u8> = (0..1_u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(tree.join("var/big/noise"), noise).unwrap();
    let sparse = fs::File::create(tree.join("var/big/sparse")).unwrap();
    sparse.set_len(sparse_len).unwrap();
    sparse.write_all_at(b"end", sparse_len - 3).unwrap();
}

fn run(program: &str, words: &[&str], path: &Path) {
    let output =
        Command::new(program).args(words).arg(path).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Two disks: one with FAT and ext4 in partitions, one with XFS from the first byte on.
fn machine(dir: &Path, compression: Compression) -> std::path::PathBuf {
    let (disk, part, other) = (dir.join("disk"), dir.join("part"), dir.join("other"));
    fs::File::create(&disk).unwrap().set_len(96 << 20).unwrap();
    let mut sfdisk = Command::new("/usr/sbin/sfdisk").arg("-q").arg(&disk).stdin(Stdio::piped()).spawn().unwrap();
    sfdisk.stdin.take().unwrap().write_all(b"label: gpt\nsize=4M\nsize=64M\nsize=4M\n").unwrap();
    assert!(sfdisk.wait().unwrap().success());
    let into = fs::File::options().write(true).open(&disk).unwrap();
    fs::File::create(&part).unwrap().set_len(4 << 20).unwrap();
    run("mkfs.vfat", &[], &part);
    into.write_all_at(&fs::read(&part).unwrap(), 1 << 20).unwrap();
    fs::File::create(&part).unwrap().set_len(64 << 20).unwrap();
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-d", dir.join("tree").to_str().unwrap()], &part);
    into.write_all_at(&fs::read(&part).unwrap(), 5 << 20).unwrap();
    fs::File::create(&other).unwrap().set_len(300 << 20).unwrap();
    run("mkfs.xfs", &["-q"], &other);
    let open = |name: &str, path: &Path| BackupDisk {
        name: format!("drive-{name}"),
        image: Arc::new(RawImage::open(path, name).unwrap()),
    };
    let configs = vec![("qemu-server.conf".to_owned(), b"cores: 2\n".to_vec())];
    let what = Backup { configs, ..archives::job(vec![open("scsi0", &disk), open("scsi1", &other)], compression) };
    let archive = dir.join(format!("vzdump-qemu-100-2026_11_22-09_26_26.vma{}", compression.suffix()));
    archives::write_vma(&archive, &what).unwrap();
    archive
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What was taken out is what was there.
fn assert_taken_out(from: &Path, to: &Path) {
    for name in ["hostname", "fstab", "odd\nname", "ssh", "ssh/key", "same", "link", "dangling"] {
        let (real, found) =
            (fs::symlink_metadata(from.join(name)).unwrap(), fs::symlink_metadata(to.join(name)).unwrap());
        assert_eq!(
            (real.mode(), real.uid(), real.gid(), real.mtime()),
            (found.mode(), found.uid(), found.gid(), found.mtime()),
            "{name}"
        );
        if real.is_file() {
            assert_eq!(fs::read(from.join(name)).unwrap(), fs::read(to.join(name)).unwrap(), "{name}");
        }
    }
    assert_eq!(fs::metadata(to.join("same")).unwrap().ino(), fs::metadata(to.join("hostname")).unwrap().ino());
    assert_eq!(fs::read_link(to.join("link")).unwrap().to_str(), Some("/etc/hostname"));
    assert!(!to.join("pipe").exists());
}

#[test]
fn files_on_the_disks_of_a_machine() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    guest_tree(&tree, 5 << 30);
    for compression in [Compression::Zstd { threads: 2 }, Compression::None] {
        let archive = machine(dir.path(), compression);
        fs::write(format!("{}.notes", archive.display()), "a note\n").unwrap();
        let list = |path: &str, words: &[&str]| {
            let output = vzkeep(&[&["ls"], words].concat(), &archive, &[path]);
            assert!(output.status.success() && output.stderr.is_empty(), "{path}: {}", text(&output.stderr));
            text(&output.stdout)
        };
        let names = |path: &str| list(path, &["-0"]).split_terminator('\0').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(names(""), ["qemu-server.conf", "notes", "drive-scsi0", "drive-scsi1"]);
        assert_eq!(names("drive-scsi0"), ["p1", "p2", "p3"]);
        assert_eq!(names("scsi0/p2"), ["etc", "lost+found", "var"]);
        let etc = ["dangling", "fstab", "hostname", "link", "odd\nname", "pipe", "same", "ssh"];
        assert_eq!(
            (names("drive-scsi0/p2/etc"), names("/etc")),
            (etc.map(str::to_owned).to_vec(), etc.map(str::to_owned).to_vec())
        );
        assert!(list("/var/big", &[]).contains("-     5368709120 sparse\n"));
        assert!(list("/", &["-R", "-0"]).contains("\0etc/ssh/key\0"));
        let objects: serde_json::Value = serde_json::from_str(&list("/etc/ssh", &["--json"])).unwrap();
        assert_eq!(
            (objects[0]["name"].as_str(), objects[0]["mode"].as_str(), objects[0]["uid"].as_u64()),
            (Some("key"), Some("0600"), Some(1234))
        );
        let cat = |path: &str| vzkeep(&["cat"], &archive, &[path]);
        for (path, content) in [
            ("notes", "a note\n"),
            ("qemu-server.conf", "cores: 2\n"),
            ("/etc/link", "guest\n"),
            ("scsi0/p2/etc/odd\nname", "odd"),
        ] {
            assert_eq!(text(&cat(path).stdout), content, "{path}");
        }
        assert!(cat("/var/big/noise").stdout == fs::read(tree.join("var/big/noise")).unwrap());
        let name = archive.display();
        let xfs = format!(
            "archive '{name}': drive-scsi1: holds an XFS file system, which is read with the help of the program \
             'guestfish', which is not installed; 'vzkeep mount {name} DIR' makes it a file, which \
             'mount -o ro,loop DIR/drive-scsi1.raw DIR2' shows\n"
        );
        // Where there is no such program, nor any other.
        let mut alone = Command::new(env!("CARGO_BIN_EXE_vzkeep"));
        let alone = alone.args(["cat"]).arg(&archive).arg("drive-scsi1/x").env("PATH", dir.path()).output().unwrap();
        assert_eq!((alone.status.code(), text(&alone.stderr)), (Some(255), xfs));
        for (path, said) in [
            ("/etc/none", format!("archive '{name}' has no '/etc/none'\n")),
            ("scsi9", format!("archive '{name}' has no 'scsi9'\n")),
            ("scsi0/p2/etc", format!("'scsi0/p2/etc' in archive '{name}' is a directory\n")),
            ("/etc/pipe", format!("'/etc/pipe' in archive '{name}' is no regular file\n")),
            ("scsi0/p3/x", format!("archive '{name}': drive-scsi0/p3: holds no file system that is known\n")),
        ] {
            let output = cat(path);
            assert_eq!((output.status.code(), text(&output.stderr)), (Some(255), said), "{path}");
        }
        let to = dir.path().join("out");
        let to_word = to.to_str().unwrap();
        let taken = vzkeep(&["extract", "--to", to_word], &archive, &["/etc", "scsi0/p2/var/big", "qemu-server.conf"]);
        assert_eq!(text(&taken.stderr), "'etc/pipe' is left out: it is a device, a pipe or a socket\n");
        assert!(taken.status.success());
        assert_taken_out(&tree.join("etc"), &to.join("etc"));
        let sparse = fs::metadata(to.join("big/sparse")).unwrap();
        assert!(sparse.len() == 5 << 30 && sparse.blocks() < 1000);
        assert!(fs::read(to.join("big/noise")).unwrap() == fs::read(tree.join("var/big/noise")).unwrap());
        assert_eq!(fs::read(to.join("qemu-server.conf")).unwrap(), b"cores: 2\n");
        // Nothing is replaced, and nothing is written through a link that lies there.
        let again = vzkeep(&["extract", "--to", to_word], &archive, &["/etc/hostname", "/etc/ssh"]);
        assert!(again.status.success(), "{}", text(&again.stderr));
        let again = vzkeep(&["extract", "--to", to_word], &archive, &["/etc/hostname"]);
        assert_eq!(
            (again.status.code(), text(&again.stderr)),
            (Some(255), format!("writing {to_word}/hostname: File exists (os error 17)\n"))
        );
        fs::remove_dir_all(&to).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir_all(&elsewhere).unwrap();
        fs::create_dir(&to).unwrap();
        symlink(&elsewhere, to.join("etc")).unwrap();
        let through = vzkeep(&["extract", "--to", to_word], &archive, &["/etc"]);
        assert_eq!(through.status.code(), Some(255));
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        fs::remove_dir_all(&to).unwrap();
        fs::remove_file(&archive).unwrap();
    }
}

#[test]
fn taking_files_out_of_a_container() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    guest_tree(&tree, 48 << 20);
    let with = dir.path().join("vzdump-lxc-200.tar.zst");
    pack(&tree, &with, Compression::Zstd { threads: 2 });
    let plain = dir.path().join("plain.tar");
    pack(&tree, &plain, Compression::None);
    let foreign = dir.path().join("vzdump-openvz-200.tgz");
    fs::write(&foreign, Command::new("gzip").arg("-c").arg(&plain).output().unwrap().stdout).unwrap();
    for archive in [&with, &plain, &foreign] {
        let to = dir.path().join("out");
        let taken = vzkeep(&["extract", "--to", to.to_str().unwrap()], archive, &["etc", "./var/big/"]);
        assert!(taken.status.success());
        assert_eq!(text(&taken.stderr), "'./etc/pipe' is left out: it is a device, a pipe or a socket\n");
        assert_taken_out(&tree.join("etc"), &to.join("etc"));
        let sparse = fs::metadata(to.join("big/sparse")).unwrap();
        assert!(sparse.len() == 48 << 20 && sparse.blocks() < 1000);
        assert!(fs::read(to.join("big/noise")).unwrap() == fs::read(tree.join("var/big/noise")).unwrap());
        // A link whose file was not asked for is a file of its own.
        vzkeep(&["extract", "--to", to.to_str().unwrap()], archive, &["etc/same", "etc/hostname"]);
        assert_eq!(fs::read(to.join("same")).unwrap(), b"guest\n");
        let listed = text(&vzkeep(&["ls", "-R", "-0"], archive, &["etc"]).stdout);
        assert!(listed.contains("\0ssh/key\0"), "{listed}");
        let missing = vzkeep(&["extract", "--to", to.to_str().unwrap()], archive, &["etc/none"]);
        assert_eq!(text(&missing.stderr), format!("archive '{}' has no 'etc/none'\n", archive.display()));
        fs::remove_dir_all(&to).unwrap();
    }
}

#[test]
fn names_of_a_hostile_archive_stay_below() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, archive, to) = (dir.path().join("tree"), dir.path().join("evil.tar"), dir.path().join("deep/out"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "evil").unwrap();
    symlink("..", tree.join("up")).unwrap();
    // A link, then a file through it, and a name that leads out.
    let tar = |words: &[&str]| {
        let status = Command::new("tar").args(["-C"]).arg(&tree).args(words).status().unwrap();
        assert!(status.success());
    };
    let name = archive.to_str().unwrap();
    tar(&["-cf", name, "./up"]);
    tar(&["-rf", name, "--transform=s,file,up/through,", "./file"]);
    tar(&["-rPf", name, "--transform=s,file,../../escaped,", "./file"]);
    let taken = vzkeep(&["extract", "--to", to.to_str().unwrap()], &archive, &["."]);
    assert_eq!(taken.status.code(), Some(255), "{}", text(&taken.stderr));
    assert!(text(&taken.stderr).ends_with("2 of the files could not be taken out\n"), "{}", text(&taken.stderr));
    let names = |path: &Path| fs::read_dir(path).unwrap().count();
    assert_eq!((names(&to), names(&dir.path().join("deep")), dir.path().join("escaped").exists()), (1, 1, false));
}

/// Runs the program until a file of `size` bytes is being written, whatever its name, and ends it.
fn broken_off(archive: &Path, to: &Path, size: u64, signal: nix::sys::signal::Signal) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vzkeep"));
    command.args(["extract", "--to"]).arg(to).arg(archive).arg("d").env_remove(Host::ROOT_VAR);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let open = std::path::PathBuf::from(format!("/proc/{}/fd", child.id()));
    let is_begun = || {
        let files = fs::read_dir(&open).ok()?.flatten().filter_map(|entry| fs::metadata(entry.path()).ok());
        Some(files.into_iter().any(|file| file.is_file() && file.len() == size && file.blocks() > 0))
    };
    let begun = std::time::Instant::now();
    // None: it has ended, which the caller finds out.
    while is_begun() == Some(false) && begun.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_killed_run_leaves_no_half_file() {
    use nix::sys::signal::Signal;
    let dir = tempfile::tempdir().unwrap();
    let (tree, to) = (dir.path().join("tree"), dir.path().join("out"));
    fs::create_dir_all(tree.join("d")).unwrap();
    fs::set_permissions(tree.join("d"), PermissionsExt::from_mode(0o751)).unwrap();
    // All of it data, so that writing it takes a while.
    let content = b"0123456789abcdef".repeat(6 << 20);
    fs::write(tree.join("d/large"), &content).unwrap();
    let archive = dir.path().join("a.tar.zst");
    pack(&tree, &archive, Compression::Zstd { threads: 2 });
    let names = |path: &Path| fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let ended = broken_off(&archive, &to, content.len() as u64, signal);
        assert!(!to.join("d/large").exists(), "{signal}: {ended:?}");
        if signal == Signal::SIGTERM {
            let said = "interrupted: files that have their names are complete, the rest is not there\n";
            assert_eq!((ended.status.code(), text(&ended.stderr).as_str()), (Some(255), said));
            assert_eq!(names(&to.join("d")), [""; 0]);
            // Directories are what they shall be all the same.
            assert_eq!(fs::metadata(to.join("d")).unwrap().mode() & 0o7777, 0o751);
        }
        let again = vzkeep(&["extract", "--to", to.to_str().unwrap()], &archive, &["d"]);
        assert!(again.status.success() && again.stderr.is_empty(), "{signal}: {}", text(&again.stderr));
        assert!(fs::read(to.join("d/large")).unwrap() == content);
        fs::remove_dir_all(&to).unwrap();
    }
}

#[test]
fn onto_a_file_system_without_owners() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, image, to) = (dir.path().join("tree"), dir.path().join("fat"), dir.path().join("mnt"));
    fs::create_dir_all(tree.join("d/sub")).unwrap();
    fs::create_dir(tree.join("l")).unwrap();
    fs::create_dir(tree.join("big")).unwrap();
    fs::create_dir(&to).unwrap();
    for (name, owner, mode) in
        [("d/a", 1234, 0o4755), ("d/sub/b", 1234, 0o644), ("d/sub/c", 0, 0o2755), ("l/z", 0, 0o644)]
    {
        fs::write(tree.join(name), name).unwrap();
        std::os::unix::fs::chown(tree.join(name), Some(owner), Some(owner)).unwrap();
        fs::set_permissions(tree.join(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    std::os::unix::fs::chown(tree.join("d/sub"), Some(1234), Some(1234)).unwrap();
    fs::set_permissions(tree.join("d"), PermissionsExt::from_mode(0o1777)).unwrap();
    symlink("z", tree.join("l/a link")).unwrap();
    fs::write(tree.join("big/file"), vec![1; 20 << 20]).unwrap();
    let archive = dir.path().join("a.tar.zst");
    pack(&tree, &archive, Compression::Zstd { threads: 2 });
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    run("mkfs.vfat", &[], &image);
    let mounted = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&to).output().unwrap();
    if !mounted.status.success() {
        println!("SKIPPED onto_a_file_system_without_owners: nothing can be mounted here");
        return;
    }
    let done = std::panic::catch_unwind(|| {
        let extract = |path: &str| {
            let output = vzkeep(&["extract", "--to", to.to_str().unwrap()], &archive, &[path]);
            (output.status.code(), text(&output.stderr))
        };
        let (code, said) = extract("d");
        assert!(code == Some(0) && said.lines().count() == 1, "{code:?} {said}");
        assert!(said.contains(": the file system refuses owners or permissions; "), "{said}");
        for name in ["d/a", "d/sub/b", "d/sub/c"] {
            assert_eq!(text(&fs::read(to.join(name)).unwrap()), name);
            assert_eq!(fs::metadata(to.join(name)).unwrap().mode() & 0o7000, 0, "{name}");
        }
        // What it has no room for, or no such thing as.
        let (code, said) = extract("l");
        assert!(code == Some(255) && said.ends_with("1 of the files could not be taken out\n"), "{said}");
        assert_eq!(text(&fs::read(to.join("l/z")).unwrap()), "l/z");
        let (code, said) = extract("big");
        assert!(code == Some(255) && said.contains("No space left on device"), "{said}");
        assert_eq!(fs::read_dir(to.join("big")).unwrap().count(), 0);
        let (code, said) = extract("d/a");
        assert!(code == Some(0) && to.join("a").is_file(), "{said}");
        let (code, said) = extract("d/a");
        assert!(code == Some(255) && said.contains("File exists"), "{said}");
    });
    assert!(Command::new("umount").arg(&to).status().unwrap().success());
    done.unwrap();
}
