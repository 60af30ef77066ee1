//! A Proxmox-like machine in a temporary directory.

use super::guest::Guest;
use super::leash::{self, Leash};
use super::run::{Output, Running};
use super::serial::{self, Report, Watch};
use super::stand_in::{GuestConfig, Machine, NAMES, Storages, create_volume};
use super::{container_image, guest_image, programs, qmp};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fmt::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const BOOT_TIME: Duration = Duration::from_secs(60);

/// The node's `sendmail` keeps every mail in a file of its own: the words of the call, then the message.
const SENDMAIL: &str =
    "#!/bin/sh\ndir=\"$VZKEEP_ROOT/var/spool/mails\"\nmkdir -p \"$dir\" && { echo \"$*\"; cat; } > \"$dir/$$\"\n";

/// The node `pve1`: its tree below [`Node::root`], its storages `local` (images and backups in `/var/lib/vz`) and `backup`
/// (`/mnt/backup`), its guests. Dropping it ends and removes everything.
#[derive(Debug)]
pub struct Node {
    leash: Leash,
    root: PathBuf,
    machine: Machine,
}

impl Node {
    /// Makes the tree and its keeper.
    ///
    /// # Errors
    /// When the temporary directory cannot be made or its path is too long for the sockets below it.
    pub fn new() -> Result<Self> {
        let root = tempfile::Builder::new().prefix(leash::PREFIX).tempdir()?.keep().canonicalize()?;
        // A socket's path has at most 107 bytes.
        ensure!(root.as_os_str().len() < 60, "{} is too long a path for sockets: set TMPDIR", root.display());
        let leash = Leash::hold(&root)?;
        let node = Self { leash, machine: Machine::new(&root), root };
        for dir in ["bin", "boot", "etc/pve/nodes/pve1/qemu-server", "etc/pve/nodes/pve1/lxc", "etc/pve/firewall"] {
            std::fs::create_dir_all(node.root.join(dir))?;
        }
        for dir in ["run/qemu-server", "var/lock/qemu-server", "var/log/vzdump", "var/log/pve/tasks", "var/tmp", "tmp"]
        {
            std::fs::create_dir_all(node.root.join(dir))?;
        }
        symlink("../run", node.root.join("var/run"))?;
        for name in ["qemu-server", "lxc"] {
            symlink(format!("nodes/pve1/{name}"), node.root.join("etc/pve").join(name))?;
        }
        symlink("nodes/pve1", node.root.join("etc/pve/local"))?;
        let lab = programs::lab()?;
        for name in NAMES {
            symlink(&lab, node.root.join("bin").join(name))?;
        }
        let vzkeep = programs::vzkeep()?;
        for name in ["vzdump", "qmrestore", "vzkeep"] {
            symlink(&vzkeep, node.root.join("bin").join(name))?;
        }
        std::fs::create_dir_all(node.root.join("usr/sbin"))?;
        let sendmail = node.root.join("usr/sbin/sendmail");
        std::fs::write(&sendmail, SENDMAIL)?;
        std::fs::set_permissions(&sendmail, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        std::fs::write(node.root.join("etc/hostname"), "pve1\n")?;
        std::fs::write(node.root.join("etc/vzdump.conf"), "")?;
        std::fs::write(node.root.join("etc/pve/datacenter.cfg"), "keyboard: en-us\n")?;
        std::fs::write(node.root.join("etc/pve/user.cfg"), "user:root@pam:1:0:::root@example.com:::\n")?;
        std::fs::write(node.root.join("etc/pve/storage.cfg"), "")?;
        node.storage("local", "/var/lib/vz", "iso,vztmpl,backup,images,rootdir", &[])?.storage(
            "backup",
            "/mnt/backup",
            "backup",
            &["prune-backups keep-all=1"],
        )
    }

    /// A node with the files of a recorded one (`golden/node`): its guests, their images of the sizes their configs say,
    /// its storages.
    ///
    /// # Errors
    /// When the files cannot be copied.
    pub fn like(recorded: &Path) -> Result<Self> {
        let node = Self::new()?;
        let storages = std::fs::read_to_string(recorded.join("etc/pve/storage.cfg"))?;
        std::fs::write(node.root.join("etc/pve/storage.cfg"), &storages)?;
        for path in storages.lines().filter_map(|line| line.trim().strip_prefix("path ")) {
            std::fs::create_dir_all(node.path(path).join("dump"))?;
        }
        for dir in ["etc/pve/nodes/pve1/qemu-server", "etc/pve/nodes/pve1/lxc", "etc/pve/firewall"] {
            for entry in std::fs::read_dir(recorded.join(dir)).into_iter().flatten() {
                let from = entry?.path();
                let to = node.root.join(dir).join(from.file_name().unwrap_or_default());
                std::fs::write(&to, std::fs::read(&from)?)?;
                if to.extension().is_some_and(|extension| extension == "conf") {
                    node.make_images(&to)?;
                }
            }
        }
        for file in ["etc/pve/datacenter.cfg", "etc/pve/user.cfg"] {
            std::fs::write(node.root.join(file), std::fs::read(recorded.join(file))?)?;
        }
        Ok(node)
    }

    fn make_images(&self, config: &Path) -> Result<()> {
        let storages = Storages::load(&self.machine)?;
        let text = std::fs::read_to_string(config)?;
        if config.parent().is_some_and(|dir| dir.ends_with("lxc")) {
            return container_image::make_recorded(&storages, &text, &self.path("/tmp"));
        }
        for line in text.lines() {
            let Some((_, value)) = line.split_once(": ") else { continue };
            let (volid, properties) = value.split_once(',').unwrap_or((value, ""));
            let size = properties.split(',').find_map(|property| property.strip_prefix("size="));
            if let (Some(size), Ok(volume)) = (size, storages.volume(volid)) {
                create_volume(&volume, super::guest::bytes(size)?)?;
            }
        }
        Ok(())
    }

    /// Adds a directory storage: `.storage("bk", "/mnt/bk", "backup", &["prune-backups keep-last=2"])`.
    ///
    /// # Errors
    /// When `storage.cfg` cannot be written.
    pub fn storage(self, name: &str, path: &str, content: &str, lines: &[&str]) -> Result<Self> {
        let config = self.root.join("etc/pve/storage.cfg");
        let mut text = std::fs::read_to_string(&config)?;
        write!(text, "dir: {name}\n\tpath {path}\n\tcontent {content}\n")?;
        for line in lines {
            writeln!(text, "\t{line}")?;
        }
        text.push('\n');
        std::fs::write(&config, text)?;
        for dir in ["dump", "images"] {
            std::fs::create_dir_all(self.path(path).join(dir))?;
        }
        Ok(self)
    }

    /// Adds a storage for backups and images with room for `bytes` bytes (a file system in memory; needs root).
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn small_storage(self, name: &str, bytes: u64) -> Result<Self> {
        let path = format!("/mnt/{name}");
        let at = self.path(&path);
        std::fs::create_dir_all(&at)?;
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(&at).output()?;
        ensure!(done.status.success(), "{} cannot be mounted: {}", at.display(), String::from_utf8_lossy(&done.stderr));
        self.storage(name, &path, "backup,images", &[])
    }

    /// Adds a guest: makes its disks and writes its config.
    ///
    /// # Errors
    /// When a disk cannot be made.
    pub fn guest(self, guest: Guest) -> Result<Self> {
        guest.add_to(&self)?;
        Ok(self)
    }

    pub(super) fn make(&self, guest: &Guest) -> Result<()> {
        let storages = Storages::load(&self.machine)?;
        let mut volids = Vec::new();
        for disk in &guest.disks {
            volids.push(storages.alloc(&disk.storage, guest.vmid, "", disk.bytes, disk.format.name())?.volid);
        }
        std::fs::write(self.config_path(guest.vmid), guest.config(&volids))?;
        Ok(())
    }

    /// The directory below which the node lives.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the node's absolute path `path` really lies.
    pub fn path(&self, path: &str) -> PathBuf {
        self.machine.path(path)
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The config file of a guest.
    pub fn config_path(&self, vmid: u32) -> PathBuf {
        self.root.join(format!("etc/pve/nodes/pve1/qemu-server/{vmid}.conf"))
    }

    /// The config of a guest.
    ///
    /// # Errors
    /// When there is no such guest.
    pub fn config(&self, vmid: u32) -> Result<GuestConfig> {
        GuestConfig::load(&self.machine, vmid)
    }

    /// The image behind a key of a guest's config (`scsi0`) and its format.
    ///
    /// # Errors
    /// When guest, key or storage do not exist.
    pub fn disk(&self, vmid: u32, key: &str) -> Result<(PathBuf, String)> {
        let config = self.config(vmid)?;
        let value = config.get(key).with_context(|| format!("guest {vmid} has no {key}"))?;
        let volume = Storages::load(&self.machine)?.volume(value.split(',').next().unwrap_or_default())?;
        Ok((volume.path, volume.format))
    }

    /// A disk of a stopped guest as a raw file: the image itself, or a copy in the node's `/tmp` if it is none.
    ///
    /// # Errors
    /// When it cannot be converted.
    pub fn raw_disk(&self, vmid: u32, key: &str) -> Result<PathBuf> {
        let (path, format) = self.disk(vmid, key)?;
        if format == "raw" {
            return Ok(path);
        }
        let raw = self.path("/tmp").join(format!("{vmid}-{key}.raw"));
        let mut convert = self.command("qemu-img");
        let done = convert.args(["convert", "-f", &format, "-O", "raw"]).arg(&path).arg(&raw).output()?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "{} cannot be converted: {said}", path.display());
        Ok(raw)
    }

    /// A command in the node's world: its `bin` first in `PATH`, its root in `VZKEEP_ROOT`.
    pub fn command(&self, program: &str) -> Command {
        let own = self.root.join("bin").join(program);
        let mut command = if own.exists() { Command::new(own) } else { Command::new(program) };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::iter::once(self.root.join("bin")).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(dirs).unwrap_or(path.clone()));
        command.env("VZKEEP_ROOT", &self.root).env("TMPDIR", self.root.join("tmp")).current_dir(&self.root);
        command
    }

