//! `pct restore`, the program itself, on a small node with stand-ins for `pvesm` and `pct`: archives that GNU tar made come
//! back equal, hostile ones write nothing, and a restore that fails or is killed leaves nothing. Needs root: volumes are mounted.

#![expect(clippy::unwrap_used, reason = "tests")]

mod lab;
mod pct {
    pub mod hostile;
    pub mod node;
    pub mod tree;
}

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use lab::nasty::{self, Devices};
use lab::tree_compare::differences;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::Pid;
use pct::hostile::{Entry, archive};
use pct::node::{ARCHIVE, CONFIG, Node, tar, text, wait_for};
use pct::tree::{Mounted, small_tree};
use vzkeep::guest::record::{Intent, Opened, Record};
use vzkeep::host::Host;

const NEEDED: [&str; 5] = ["tar", "mkfs.ext4", "mount", "losetup", "zstd"];

fn ready(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "{test}: needs root");
        println!("SKIPPED {test}: needs root");
        return false;
    }
    lab::require(test, &NEEDED)
}

/// Compares what was restored, its mount point included, with the tree it was made of.
fn assert_equal(node: &Node, source: &Path) {
    let mounted = Mounted::new(&[(node.image("vm-201-disk-0.raw"), ""), (node.image("vm-201-disk-1.raw"), "data")]);
    let but = ["dev", "lost+found", "data/lost+found", "nobackup"];
    let found = differences(source, &mounted.path(), &but).unwrap();
    assert!(found.is_empty(), "{} differences\n{}", found.len(), found[..found.len().min(20)].join("\n"));
}

