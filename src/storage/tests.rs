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
        "vzdump-openvz-101-2026_11_22-09_14_25.tar.tgz",
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
    let (_root, volumes) = volumes("dir: off\n\tpath /x\n\tdisable\n\ndir: far\n\tpath /z\n\tnodes other\n");
    let error = |id: &str| volumes.storage(id).unwrap_err().to_string();
    assert_eq!(error("nosuch"), "storage 'nosuch' does not exist");
    assert_eq!(error("off"), "storage 'off' is disabled");
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
    let names = [
        "vzdump-qemu-101-2026_11_22-09_14_25.vma.zst",
        "vzdump-qemu-101-2026_11_22-09_14_25.vma.zst.protected",
        "vzdump-qemu-101-2026_11_22-09_14_25.log",
        "vzdump-qemu-101-golden.vma.zst",
        "vzdump-lxc-200-2026_11_21-00_00_00.tgz",
        "vzdump-qemu-102-2026_11_22-09_14_25.vma.dat",
    ];
    let found = entries(names, &TimeZone::UTC);
    let short: Vec<_> = found.iter().map(|e| (e.archive.vmid().unwrap().get(), e.protected, e.ctime)).collect();
    let (day, morning) = (Some(1_795_219_200), Some(1_795_338_865));
    assert_eq!(short, [(101, false, None), (200, false, day), (101, true, morning)]);
    assert!(found[2].is_of(GuestKind::Qemu, vmid(101)) && !found[2].is_of(GuestKind::Lxc, vmid(101)));
}

#[test]
fn what_an_archives_name_tells() {
    let info = |file: &str| {
        let info = ArchiveInfo::parse(file)?;
        let vmid = info.vmid().map(Vmid::get);
        Some((info.kind, vmid, info.format, info.compression, info.standard.is_some()))
    };
    use GuestKind::{Lxc, Openvz, Qemu};
    for (file, wanted) in [
        ("vzdump-qemu-101-2026_11_22-09_14_25.vma", (Qemu, Some(101), "vma", None, true)),
        ("vzdump-qemu-101-2026_11_22-09_14_25.vma.bz2", (Qemu, Some(101), "vma", Some("bz2"), true)),
        ("vzdump-lxc-200-2026_11_22-09_14_25.tar.zst", (Lxc, Some(200), "tar", Some("zst"), true)),
        ("vzdump-openvz-200-2011_11_22-09_14_25.tgz", (Openvz, Some(200), "tar", Some("gz"), true)),
        ("vzdump-qemu-101-before-the-upgrade.vma.lzo", (Qemu, Some(101), "vma", Some("lzo"), false)),
        ("vzdump-qemu-101-2026_13_22-09_14_25.vma", (Qemu, Some(101), "vma", None, false)),
        ("vzdump-qemu-template.vma.gz", (Qemu, None, "vma", Some("gz"), false)),
    ] {
        assert_eq!(info(file), Some(wanted), "{file}");
    }
    for bad in [
        "vzdump-qemu-101.vma.zst.notes",
        "vzdump-qemu-.vma",
        "vzdump-kvm-101-x.vma",
        "backup.vma",
        "a/vzdump-qemu-101-x.vma",
    ] {
        assert_eq!(info(bad), None, "{bad}");
    }
    let renamed = ArchiveInfo::parse("vzdump-qemu-101-x.vma").unwrap();
    assert_eq!(
        (renamed.notes(), renamed.protected()),
        ("vzdump-qemu-101-x.vma.notes".into(), "vzdump-qemu-101-x.vma.protected".into())
    );
}

mod properties {
    use std::collections::BTreeMap;

    use jiff::{Timestamp, Zoned};
    use proptest::prelude::*;

    use super::*;

    /// Zones with and without changes of the clock, by half an hour, at midnight, and far from Greenwich.
    const ZONES: [&str; 8] = [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "America/Havana",
        "Pacific/Kiritimati",
        "Pacific/Pago_Pago",
        "Asia/Kathmandu",
    ];

