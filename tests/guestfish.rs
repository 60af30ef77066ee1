//! File systems that vzkeep does not read itself, through the real `guestfish`: the files on XFS and btrfs in archives, and
//! what is left when somebody does not wait for its machine.

use anyhow::{Context, Result, ensure};
use lab::mounted::{LONG, MountPoint, make_vma, wait};
use lab::run::Running;
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use vzkeep::archive::Compression;
use vzkeep::host::Host;

mod lab;

/// How long the machine may take to start on a busy machine without KVM.
const START: Duration = Duration::from_secs(300);

/// Whether the real program can be used here; it needs a kernel to start.
fn require(test: &str, programs: &[&str]) -> bool {
    lab::require(test, &["guestfish"]) && lab::programs::require_guest(test) && lab::require(test, programs)
}

/// Runs a program that has to succeed.
fn run(program: &str, words: &[&str], path: &Path) -> Result<()> {
    let program = lab::programs::find(program).with_context(|| format!("{program} is missing"))?;
    let output = Command::new(&program).args(words).arg(path).output()?;
    ensure!(output.status.success(), "{}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Shows a disk's file system on a directory, through the kernel of this machine.
fn mount(image: &Path, at: &MountPoint) -> Result<()> {
    let output = Command::new("mount").args(["-o", "loop"]).arg(image).arg(at.path()).output()?;
    ensure!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn disk(dir: &Path, name: &str, size: u64) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::File::create(&path)?.set_len(size)?;
    Ok(path)
}

/// `vzkeep` with all its temporary files below `dir`.
fn vzkeep(dir: &Path, words: &[&str], archive: &Path, rest: &[&str]) -> Result<Command> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vzkeep"));
    command.args(words).arg(archive).args(rest).env_remove(Host::ROOT_VAR).env("TMPDIR", dir);
    lab::guestfish::prepare(&mut command)?;
    Ok(command)
}

/// Changes one byte where `what` is packed.
fn spoil(archive: &Path, what: &[u8]) -> Result<()> {
    let mut bytes = fs::read(archive)?;
    let at = bytes.windows(what.len()).position(|window| window == what).context("not found in the archive")?;
    bytes[at] ^= 1;
    Ok(fs::write(archive, bytes)?)
}

/// Where the last block of names in a directory of XFS begins.
fn last_block_of_directory(image: &Path, inode: u64) -> Result<usize> {
    let ask = |words: &[&str]| {
        let mut xfs_db = Command::new(lab::programs::find("xfs_db").context("xfs_db is missing")?);
        xfs_db.args(words.iter().flat_map(|word| ["-c", word]));
        Ok::<_, anyhow::Error>(String::from_utf8(xfs_db.arg("-r").arg(image).output()?.stdout)?)
    };
    let superblock = ask(&["sb 0", "print agblocks"])?;
    let blocks: usize = superblock.trim().trim_start_matches("agblocks = ").parse()?;
    // data offset 3 startblock 24 (0/24) count 20 flag 0; the names' hashes begin far behind.
    let map = ask(&[&format!("inode {inode}"), "bmap"])?;
    let runs = map.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (group, block) = words.get(5)?.trim_matches(['(', ')']).split_once('/')?;
        let number = |word: &str| word.parse::<usize>().ok();
        let (offset, count) = (number(words.get(2)?)?, number(words.get(7)?)?);
        (offset < 8_000_000).then_some((offset, number(group)? * blocks + number(block)? + count - 1))
    });
    let (_, last) = runs.max().with_context(|| format!("no blocks in {map}"))?;
    Ok(last * 4096)
}

