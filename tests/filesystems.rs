//! File systems as real programs make them, read without mounting them, compared with the trees they were made of.

#![expect(clippy::unwrap_used, reason = "tests")]

mod lab;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use lab::file_compare::{compare, same_as_unix, same_as_windows};
use vzkeep::filesystem::{self, FileSystem, Metadata, resolve};
use vzkeep::image::{Image, MemImage, RawImage};

fn run(program: &str, words: &[&str], path: &Path) {
    let program = lab::programs::find(program).unwrap_or_else(|| program.into());
    let output = Command::new(&program).args(words).arg(path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {words:?} {}: {said}", program.display(), path.display());
}

fn open(path: &Path) -> Arc<dyn FileSystem> {
    filesystem::open(Arc::new(RawImage::open(path, "disk").unwrap())).unwrap()
}

fn file(path: &Path, size: u64) -> File {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    file
}

/// Mounts an image, runs `fill` on the mounted directory, and compares while it is there.
fn mounted(
    image: &Path,
    mount: &[&str],
    fill: &dyn Fn(&Path),
    same: &dyn Fn(&Metadata, &fs::Metadata) -> bool,
) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let (program, words) = mount.split_first().unwrap();
    let mut command = Command::new(lab::programs::find(program).unwrap());
    let output = command.args(words).arg(image).arg(dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    struct Unmount<'a>(&'a Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            Command::new("umount").arg(self.0).status().unwrap();
        }
    }
    let unmount = Unmount(dir.path());
    fill(dir.path());
    nix::unistd::sync();
    let fs = open(image);
    let count = compare(&*fs, fs.root(), dir.path(), same);
    // However it is spelled.
    if dir.path().join("case").exists() {
        let node = resolve(&*fs, b"CASE/mixed case.TXT", true).unwrap();
        assert_eq!(fs.metadata(node).unwrap().size, 5);
        assert!(resolve(&*fs, b"case/other", true).is_err());
    }
    drop(unmount);
    count
}

