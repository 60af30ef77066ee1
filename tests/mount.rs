//! `vzkeep mount` of virtual machines' archives: every byte, every hole and every partition as the disk had them, as seen by
//! programs that know nothing of archives.

mod lab;

use anyhow::{Context, Result, ensure};
use lab::Dice;
use lab::archives::make_vma;
use lab::mounted::{MountPoint, require_fuse};
use nix::unistd::{Whence, lseek};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use vzkeep::archive::Compression;

const CLUSTER: usize = 64 << 10;

fn shell(script: &str) -> Result<String> {
    let output = Command::new("bash").args(["-e", "-o", "pipefail", "-c", script]).env("PATH", path()).output()?;
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{script}: {}: {said}{complained}", output.status);
    Ok(said.into_owned())
}

fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// A disk of some MiB: data, holes of whole clusters, holes of single blocks, and an end that is no multiple of anything.
fn disk(seed: u64, clusters: usize) -> Vec<u8> {
    let mut dice = Dice::seeded(seed);
    let mut bytes = vec![0; clusters * CLUSTER + 1536];
    for cluster in 0..clusters {
        let at = cluster * CLUSTER;
        match cluster % 7 {
            // Several frames of nothing.
            _ if (60..260).contains(&cluster) => {}
            0..=2 => bytes[at..at + CLUSTER].copy_from_slice(&dice.bytes(CLUSTER)),
            3 => bytes[at + 8192..at + 12_288].copy_from_slice(&dice.bytes(4096)),
            _ => {}
        }
    }
    bytes[clusters * CLUSTER..].copy_from_slice(&dice.bytes(1536));
    bytes
}

/// A disk with a GPT: an ext4 file system, and a second partition of known bytes.
fn partitioned(dir: &Path) -> Result<Vec<u8>> {
    let disk = dir.join("partitioned");
    let (image, script) = (disk.display(), "label: gpt\\nstart=2048, size=16384\\nstart=18432, size=2048\\n");
    shell(&format!(
        "truncate -s 12M {image}; printf '{script}' | sfdisk -q {image}; truncate -s 8M {image}.fs; \
         mkdir {image}.tree; echo hello >{image}.tree/hello; mkfs.ext4 -q -d {image}.tree {image}.fs; \
         dd if={image}.fs of={image} bs=1M seek=1 conv=notrunc status=none; \
         head -c 1048576 <(yes partition) | dd of={image} bs=1M seek=9 conv=notrunc status=none"
    ))?;
    Ok(std::fs::read(disk)?)
}

/// Data as the kernel sees it in a file: ranges from `SEEK_DATA` to `SEEK_HOLE`.
fn data(file: &File) -> Result<Vec<(u64, u64)>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Ok(start) = lseek(file, at, Whence::SeekData) {
        at = lseek(file, start, Whence::SeekHole)?;
        found.push((u64::try_from(start)?, u64::try_from(at)?));
    }
    Ok(found)
}

/// What a good mount of `bytes` at `file` shows. `exact`: every cluster of zeros is a hole, not only those that fill a frame.
fn check(file: &Path, bytes: &[u8], exact: bool) -> Result<()> {
    let opened = File::open(file)?;
    let meta = opened.metadata()?;
    ensure!(meta.len() == bytes.len() as u64, "{}: {} bytes", file.display(), meta.len());
    ensure!(meta.mode() & 0o222 == 0, "{}: mode {:o}", file.display(), meta.mode());
    ensure!(std::fs::read(file)? == bytes, "{} differs", file.display());
    // Holes are zeros; st_blocks counts the rest.
    let data = data(&opened)?;
    let (mut at, mut stored) = (0, 0);
    for (start, end) in data.iter().copied().chain([(bytes.len() as u64, bytes.len() as u64)]) {
        ensure!(bytes[at as usize..start as usize].iter().all(|byte| *byte == 0), "a hole at {at} is none");
        (at, stored) = (end, stored + end - start);
    }
    ensure!(meta.blocks() == stored.div_ceil(512), "{} blocks for {stored} bytes of data", meta.blocks());
    for (number, cluster) in bytes.chunks(CLUSTER).enumerate() {
        let start = (number * CLUSTER) as u64;
        let is_zero = cluster.iter().all(|byte| *byte == 0);
        let is_hole = !data.iter().any(|(from, to)| *from < start + cluster.len() as u64 && start < *to);
        let wanted = if exact { is_hole == is_zero } else { is_zero || !is_hole };
        ensure!(wanted, "{}: cluster {number}: hole {is_hole}, zero {is_zero}", file.display());
    }
    ensure!(bytes.len() < 300 * CLUSTER || stored < 180 * CLUSTER as u64, "only {stored} bytes are data");
    Ok(())
}