#[test]
fn a_tree_on_xfs_is_taken_out() -> Result<()> {
    if !require(
        "a_tree_on_xfs_is_taken_out",
        &["mkfs.xfs", "xfs_db", "mount", "losetup", "setfacl", "setcap", "setfattr"],
    ) {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let image = disk(dir.path(), "image", 320 << 20)?;
    run("mkfs.xfs", &["-q", "-f"], &image)?;
    let tree = MountPoint::new(dir.path(), "tree")?;
    mount(&image, &tree)?;
    let made = dir.path().join("made");
    lab::nasty::make(&made, 300, lab::nasty::Devices::No)?;
    // XFS has links of 1,024 bytes at most.
    fs::remove_file(made.join("names/very long target"))?;
    // All of it would be read: guestfish does not say where holes are.
    fs::remove_file(made.join("holes/ten gigabytes"))?;
    run("cp", &["-a", "-T", &made.display().to_string()], tree.path())?;
    // Several frames of noise, which is in the archive as it is.
    let noise = lab::Dice::seeded(11).bytes(32 << 20);
    fs::write(tree.join("spoilt"), &noise)?;
    fs::create_dir(tree.join("many"))?;
    for n in 0..3000 {
        fs::write(tree.join(&format!("many/a name that takes some room, number {n}")), "")?;
    }
    let inode = tree.join("many").metadata()?.ino();
    // Else its blocks are only in the journal.
    tree.unmount()?;
    let block = last_block_of_directory(&image, inode)?;
    mount(&image, &tree)?;
    // Only in the journal when the disk is copied.
    fs::write(tree.join("late"), "late")?;
    fs::File::open(tree.join("late"))?.sync_all()?;
    let archive = dir.path().join("vzdump-qemu-100-2026_11_22-00_00_00.vma.zst");
    let mut bytes = fs::read(&image)?;
    bytes[block..block + 4096].fill(0x5a);
    make_vma(&archive, &[("drive-scsi0", bytes)], Compression::Zstd { threads: 2 })?;
    spoil(&archive, &noise[20 << 20..][..64])?;

    let out = dir.path().join("out");
    let command = vzkeep(dir.path(), &["extract"], &archive, &["drive-scsi0", "--to", &out.display().to_string()])?;
    let output = Running::start(command, dir.path())?.wait(START)?;
    assert_eq!(output.code, 255, "{}", output.stderr);
    let lines: Vec<_> = output.stderr.lines().collect();
    let of_spoilt: Vec<_> = lines.iter().filter(|line| line.contains("spoilt")).collect();
    assert!(of_spoilt.len() == 1 && of_spoilt[0].contains("drive-scsi0: read of "), "{}", output.stderr);
    let read_by = "drive-scsi0: guestfish reads an XFS file system; it took ";
    assert_eq!(lines.iter().filter(|line| line.starts_with(read_by)).count(), 1, "{}", output.stderr);
    // Whose names come at first without a complaint.
    let of_many: Vec<_> = lines.iter().filter(|line| line.contains(": many: guestfish: ")).collect();
    assert_eq!(of_many.len(), 1, "{}", output.stderr);
    assert_eq!(lines.last(), Some(&"2 of the files could not be taken out"), "{}", output.stderr);
    assert!(!out.join("drive-scsi0/spoilt").exists());
    // Without what is not taken out of any file system: attributes, ACLs, pipes and links that have several names.
    let but = ["spoilt", "many", "rights", "links/capable", "kinds/fifo", "kinds/dangling", "kinds/dangling too"];
    let found = lab::tree_compare::differences(tree.path(), &out.join("drive-scsi0"), &but)?;
    assert!(found.is_empty(), "{found:#?}");
    assert_eq!(fs::read_to_string(out.join("drive-scsi0/late"))?, "late");
    for name in ["setuid", "none", "shared directory", "shut directory/inside"] {
        let [was, is] = [tree.path(), &out.join("drive-scsi0")].map(|top| top.join("rights").join(name).metadata());
        let (was, is) = (was?, is?);
        assert_eq!((was.mode(), was.uid(), was.gid(), was.mtime()), (is.mode(), is.uid(), is.gid(), is.mtime()));
    }
    Ok(())
}

#[test]
fn the_system_may_be_on_btrfs() -> Result<()> {
    if !require("the_system_may_be_on_btrfs", &["mkfs.btrfs", "btrfs", "mount", "losetup", "sfdisk"]) {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let image = disk(dir.path(), "image", 128 << 20)?;
    run("mkfs.btrfs", &["-q"], &image)?;
    let tree = MountPoint::new(dir.path(), "tree")?;
    mount(&image, &tree)?;
    let btrfs = |words: &[&str], name: &str| run("btrfs", &[&["-q"], words].concat(), &tree.join(name));
    for name in ["@", "home", "@/one", "@/two"] {
        btrfs(&["subvolume", "create"], name)?;
    }
    fs::create_dir(tree.join("@/etc"))?;
    fs::write(tree.join("@/etc/fstab"), "/dev/sda1 / btrfs\n")?;
    // From the root of the system, wherever that is.
    std::os::unix::fs::symlink("/etc/fstab", tree.join("@/etc/link"))?;
    // Each subvolume numbers its files from the beginning, and what a snapshot has in the place of others is no file at all.
    for name in ["@/one", "@/two", "home"] {
        fs::write(tree.join(name).join("file"), name)?;
    }
    let number = |name: &str| Ok::<_, anyhow::Error>(tree.join(name).metadata()?.ino());
    assert_eq!(number("@/one/file")?, number("@/two/file")?);
    btrfs(&["subvolume", "snapshot", &tree.join("@").display().to_string()], "snap")?;
    assert_eq!(number("snap/one")?, number("snap/two")?);
    // What is mounted where nobody asks for anything else.
    btrfs(&["subvolume", "set-default"], "snap")?;
    tree.unmount()?;
    let whole = disk(dir.path(), "whole", 132 << 20)?;
    let mut sfdisk = Command::new(lab::programs::find("sfdisk").context("sfdisk is missing")?);
    let mut sfdisk = sfdisk.arg("-q").arg(&whole).stdin(std::process::Stdio::piped()).spawn()?;
    std::io::Write::write_all(&mut sfdisk.stdin.take().context("no pipe")?, b"label: gpt\nstart=2048, size=262144\n")?;
    ensure!(sfdisk.wait()?.success());
    let mut bytes = fs::read(&whole)?;
    bytes[1 << 20..][..128 << 20].copy_from_slice(&fs::read(&image)?);
    let archive = dir.path().join("vzdump-qemu-100-2026_11_22-00_00_00.vma");
    make_vma(&archive, &[("drive-scsi0", bytes)], Compression::None)?;

    // The machine is started once for all of them.
    let out = dir.path().join("out");
    let words = ["/etc", "scsi0/p1", "/etc/../../etc/./fstab", "--to", &out.display().to_string()];
    let output = Running::start(vzkeep(dir.path(), &["extract"], &archive, &words)?, dir.path())?.wait(START)?;
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert_eq!(output.stderr.matches("guestfish reads").count(), 1, "{}", output.stderr);
    assert_eq!(fs::read_link(out.join("etc/link"))?, Path::new("/etc/fstab"));
    for (path, content) in [
        ("fstab", "/dev/sda1 / btrfs\n"),
        ("etc/fstab", "/dev/sda1 / btrfs\n"),
        ("p1/snap/etc/fstab", "/dev/sda1 / btrfs\n"),
        ("p1/@/one/file", "@/one"),
        ("p1/@/two/file", "@/two"),
        ("p1/home/file", "home"),
    ] {
        assert_eq!(fs::read_to_string(out.join(path)).with_context(|| path)?, content);
    }
    for place in ["one", "two"] {
        assert_eq!(fs::read_dir(out.join("p1/snap").join(place))?.count(), 0);
    }
    Ok(())
}

#[test]
fn what_guestfish_cannot_read_is_said_in_its_words() -> Result<()> {
    if !require("what_guestfish_cannot_read_is_said_in_its_words", &["mkfs.xfs"]) {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let image = disk(dir.path(), "image", 320 << 20)?;
    run("mkfs.xfs", &["-q", "-f"], &image)?;
    let mut bytes = fs::read(&image)?;
    // All of the superblock but its signature.
    bytes[4..512].fill(0x5a);
    let archive = dir.path().join("broken.vma");
    make_vma(&archive, &[("drive-scsi0", bytes)], Compression::None)?;
    let output = Running::start(vzkeep(dir.path(), &["ls"], &archive, &["drive-scsi0"])?, dir.path())?.wait(START)?;
    let begin = format!(
        "archive '{}': drive-scsi0: holds an XFS file system, which 'guestfish' cannot read: mount_options: ",
        archive.display()
    );
    assert!(output.stderr.starts_with(&begin) && output.code == 255, "{output:?}");
    assert!(
        output.stderr.trim_end().ends_with("which 'mount -o ro,loop DIR/drive-scsi0.raw DIR2' shows"),
        "{output:?}"
    );
    Ok(())
}

#[test]
fn nothing_is_left_of_a_machine_nobody_waits_for() -> Result<()> {
    let name = "nothing_is_left_of_a_machine_nobody_waits_for";
    if !require(name, &["mkfs.xfs"]) {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let image = disk(dir.path(), "image", 320 << 20)?;
    run("mkfs.xfs", &["-q", "-f"], &image)?;
    let archive = dir.path().join("a.vma");
    make_vma(&archive, &[("drive-scsi0", fs::read(&image)?)], Compression::None)?;
    let temporary = dir.path().join("tmp");
    fs::create_dir(&temporary)?;
    let ours = || Ok::<_, anyhow::Error>(temporary.read_dir()?.count());
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let command = vzkeep(&temporary, &["ls"], &archive, &["drive-scsi0"])?;
        let running = Running::start(command, dir.path())?;
        wait("the machine starts", || {
            Ok(lab::guestfish::processes_with(&temporary)?.iter().any(|line| line.contains("qemu-system")))
        })?;
        running.signal(signal)?;
        let output = running.wait(LONG)?;
        // Who is killed leaves the directory of the socket to the next one, and that removes it.
        let left = if signal == Signal::SIGKILL { 1 } else { 0 };
        assert!(output.code == if left == 1 { 137 } else { 255 }, "{output:?}");
        wait("the machine ends", || Ok(lab::guestfish::processes_with(&temporary)?.is_empty()))?;
        assert_eq!(ours()?, left);
    }
    Ok(())
}