    /// Runs a command in the node's world to its end: `node.run("pvesm", &["path", "local:100/x.raw"])`.
    ///
    /// # Errors
    /// When it cannot be started or does not end within five minutes, in a soak two hours.
    pub fn run(&self, program: &str, words: &[&str]) -> Result<Output> {
        // A million files take their time.
        let limit = if std::env::var_os("VZKEEP_SOAK").is_some() { 7200 } else { 300 };
        self.spawn(program, words)?.wait(Duration::from_secs(limit))
    }

    /// Starts a command in the node's world; it is killed when the result is dropped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, program: &str, words: &[&str]) -> Result<Running> {
        let mut command = self.command(program);
        command.args(words);
        Running::start(command, &self.path("/tmp"))
    }

    /// Runs a command that must succeed.
    ///
    /// # Errors
    /// When it does not; with what it said.
    pub fn ok(&self, program: &str, words: &[&str]) -> Result<Output> {
        let output = self.run(program, words)?;
        ensure!(output.code == 0, "{program} {}: exit {}: {}", words.join(" "), output.code, output.stderr.trim());
        Ok(output)
    }

    /// Runs `vzdump` with these words.
    ///
    /// # Errors
    /// As [`Node::run`].
    pub fn vzdump(&self, words: &[&str]) -> Result<Output> {
        self.run("vzdump", words)
    }

    /// Starts `vzdump` with these words.
    ///
    /// # Errors
    /// As [`Node::spawn`].
    pub fn spawn_vzdump(&self, words: &[&str]) -> Result<Running> {
        self.spawn("vzdump", words)
    }

    /// Runs `qmrestore` with these words.
    ///
    /// # Errors
    /// As [`Node::run`].
    pub fn qmrestore(&self, words: &[&str]) -> Result<Output> {
        self.run("qmrestore", words)
    }

    /// Calls a verb of the bridge; returns its answer, errors included.
    ///
    /// # Errors
    /// When it cannot be started or does not answer with JSON.
    pub fn bridge(&self, verb: &str, question: &Value) -> Result<Value> {
        let mut command = self.command("vzkeep-pve-bridge");
        command.arg(verb);
        let input = self.path("/tmp").join(format!("bridge-{verb}"));
        std::fs::write(&input, question.to_string())?;
        command.stdin(std::fs::File::open(&input)?);
        let output = command.output()?;
        std::fs::remove_file(&input)?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Puts kernel and initramfs into the node's `/boot`.
    fn bootable(&self) -> Result<()> {
        if self.root.join("boot/vmlinuz").exists() {
            return Ok(());
        }
        let boot = guest_image::boot()?;
        symlink(&boot.witness, self.root.join("boot/guest.img"))?;
        if let Some(agent) = &boot.agent {
            symlink(agent, self.root.join("boot/agent.img"))?;
        }
        symlink(&boot.kernel, self.root.join("boot/vmlinuz"))?;
        Ok(())
    }

    /// Switches a guest on and waits until its witness answers.
    ///
    /// # Errors
    /// When QEMU does not start or the guest does not boot within a minute.
    pub fn start(&self, vmid: u32) -> Result<Report> {
        self.switch_on(vmid)?;
        self.witness(vmid, "status")
    }

    /// Switches a guest on without waiting for it to boot.
    ///
    /// # Errors
    /// When QEMU does not start.
    pub fn switch_on(&self, vmid: u32) -> Result<()> {
        self.bootable()?;
        self.ok("qm", &["start", &vmid.to_string()]).map(drop)
    }

    /// Presses a guest's power button and waits until it is off.
    ///
    /// # Errors
    /// When it does not switch itself off.
    pub fn shutdown(&self, vmid: u32) -> Result<()> {
        self.ok("qm", &["shutdown", &vmid.to_string(), "--timeout", "30", "--skiplock"]).map(drop)
    }

    /// A command to the witness (`status`, `reset`, `stop`, `go`) and its answer.
    ///
    /// # Errors
    /// When it does not answer within a minute.
    pub fn witness(&self, vmid: u32, command: &str) -> Result<Report> {
        self.witness_within(vmid, command, BOOT_TIME)
    }

    /// The same with another deadline.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub fn witness_within(&self, vmid: u32, command: &str, timeout: Duration) -> Result<Report> {
        serial::ask(&self.machine.run_file(vmid, "serial0"), command, timeout)
    }

    /// Waits until the witness has written `records` more records.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub fn wait_for_records(&self, vmid: u32, records: u64) -> Result<Report> {
        let goal = self.witness(vmid, "status")?.n + records;
        let deadline = std::time::Instant::now() + BOOT_TIME;
        loop {
            let report = self.witness(vmid, "status")?;
            if report.n >= goal {
                return Ok(report);
            }
            ensure!(std::time::Instant::now() < deadline, "guest {vmid} stands still at record {}", report.n);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Begins to watch for how long the guest's records stand still.
    ///
    /// # Errors
    /// When the guest is off.
    pub fn watch(&self, vmid: u32) -> Result<Watch> {
        Watch::start(&self.machine.run_file(vmid, "serial0"))
    }

    /// Asks a guest's QEMU.
    ///
    /// # Errors
    /// As [`qmp::ask`].
    pub fn qmp(&self, vmid: u32, command: &str, arguments: &Value) -> Result<Value> {
        qmp::ask(&self.qmp_socket(vmid), command, arguments)
    }

    /// Asks the guest agent of a guest.
    ///
    /// # Errors
    /// As [`qmp::ask_agent`].
    pub fn agent(&self, vmid: u32, command: &str, arguments: &Value) -> Result<Value> {
        qmp::ask_agent(&self.machine.run_file(vmid, "qga"), command, arguments)
    }

    /// The socket of a guest's monitor.
    pub fn qmp_socket(&self, vmid: u32) -> PathBuf {
        self.machine.run_file(vmid, "qmp")
    }

    /// The process of a guest's QEMU.
    pub fn qemu_pid(&self, vmid: u32) -> Option<i32> {
        std::fs::read_to_string(self.machine.run_file(vmid, "pid")).ok()?.trim().parse().ok()
    }

    /// The archives of a guest in a storage, oldest name first: everything but logs and notes.
    ///
    /// # Errors
    /// When the storage does not exist.
    pub fn archives(&self, storage: &str, vmid: u32) -> Result<Vec<PathBuf>> {
        let dir = Storages::load(&self.machine)?.dir(storage)?.join("dump");
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let beside = [".log", ".notes", ".protected", ".dat", ".tmp"].iter().any(|end| name.ends_with(end));
            let of_guest = ["qemu", "lxc"].iter().any(|kind| name.starts_with(&format!("vzdump-{kind}-{vmid}-")));
            if of_guest && !beside {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }
}