#[test]
fn ext_file_systems_are_what_they_were_made_of() {
    if !lab::require("ext_file_systems_are_what_they_were_made_of", &["mke2fs", "setfacl", "setcap", "setfattr"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    lab::nasty::make(&tree, 200, lab::nasty::Devices::Yes).unwrap();
    // Longer than a block of 1 KiB.
    fs::remove_file(tree.join("names/very long target")).unwrap();
    // More attributes than an inode has room for, and these are not read anyway.
    run("setfattr", &["-x", "user.long"], &tree.join("rights/listed"));
    // A directory that gets a tree of hashes, and links of all lengths around that of an inode.
    fs::create_dir(tree.join("many")).unwrap();
    for n in 0..1000 {
        File::create(tree.join(format!("many/a name that is not so short, number {n:05}"))).unwrap();
    }
    for len in [1, 58, 59, 60, 61, 150, 151, 1000] {
        symlink("x".repeat(len), tree.join(format!("link{len}"))).unwrap();
        fs::write(tree.join(format!("file{len}")), "y".repeat(len)).unwrap();
    }
    let big = file(&tree.join("five gigabytes"), 5 << 30);
    for at in [0, 4095, 1 << 20, 268_500_000, (4 << 30) - 2, (5 << 30) - 7] {
        big.write_all_at(b"found", at).unwrap();
    }
    let variants: [&[&str]; 8] = [
        &["-t", "ext2", "-b", "1024"],
        &["-t", "ext2", "-b", "4096", "-O", "^filetype,^dir_index", "-I", "128"],
        &["-t", "ext3", "-b", "2048"],
        &["-t", "ext4"],
        &["-t", "ext4", "-O", "bigalloc,^resize_inode"],
        &["-t", "ext4", "-O", "meta_bg,^resize_inode,mmp,large_dir,casefold", "-b", "1024"],
        &["-t", "ext4", "-O", "inline_data,^metadata_csum", "-I", "512"],
        &["-t", "ext4", "-O", "inline_data,metadata_csum", "-b", "1024"],
    ];
    let image = dir.path().join("image");
    for variant in variants {
        // With inline data, mke2fs cuts off the holes at the ends of files; debugfs says so, too.
        if variant.iter().any(|word| word.contains("inline")) && tree.join("holes").exists() {
            fs::remove_dir_all(tree.join("holes")).unwrap();
        }
        file(&image, 192 << 20);
        let tree_word = tree.display().to_string();
        run("mke2fs", &[&["-q", "-F", "-N", "4000", "-d", &tree_word], variant].concat(), &image);
        let fs = open(&image);
        // The top directory is made anew.
        let top = fs::metadata(&tree).unwrap().ino();
        let same = |found: &Metadata, wanted: &fs::Metadata| wanted.ino() == top || same_as_unix(found, wanted);
        let count = compare(&*fs, fs.root(), &tree, &same);
        assert!(count > 1200, "{count}");
        assert_eq!((fs.kind(), fs.note()), (variant[1], None));
        println!("{}: {count} files", variant.join(" "));
    }
}

/// Files that FAT and NTFS can hold: names of all kinds, and content in pieces.
fn fill(dir: &Path, many: usize) {
    fs::create_dir_all(dir.join("case")).unwrap();
    fs::write(dir.join("case/Mixed Case.txt"), "mixed").unwrap();
    fs::create_dir_all(dir.join("a/b/c/d/e")).unwrap();
    fs::write(dir.join("a/b/c/d/e/deep"), "deep").unwrap();
    fs::create_dir(dir.join("names")).unwrap();
    for name in [
        "UPPER.TXT",
        "lower.txt",
        "lower.TXT2",
        "no ending",
        "many.dots.in.it",
        ".hidden",
        "ÄÖÜ.txt",
        "smile \u{1f600}",
        "x+y[1];=,",
    ] {
        fs::write(dir.join("names").join(name), name).unwrap();
    }
    fs::write(dir.join("names").join("l".repeat(255)), "long").unwrap();
    fs::write(dir.join("empty"), "").unwrap();
    fs::create_dir(dir.join("many")).unwrap();
    for n in 0..many {
        fs::write(dir.join(format!("many/a rather long name, number {n}")), n.to_string()).unwrap();
    }
    for n in (0..many).step_by(3) {
        fs::remove_file(dir.join(format!("many/a rather long name, number {n}"))).unwrap();
    }
    // Two files whose pieces lie between each other.
    let mut dice = lab::Dice::seeded(7);
    let mut files = ["first", "second"].map(|name| File::create(dir.join(name)).unwrap());
    for _ in 0..12 {
        for file in &mut files {
            file.write_all(&dice.bytes(9000)).unwrap();
            file.sync_all().unwrap();
        }
    }
}

/// Writes a tree into a FAT file system, with other files in between that are removed again.
fn fat(image: &Path, size: u64, words: &[&str], tree: &Path) {
    file(image, size);
    run("mkfs.vfat", words, image);
    let mtools = |program: &str, words: &[&OsStr]| {
        let mut command = Command::new(lab::programs::find(program).unwrap());
        command.arg("-i").arg(image).args(words).envs([
            ("TZ", "UTC"),
            ("LC_ALL", "C.UTF-8"),
            ("MTOOLS_SKIP_CHECK", "1"),
        ]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let hole = tree.parent().unwrap().join("hole");
    fs::write(&hole, vec![b'h'; 5000]).unwrap();
    let names: Vec<_> = (0..12).map(|n| format!("::/hole{n}")).collect();
    fn os(word: &str) -> &OsStr {
        OsStr::new(word)
    }
    for name in &names {
        mtools("mcopy", &[hole.as_os_str(), os(name)]);
    }
    for name in names.iter().step_by(2) {
        mtools("mdel", &[os(name)]);
    }
    let mut entries: Vec<_> = fs::read_dir(tree).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort_by_key(|path| path.ends_with("many"));
    let words: Vec<&OsStr> =
        ["-s", "-m", "-Q"].map(os).into_iter().chain(entries.iter().map(|e| e.as_os_str())).collect();
    mtools("mcopy", &[&words[..], &[os("::/")]].concat());
    for name in names.iter().skip(1).step_by(2) {
        mtools("mdel", &[os(name)]);
    }
}

#[test]
fn fat_file_systems_are_what_was_written() {
    if !lab::require("fat_file_systems_are_what_was_written", &["mkfs.vfat", "mcopy"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    for (size, bits, many) in [(2 << 20, "12", 60), (32 << 20, "16", 400), (64 << 20, "32", 400)] {
        let tree = dir.path().join(bits);
        fs::create_dir(&tree).unwrap();
        fill(&tree, many);
        // mcopy knows 16 bits of a character.
        fs::remove_file(tree.join("names/smile \u{1f600}")).unwrap();
        fat(&image, size, &["-F", bits, "-s", "1", "-n", "LABEL"], &tree);
        let fs = open(&image);
        assert_eq!(fs.kind(), format!("FAT{bits}"));
        let count = compare(&*fs, fs.root(), &tree, &same_as_windows);
        println!("FAT{bits}: {count} files");
        assert!(count > many * 2 / 3);
        let node = resolve(&*fs, b"CASE/mixed case.TXT", true).unwrap();
        assert_eq!(fs.metadata(node).unwrap().size, 5);
        // In pieces: else nothing is shown about the table.
        let content = fs.open(resolve(&*fs, b"first", true).unwrap()).unwrap();
        assert!(bits == "32" || content.data_from(0).unwrap().end < content.size());
    }
}

#[test]
fn ntfs_file_systems_are_what_was_written() {
    if !lab::require("ntfs_file_systems_are_what_was_written", &["mkntfs", "ntfs-3g", "setfattr"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    for words in [&["-c", "4096"][..], &["-c", "512"], &["-c", "65536"]] {
        file(&image, 96 << 20);
        run("mkntfs", &[&["-q", "-F", "-f"], words].concat(), &image);
        let compressed = std::cell::Cell::new(0);
        let fill = |dir: &Path| {
            fill(dir, 400);
            fs::write(dir.join("resident"), "x".repeat(300)).unwrap();
            fs::hard_link(dir.join("resident"), dir.join("another name")).unwrap();
            run("setfattr", &["-n", "user.stream", "-v", "a stream of its own"], &dir.join("resident"));
            // More pieces than a record has room for.
            let scattered = file(&dir.join("scattered"), 40 << 20);
            for n in 0..500 {
                scattered.write_all_at(format!("piece {n}").as_bytes(), n * 80_000).unwrap();
            }
            fs::create_dir(dir.join("packed")).unwrap();
            // Clusters of more than 4 KiB cannot be compressed.
            if words[1] != "65536" {
                run("setfattr", &["-n", "system.ntfs_attrib_be", "-v", "0x00000800"], &dir.join("packed"));
            }
            let text: Vec<u8> =
                (0..60_000).flat_map(|n: u32| format!("line {} of many\n", n % 700).into_bytes()).collect();
            fs::write(dir.join("packed/text"), &text).unwrap();
            let mixed = [text, lab::Dice::seeded(3).bytes(200_000), vec![0; 300_000], b"end".to_vec()].concat();
            fs::write(dir.join("packed/mixed"), mixed).unwrap();
            nix::unistd::sync();
            compressed.set(fs::metadata(dir.join("packed/text")).unwrap().blocks() * 512);
        };
        let count = mounted(&image, &["ntfs-3g", "-o", "compression"], &fill, &same_as_windows);
        assert!(words[1] == "65536" || compressed.get() < 500_000, "nothing was compressed: {}", compressed.get());
        println!("NTFS {}: {count} files, {} bytes of text", words[1], compressed.get());
        assert!(count > 280);
    }
}

#[test]
fn the_journal_of_a_file_system_in_use_is_minded() {
    if !lab::require("the_journal_of_a_file_system_in_use_is_minded", &["mke2fs", "debugfs", "e2fsck"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (tree, image, repaired) = (dir.path().join("tree"), dir.path().join("image"), dir.path().join("repaired"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "old ".repeat(3000)).unwrap();
    // The second begins as a block of the journal does.
    let blocks = [vec![b'n'; 4096], [&[0xc0, 0x3b, 0x39, 0x98][..], &[b'm'; 4092]].concat()];
    for features in ["^64bit,^metadata_csum", "64bit,metadata_csum"] {
        file(&image, 32 << 20);
        run(
            "mke2fs",
            &["-q", "-F", "-b", "4096", "-t", "ext4", "-O", features, "-d", &tree.display().to_string()],
            &image,
        );
        let asked =
            Command::new(lab::programs::find("debugfs").unwrap()).args(["-R", "blocks /file"]).arg(&image).output();
        let places: Vec<u64> =
            String::from_utf8(asked.unwrap().stdout).unwrap().split_whitespace().map(|n| n.parse().unwrap()).collect();
        let data = dir.path().join("data");
        fs::write(&data, blocks.concat()).unwrap();
        let (first, second) = (places[0], places[2]);
        let script = format!("jo\njw -b {first},{second} {}\njc\n", data.display());
        let mut debugfs = Command::new(lab::programs::find("debugfs").unwrap());
        let mut debugfs = debugfs.arg("-w").arg(&image).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        debugfs.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(debugfs.wait().unwrap().success());
        let content = |image: &Path| {
            let fs = open(image);
            let content = fs.open(resolve(&*fs, b"file", true).unwrap()).unwrap();
            let mut bytes = vec![0; content.size() as usize];
            content.read_at(&mut bytes, 0).unwrap();
            bytes
        };
        let found = content(&image);
        assert!(found[..4096] == blocks[0] && found[4096..8192] == b"old ".repeat(1024));
        assert!(found[8192..] == blocks[1][..found.len() - 8192]);
        fs::copy(&image, &repaired).unwrap();
        let mended =
            Command::new(lab::programs::find("e2fsck").unwrap()).args(["-fy"]).arg(&repaired).output().unwrap();
        assert!(mended.status.code().unwrap() < 4, "{}", String::from_utf8_lossy(&mended.stdout));
        assert!(content(&repaired) == found, "{features}");
    }
}

#[test]
fn links_stay_in_the_file_system() {
    if !lab::require("links_stay_in_the_file_system", &["mke2fs"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
    fs::create_dir_all(tree.join("etc/deep")).unwrap();
    fs::write(tree.join("etc/hostname"), "guest\n").unwrap();
    for (link, target) in [
        ("absolute", "/etc/hostname"),
        ("relative", "etc/./deep/../hostname"),
        ("up", "../../../../../../etc/hostname"),
        ("etc/deep/out", "/../../etc/hostname"),
        ("loop", "loop"),
        ("ping", "pong"),
        ("pong", "ping"),
        ("growing", "growing/x/growing"),
        ("dir", "etc"),
        ("dangling", "/nowhere"),
    ] {
        symlink(target, tree.join(link)).unwrap();
    }
    file(&image, 8 << 20);
    run("mke2fs", &["-q", "-F", "-d", &tree.display().to_string()], &image);
    let fs = open(&image);
    for path in [
        "etc/hostname",
        "/absolute",
        "relative",
        "up",
        "etc/deep/out",
        "dir/hostname",
        "dir/../etc//hostname",
        "../etc/hostname",
    ] {
        let node = resolve(&*fs, path.as_bytes(), true).unwrap();
        assert_eq!(fs.metadata(node).unwrap().size, 6, "{path}");
    }
    let said = |path: &str| resolve(&*fs, path.as_bytes(), true).unwrap_err().to_string();
    for path in ["loop", "ping", "growing"] {
        assert_eq!(said(path), format!("'{path}' on the disk is behind symbolic links that lead in a circle"));
    }
    assert_eq!(said("dangling"), "there is no 'dangling'");
    assert_eq!(said("etc/hostname/x"), "'etc/hostname/x' on the disk is below something that is no directory");
    assert_eq!(said("etc/no\nsuch"), "there is no 'etc/no\\nsuch'");
    let link = resolve(&*fs, b"loop", false).unwrap();
    assert_eq!(fs.read_link(link).unwrap(), b"loop");
}

/// Bytes here and there, where they hurt most, and whether everything that can still be read comes to an end.
fn damage(good: &[u8], name: &str) {
    let mut dice = lab::Dice::new(name);
    for round in 0..60 {
        let mut bytes = good.to_vec();
        for _ in 0..1 + dice.below(8) {
            // Most of what matters is at the beginning or is not zero.
            let mut at = dice.below(bytes.len() as u64) as usize;
            for _ in 0..200 {
                if bytes[at] != 0 || (round % 3 == 0 && at < 1 << 16) {
                    break;
                }
                at = dice.below(bytes.len() as u64) as usize;
            }
            bytes[at] = if dice.below(2) == 0 { dice.below(256) as u8 } else { bytes[at] ^ (1 << dice.below(8)) };
        }
        let image: Arc<dyn Image> = Arc::new(MemImage::new("disk", bytes));
        if let Ok(fs) = filesystem::open(image) {
            assert!(filesystem::read_everything(&*fs, 400) <= 400);
        }
    }
}

#[test]
fn damaged_file_systems_end_in_errors() {
    let programs = ["mke2fs", "mkfs.vfat", "mcopy", "mkntfs", "ntfs-3g"];
    if !lab::require("damaged_file_systems_end_in_errors", &programs) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
    fs::create_dir(&tree).unwrap();
    fill(&tree, 60);
    symlink("names/UPPER.TXT", tree.join("link")).unwrap();
    let tree_word = tree.display().to_string();
    for words in [&["-t", "ext2", "-b", "1024"][..], &["-t", "ext4", "-O", "^metadata_csum,inline_data", "-b", "1024"]]
    {
        file(&image, 3 << 20);
        run("mke2fs", &[&["-q", "-F", "-d", &tree_word], words].concat(), &image);
        damage(&fs::read(&image).unwrap(), "damaged ext");
    }
    fs::remove_file(tree.join("link")).unwrap();
    fat(&image, 2 << 20, &[], &tree);
    damage(&fs::read(&image).unwrap(), "damaged FAT");
    file(&image, 4 << 20);
    run("mkntfs", &["-q", "-F", "-f", "-c", "1024"], &image);
    mounted(&image, &["ntfs-3g"], &|dir| fill(dir, 60), &same_as_windows);
    damage(&fs::read(&image).unwrap(), "damaged NTFS");
}

#[test]
fn what_is_not_read_is_named() {
    if !lab::require("what_is_not_read_is_named", &["mkfs.xfs", "mkswap"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let said = || filesystem::open(Arc::new(RawImage::open(&image, "disk").unwrap())).err().unwrap().to_string();
    file(&image, 320 << 20);
    assert_eq!(said(), "holds no file system that is known");
    run("mkfs.xfs", &["-q", "-f"], &image);
    assert_eq!(said(), "holds an XFS file system, which is not read here");
    file(&image, 1 << 20);
    run("mkswap", &["-q"], &image);
    assert_eq!(said(), "holds swap space, which is not read here");
    file(&image, 0);
    assert_eq!(said(), "holds no file system that is known");
}
