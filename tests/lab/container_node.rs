//! What a node does with containers: makes them, switches them on, reads their diaries, and says what is left of a backup.

use super::container::Container;
use super::diary_check::{self, Fault};
use super::stand_in::{GuestConfig, Storages};
use super::{Node, cgroup, container_image, diary, leash, programs};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// What containers need on this machine; skips or fails as [`programs::require`].
pub fn require_container(test: &str) -> bool {
    programs::require(test, &["lxc-start", "lxc-stop", "lxc-info", "busybox", "rustc", "mke2fs", "rsync"])
}

/// A container's volumes, mounted read-only below one directory. Unmounted when dropped.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
    mounts: Vec<PathBuf>,
}

impl Tree {
    /// The root of the container's tree.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Reads the diaries of the tree.
    ///
    /// # Errors
    /// As [`diary_check::check`].
    pub fn check(&self) -> Result<diary_check::Instant, Fault> {
        diary_check::check(&self.root)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        for mount in self.mounts.iter().rev() {
            if let Err(error) = run(Command::new("umount").arg(mount)) {
                eprintln!("lab: {error:#}");
            }
        }
    }
}

impl Node {
    /// Adds a container: makes its volumes and writes its config.
    ///
    /// # Errors
    /// When a volume cannot be made.
    pub fn container(self, container: Container) -> Result<Self> {
        container.add_to(&self)?;
        Ok(self)
    }

    pub(super) fn make_container(&self, container: &Container) -> Result<()> {
        let storages = Storages::load(self.machine())?;
        let sources = container_image::make(&storages, container, &self.path("/tmp"))?;
        for volume in container.volumes.iter().filter(|volume| volume.keep == super::container::Keep::Bind) {
            std::fs::create_dir_all(self.path(&volume.storage))?;
        }
        Ok(std::fs::write(self.ct_config_path(container.vmid), container.config(&sources))?)
    }

    /// Adds a btrfs storage for volumes, backups and containers: a real file system on a loop device (needs root).
    ///
    /// # Errors
    /// When it cannot be made or mounted.
    pub fn btrfs_storage(self, name: &str, bytes: u64) -> Result<Self> {
        let path = format!("/mnt/{name}");
        let image = self.path(&format!("/var/{name}.btrfs"));
        std::fs::File::create_new(&image)?.set_len(bytes)?;
        std::fs::create_dir_all(self.path(&path))?;
        run(Command::new(programs::find("mkfs.btrfs").context("mkfs.btrfs is missing: run `make setup`")?)
            .args(["-q", "-m", "single", "-d", "single"])
            .arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(self.path(&path)))?;
        let node = self.storage(name, &path, "images,rootdir", &[])?;
        let config = node.path("/etc/pve/storage.cfg");
        let text = std::fs::read_to_string(&config)?;
        std::fs::write(&config, text.replace(&format!("dir: {name}\n"), &format!("btrfs: {name}\n")))?;
        Ok(node)
    }

    /// Spoils a block of `file`, which lies on a btrfs storage, on the device below: whoever reads it from now on gets an I/O
    /// error, because its checksum is wrong.
    ///
    /// # Errors
    /// When its first block is not on the device exactly once.
    pub fn spoil_btrfs(&self, name: &str, file: &Path) -> Result<()> {
        let file = std::fs::File::open(file)?;
        nix::unistd::syncfs(&file)?;
        let mut pattern = [0; 4096];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut pattern, 0)?;
        let image = self.path(&format!("/var/{name}.btrfs"));
        let mut bytes = std::fs::read(&image)?;
        let found: Vec<usize> =
            (0..bytes.len()).step_by(4096).filter(|from| bytes[*from..].starts_with(&pattern)).collect();
        let [from] = found[..] else { bail!("the block is there {} times", found.len()) };
        bytes[from + 100] ^= 1;
        std::os::unix::fs::FileExt::write_all_at(
            &std::fs::OpenOptions::new().write(true).open(&image)?,
            &bytes[from..from + 4096],
            from as u64,
        )?;
        // What was read or written lately would still come from memory.
        Ok(nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
    }

