//! The guest of the system tests: Debian's kernel and packages, this build's programs, a disk for volume groups, under a QEMU
//! that needs no KVM. In it run the tests that need device-mapper, which a container or a CI machine does not give them.

use super::container_image::{diarist, make_ext4};
use super::{guest_image, programs};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const INIT: &str = include_str!("witness/system-init");
const RUN: &str = include_str!("witness/system-run");

/// The name of the machine's disk for volume groups, inside.
pub const DISK: &str = "/dev/vdc";
/// How large it is. Nothing of it takes room before it is written.
const DISK_BYTES: u64 = 4 << 30;
/// A machine without KVM that shares its cores with others.
const MOST: Duration = Duration::from_secs(1500);
/// Said on the kernel's command line, so that the tests inside know where they are.
const MARK: &str = "vzkeep.system";

/// In the order in which they are loaded. What a kernel has built in or lacks is left out.
const MODULES: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "crc32c_generic",
    "libcrc32c",
    "crc16",
    "mbcache",
    "jbd2",
    "ext4",
    "overlay",
    "loop",
    "nbd",
    "dax",
    "dm-mod",
    "dm-bufio",
    "dm-bio-prison",
    "dm-persistent-data",
    "dm-thin-pool",
    "dm-snapshot",
];

/// Users that udev's rules and LXC ask for.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n";
const GROUP: &str = "root:x:0:\ntty:x:5:\ndisk:x:6:\nlp:x:7:\ndialout:x:20:\ncdrom:x:24:\ntape:x:26:\naudio:x:29:\n\
    video:x:44:\nkmem:x:15:\ninput:x:101:\nkvm:x:102:\nrender:x:103:\nsgx:x:104:\nnogroup:x:65534:\n";

/// Whether we are in the guest.
pub fn inside() -> bool {
    std::fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.split_whitespace().any(|word| word == MARK))
}

