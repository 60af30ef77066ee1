use std::path::Path;

use jiff::civil::{DateTime, date};
use jiff::tz::TimeZone;

use super::*;
use crate::config::StorageCfg;
use crate::host::Host;
use crate::schema::{Keep, Vmid};
use crate::testdata::golden;

fn vmid(number: u32) -> Vmid {
    Vmid::new(number).unwrap()
}

fn moment() -> DateTime {
    date(2026, 11, 22).at(9, 14, 25, 999)
}

#[test]
fn archive_names_and_their_companions() {
    let name = ArchiveName::fresh(GuestKind::Qemu, vmid(101), moment(), "vma.zst", |_| false);
    let dir = Path::new("/mnt/bk/dump");
    assert_eq!(name.to_string(), "vzdump-qemu-101-2026_11_22-09_14_25.vma.zst");
    assert_eq!(ArchiveName::parse(&name.to_string()).as_ref(), Some(&name));
    let file = |path: std::path::PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(file(name.draft(dir)), "vzdump-qemu-101-2026_11_22-09_14_25.vma.dat");
    assert_eq!(file(name.log(dir)), "vzdump-qemu-101-2026_11_22-09_14_25.log");
    assert_eq!(file(name.tmp(dir)), "vzdump-qemu-101-2026_11_22-09_14_25.tmp");
    assert_eq!(file(name.notes(dir)), "vzdump-qemu-101-2026_11_22-09_14_25.vma.zst.notes");
    assert_eq!(file(name.protected(dir)), "vzdump-qemu-101-2026_11_22-09_14_25.vma.zst.protected");
    let plain = ArchiveName { extension: "vma".into(), ..name };
    assert_eq!(file(plain.draft(dir)), "vzdump-qemu-101-2026_11_22-09_14_25.dat");
    for bad in [
        "vzdump-qemu-101-2026_11_22-09_14_25.vma.zst.notes",
        "vzdump-qemu-101-2026_11_22-09_14_25.dat",
        "vzdump-qemu-101-2026_13_22-09_14_25.vma",
        "vzdump-openvz-101-2026_11_22-09_14_25.tar",
        "vzdump-qemu-99-2026_11_22-09_14_25.vma",
        "x-vzdump-qemu-101-2026_11_22-09_14_25.vma",
    ] {
        assert_eq!(ArchiveName::parse(bad), None, "{bad}");
    }
}

#[test]
fn two_backups_in_one_second_get_two_names() {
    let taken = ["vzdump-qemu-101-2026_11_22-09_14_25", "vzdump-qemu-101-2026_11_22-09_14_26"];
    let name = ArchiveName::fresh(GuestKind::Qemu, vmid(101), moment(), "vma", |base| taken.contains(&base));
    assert_eq!(name.base(), "vzdump-qemu-101-2026_11_22-09_14_27");
}

#[test]
fn volume_ids_and_paths() {
    let cfg = StorageCfg::parse(
        "dir: bk\n\tpath /mnt/bk\n\tcontent-dirs backup=my/dumps,images=disks\n\nlvmthin: thin\n\tvgname pve\n",
    );
    let path = |text: &str| text.parse::<VolId>()?.path_on(cfg.get(text.split(':').next().unwrap()).unwrap());
    let real = |text: &str| path(text).unwrap().path.to_string_lossy().into_owned();
    assert_eq!(real("local:100/vm-100-disk-0.qcow2"), "/var/lib/vz/images/100/vm-100-disk-0.qcow2");
    assert_eq!(
        real("local:103/base-103-disk-0.qcow2/104/vm-104-disk-0.qcow2"),
        "/var/lib/vz/images/104/vm-104-disk-0.qcow2"
    );
    assert_eq!(
        real("local:backup/vzdump-qemu-101-2026_11_22-09_14_25.vma"),
        "/var/lib/vz/dump/vzdump-qemu-101-2026_11_22-09_14_25.vma"
    );
    assert_eq!(real("bk:backup/x.vma"), "/mnt/bk/my/dumps/x.vma");
    assert_eq!(real("bk:100/vm-100-disk-0.raw"), "/mnt/bk/disks/100/vm-100-disk-0.raw");
    assert_eq!(real("local:iso/debian.iso"), "/var/lib/vz/template/iso/debian.iso");
    for bad in ["local:100/../../etc/passwd", "local:backup/..", "local:vm-100-disk-0", "local:100/"] {
        assert!(matches!(path(bad), Err(VolIdError::Volume(_))), "{bad}");
    }
    assert!(matches!(path("thin:100/x"), Err(VolIdError::NoPath(_))));
    for bad in ["", "local", ":x", "local:", "/dev/sda", "lo cal:x"] {
        assert!(bad.parse::<VolId>().is_err(), "{bad}");
    }
    assert_eq!("local:100/vm-100-disk-0.qcow2".parse::<VolId>().unwrap().format(), "qcow2");
    assert_eq!("thin:vm-100-disk-0".parse::<VolId>().unwrap().format(), "raw");
}