#[test]
fn disks_as_the_archive_has_them() -> Result<()> {
    let name = "disks_as_the_archive_has_them";
    if !require_fuse(name) || !lab::require(name, &["qemu-img", "sfdisk", "mkfs.ext4", "e2fsck", "debugfs"]) {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let disks =
        [("drive-scsi0", disk(1, 300)), ("drive-virtio1", disk(2, 3)), ("drive-sata2", partitioned(dir.path())?)];
    let compressions = [Compression::None, Compression::Zstd { threads: 2 }, Compression::Gzip { threads: 2 }];
    for (number, compression) in compressions.into_iter().enumerate() {
        let base = dir.path().join(format!("vzdump-qemu-100-2026_11_22-09_14_2{number}"));
        let archive = PathBuf::from(format!("{}.vma{}", base.display(), compression.suffix()));
        make_vma(&archive, &disks, compression)?;
        std::fs::write(base.with_extension("log"), "what the backup said\n")?;
        std::fs::write(format!("{}.notes", archive.display()), "web server")?;
        let point = MountPoint::new(dir.path(), &format!("mount {number}"))?;
        assert_eq!(point.mount(&archive)?, "");
        let mut names: Vec<_> = std::fs::read_dir(point.path())?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        names.sort();
        let wanted = [
            "drive-sata2.p1.raw",
            "drive-sata2.p2.raw",
            "drive-sata2.raw",
            "drive-scsi0.raw",
            "drive-virtio1.raw",
            "log",
            "notes",
            "qemu-server.conf",
            "qemu-server.fw",
        ];
        assert_eq!(names, wanted);
        assert_eq!(std::fs::read_to_string(point.join("qemu-server.conf"))?, "memory: 512\n");
        assert_eq!(std::fs::read_to_string(point.join("log"))?, "what the backup said\n");
        assert_eq!(std::fs::read_to_string(point.join("notes"))?, "web server");
        assert_eq!(point.join("drive-scsi0.raw").metadata()?.mtime(), 1_763_802_865);
        for (disk, bytes) in &disks {
            check(&point.join(&format!("{disk}.raw")), bytes, number == 0)
                .with_context(|| archive.display().to_string())?;
        }
        let partitions = &disks[2].1;
        check(&point.join("drive-sata2.p1.raw"), &partitions[1 << 20..9 << 20], number == 0)?;
        check(&point.join("drive-sata2.p2.raw"), &partitions[9 << 20..10 << 20], number == 0)?;
        if number == 1 {
            as_programs_see_it(dir.path(), &point, &disks[0].1)?;
            many_readers(&point.join("drive-scsi0.raw"), &disks[0].1)?;
            nothing_can_be_written(&point)?;
        }
        point.unmount()?;
    }
    Ok(())
}

/// What qemu-img, cp, dd and the tools of ext4 say.
fn as_programs_see_it(dir: &Path, point: &MountPoint, bytes: &[u8]) -> Result<()> {
    let (source, mount, dir) = (dir.join("source"), point.path().display(), dir.display());
    std::fs::write(&source, bytes)?;
    let info: serde_json::Value =
        serde_json::from_str(&shell(&format!("qemu-img info --output=json '{mount}/drive-scsi0.raw'"))?)?;
    assert_eq!((info["format"].as_str(), info["virtual-size"].as_u64()), (Some("raw"), Some(bytes.len() as u64)));
    shell(&format!(
        "disk='{mount}/drive-scsi0.raw'; source={}; cd {dir}
         qemu-img compare -f raw -F raw $source \"$disk\"
         qemu-img convert -f raw -O qcow2 \"$disk\" copy.qcow2; qemu-img compare -f raw -F qcow2 $source copy.qcow2
         cp --sparse=auto \"$disk\" copy; cmp $source copy; test $(stat -c %b copy) -lt $(stat -c %b $source)
         dd if=\"$disk\" bs=12345 skip=77 count=40 status=none | cmp - \
             <(dd if=$source bs=12345 skip=77 count=40 status=none)
         dd if=\"$disk\" bs=1 skip=65535 count=3 status=none | cmp - <(dd if=$source bs=1 skip=65535 count=3 status=none)
         dd if=\"$disk\" bs=64K iflag=direct status=none | cmp - $source
         e2fsck -fn '{mount}/drive-sata2.p1.raw'
         test \"$(debugfs -R 'cat hello' '{mount}/drive-sata2.p1.raw' 2>/dev/null)\" = hello",
        source.display()
    ))?;
    Ok(())
}

/// Several at once, at random places.
fn many_readers(file: &Path, bytes: &[u8]) -> Result<()> {
    let read = |seed: u64| -> Result<()> {
        let (file, mut dice) = (File::open(file)?, Dice::seeded(seed));
        for _ in 0..100 {
            let at = dice.below(bytes.len() as u64);
            let len = dice.below(300_000).min(bytes.len() as u64 - at) as usize;
            let mut buf = vec![0; len];
            file.read_exact_at(&mut buf, at)?;
            ensure!(buf == bytes[at as usize..at as usize + len], "{len} bytes at {at} differ");
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..6).map(|seed| scope.spawn(move || read(seed))).collect();
        readers.into_iter().try_for_each(|reader| reader.join().expect("a reader panicked"))
    })
}