#[test]
fn an_archive_of_the_original_with_everything_in_it_comes_back() {
    let test = "an_archive_of_the_original_with_everything_in_it_comes_back";
    if !ready(test) || !lab::require(test, &["setfacl", "setfattr", "setcap"]) {
        return;
    }
    let node = Node::new();
    let source = node.path("src");
    small_tree(&source);
    nasty::make(&source.join("srv"), 100, Devices::Yes).unwrap();
    nasty::make(&source.join("data/srv"), 0, Devices::Yes).unwrap();
    mknod(&source.join("dev/null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
    node.archive_of(&source, CONFIG, "zst");
    // A file system of less than half a gigabyte has small blocks, in which a long link finds no place.
    let out = node.run(&["201", ARCHIVE, "--rootfs", "local:1", "--mp0", "local:1,mp=/data"]);
    assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
    assert_equal(&node, &source);
    // The one node below /dev was left out.
    let mounted = Mounted::new(&[(node.image("vm-201-disk-0.raw"), "")]);
    assert_eq!(fs::read_dir(mounted.path().join("dev")).unwrap().count(), 0);
    assert!(!mounted.path().join("etc/vzdump").exists());
}

#[test]
fn what_it_says() {
    if !ready("what_it_says") {
        return;
    }
    let node = Node::small("zst");
    let words = ["201", "bk:backup/vzdump-lxc-200-2026_11_22-09_26_26.tar.zst", "--memory", "256", "--start"];
    let out = node.run(&words);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let said = text(&out.stdout);
    let lines: Vec<&str> = said.lines().filter(|l| !l.starts_with(['\t', 'C', 'F', 'S'])).collect();
    assert_eq!(
        lines[..4],
        [
            &format!("recovering backed-up configuration from '{ARCHIVE}'"),
            "WARN: mount point mp1 ('/nobackup') was not in the backup: it is made anew and is empty",
            &format!("restoring '{ARCHIVE}' now.."),
            &format!("extracting archive '{ARCHIVE}'"),
        ]
    );
    assert!(lines[4].starts_with("Total bytes read: ") && lines[5] == "merging backed-up and given configuration..");
    assert_eq!(
        node.config().unwrap(),
        "arch: amd64\nhostname: ct01\nmemory: 256\nmp0: local:201/vm-201-disk-1.raw,mp=/data,backup=1,size=16M\n\
         mp1: local:201/vm-201-disk-2.raw,mp=/nobackup,size=8M\nmp2: /srv/host,mp=/mnt/host\nostype: unmanaged\n\
         rootfs: local:201/vm-201-disk-0.raw,size=400M\nswap: 512\n"
    );
    assert_eq!(fs::read_to_string(node.path("etc/pve/firewall/201.fw")).unwrap(), "[OPTIONS]\nenable: 1\n");
    assert_eq!(fs::read_to_string(node.path("started")).unwrap(), "201\n");
    let index = fs::read_to_string(node.path("var/log/pve/tasks/index")).unwrap();
    assert!(index.contains(":vzrestore:201:root@pam: ") && index.ends_with(" OK\n"), "{index}");

    let again = node.run(&["201", ARCHIVE]);
    assert_eq!(again.status.code(), Some(255));
    assert_eq!(text(&again.stderr), "unable to restore CT 201 - CT 201 already exists on node 'pve1'\n");
    let missing = node.run(&["202", "/nosuch.tar"]);
    assert_eq!((missing.status.code(), text(&missing.stderr).as_str()), (Some(2), "can't find file '/nosuch.tar'\n"));
    let nowhere = node.run(&["202", ARCHIVE, "--storage", "bk"]);
    assert_eq!(
        text(&nowhere.stderr),
        "unable to restore CT 202 - storage 'bk' does not support container directories\n"
    );
    assert_eq!(nowhere.status.code(), Some(255));
}

#[test]
fn archives_of_all_kinds() {
    let test = "archives_of_all_kinds";
    if !ready(test) || !lab::require(test, &["gzip", "xz", "lzop"]) {
        return;
    }
    for ending in ["", "gz", "xz", "lzo", "zst"] {
        let node = Node::small(ending);
        let mut child = node.command(&["201", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&fs::read(node.path(ARCHIVE)).unwrap()).unwrap();
        assert!(child.wait().unwrap().success(), "{ending} from standard input");
        assert_equal(&node, &node.path("src"));
        // Under names that other tools give.
        let name =
            format!("/mnt/bk/dump/vzdump-openvz-200-2011_11_22-09_26_26.t{}", if ending == "gz" { "gz" } else { "ar" });
        fs::rename(node.path(ARCHIVE), node.path(&name)).unwrap();
        let out = node.run(&["202", &name]);
        assert!(out.status.success(), "{name}: {}", text(&out.stderr));
    }
    // One of OpenVZ, and one without any config.
    let node = Node::small("");
    let source = node.path("src");
    fs::create_dir_all(source.join("etc/vzdump")).unwrap();
    fs::write(source.join("etc/vzdump/vps.conf"), "PHYSPAGES=\"0:131072\"\n").unwrap();
    tar(&source, &["./etc/vzdump/vps.conf", "./"], &node.path(ARCHIVE));
    let refused = node.run(&["201", ARCHIVE]);
    assert!(
        text(&refused.stderr).starts_with("unable to restore CT 201 - the archive is one of OpenVZ"),
        "{refused:?}"
    );
    fs::remove_file(source.join("etc/vzdump/vps.conf")).unwrap();
    tar(&source, &["./"], &node.path(ARCHIVE));
    let refused = node.run(&["201", ARCHIVE]);
    assert!(text(&refused.stderr).contains("--rootfs <storage>:<GiB>"), "{refused:?}");
    node.assert_untouched();
    let out =
        node.run(&["201", ARCHIVE, "--rootfs", "local:0.25", "--mp0", "local:0.02,mp=/data", "--hostname", "new"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(
        node.config().unwrap(),
        "arch: amd64\nhostname: new\nmemory: 512\nmp0: local:201/vm-201-disk-1.raw,mp=/data,size=20971K\nostype: unmanaged\n\
         rootfs: local:201/vm-201-disk-0.raw,size=256M\nswap: 512\n"
    );
}

#[test]
fn hostile_archives_write_nothing_outside() {
    let test = "hostile_archives_write_nothing_outside";
    if !ready(test) || !lab::require(test, &["lxc-usernsexec"]) {
        return;
    }
    let node = Node::small("");
    let canary = node.path("canary");
    fs::create_dir_all(&canary).unwrap();
    fs::write(canary.join("file"), "precious").unwrap();
    let away = format!("{}/new", canary.display());
    let (target, file) = (canary.to_str().unwrap(), format!("{}/file", canary.display()));
    // From the directory in which tar unpacks.
    let up = format!("./{}canary/new", "../".repeat(8));
    for (what, privileged, entries) in [
        ("dots", true, vec![Entry::file(&up)]),
        ("dots inside", true, vec![Entry::dir("./a/"), Entry::file("./a/../../canary")]),
        ("absolute", true, vec![Entry::file(&away)]),
        ("through a link", true, vec![Entry::symlink("./a", target), Entry::file("./a/new")]),
        ("through a relative link", true, vec![Entry::symlink("./a", "../../../../canary"), Entry::file("./a/new")]),
        ("hard link outside", true, vec![Entry::link("./a", &file), Entry::file("./a")]),
        ("hard link up", true, vec![Entry::link("./a", "../../../../canary/file")]),
        ("hard link through a link", true, vec![Entry::symlink("./l", target), Entry::link("./a", "./l/file")]),
        ("device", false, vec![Entry::device("./disk", 8, 0)]),
        ("long name", true, vec![Entry::long(&format!("./{}x", "../".repeat(60)))]),
    ] {
        let config = if privileged { CONFIG.to_owned() } else { format!("{CONFIG}unprivileged: 1\n") };
        fs::write(node.path(ARCHIVE), archive(&config, &entries)).unwrap();
        let out = node.run(&["201", ARCHIVE]);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(255), "{what}: {said}");
        assert!(said.starts_with("unable to restore CT 201 - ") && said.contains("is refused"), "{what}: {said}");
        assert_eq!(fs::read_to_string(canary.join("file")).unwrap(), "precious", "{what}");
        assert_eq!(fs::read_dir(&canary).unwrap().count(), 1, "{what}");
        node.assert_untouched();
    }
    // The same builder makes one that is good.
    let good = [Entry::dir("./a/"), Entry::file("./a/b"), Entry::link("./c", "./a/b"), Entry::symlink("./d", "/etc")];
    fs::write(node.path(ARCHIVE), archive(CONFIG, &good)).unwrap();
    let out = node.run(&["201", ARCHIVE]);
    assert!(out.status.success(), "{}", text(&out.stderr));
}

#[test]
fn a_volume_that_is_too_small_leaves_nothing() {
    if !ready("a_volume_that_is_too_small_leaves_nothing") {
        return;
    }
    let node = Node::small("zst");
    let out = node.run(&["201", ARCHIVE, "--rootfs", "local:0.008"]);
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(255), "{said}");
    assert!(
        said.starts_with("unable to restore CT 201 - command 'tar xpf -") && said.ends_with("failed: exit code 2\n"),
        "{said}"
    );
    assert!(text(&out.stdout).contains("No space left on device"), "{}", text(&out.stdout));
    node.assert_untouched();
    // What fits is kept by those who ask for it, and it is said.
    let out = node.run(&["201", ARCHIVE, "--rootfs", "local:0.008", "--ignore-unpack-errors"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("WARN: not everything could be unpacked: "), "{}", text(&out.stdout));
}

#[test]
fn a_damaged_archive_leaves_nothing() {
    if !ready("a_damaged_archive_leaves_nothing") {
        return;
    }
    let node = Node::small("zst");
    let whole = fs::read(node.path(ARCHIVE)).unwrap();
    fs::write(node.path(ARCHIVE), &whole[..whole.len() / 2]).unwrap();
    for options in [&[][..], &["--ignore-unpack-errors"]] {
        let out = node.run(&[&["201", ARCHIVE], options].concat());
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(255), "{said}");
        assert!(said.starts_with("unable to restore CT 201 - archive '"), "{said}");
        node.assert_untouched();
    }
}

#[test]
fn stopped_or_killed_it_leaves_nothing() {
    if !ready("stopped_or_killed_it_leaves_nothing") {
        return;
    }
    let node = Node::small("zst");
    let slow = ["201", ARCHIVE, "--bwlimit", "500"];
    let mut child = node.command(&slow).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(|| node.images().len() == 3);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(node.config().as_deref(), Some("lock: create\n"));
    let begun = Instant::now();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!((out.status.code(), text(&out.stderr).as_str()), (Some(255), "interrupted by signal\n"));
    node.assert_untouched();
    for millis in [5, 60, 150, 250, 400, 800] {
        child = node.command(&slow).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(millis));
        child.kill().unwrap();
        child.wait().unwrap();
        wait_for(|| node.is_settled());
        wait_for(|| node.loops().is_empty());
        node.assert_untouched();
    }
    // No pause: the next run waits for the guardian.
    child = node.command(&slow).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for(|| node.images().len() == 2);
    child.kill().unwrap();
    child.wait().unwrap();
    let out = node.run(&["201", ARCHIVE]);
    assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
    assert_equal(&node, &node.path("src"));
}

#[test]
fn the_next_run_cleans_up_when_the_guardian_is_gone_too() {
    if !ready("the_next_run_cleans_up_when_the_guardian_is_gone_too") {
        return;
    }
    let node = Node::small("zst");
    let host = Host::with_root(node.path(""));
    let Opened::Fresh(mut record) = Record::open(&host, 201, "pct restore").unwrap() else { panic!("orphan") };
    record.note(&Intent::NewConfig).unwrap();
    record.note(&Intent::Volume { volid: "local:201/vm-201-disk-0.raw".into(), in_qemu: false }).unwrap();
    drop(record);
    fs::write(node.path("etc/pve/nodes/pve1/lxc/201.conf"), "lock: create\n").unwrap();
    fs::create_dir_all(node.path("var/lib/vz/images/201")).unwrap();
    fs::write(node.image("vm-201-disk-0.raw"), "half").unwrap();
    let out = node.run(&["201", ARCHIVE]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let said = text(&out.stdout);
    assert!(said.contains("an earlier run on CT 201 was killed") && said.contains("config of CT 201"), "{said}");
    assert_equal(&node, &node.path("src"));
}

#[test]
fn overwriting_keeps_the_old_container_until_the_new_one_is_complete() {
    if !ready("overwriting_keeps_the_old_container_until_the_new_one_is_complete") {
        return;
    }
    let node = Node::small("zst");
    let conf = node.path("etc/pve/nodes/pve1/lxc/201.conf");
    let old = "hostname: old\nrootfs: local:201/vm-201-disk-0.raw,size=1M\nunused0: local:201/vm-201-disk-7.raw\n";
    fs::create_dir_all(node.path("var/lib/vz/images/201")).unwrap();
    for name in ["vm-201-disk-0.raw", "vm-201-disk-7.raw"] {
        fs::write(node.image(name), "precious").unwrap();
    }
    fs::write(&conf, old).unwrap();
    let before = node.images();
    let mut child =
        node.command(&["201", ARCHIVE, "--force", "--bwlimit", "500"]).stdout(Stdio::null()).spawn().unwrap();
    wait_for(|| node.images().len() == 5);
    assert_eq!(node.config().unwrap(), format!("hostname: old\nlock: create\n{}", old.split_once('\n').unwrap().1));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for(|| node.is_settled());
    assert_eq!((node.config().as_deref(), node.images()), (Some(old), before.clone()));
    // One that runs stays.
    fs::write(node.path("running"), "").unwrap();
    let out = node.run(&["201", ARCHIVE, "--force"]);
    assert_eq!(text(&out.stderr), "unable to restore CT 201 - can't overwrite running container\n");
    assert_eq!((node.config().as_deref(), node.images()), (Some(old), before));
    fs::remove_file(node.path("running")).unwrap();

    let out = node.run(&["201", ARCHIVE, "--force"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(node.images(), ["vm-201-disk-1.raw", "vm-201-disk-2.raw", "vm-201-disk-3.raw"]);
    assert!(node.config().unwrap().starts_with("arch: amd64\nhostname: ct01\n"));
}

#[test]
fn pct_hands_other_words_on() {
    let node = Node::new();
    let link = node.path("own/pct");
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_vzkeep"), &link).unwrap();
    let path = format!("{}:{}:/usr/bin:/bin", node.path("own").display(), node.path("bin").display());
    let run = |words: &[&str], path: &str| {
        let mut command = std::process::Command::new(&link);
        command.args(words).env("VZKEEP_ROOT", node.path("")).env("PATH", path).output().unwrap()
    };
    assert_eq!(text(&run(&["status", "201"], &path).stdout), "status: stopped\n");
    let said = text(&run(&["restore", "201"], &path).stderr);
    assert_eq!(said, "400 not enough arguments\npct restore <vmid> <ostemplate> [OPTIONS]\n");
    let alone = run(&["ls"], node.path("own").to_str().unwrap());
    assert!(text(&alone.stderr).starts_with("of pct only 'pct restore'") && alone.status.code() == Some(255));
}