fn volumes(cfg: &str) -> (tempfile::TempDir, Volumes) {
    let root = tempfile::tempdir().unwrap();
    let host = Host::with_root(root.path().to_owned());
    (root, Volumes::new(host, StorageCfg::parse(cfg)))
}

#[test]
fn a_volume_is_removed_with_the_directory_it_leaves_empty() {
    let (root, volumes) = volumes("");
    let dir = root.path().join("var/lib/vz/images/300");
    std::fs::create_dir_all(&dir).unwrap();
    let volid: VolId = "local:300/vm-300-fleece-0.qcow2".parse().unwrap();
    std::fs::write(volumes.path(&volid.to_string()).unwrap(), "x").unwrap();
    std::fs::write(dir.join("other"), "x").unwrap();
    volumes.free(&volid).unwrap();
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    std::fs::remove_file(dir.join("other")).unwrap();
    volumes.free(&volid).unwrap();
    assert!(!dir.exists());
}

#[test]
fn storages_that_cannot_be_used() {
    let (_root, volumes) = volumes(
        "dir: off\n\tpath /x\n\tdisable\n\ndir: mnt\n\tpath /y\n\tis_mountpoint 1\n\ndir: far\n\tpath /z\n\tnodes other\n",
    );
    let error = |id: &str| volumes.storage(id).unwrap_err().to_string();
    assert_eq!(error("nosuch"), "storage 'nosuch' does not exist");
    assert_eq!(error("off"), "storage 'off' is disabled");
    assert!(error("mnt").contains("is not mounted: '/y'"));
    assert!(error("far").starts_with("storage 'far' is not available on node '"));
}

#[test]
fn retention_as_recorded() {
    let Some(golden) = golden() else { return };
    let cases: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(golden.join("prune.json")).unwrap()).unwrap();
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 160);
    for (number, case) in cases.iter().enumerate() {
        let backups: Vec<_> = case["backups"].as_array().unwrap().iter().collect();
        let given: Vec<_> = backups
            .iter()
            .map(|b| Backup { ctime: b["ctime"].as_i64().unwrap(), protected: b["protected"].as_bool().unwrap() })
            .collect();
        let text = |v: &serde_json::Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        let keep: Vec<_> = case["keep"].as_object().unwrap().iter().map(|(k, v)| format!("{k}={}", text(v))).collect();
        let keep = Keep::parse(&keep.join(",")).unwrap();
        let zone = TimeZone::get(case["tz"].as_str().unwrap()).unwrap();
        let marks = plan_prune(&given, &keep, &zone);
        for (backup, mark) in backups.iter().zip(marks) {
            let mark = format!("{mark:?}").to_lowercase();
            assert_eq!(backup["mark"].as_str().unwrap(), mark, "case {number}, {keep}, {backup}");
        }
    }
}

#[test]
fn listing_a_dump_directory() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "vzdump-qemu-101-2026_11_22-09_14_25.vma.zst",
        "vzdump-qemu-101-2026_11_22-09_14_25.vma.zst.protected",
        "vzdump-qemu-101-2026_11_22-09_14_25.log",
        "vzdump-lxc-200-2026_11_21-00_00_00.tar",
        "vzdump-qemu-102-2026_11_22-09_14_25.vma.dat",
    ] {
        std::fs::write(dir.path().join(name), b"12345").unwrap();
    }
    let found = list(dir.path(), &TimeZone::UTC).unwrap();
    let short: Vec<_> = found.iter().map(|e| (e.name.vmid.get(), e.protected, e.size)).collect();
    assert_eq!(short, [(200, false, 5), (101, true, 5)]);
    assert_eq!(found[1].ctime, 1_795_338_865);
    assert!(list(&dir.path().join("nosuch"), &TimeZone::UTC).is_err());
}
