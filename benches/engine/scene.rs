//! The node the programs run on: guests with the data to back up, and the commands that are timed.

use crate::data;
use crate::lab::{Format, Guest, Node, gib, mib};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The guest with the data.
pub const GUEST: u32 = 100;
/// A guest with 64 GiB of nearly nothing.
pub const SPARSE: u32 = 101;
/// A guest with five disks.
pub const FIVE: u32 = 102;
/// The guest that is restored.
pub const RESTORED: u32 = 200;

/// A node with guests, all of them off.
pub struct Scene {
    pub node: Node,
    /// The image of [`GUEST`].
    pub raw: PathBuf,
}

impl Scene {
    pub fn new(size: usize) -> Self {
        let bytes = mib(size as u64);
        let five = mib(size as u64 / 16);
        let keys = ["scsi0", "scsi1", "scsi2", "virtio0", "sata0"];
        let node = Node::new().unwrap();
        let node = node.guest(Guest::new(GUEST).name("data").disk("scsi0", Format::Raw, bytes)).unwrap();
        let node = node.guest(Guest::new(SPARSE).name("sparse").disk("scsi0", Format::Raw, gib(64))).unwrap();
        let guest = keys.iter().fold(Guest::new(FIVE).name("five"), |guest, key| guest.disk(key, Format::Raw, five));
        let node = node.guest(guest).unwrap();
        let raw = node.disk(GUEST, "scsi0").unwrap().0;
        data::fill(&raw, size);
        data::fill(&node.disk(SPARSE, "scsi0").unwrap().0, 4);
        for key in keys {
            data::fill(&node.disk(FIVE, key).unwrap().0, size / 16);
        }
        Self { node, raw }
    }

    /// The file that a yardstick writes.
    pub fn out(&self) -> PathBuf {
        self.node.path("/mnt/backup/dump").join("yardstick")
    }

    /// `zstd -q -3 -T<threads>` of the raw file to a file.
    pub fn zstd(&self, threads: usize) -> Command {
        let mut command = Command::new("zstd");
        command.args(["-q", "-3", &format!("-T{threads}"), "-f", "-o"]).arg(self.out()).arg(&self.raw);
        command
    }

    /// `cp` of the raw file, and sync of the copy.
    pub fn cp(&self) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "cp --reflink=never \"$0\" \"$1\" && sync \"$1\""]).arg(&self.raw).arg(self.out());
        command
    }

    /// `zstd -d` of an archive to a file.
    pub fn unzstd(&self, archive: &PathBuf) -> Command {
        let mut command = Command::new("zstd");
        command.args(["-q", "-d", "-f", "-o"]).arg(self.out()).arg(archive);
        command
    }

    /// `vzdump` of a guest: `["--compress", "zstd", "--zstd", "1"]`.
    pub fn vzdump(&self, vmid: u32, words: &[&str]) -> Command {
        let mut command = self.node.command("vzdump");
        command.args([&vmid.to_string(), "--storage", "backup", "--mode", "snapshot"]).args(words);
        command
    }

    /// `qmrestore` of an archive as [`RESTORED`].
    pub fn qmrestore(&self, archive: &PathBuf) -> Command {
        let mut command = self.node.command("qmrestore");
        command.arg(archive).args([&RESTORED.to_string(), "--storage", "local"]);
        command
    }

    /// The only archive of a guest, under a name that [`Scene::reset`] leaves alone.
    pub fn keep_archive(&self, vmid: u32) -> PathBuf {
        let mut archives = self.node.archives("backup", vmid).unwrap();
        assert_eq!(archives.len(), 1, "{archives:?}");
        let from = archives.remove(0);
        let to = self.node.path("/mnt/backup").join(from.file_name().unwrap());
        std::fs::rename(from, &to).unwrap();
        to
    }

    /// Removes what runs left, waits until the disk is calm, and puts `input` into the page cache.
    pub fn reset(&self, input: &Path) {
        let dump = self.node.path("/mnt/backup/dump");
        for entry in std::fs::read_dir(dump).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        // Neither is there before the first restore.
        std::fs::remove_file(self.node.config_path(RESTORED)).ok();
        std::fs::remove_dir_all(self.node.path("/var/lib/vz/images").join(RESTORED.to_string())).ok();
        data::warm(input);
        nix::unistd::sync();
    }
}
