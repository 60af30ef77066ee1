//! The small tree that most archives here are made of, and the restored volumes, mounted to be looked at.

use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

/// Volumes of a container, mounted one in the other; unmounted when dropped.
pub struct Mounted {
    dir: tempfile::TempDir,
    places: Vec<PathBuf>,
}

impl Mounted {
    pub fn new(volumes: &[(PathBuf, &str)]) -> Self {
        let mut mounted = Self { dir: tempfile::tempdir().unwrap(), places: Vec::new() };
        for (image, place) in volumes {
            mounted.mount(image, place, "loop,ro");
        }
        mounted
    }

    fn mount(&mut self, image: &Path, place: &str, options: &str) {
        let place = self.dir.path().join("top").join(place);
        fs::create_dir_all(&place).unwrap();
        let out = Command::new("mount").args(["-o", options]).arg(image).arg(&place).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        self.places.push(place);
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("top")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for place in self.places.iter().rev() {
            Command::new("umount").arg(place).status().unwrap();
        }
    }
}

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
    xattr::set(top.join("data"), "user.root", b"of a volume").unwrap();
    let time = TimeSpec::new(1_000_000_000, 123_456_789);
    for dir in ["etc", "data", "usr/lib", "usr", ""] {
        utimensat(nix::fcntl::AT_FDCWD, &top.join(dir), &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
    }
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