fn nothing_can_be_written(point: &MountPoint) -> Result<()> {
    let disk = point.join("drive-scsi0.raw");
    let refused = |done: std::io::Result<()>| done.is_err_and(|e| e.raw_os_error() == Some(libc::EROFS));
    ensure!(refused(OpenOptions::new().write(true).open(&disk).map(|_| ())), "opened for writing");
    ensure!(refused(std::fs::write(point.join("new"), "x")), "made a file");
    ensure!(refused(std::fs::remove_file(&disk)), "removed a disk");
    ensure!(refused(std::fs::rename(&disk, point.join("other"))), "renamed a disk");
    ensure!(refused(std::fs::create_dir(point.join("directory"))), "made a directory");
    let flags = nix::sys::statvfs::statvfs(point.path())?.flags();
    use nix::sys::statvfs::FsFlags;
    ensure!(
        flags.contains(FsFlags::ST_RDONLY | FsFlags::ST_NOSUID | FsFlags::ST_NODEV | FsFlags::ST_NOATIME),
        "{flags:?}"
    );
    Ok(())
}

#[test]
fn a_partition_is_mounted_in_turn() -> Result<()> {
    let name = "a_partition_is_mounted_in_turn";
    if !require_fuse(name) || !lab::require(name, &["sfdisk", "mkfs.ext4", "losetup"]) {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let archive = dir.path().join("partitioned.vma.zst");
    make_vma(&archive, &[("drive-scsi0", partitioned(dir.path())?)], Compression::Zstd { threads: 1 })?;
    let (point, inner) = (MountPoint::new(dir.path(), "outer")?, MountPoint::new(dir.path(), "inner")?);
    point.mount(&archive)?;
    let (file, at) = (point.join("drive-scsi0.p1.raw"), inner.path().display().to_string());
    shell(&format!("mount -o ro,loop,noload '{}' {at}", file.display()))?;
    assert_eq!(std::fs::read_to_string(inner.join("hello"))?, "hello\n");
    shell(&format!("umount {at}"))?;
    lab::mounted::wait("the loop device is gone", || {
        Ok(Command::new("losetup").arg("-j").arg(&file).output()?.stdout.is_empty())
    })?;
    point.unmount()
}

#[test]
fn stock_made_archives() -> Result<()> {
    if !require_fuse("stock_made_archives") {
        return Ok(());
    }
    let Some(golden) = lab::mounted::golden() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let sums = [
        ("drive-scsi0.raw", "8d7d0efb80f98dd454e19ace30725c3bdf3d4ce0589e4bb6157d3c8382516f66"),
        ("drive-scsi1.raw", "c739be9e6b9a3864f7ab8bda6cf818b8a8ecfaa58c994e4de42f529a77c1a68b"),
    ];
    for name in ["two-disks.vma", "diskless.vma"] {
        let point = MountPoint::new(dir.path(), name)?;
        point.mount(&golden.join("archives").join(name))?;
        for (disk, sum) in sums.iter().filter(|_| name != "diskless.vma") {
            let said = shell(&format!("sha256sum '{}'", point.join(disk).display()))?;
            ensure!(said.starts_with(sum), "{name}: {said}");
        }
        ensure!(point.join("qemu-server.conf").is_file(), "{name} without configuration");
        point.unmount()?;
    }
    Ok(())
}
