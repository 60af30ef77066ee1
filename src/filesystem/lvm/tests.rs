//! Against groups that LVM's own programs make, on loop devices and without the kernel's device mapper.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::filesystem::{Guestfish, Machine, Place};
use crate::image::{MemImage, RawImage};

const MIB: u64 = 1 << 20;

/// Two disks with one group, whose loop devices are gone when it is dropped.
struct Group {
    dir: tempfile::TempDir,
    loops: Vec<String>,
}

impl Group {
    fn path(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("disk{number}"))
    }

    /// None where there are no loop devices, which must not be in CI.
    fn new() -> Option<Self> {
        let mut group = Self { dir: tempfile::tempdir().unwrap(), loops: Vec::new() };
        for number in 0..2 {
            File::create(group.path(number)).unwrap().set_len(64 * MIB).unwrap();
            let made = Command::new("losetup").args(["--find", "--show"]).arg(group.path(number)).output();
            let Some(made) = made.ok().filter(|made| made.status.success()) else {
                assert!(std::env::var_os("CI").is_none(), "no loop devices");
                println!("skipped: no loop devices");
                return None;
            };
            group.loops.push(String::from_utf8(made.stdout).unwrap().trim().to_owned());
        }
        let loops: Vec<_> = group.loops.iter().map(String::as_str).collect();
        group.lvm("pvcreate", &loops);
        group.lvm("vgcreate", &[&["-s", "1M", "vg"], &loops[..]].concat());
        Some(group)
    }

    fn lvm(&self, program: &str, words: &[&str]) {
        let filter = self.loops.iter().map(|device| format!("\"a|^{device}$|\"")).collect::<Vec<_>>().join(",");
        let config = format!(
            "devices {{ scan=\"/dev\" use_devicesfile=0 filter=[{filter},\"r|.*|\"] }} backup {{ backup=0 archive=0 }} \
             global {{ use_lvmlockd=0 event_activation=0 }} activation {{ udev_sync=0 udev_rules=0 monitoring=0 }}"
        );
        let mut command = Command::new(program);
        command.args(["--driverloaded", "n", "--config", &config]).args(words);
        let output = command.env("LVM_SUPPRESS_FD_WARNINGS", "1").output().unwrap();
        assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn volume(&self, words: &[&str]) {
        self.lvm("lvcreate", &[&["-an", "-Zn", "-Wn"], words].concat());
    }

    fn disks(&self) -> Vec<Arc<dyn Image>> {
        let open = |number| RawImage::open(&self.path(number), &format!("drive-scsi{number}")).unwrap();
        (0..2).map(|number| Arc::new(open(number)) as Arc<dyn Image>).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for device in &self.loops {
            Command::new("losetup").args(["-d", device]).status().unwrap();
        }
    }
}

fn write(path: &Path, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

fn read(image: &dyn Image, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    image.read_at(&mut bytes, at).unwrap();
    bytes
}

fn image<'a>(groups: &'a [VolumeGroup], name: &str) -> &'a Result<Arc<dyn Image>, String> {
    &groups[0].volumes.iter().find(|volume| volume.name == name).unwrap().image
}

#[test]
fn linear_and_striped_volumes_over_two_disks() {
    let Some(group) = Group::new() else { return };
    let loops = group.loops.clone();
    group.volume(&["-l", "10", "-n", "linear", "vg", &loops[0]]);
    group.volume(&["-i", "2", "-I", "64k", "-l", "16", "-n", "striped", "vg"]);
    group.lvm("lvextend", &["-l", "+5", "vg/linear", &loops[1]]);
    let (groups, notes) = volume_groups(&group.disks()).unwrap();
    assert_eq!((groups.len(), groups[0].name.as_str(), notes), (1, "vg", Vec::new()));
    // By 'pvs' and 'lvs -o devices': extents begin at 1 MiB; linear is 0-9 of the first disk and 8-12 of the second,
    // striped 10-17 of the first and 0-7 of the second.
    let mut expected = vec![0; 16 << 20];
    for (number, chunk) in expected.chunks_exact_mut(64 << 10).enumerate() {
        chunk.fill((number % 251) as u8 + 1);
        let (disk, first) = [(0, 11), (1, 1)][number % 2];
        write(&group.path(disk), first * MIB + (number as u64 / 2) * (64 << 10), chunk);
    }
    for extent in 0..15_u64 {
        let (disk, at) = if extent < 10 { (0, 1 + extent) } else { (1, 9 + extent - 10) };
        write(&group.path(disk), at * MIB, &vec![0xa0 + extent as u8; MIB as usize]);
    }
    let linear = image(&groups, "linear").as_ref().unwrap();
    assert_eq!((linear.name(), linear.size()), ("lvm/vg/linear", 15 * MIB));
    for extent in 0..15_u64 {
        assert!(
            read(&**linear, extent * MIB, MIB as usize).iter().all(|byte| *byte == 0xa0 + extent as u8),
            "{extent}"
        );
    }
    assert_eq!(read(&**linear, 10 * MIB - 1, 2), [0xa9, 0xaa]);
    let striped = image(&groups, "striped").as_ref().unwrap();
    assert!(read(&**striped, 0, 16 << 20) == expected);
    assert!(read(&**striped, 65_000, 300_000) == expected[65_000..365_000]);
    assert!(striped.read_at(&mut [0; 2], 16 * MIB - 1).is_err());
    for volume in [linear, striped] {
        let extents = volume.extents(5..volume.size()).unwrap();
        assert_eq!((extents[0].offset, extents.iter().map(|e| e.len).sum::<u64>()), (5, volume.size() - 5));
    }
    // Without the second disk neither can be read, and that is said.
    let (groups, _) = volume_groups(&group.disks()[..1]).unwrap();
    for name in ["linear", "striped"] {
        let why = image(&groups, name).as_ref().err().unwrap();
        assert!(
            why.starts_with("lies in part on the physical volume ")
                && why.ends_with(", which is on none of the archive's disks")
        );
    }
}