/// Boots the guest and runs this test program in it with these words. Returns its console.
///
/// # Errors
/// When it cannot be built or booted, does not end in time, or the program fails; with the console.
pub fn run(words: &[&str]) -> Result<String> {
    let dir = tempfile::Builder::new().prefix("vzkeep-system-").tempdir()?;
    let debian = debian()?;
    let programs = programs_image(dir.path(), words)?;
    let (kernel, initramfs) = (guest_image::boot()?.kernel, initramfs(dir.path())?);
    let disk = dir.path().join("disk");
    std::fs::File::create(&disk)?.set_len(DISK_BYTES)?;
    let console = dir.path().join("console");
    // It ends with us, however that happens.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot"]);
    command.args(["-machine", "accel=tcg,type=pc", "-cpu", "qemu64,+rdrand,+rdseed", "-smp", "2", "-m", "1536"]);
    command.args(["-serial", "stdio", "-monitor", "none", "-nic", "none", "-append"]);
    command.arg(format!(
        "console=ttyS0 quiet loglevel=1 mitigations=off edd=off nokaslr apparmor=0 audit=0 panic=-1 {MARK}"
    ));
    command.arg("-kernel").arg(&kernel).arg("-initrd").arg(&initramfs);
    for (image, read_only) in [(&debian, "on"), (&programs, "on"), (&disk, "off")] {
        let words = format!("if=virtio,format=raw,cache=unsafe,read-only={read_only},file={}", image.display());
        command.arg("-drive").arg(words);
    }
    let output = std::fs::File::create(&console)?;
    command.stdin(Stdio::null()).stderr(output.try_clone()?).stdout(output);
    let mut qemu = command.spawn().context("setpriv cannot be started")?;
    let give_up = Instant::now() + MOST;
    let ended = loop {
        if let Some(status) = qemu.try_wait()? {
            break Ok(status);
        }
        if Instant::now() > give_up {
            qemu.kill()?;
            qemu.wait()?;
            break Err(());
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let said = String::from_utf8_lossy(&std::fs::read(&console)?).replace('\r', "");
    match ended {
        Err(()) => bail!("the guest did not end within {MOST:?}; its console:\n{said}"),
        Ok(status) if !said.contains("system guest: exit 0\n") => {
            bail!("the tests in the guest failed (QEMU: {status}); its console:\n{said}")
        }
        Ok(_) => Ok(said),
    }
}

/// The image of the Debian that `make setup` unpacked, made once.
fn debian() -> Result<PathBuf> {
    let tree = programs::project().join("target/lab/debian");
    let mark = tree.join("etc/vzkeep-packages");
    let made = mark.metadata().context("target/lab/debian is missing: run `make setup`")?.modified()?;
    let image = programs::project().join("target/lab/debian.img");
    if image.metadata().and_then(|meta| meta.modified()).is_ok_and(|time| time > made) {
        return Ok(image);
    }
    let beside = tempfile::NamedTempFile::new_in(programs::project().join("target/lab"))?;
    image_of(&tree, beside.path())?;
    beside.persist(&image)?;
    Ok(image)
}

/// The programs of this build, at the places where they are on this machine, and the words to be run.
fn programs_image(dir: &Path, words: &[&str]) -> Result<PathBuf> {
    let tree = dir.join("programs");
    let exe = std::env::current_exe()?;
    let busybox = programs::find("busybox").context("busybox is missing: run `make setup`")?;
    for program in [exe.clone(), programs::vzkeep()?, programs::lab()?, diarist()?] {
        copy(&program, &tree.join(program.strip_prefix("/")?))?;
    }
    copy(&busybox, &tree.join("usr/bin/busybox"))?;
    // The lab looks there for newer sources.
    std::fs::create_dir_all(tree.join(programs::project().join("tests/lab").strip_prefix("/")?))?;
    std::fs::create_dir_all(tree.join("etc"))?;
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let variable =
        |name: &str| std::env::var(name).map(|value| format!("export {name}='{value}'\n")).unwrap_or_default();
    let call =
        format!("{}{}'{}' {}", variable("VZKEEP_SOAK"), variable("RUST_BACKTRACE"), exe.display(), quoted.join(" "));
    let files = [("system-run", RUN), ("system-words", &call), ("etc/passwd", PASSWD), ("etc/group", GROUP)];
    for (name, text) in files {
        std::fs::write(tree.join(name), text)?;
    }
    // In the Debian below these are links, which a directory here would hide.
    for name in ["bin", "sbin", "lib", "lib64"] {
        ensure!(!tree.join(name).exists(), "{} would hide /{name} of the guest", tree.join(name).display());
    }
    let image = dir.join("programs.img");
    image_of(&tree, &image)?;
    Ok(image)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to.parent().context("no directory")?)?;
    std::fs::copy(from, to).with_context(|| format!("{} cannot be copied", from.display()))?;
    Ok(std::fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(0o755))?)
}

/// An ext4 file system with what is in `tree`, and room for its own tables.
fn image_of(tree: &Path, image: &Path) -> Result<()> {
    let (bytes, files) = weigh(tree)?;
    std::fs::File::create(image)?.set_len((bytes * 5 / 4 + files * 4096 + (32 << 20)).next_multiple_of(1 << 20))?;
    make_ext4(image, tree)
}

/// How many bytes and files there are below `dir`.
fn weigh(dir: &Path) -> Result<(u64, u64)> {
    let (mut bytes, mut files) = (0, 1);
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        let more = if meta.is_dir() { weigh(&entry.path())? } else { (meta.len(), 1) };
        (bytes, files) = (bytes + more.0, files + more.1);
    }
    Ok((bytes, files))
}

fn initramfs(dir: &Path) -> Result<PathBuf> {
    let busybox = programs::find("busybox").context("busybox is missing: run `make setup`")?;
    let (_, modules) = guest_image::kernel()?;
    let mut files =
        vec![("init".to_owned(), INIT.as_bytes().to_vec()), ("bin/busybox".to_owned(), std::fs::read(busybox)?)];
    files.extend(guest_image::driver_files(&modules, MODULES)?);
    let path = dir.join("initramfs");
    std::fs::write(&path, guest_image::cpio(&files)?)?;
    Ok(path)
}
