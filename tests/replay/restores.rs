//! What recorded restores need: the archive they read, made anew, and the guest they find or do not find.

use std::path::PathBuf;

use super::case::Case;
use crate::lab::Node;

/// Whether the case is a restore.
pub fn is_restore(case: &Case) -> bool {
    ["qmrestore", "pct"].contains(&case.argv()[0].as_str())
}

/// The command line of a container's restore: the lab's own `pct` is another program.
pub fn command(case: &Case) -> Option<Vec<String>> {
    let argv = case.argv();
    let words = ["vzkeep", "pct-restore"].map(str::to_owned).into_iter();
    (argv[..2] == ["pct", "restore"]).then(|| words.chain(argv[2..].iter().cloned()).collect())
}

/// A backup of container 200, where the recorded run found its own.
fn prepare_container(node: &Node, case: &Case) {
    let archive = node.path(&case.argv()[3]);
    let before = node.archives("bk", 200).unwrap();
    node.ok("vzdump", &["200", "--storage", "bk", "--compress", "zstd"]).unwrap();
    let made = node.archives("bk", 200).unwrap().into_iter().find(|path| !before.contains(path)).unwrap();
    std::fs::rename(&made, &archive).unwrap();
}

/// Puts archive and guest there, as the recorded run found them.
pub fn prepare(node: &Node, case: &Case) {
    if command(case).is_some() {
        return prepare_container(node, case);
    }
    let argv = case.argv();
    let said = case.said();
    let missing = argv.get(1).map(|volume| format!("volume '{volume}' does not exist"));
    let gone = said.contains("can't find file") || missing.is_some_and(|words| said.contains(&words));
    let Some(archive) = argv.get(1).filter(|_| !gone) else { return };
    let bytes = archive_of_100(node);
    // The recorded archive was cut off.
    let cut = said.contains("premature end") || said.contains("short vma extent");
    let path = if archive.starts_with('/') {
        node.path(archive)
    } else {
        let path = node.run("pvesm", &["path", archive]).unwrap().stdout;
        PathBuf::from(path.trim())
    };
    if path.as_os_str().is_empty() {
        return;
    }
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, &bytes[..if cut { bytes.len() / 2 } else { bytes.len() }]).unwrap();
    let Some(vmid) = argv.get(2).and_then(|word| word.parse::<u32>().ok()) else { return };
    let wanted = said.contains("already exists")
        || argv.iter().any(|word| word.trim_start_matches('-').starts_with("forc") && word.starts_with('-'));
    let there = node.config_path(vmid).exists();
    if wanted && !there {
        node.ok("qmrestore", &[path.to_str().unwrap(), &vmid.to_string(), "--storage", "local"]).unwrap();
    } else if there && !wanted {
        std::fs::remove_file(node.config_path(vmid)).unwrap();
        let images = node.path(&format!("/var/lib/vz/images/{vmid}"));
        if images.exists() {
            std::fs::remove_dir_all(images).unwrap();
        }
    }
}

/// An archive of guest 100.
fn archive_of_100(node: &Node) -> Vec<u8> {
    let kept = node.path("/srv/archive");
    if !kept.exists() {
        node.ok("vzdump", &["100", "--storage", "bk", "--compress", "zstd"]).unwrap();
        std::fs::create_dir_all(node.path("/srv")).unwrap();
        std::fs::rename(&node.archives("bk", 100).unwrap()[0], &kept).unwrap();
        for entry in std::fs::read_dir(node.path("/mnt/bk/dump")).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
    std::fs::read(&kept).unwrap()
}