    /// Retention told another way: each rule puts all backups that are left into periods by the printed calendar, strikes out
    /// the periods that an earlier rule served, and of each of the newest others keeps the newest and drops the rest.
    fn slowly(backups: &[Backup], keep: &Keep, zone: &TimeZone) -> Vec<bool> {
        let mut kept = vec![false; backups.len()];
        let mut left: Vec<usize> = (0..backups.len()).filter(|i| !backups[*i].protected).collect();
        let rules = [
            ("", keep.last),
            ("%Y-%m-%d %H", keep.hourly),
            ("%Y-%m-%d", keep.daily),
            ("%G week %V", keep.weekly),
            ("%Y-%m", keep.monthly),
            ("%Y", keep.yearly),
        ];
        for (format, count) in rules {
            let mut periods: BTreeMap<String, Vec<usize>> = BTreeMap::new();
            for i in left.iter().copied() {
                let local = Zoned::new(Timestamp::from_second(backups[i].ctime).unwrap(), zone.clone());
                let period = if format.is_empty() { i.to_string() } else { local.strftime(format).to_string() };
                periods.entry(period).or_default().push(i);
            }
            let newest = |members: &[usize]| *members.iter().max_by_key(|i| backups[**i].ctime).unwrap();
            let mut unserved: Vec<Vec<usize>> =
                periods.into_values().filter(|members| !members.iter().any(|i| kept[*i])).collect();
            unserved.sort_by_key(|members| std::cmp::Reverse(backups[newest(members)].ctime));
            for members in unserved.into_iter().take(usize::try_from(count).unwrap()) {
                kept[newest(&members)] = true;
                left.retain(|i| kept[*i] || !members.contains(i));
            }
        }
        kept
    }

    fn keep() -> impl Strategy<Value = Keep> {
        (0u64..4, 0u64..4, 0u64..4, 0u64..4, 0u64..4, 0u64..3).prop_map(
            |(last, hourly, daily, weekly, monthly, yearly)| Keep {
                all: false,
                last,
                hourly,
                daily,
                weekly,
                monthly,
                yearly,
            },
        )
    }

    /// Moments some minutes to months apart; most of them around a change of the clock in October 2026.
    fn backups() -> impl Strategy<Value = Vec<Backup>> {
        let gap = prop_oneof![60i64..7200, 3000i64..90_000, 80_000i64..4_000_000];
        prop::collection::vec((gap, prop::bool::weighted(0.1)), 0..40).prop_map(|gaps| {
            let mut ctime = 1_792_800_000;
            let later = |(gap, protected)| {
                ctime += gap;
                Backup { ctime, protected }
            };
            gaps.into_iter().map(later).collect()
        })
    }

    proptest! {
        #[test]
        fn retention_is_what_the_slow_one_says(backups in backups().prop_shuffle(), keep in keep(), zone in 0..ZONES.len()) {
            prop_assume!(keep.total() > 0);
            let zone = TimeZone::get(ZONES[zone]).unwrap();
            let marks = plan_prune(&backups, &keep, &zone);
            for ((backup, mark), kept) in backups.iter().zip(&marks).zip(slowly(&backups, &keep, &zone)) {
                let wanted = if backup.protected { Mark::Protected } else if kept { Mark::Keep } else { Mark::Remove };
                prop_assert_eq!(*mark, wanted, "{} {:?} in {:?}", keep, backup, zone);
            }
            let newest = backups.iter().zip(&marks).filter(|(b, _)| !b.protected).max_by_key(|(b, _)| b.ctime);
            prop_assert!(newest.is_none_or(|(_, mark)| *mark == Mark::Keep), "the newest backup always stays");
        }

        #[test]
        fn every_name_we_give_is_read_back(number in 100u32..999_999_999, second in 0i64..4_000_000_000, extension in "vma(\\.(gz|lzo|zst))?", taken in 0i64..5) {
            let now = Timestamp::from_second(second).unwrap().to_zoned(TimeZone::UTC).datetime();
            let wanted = ArchiveName::fresh(GuestKind::Qemu, vmid(number), now, &extension, |_| false);
            let free = std::cell::Cell::new(taken);
            let name = ArchiveName::fresh(GuestKind::Qemu, vmid(number), now, &extension, |_| free.replace(free.get() - 1) > 0);
            prop_assert_eq!(name.timestamp(&TimeZone::UTC).unwrap().as_second(), second + taken);
            prop_assert_eq!(wanted.base() == name.base(), taken == 0);
            let info = ArchiveInfo::parse(&name.to_string()).unwrap();
            prop_assert_eq!(info.vmid(), Some(name.vmid));
            prop_assert_eq!(info.standard, Some(name));
        }

        #[test]
        fn any_text_is_a_name_or_none(file in "(vzdump-)?(qemu|lxc|openvz|kvm)?-?[0-9]{0,12}[-_.a-z0-9/\n ]{0,24}(\\.(tgz|vma|tar))?(\\.(gz|zst|bz2|notes))?") {
            if let Some(info) = ArchiveInfo::parse(&file) {
                prop_assert!(!file.contains('/') && !file.contains('\n'));
                if let Some(name) = info.standard {
                    prop_assert_eq!(name.to_string(), file);
                }
            } else {
                prop_assert_eq!(ArchiveName::parse(&file), None);
            }
        }
    }
}