#[test]
fn a_file_system_in_a_volume() {
    let Some(group) = Group::new() else { return };
    group.volume(&["-l", "12", "-n", "root", "vg", &group.loops[0]]);
    let tree = group.dir.path().join("tree");
    std::fs::create_dir_all(tree.join("etc")).unwrap();
    std::fs::write(tree.join("etc/hostname"), "in a volume\n").unwrap();
    std::fs::write(tree.join("etc/fstab"), "").unwrap();
    let file = group.dir.path().join("ext");
    File::create(&file).unwrap().set_len(12 * MIB).unwrap();
    assert!(Command::new("mke2fs").args(["-q", "-F", "-d"]).arg(&tree).arg(&file).status().unwrap().success());
    write(&group.path(0), MIB, &std::fs::read(&file).unwrap());
    let host = crate::host::Host::from_env();
    let machine = Machine::new(group.disks(), Guestfish::new(&host, &crate::host::Cancel::new()));
    let level = |path: &str| match machine.place(path.as_bytes()).unwrap() {
        Place::Level(names) => names.into_iter().map(|(name, _)| name).collect::<Vec<_>>(),
        Place::Files(..) => panic!("{path}"),
    };
    assert_eq!(level(""), ["drive-scsi0", "drive-scsi1", "lvm"]);
    assert_eq!((level("lvm"), level("lvm/vg/")), (vec!["vg".to_owned()], vec!["root".to_owned()]));
    let Place::Files(fs, way) = machine.place(b"lvm/vg/root/etc/hostname").unwrap() else { panic!() };
    let node = crate::filesystem::resolve(&*fs, &way, true).unwrap();
    assert_eq!(fs.metadata(node).unwrap().size, 12);
    assert_eq!(machine.root().unwrap().0, "lvm/vg/root");
    let said = |path: &str| machine.place(path.as_bytes()).err().unwrap().to_string();
    assert_eq!(said("scsi0/x"), "drive-scsi0: holds an LVM physical volume; what is in it is below 'lvm'");
    assert_eq!(said("lvm/vg/none"), "there is no 'lvm/vg/none'");
    assert_eq!(said("drive-scsi2"), "there is no 'drive-scsi2'");
}

/// A description as LVM writes it, with another kind of segment in it.
fn description(kind: &str) -> String {
    format!(
        "vg {{ id = \"a\" seqno = 1 extent_size = 8 physical_volumes {{ pv0 {{ id = \"p\" pe_start = 8 pe_count = 9 }} }}\n\
         logical_volumes {{ lv {{ status = [\"VISIBLE\"] segment_count = 1 segment1 {{ start_extent = 0 extent_count = 4\n\
         type = \"{kind}\" stripe_count = 1 stripes = [\"pv0\", 0] }} }} hidden {{ status = [\"READ\"] segment_count = 0 }} }} }}"
    )
}

#[test]
fn volumes_of_other_kinds_are_named() {
    let disk: Arc<dyn Image> = Arc::new(MemImage::new("disk", vec![0; 64 << 10]));
    let said = |text: &str| {
        let (_, _, name, section) = group_of(text).unwrap();
        let physical = Physical { uuid: "p".to_owned(), image: disk.clone(), areas: Vec::new() };
        let mut found = volumes(&name, &section, &[physical]).unwrap();
        assert_eq!(found.len(), 1);
        found.remove(0).image.map(|image| image.size())
    };
    assert_eq!(said(&description("striped")), Ok(16 << 10));
    for (kind, what) in [
        ("thin", "a thin volume"),
        ("raid1", "a RAID volume"),
        ("cache", "a cached volume"),
        ("new", "of a kind nobody knows"),
    ] {
        assert_eq!(said(&description(kind)), Err(format!("is {what}; only linear and striped volumes are read here")));
    }
    // Places that cannot be.
    let strange = Err("is described in a way that makes no sense".to_owned());
    for (from, to) in [
        ("start_extent = 0", "start_extent = 1"),
        ("extent_count = 4", "extent_count = 9223372036854775807"),
        ("segment_count = 1", "segment_count = 9223372036854775807"),
        ("\"pv0\", 0]", "\"pv1\", 0]"),
        ("\"pv0\", 0]", "\"pv0\", -1]"),
        ("\"pv0\", 0]", "0, \"pv0\"]"),
        ("stripes = [\"pv0\", 0]", "stripes = []"),
        ("\"pv0\", 0]", "\"pv0\", 0, \"pv0\", 1]"),
    ] {
        assert_eq!(said(&description("striped").replace(from, to)), strange, "{to}");
    }
    assert_eq!(
        said(&description("striped").replace("\"pv0\", 0]", "\"pv0\", 12]")),
        Err("reaches beyond the end of disk".to_owned())
    );
    assert!(group_of(&description("x").replace("vg {", "a/b {")).is_err());
}

/// What the fuzz target `disk` does, over its corpus.
#[test]
fn fuzz_corpus() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/disk");
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        crate::filesystem::rehearse(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 4);
    crate::filesystem::rehearse(description("striped").as_bytes());
}