    /// Removes a container that is off, with all its volumes.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn ct_remove(&self, vmid: u32) -> Result<()> {
        let config = self.ct_config(vmid)?;
        for (key, value) in config.entries() {
            let source = value.split(',').next().unwrap_or_default();
            if (key == "rootfs" || key.starts_with("mp")) && !source.starts_with('/') {
                self.ok("pvesm", &["free", source])?;
            }
        }
        Ok(std::fs::remove_file(self.ct_config_path(vmid))?)
    }

    /// The config file of a container.
    pub fn ct_config_path(&self, vmid: u32) -> PathBuf {
        self.root().join(format!("etc/pve/nodes/pve1/lxc/{vmid}.conf"))
    }

    /// The config of a container.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn ct_config(&self, vmid: u32) -> Result<GuestConfig> {
        GuestConfig::load_container(self.machine(), vmid)
    }

    /// Where the volume or directory behind a key of a container's config (`rootfs`, `mp0`) lies.
    ///
    /// # Errors
    /// When container, key or storage do not exist.
    pub fn ct_volume(&self, vmid: u32, key: &str) -> Result<PathBuf> {
        let config = self.ct_config(vmid)?;
        let value = config.get(key).with_context(|| format!("container {vmid} has no {key}"))?;
        let source = value.split(',').next().unwrap_or_default();
        if source.starts_with('/') {
            return Ok(self.path(source));
        }
        Ok(Storages::load(self.machine())?.volume(source)?.path)
    }

    /// Switches a container on and waits until the diarist writes.
    ///
    /// # Errors
    /// When it does not start or nothing is written.
    pub fn ct_start(&self, vmid: u32) -> Result<()> {
        self.ok("pct", &["start", &vmid.to_string(), "--skiplock"])?;
        self.ct_wait(vmid, 5).map(drop)
    }

    /// The first process of a running container.
    ///
    /// # Errors
    /// When it does not run.
    pub fn ct_pid(&self, vmid: u32) -> Result<i32> {
        let said = self.ok("lxc-info", &["-n", &vmid.to_string(), "-p", "-H"])?.stdout;
        said.trim().parse().with_context(|| format!("container {vmid} does not run"))
    }

    /// The last entry of every diary of a running container, without looking at the others.
    ///
    /// # Errors
    /// When it does not run.
    pub fn ct_entries(&self, vmid: u32) -> Result<Vec<u64>> {
        let root = PathBuf::from(format!("/proc/{}/root", self.ct_pid(vmid)?));
        let below = |path: &str| root.join(path.trim_start_matches('/'));
        let list = std::fs::read_to_string(below(diary::LIST))?;
        list.lines()
            .map(|path| match below(path).metadata() {
                Ok(meta) => Ok(meta.len() / diary::SIZE as u64),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
                Err(error) => Err(error.into()),
            })
            .collect()
    }

    /// Waits until a running container has written `entries` more; returns where its diaries are then.
    ///
    /// # Errors
    /// When it does not within half a minute.
    pub fn ct_wait(&self, vmid: u32, entries: u64) -> Result<Vec<u64>> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let goal = self.ct_entries(vmid)?.first().copied().unwrap_or_default() + entries;
        loop {
            let now = self.ct_entries(vmid)?;
            if now.iter().all(|n| *n >= goal) {
                return Ok(now);
            }
            ensure!(Instant::now() < deadline, "container {vmid} stands still at {now:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks a container to shut itself down and waits until it has.
    ///
    /// # Errors
    /// When it does not.
    pub fn ct_shutdown(&self, vmid: u32) -> Result<()> {
        self.ok("pct", &["shutdown", &vmid.to_string(), "--timeout", "30", "--skiplock"]).map(drop)
    }

    /// Mounts the volumes of a container that is off, read-only.
    ///
    /// # Errors
    /// When it runs or something cannot be mounted.
    pub fn ct_tree(&self, vmid: u32) -> Result<Tree> {
        let status = self.ok("pct", &["status", &vmid.to_string()])?.stdout;
        ensure!(status == "status: stopped\n", "container {vmid}: {status}");
        let config = self.ct_config(vmid)?;
        let mut points = Vec::new();
        for (key, value) in config.entries() {
            let at = value.split(',').find_map(|property| property.strip_prefix("mp="));
            match at.or((key == "rootfs").then_some("/")) {
                Some(at) if key.starts_with("mp") || key == "rootfs" => points.push((at, key)),
                _ => {}
            }
        }
        points.sort_unstable();
        let mut tree = Tree { root: self.path(&format!("/tmp/tree-{vmid}")), mounts: Vec::new() };
        std::fs::create_dir_all(&tree.root)?;
        for (at, key) in points {
            let volume = self.ct_volume(vmid, key)?;
            let at = tree.root.join(at.trim_start_matches('/'));
            let mut mount = Command::new("mount");
            if volume.is_dir() {
                mount.args(["--bind", "-o", "ro"]);
            } else if volume.starts_with("/dev") {
                super::stand_in::lvm("lvchange", &["-ay", &volume.display().to_string()])?;
                mount.args(["-o", "ro,noload"]);
            } else {
                mount.args(["-o", "loop,ro,noload"]);
            }
            run(mount.arg(&volume).arg(&at))?;
            tree.mounts.push(at);
        }
        Ok(tree)
    }

    /// What is left of a backup of the running container `vmid`: frozen processes, mounts, loop devices, snapshots, locks,
    /// files. Also says when it does not run. Empty when all is well.
    ///
    /// # Errors
    /// When one of them cannot be asked.
    pub fn ct_leftovers(&self, vmid: u32) -> Result<Vec<String>> {
        let mut left = self.ct_leftovers_on_disk(vmid)?;
        // One that starts or ends at this moment is in no group of its own: it does not run.
        match self.ct_pid(vmid).and_then(cgroup::is_frozen) {
            Ok(true) => left.push(format!("container {vmid} is frozen")),
            Ok(false) => {}
            Err(error) => left.push(format!("{error:#}")),
        }
        Ok(left)
    }

    /// The same for a container that is off.
    ///
    /// # Errors
    /// When one of them cannot be asked.
    pub fn ct_leftovers_on_disk(&self, vmid: u32) -> Result<Vec<String>> {
        let mut left = self.leftovers_on_disk(vmid)?;
        let config = std::fs::read_to_string(self.ct_config_path(vmid))?;
        let bad = config.lines().filter(|line| line.starts_with("lock:") || line.starts_with("[vzdump]"));
        left.extend(bad.map(|line| format!("{vmid}.conf: {line}")));
        for mount in leash::mounts(Path::new("/mnt/vzsnap0"))?.into_iter().chain(leash::mounts(self.root())?) {
            if mount.contains("vzsnap") {
                left.push(format!("mount {mount}"));
            }
        }
        for entry in std::fs::read_dir(self.path("/var/lib/vzkeep")).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "json") {
                left.push(format!("record {}", entry.path().display()));
            }
        }
        for (device, file) in leash::loops(self.root())? {
            let owner = file.split_once("/images/").and_then(|(_, rest)| rest.split('/').next()?.parse().ok());
            let in_use = owner.is_some_and(|id| self.ct_pid(id).is_ok()) && !file.contains('@');
            if !in_use && !file.ends_with(".btrfs") {
                left.push(format!("loop device {device} of {file}"));
            }
        }
        let storages = Storages::load(self.machine())?;
        for group in storages.groups() {
            let snapshots = group.names()?.into_iter().filter(|name| name.starts_with("snap_"));
            left.extend(snapshots.map(|name| format!("snapshot {}/{name}", group.group)));
        }
        for storage in storages.all() {
            let images = storage.join("images").join(vmid.to_string());
            for entry in std::fs::read_dir(images).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().contains('@') {
                    left.push(format!("snapshot {}", entry.path().display()));
                }
            }
        }
        Ok(left)
    }

    /// The container runs, is not frozen, writes, and nothing of a backup is left.
    ///
    /// # Errors
    /// What is not so.
    pub fn ct_unharmed(&self, vmid: u32) -> Result<()> {
        let left = self.ct_leftovers(vmid)?;
        if !left.is_empty() {
            bail!("left behind:\n  {}", left.join("\n  "));
        }
        self.ct_wait(vmid, 3).map(drop)
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?} cannot be started"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
