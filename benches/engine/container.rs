//! The data path of containers: a tree of 20,000 files and 1 GiB, GNU tar on both sides, our frames against `zstd`. No guest
//! runs and no command line is parsed: the program that is timed is this one, started anew.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vzkeep::archive::Compression;
use vzkeep::archive::tar::{Rules, TarSource, Vetting};
use vzkeep::guest::container::tree::KEEPING;
use vzkeep::host::{Cancel, Host};
use vzkeep::transfer::{DEFAULT_MEMORY, Draft, Output, TarFrom, TarPack, pack_tar, unpack_tar};

use crate::data;

/// Files in a directory of the tree.
const FILES: usize = 200;

/// A tree and a place for archives of it.
pub struct Container {
    dir: tempfile::TempDir,
    directories: usize,
}

impl Container {
    /// `mib` MiB in about twenty files per MiB.
    pub fn new(mib: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let directories = (mib * 20).div_ceil(FILES);
        data::tree(&dir.path().join("tree"), directories, FILES, mib);
        Self { dir, directories }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Removes what runs left, and waits until the disk is calm.
    pub fn reset(&self) {
        for name in ["yardstick.zst", "ours.zst"] {
            std::fs::remove_file(self.path(name)).ok();
        }
        std::fs::remove_dir_all(self.path("unpacked")).ok();
        std::fs::create_dir(self.path("unpacked")).unwrap();
        nix::unistd::sync();
    }

    /// `tar ... | zstd -T<threads>`.
    pub fn tar_zstd(&self, threads: usize) -> Command {
        let script = format!("tar cpf - {} -C \"$0\" ./ | zstd -q -T{threads} >\"$1\"", KEEPING.join(" "));
        let mut command = Command::new("sh");
        command.args(["-c", &script]).arg(self.path("tree")).arg(self.path("yardstick.zst"));
        command
    }

    pub fn pack(&self, threads: usize) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--pack-tar").arg(threads.to_string()).arg(self.path("tree")).arg(self.path("ours.zst"));
        command
    }

    /// `tar --zstd -x`.
    pub fn tar_x(&self, archive: &Path) -> Command {
        let mut command = Command::new("tar");
        command.args(["--zstd", "-xpf"]).arg(archive).args(KEEPING).arg("-C").arg(self.path("unpacked"));
        command
    }

    pub fn unpack(&self, archive: &Path) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--unpack-tar").arg(archive).arg(self.path("unpacked"));
        command
    }

    /// A directory in the middle.
    fn directory(&self) -> String {
        data::directory(self.directories / 2)
    }

    pub fn tar_t(&self, archive: &Path) -> Command {
        let mut command = Command::new("tar");
        command.args(["--zstd", "-tf"]).arg(archive).arg(format!("./{}", self.directory()));
        command
    }

    pub fn list(&self, archive: &Path) -> Command {
        let mut command = Command::new(crate::lab::programs::vzkeep().unwrap());
        command.arg("ls").arg(archive).arg(self.directory());
        command
    }
}

/// What [`Container::pack`] starts.
pub fn pack(words: &[String]) {
    let [threads, tree, archive] = words else { panic!("{words:?}") };
    let mut tar = Command::new("tar");
    tar.args(["cpf", "-"]).args(KEEPING).args(["-C", tree, "./"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut tar = tar.spawn().unwrap();
    let host = Host::with_root("/".into());
    let how = TarPack {
        compression: Compression::Zstd { threads: threads.parse().unwrap() },
        bwlimit: None,
        memory: DEFAULT_MEMORY,
        host,
    };
    let mut draft = Draft::create(Path::new(archive)).unwrap();
    let from = TarFrom::Fd(tar.stdout.take().unwrap().into(), "tar".into());
    let summary = pack_tar(from, Output::Draft(&mut draft), &how, &mut |_| {}, &Cancel::new()).unwrap();
    assert!(tar.wait().unwrap().success() && summary.note.is_none());
    draft.commit().unwrap();
}

/// What [`Container::unpack`] starts.
pub fn unpack(words: &[String]) {
    let [archive, dir] = words else { panic!("{words:?}") };
    let mut tar = Command::new("tar");
    tar.args(["-xpf", "-"]).args(KEEPING).args(["-C", dir]).stdin(Stdio::piped()).stderr(Stdio::null());
    let mut tar = tar.spawn().unwrap();
    let source = TarSource::open(&Host::with_root("/".into()), Path::new(archive), &Cancel::new()).unwrap();
    let output = Output::Fd(tar.stdin.take().unwrap().into(), "tar".into());
    let mut vetting = Vetting::new(Rules { devices: false });
    unpack_tar(source, output, &mut vetting, None, &mut |_| {}, &Cancel::new()).unwrap();
    assert!(tar.wait().unwrap().success());
}
