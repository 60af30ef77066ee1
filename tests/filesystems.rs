//! File systems as real programs make them, read without mounting them, compared with the trees they were made of.

#![expect(clippy::unwrap_used, reason = "tests")]

mod lab;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use vzkeep::filesystem::{self, Content, FileKind, FileSystem, Metadata, Node, resolve};
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

/// The names in a directory and what they are.
fn names(fs: &dyn FileSystem, directory: Node) -> BTreeMap<Vec<u8>, Node> {
    fs.read_dir(directory).unwrap().into_iter().map(|entry| (entry.name, entry.node)).collect()
}

/// Bytes of a file that may be data by what is known of it; everything else is zero in both.
fn assert_content(content: &Content, real: &File, path: &Path) {
    assert_eq!(content.size(), real.metadata().unwrap().len(), "{}", path.display());
    let (mut buf, mut wanted) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let (mut at, mut hole) = (0, 0);
    while let Some(data) = content.data_from(at) {
        let len = buf.len().min((data.end - data.start) as usize);
        assert_eq!(content.read_at(&mut buf[..len], data.start).unwrap(), len);
        real.read_exact_at(&mut wanted[..len], data.start).unwrap();
        assert!(buf[..len] == wanted[..len], "{} differs from byte {} on", path.display(), data.start);
        hole += data.start - at;
        at = data.start + len as u64;
    }
    hole += content.size() - at.min(content.size());
    // What is no data here has no blocks there.
    let stored = real.metadata().unwrap().blocks() * 512;
    assert!(stored <= content.size() - hole + 65536, "{}: {stored} bytes stored", path.display());
}

fn kind(metadata: &fs::Metadata) -> FileKind {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => FileKind::Directory,
        () if kind.is_symlink() => FileKind::Symlink,
        () if kind.is_char_device() => FileKind::Character,
        () if kind.is_block_device() => FileKind::Block,
        () if kind.is_fifo() => FileKind::Fifo,
        () if kind.is_socket() => FileKind::Socket,
        () => FileKind::File,
    }
}

/// Compares everything that both have to have; returns how many files that were.
fn compare(fs: &dyn FileSystem, node: Node, real: &Path, same: &dyn Fn(&Metadata, &fs::Metadata) -> bool) -> usize {
    let (found, wanted) = (fs.metadata(node).unwrap(), fs::symlink_metadata(real).unwrap());
    assert_eq!(found.kind, kind(&wanted), "{}", real.display());
    assert!(same(&found, &wanted), "{}: {found:?} is not {wanted:?}", real.display());
    match found.kind {
        FileKind::Symlink => {
            assert_eq!(fs.read_link(node).unwrap(), fs::read_link(real).unwrap().as_os_str().as_bytes())
        }
        FileKind::File => assert_content(&fs.open(node).unwrap(), &File::open(real).unwrap(), real),
        FileKind::Directory => {
            let mut names = names(fs, node);
            names.remove(&b"lost+found"[..]);
            let entries = fs::read_dir(real).unwrap().map(|entry| entry.unwrap().file_name());
            let real_names: std::collections::BTreeSet<_> = entries.map(|name| name.as_bytes().to_vec()).collect();
            assert!(names.keys().eq(&real_names), "{}: {:?}", real.display(), names.keys());
            let each = names.iter().map(|(name, node)| compare(fs, *node, &real.join(OsStr::from_bytes(name)), same));
            return 1 + each.sum::<usize>();
        }
        _ => {}
    }
    1
}

fn same_as_unix(found: &Metadata, wanted: &fs::Metadata) -> bool {
    let size = matches!(found.kind, FileKind::File | FileKind::Symlink).then_some(wanted.len());
    size.is_none_or(|size| size == found.size)
        && found.mode == wanted.mode() & 0o7777
        && (found.uid, found.gid) == (wanted.uid(), wanted.gid())
        // mke2fs keeps whole seconds; which bits of them, depends on the size of inodes.
        && (found.modified.0 as u32) == (wanted.mtime() as u32)
        && (found.kind == FileKind::Directory || found.links == wanted.nlink())
}

#[test]
fn ext_file_systems_are_what_they_were_made_of() {
    if !lab::require("ext_file_systems_are_what_they_were_made_of", &["mke2fs", "setfacl", "setcap", "setfattr"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    lab::nasty::make(&tree, 1500, lab::nasty::Devices::Yes).unwrap();
    // Longer than a block of 1 KiB.
    fs::remove_file(tree.join("names/very long target")).unwrap();
    // More attributes than an inode has room for, and these are not read anyway.
    run("setfattr", &["-x", "user.long"], &tree.join("rights/listed"));
    // A directory that gets a tree of hashes, and links of all lengths around that of an inode.
    fs::create_dir(tree.join("many")).unwrap();
    for n in 0..3000 {
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
        &["-t", "ext4", "-O", "inline_data,^metadata_csum", "-I", "512"],
        &["-t", "ext4", "-O", "inline_data,metadata_csum", "-b", "1024"],
        &["-t", "ext4", "-O", "bigalloc,^resize_inode"],
        &["-t", "ext4", "-O", "meta_bg,^resize_inode,mmp,large_dir,casefold", "-b", "1024"],
    ];
    let image = dir.path().join("image");
    for variant in variants {
        file(&image, 192 << 20);
        let tree_word = tree.display().to_string();
        run("mke2fs", &[&["-q", "-F", "-N", "12000", "-d", &tree_word], variant].concat(), &image);
        let fs = open(&image);
        let count = compare(&*fs, fs.root(), &tree, &same_as_unix);
        assert!(count > 4600, "{count}");
        assert_eq!((fs.kind(), fs.note()), (variant[1], None));
        println!("{}: {count} files", variant.join(" "));
    }
}
