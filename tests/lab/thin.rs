//! Volume groups on the disk of the system tests' guest.

use super::run::Running;
use super::stand_in::lvm;
use super::{Node, system_guest};
use anyhow::{Context, Result, ensure};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;
use std::time::{Duration, Instant};

/// The volume group of the tests.
pub const GROUP: &str = "pve";
/// Its thin pool.
const POOL: &str = "data";
/// The volume group on a disk behind a server.
const FAR: &str = "far";
/// That disk.
const NBD: &str = "/dev/nbd0";

/// What of `rbd` a container's backup calls. Its words are kept beside the images.
const RBD: &str = r#"#!/bin/sh
echo "$*" >>IMAGES/words
while [ "$1" != device ]; do shift; done
case "$2" in
    list)
        out=
        for file in /sys/block/loop*/loop/backing_file; do
            [ -e "$file" ] && read -r image <"$file" || continue
            device=${file#/sys/block/}
            name=$(basename "$image" .raw)
            entry=$(printf '{"pool":"box","name":"%s","snap":"-","device":"/dev/%s"}' "$name" "${device%%/*}")
            out="$out,$entry"
        done
        echo "[${out#,}]" ;;
    map) losetup --find --show "IMAGES/$3.raw" ;;
    unmap) losetup -d "$3" ;;
esac
"#;

impl Node {
    /// Adds an LVM-thin storage `thin` and an LVM storage `thick`, both in a volume group that is made anew on the guest's disk.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn lvm_storages(self) -> Result<Self> {
        let known = lvm("vgs", &["--noheadings", "-o", "vg_name"])?;
        if known.lines().any(|name| name.trim() == GROUP) {
            lvm("vgremove", &["-ff", "-y", GROUP])?;
        }
        lvm("vgcreate", &["-ff", "-y", GROUP, system_guest::DISK])?;
        lvm("lvcreate", &["-y", "--type", "thin-pool", "-L", "1G", "--poolmetadatasize", "16M", "-n", POOL, GROUP])?;
        // Devices are the machine's own.
        symlink("/dev", self.root().join("dev"))?;
        self.add_storage(&format!("lvmthin: thin\n\tvgname {GROUP}\n\tthinpool {POOL}\n\tcontent rootdir,images\n"))?;
        self.add_storage(&format!("lvm: thick\n\tvgname {GROUP}\n\tcontent rootdir,images\n"))?;
        Ok(self)
    }

    /// Adds an LVM storage `far` on a disk that a server keeps (NBD) and that a kernel reads over a socket; returns the server.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn nbd_storage(self) -> Result<(Self, Running)> {
        let (image, socket, config) =
            (self.path("/var/far.img"), self.path("/run/nbd.sock"), self.path("/etc/nbd.conf"));
        std::fs::File::create(&image)?.set_len(256 << 20)?;
        let text = format!(
            "[generic]\nunixsock = {}\nallowlist = false\n[far]\nexportname = {}\n",
            socket.display(),
            image.display()
        );
        std::fs::write(&config, text)?;
        let server =
            self.spawn("nbd-server", &["-d", "-C", &config.display().to_string(), "-p", "/run/nbd-server.pid"])?;
        let give_up = Instant::now() + Duration::from_secs(60);
        while !socket.exists() {
            ensure!(Instant::now() < give_up, "nbd-server makes no socket: {}", server.stdout_so_far()?);
            std::thread::sleep(Duration::from_millis(50));
        }
        // A kernel waits for ever for a server, unless it is told not to. Not in the node's world: its processes would be taken for leftovers.
        let mut client = Command::new("nbd-client");
        client.arg("-unix").arg(&socket).args(["-N", "far", "-timeout", "5", NBD]);
        let said = client.output().context("nbd-client cannot be started")?;
        ensure!(said.status.success(), "nbd-client: {}", String::from_utf8_lossy(&said.stderr));
        lvm("vgcreate", &["-ff", "-y", FAR, NBD])?;
        self.add_storage(&format!("lvm: far\n\tvgname {FAR}\n\tcontent rootdir,images\n"))?;
        Ok((self, server))
    }

    /// Takes the disk of [`Node::nbd_storage`] away, whose server is gone.
    ///
    /// # Errors
    /// When it cannot be taken away.
    pub fn forget_nbd(&self) -> Result<()> {
        for words in [&["dmsetup", "remove", "--force", "far-vm--200--disk--0"][..], &["nbd-client", "-d", NBD]] {
            let said = Command::new(words[0]).args(&words[1..]).output()?;
            ensure!(said.status.success(), "{}: {}", words.join(" "), String::from_utf8_lossy(&said.stderr));
        }
        Ok(())
    }

    /// Adds an RBD storage `ceph` and an `rbd` for it, whose images are files in `/var/ceph` and whose devices are loop devices.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn rbd_storage(self) -> Result<Self> {
        let images = self.path("/var/ceph");
        std::fs::create_dir_all(&images)?;
        let script = self.path("/bin/rbd");
        std::fs::write(&script, RBD.replace("IMAGES", &images.display().to_string()))?;
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
        self.add_storage("rbd: ceph\n\tpool box\n\tcontent rootdir,images\n")?;
        Ok(self)
    }

    fn add_storage(&self, section: &str) -> Result<()> {
        let config = self.path("/etc/pve/storage.cfg");
        let text = std::fs::read_to_string(&config)?;
        Ok(std::fs::write(&config, format!("{text}{section}\n"))?)
    }

    /// Runs one of LVM's commands.
    ///
    /// # Errors
    /// When it fails.
    pub fn lv(&self, words: &[&str]) -> Result<()> {
        let (program, words) = words.split_first().context("no command")?;
        lvm(program, words).map(drop)
    }

    /// Switches volume `name` of the group on or off.
    ///
    /// # Errors
    /// When `lvchange` fails.
    pub fn lv_switch(&self, name: &str, on: bool) -> Result<()> {
        lvm("lvchange", &[if on { "-ay" } else { "-an" }, &format!("{GROUP}/{name}")]).map(drop)
    }

    /// The volumes of the group that are switched on, pools and their parts left out.
    ///
    /// # Errors
    /// When `lvs` fails.
    pub fn lv_active(&self) -> Result<Vec<String>> {
        let said = lvm("lvs", &["--noheadings", "-o", "lv_active,lv_name", GROUP])?;
        let active = said.lines().filter_map(|line| line.trim().strip_prefix("active"));
        Ok(active.map(|name| name.trim().to_owned()).filter(|name| name != POOL).collect())
    }
}
