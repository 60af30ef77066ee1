use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::Value;
use uuid::Uuid;

use super::*;
use crate::schema::tables::VZDUMP;
use crate::schema::{Keep, Kind, VzdumpOptions, VzdumpRequest};
use crate::testdata::golden;

mod cluster;
mod damaged;

/// What the recordings call the result: the file's values over the defaults, all numbers as text.
fn resolved(conf: &VzdumpConf) -> BTreeMap<String, Value> {
    let mut all: BTreeMap<String, Value> =
        conf.unknown.iter().map(|(key, value)| (key.clone(), Value::from(value.clone()))).collect();
    let options = VZDUMP.options.iter().chain(VZDUMP.positionals());
    for opt in options {
        let Some(text) = conf.params.text(opt.name).or(opt.default) else {
            if let Kind::Property(shape) = opt.kind {
                all.insert(opt.name.into(), pairs(shape.keys, |_| None));
            } else if conf.params.has(opt.name) {
                all.insert(opt.name.into(), Value::from(Vec::<String>::new()));
            }
            continue;
        };
        let value = match opt.kind {
            Kind::Array => Value::from(conf.params.items(&VZDUMP, opt.name)),
            Kind::List(_) if opt.name == "mailto" => Value::from(conf.params.items(&VZDUMP, opt.name)),
            Kind::Property(_) if opt.name == "prune-backups" => {
                let keep = Keep::parse(text).unwrap().to_string();
                keep.split(',').filter_map(|p| p.split_once('=')).map(|(k, v)| (k.to_owned(), Value::from(v))).collect()
            }
            Kind::Property(shape) => {
                let given = conf.params.properties(&VZDUMP, opt.name).unwrap_or_default();
                pairs(shape.keys, |key| given.get(key).map(str::to_owned))
            }
            _ => Value::from(text),
        };
        all.insert(opt.name.into(), value);
    }
    all
}

fn pairs(keys: &[crate::schema::Opt], given: impl Fn(&str) -> Option<String>) -> Value {
    let value = |key: &crate::schema::Opt| given(key.name).or_else(|| key.default.map(str::to_owned));
    keys.iter().filter_map(|key| Some((key.name.to_owned(), Value::from(value(key)?)))).collect()
}

/// Numbers as text, everywhere.
fn plain(value: &Value) -> Value {
    match value {
        Value::Number(number) => Value::from(number.to_string()),
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), plain(value))).collect(),
        other => other.clone(),
    }
}

#[test]
fn vzdump_conf_as_recorded() {
    let Some(golden) = golden() else { return };
    let cases: Value =
        serde_json::from_str(&std::fs::read_to_string(golden.join("vzdump-conf.json")).unwrap()).unwrap();
    let cases = cases.as_object().unwrap();
    assert!(cases.len() >= 50);
    for (name, case) in cases {
        let conf = VzdumpConf::parse(case["input"].as_str().unwrap_or_default());
        let recorded: BTreeMap<String, Value> =
            case["result"].as_object().unwrap().iter().map(|(k, v)| (k.clone(), plain(v))).collect();
        assert_eq!(resolved(&conf), recorded, "{name}");
        let mut warnings: Vec<String> =
            case["warnings"].as_array().unwrap().iter().map(|w| w.as_str().unwrap().trim_end().to_owned()).collect();
        if let Some(said) = case.get("stderr") {
            warnings.push(said.as_str().unwrap().trim_start_matches("WARN: ").trim_end().to_owned());
        }
        assert_eq!(conf.warnings, warnings, "{name}");
    }
}

#[test]
fn the_command_line_wins_over_the_file() {
    let conf = VzdumpConf::parse(
        "dumpdir: /mnt/dd/\nmode: stop\nperformance: max-workers=4\nnotes-template: x\nprotected: 1\nexclude-path: /a\nzstd: 0\n",
    );
    let merge = |line: &[&str]| {
        let args: Vec<String> = line.iter().map(|&a| a.to_owned()).collect();
        VzdumpOptions::merge(&VzdumpRequest::parse(&args).unwrap(), &conf.params).unwrap()
    };
    let plain = merge(&["100"]);
    assert_eq!(plain.dumpdir.as_deref(), Some(std::path::Path::new("/mnt/dd")));
    assert_eq!((plain.storage.as_deref(), plain.notes_template.as_deref(), plain.protected), (None, None, false));
    assert_eq!((plain.mode.as_str(), plain.performance.max_workers, plain.zstd_threads(3)), ("stop", 4, 2));
    let given = merge(&[
        "100",
        "--storage",
        "bk",
        "--mode",
        "suspend",
        "--performance",
        "pbs-entries-max=7",
        "--exclude-path",
        "/b",
    ]);
    assert_eq!((given.dumpdir, given.storage.as_deref(), given.mode.as_str()), (None, Some("bk"), "suspend"));
    assert_eq!((given.performance.max_workers, given.performance.pbs_entries_max), (4, 7));
    assert_eq!((given.notes_template.as_deref(), given.protected), (Some("x"), true));
    assert_eq!(given.exclude_path, ["/a", "/b"]);
}

#[test]
fn storage_cfg_of_the_recorded_node() {
    let Some(golden) = golden() else { return };
    let text = std::fs::read_to_string(golden.join("node/etc/pve/storage.cfg")).unwrap();
    let cfg = StorageCfg::parse(&text);
    assert!(cfg.warnings.is_empty());
    let ids: Vec<_> = cfg.storages.iter().map(|s| s.id.as_str()).collect();
    assert_eq!(ids, ["local", "bk", "noback", "keep2", "prot1", "off"]);
    let get = |id: &str| cfg.get(id).unwrap();
    assert_eq!(get("bk").dump_dir().unwrap(), std::path::Path::new("/mnt/bk/dump"));
    assert_eq!(get("keep2").prune_backups().unwrap().unwrap().last, 2);
    assert_eq!(get("bk").prune_backups(), Ok(Some(Keep::ALL)));
    assert_eq!((get("prot1").max_protected_backups(), get("bk").max_protected_backups()), (Some(1), None));
    assert!(get("bk").check_backup_content().is_ok());
    assert_eq!(
        get("noback").check_backup_content().unwrap_err().to_string(),
        "can't use storage 'noback' for backups - wrong content type"
    );
    assert_eq!(cfg.usable("off", "pve1").unwrap_err().to_string(), "storage 'off' is disabled");
}

#[test]
fn storage_cfg_oddities() {
    let cfg = StorageCfg::parse(
        "junk\n\tlost 1\n# c\nnfs: n\n\tserver s\n\tnodes a,b\n\tbwlimit restore=100,default=7\n\npbs: p\n\tdatastore d\n",
    );
    assert_eq!(cfg.warnings.len(), 2);
    let nfs = cfg.get("n").unwrap();
    assert_eq!(nfs.path().unwrap(), std::path::Path::new("/mnt/pve/n"));
    assert_eq!(nfs.mount_point(), nfs.path(), "nobody but the node mounts it");
    assert!(nfs.is_on_node("b") && !nfs.is_on_node("c"));
    let local = cfg.get("local").unwrap();
    assert_eq!(local.path().unwrap(), std::path::Path::new("/var/lib/vz"));
    assert!(local.check_backup_content().is_ok());
    assert_eq!(cfg.get("p").unwrap().path(), None);
    assert_eq!(cfg.get("p").unwrap().properties().next(), Some(("datastore", "d")));
}

const GUEST: &str = "#my vm\nagent: 1,freeze-fs-on-backup=0\nbios: ovmf\nboot: order=scsi0\nefidisk0: local:100/vm-100-disk-3.raw,size=528K\nide2: none,media=cdrom\nlock: snapshot\nname: web01\nnet0: virtio=BC:24:11:AA:BB:CC,bridge=vmbr0,firewall=1\nparent: s1\nsata0: /dev/sdb,backup=1\nscsi0: local:100/vm-100-disk-0.qcow2,format=qcow2,size=1G\nscsi1: local:100/vm-100-disk-1.raw,backup=0,size=256M\nscsi10: thin:vm-100-disk-9,iothread=1,size=2G\nscsi2: local:100/vm-100-cloudinit.qcow2,media=cdrom\nsmbios1: uuid=2d1d5e9c-6631-4ffb-aaab-8be97f7e50f2,manufacturer=QQ==\ntpmstate0: local:100/vm-100-disk-4.raw,size=4M,version=v2.0\nunused0: local:100/vm-100-disk-7.raw\nvmgenid: 1632e817-d8fe-41e7-9697-e035c1f6f56f\n\n[PENDING]\nscsi5: local:100/vm-100-disk-5.raw,size=1G\n\n[s1]\nname: old\nsnaptime: 5\n\n[special:cloudinit]\nname: x\n";

#[test]
fn guest_settings() {
    let config = GuestConfig::parse(GUEST.as_bytes());
    assert_eq!(config.name().as_deref(), Some("web01"));
    assert_eq!(config.lock().as_deref(), Some("snapshot"));
    assert!(!config.is_template());
    let agent = config.agent();
    assert!(agent.enabled && !agent.freeze_fs_on_backup && agent.kind == "virtio");
    assert_eq!(config.snapshots(), ["s1"]);
    assert_eq!(config.properties(&Section::Snapshot("s1".into()))[1], ("snaptime".into(), "5".into()));
    assert_eq!(config.properties(&Section::Special("cloudinit".into())).len(), 1);
}

#[test]
fn disks_and_what_becomes_of_them() {
    let config = GuestConfig::parse(GUEST.as_bytes());
    let lines: Vec<_> = backup_volumes(&config).iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "include disk 'scsi0' 'local:100/vm-100-disk-0.qcow2' 1G",
            "exclude disk 'scsi1' 'local:100/vm-100-disk-1.raw' (backup=no)",
            "include disk 'scsi10' 'thin:vm-100-disk-9' 2G",
            "include disk 'sata0' '/dev/sdb'",
            "include disk 'efidisk0' 'local:100/vm-100-disk-3.raw' 528K",
            "include disk 'tpmstate0' 'local:100/vm-100-disk-4.raw' 4M",
        ]
    );
    let volumes = backup_volumes(&config);
    let archive: Vec<_> = archive_order(&volumes).iter().map(|disk| disk.device()).collect();
    assert_eq!(archive, ["drive-efidisk0", "drive-sata0", "drive-scsi0", "drive-scsi10", "drive-tpmstate0-backup"]);
    assert!(disks(&config).iter().any(|disk| disk.key == "scsi2" && disk.is_cloudinit()));
    let bios = GuestConfig::parse(b"efidisk0: local:100/x.raw,size=128K\n");
    assert_eq!(backup_volumes(&bios)[0].excluded, Some("efidisk but no OMVF BIOS"));
}

/// The lines about disks in every recorded log of a VM.
#[test]
fn disk_lines_as_recorded() {
    let Some(golden) = golden() else { return };
    let mut seen = 0;
    for case in std::fs::read_dir(golden.join("vzdump")).unwrap() {
        let case = case.unwrap().path();
        let log = std::fs::read_to_string(case.join("stdout.txt")).unwrap_or_default();
        for guest in log.split("INFO: Starting Backup of VM ").skip(1) {
            let vmid = guest.split(' ').next().unwrap();
            let file = golden.join(format!("node/etc/pve/nodes/pve1/qemu-server/{vmid}.conf"));
            let Ok(text) = std::fs::read(file) else { continue };
            let is_disk = |line: &&str| line.starts_with("include disk") || line.starts_with("exclude disk");
            let recorded: Vec<_> = guest.lines().filter_map(|l| l.strip_prefix("INFO: ")).filter(is_disk).collect();
            // A backup that fails early gets no further than this.
            if !recorded.is_empty() {
                let ours: Vec<_> = backup_volumes(&GuestConfig::parse(&text)).iter().map(ToString::to_string).collect();
                assert_eq!(ours, recorded, "{} {vmid}", case.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 20, "only {seen} recordings");
}

/// The blob in an archive that the stock program made from the configuration beside it.
#[test]
fn blob_as_in_a_recorded_archive() {
    let Some(golden) = golden() else { return };
    let archive = std::fs::read(golden.join("archives/two-disks.vma")).unwrap();
    let (start, end) = (b"boot: order=scsi0\n".as_slice(), b"#qmdump#map:scsi1:drive-scsi1:local:raw:\n".as_slice());
    let find = |what: &[u8]| archive.windows(what.len()).position(|window| window == what).unwrap();
    let (first, last) = (find(start), find(end) + end.len());
    let stored = &archive[first..last];
    // A two-byte little-endian length stands before the blob.
    assert_eq!(usize::from(archive[first - 2]) | usize::from(archive[first - 1]) << 8, stored.len());
    let text: Vec<u8> =
        stored.split_inclusive(|b| *b == b'\n').filter(|l| !l.starts_with(b"#qmdump#")).flatten().copied().collect();
    let config = GuestConfig::parse(&text);
    let blob = config_blob(&config, &backup_volumes(&config), |v| v.disk.format().unwrap_or("raw").to_owned());
    assert_eq!(blob, stored);
    assert_eq!(map_lines(&blob)[1].device, "drive-scsi1");
}

#[test]
fn blob_of_a_busy_configuration() {
    let config = GuestConfig::parse(GUEST.as_bytes());
    let blob = config_blob(&config, &backup_volumes(&config), |v| v.disk.format().unwrap_or("raw").to_owned());
    let text = String::from_utf8(blob.clone()).unwrap();
    for gone in ["lock:", "parent:", "unused0", "[", "snaptime", "scsi5"] {
        assert!(!text.contains(gone), "{gone}");
    }
    assert!(text.starts_with("#my vm\nagent:"));
    assert!(text.contains("\n#qmdump#map:tpmstate0:drive-tpmstate0-backup:local:raw:\n"));
    assert!(text.contains("\n#qmdump#map:sata0:drive-sata0::raw:\n"));
    let again = GuestConfig::parse(&blob);
    assert_eq!(config_blob(&again, &backup_volumes(&again), |v| v.disk.format().unwrap_or("raw").to_owned()), blob);
}

#[test]
fn restored_configuration() {
    let config = GuestConfig::parse(GUEST.as_bytes());
    let blob = config_blob(&config, &backup_volumes(&config), |_| "raw".to_owned());
    let volumes = [("scsi0", "bk:300/vm-300-disk-1.raw"), ("efidisk0", "bk:300/vm-300-disk-0.raw")];
    let volumes = volumes.iter().map(|(key, volume)| ((*key).to_owned(), (*volume).to_owned())).collect();
    let mut rewrite = Rewrite { volumes, ..Rewrite::default() };
    let mut count = 0u128;
    let mut next = || {
        count += 1;
        Uuid::from_u128(count << 120 | count)
    };
    let text = |rewrite: &Rewrite, next: &mut dyn FnMut() -> Uuid| {
        String::from_utf8(rewrite_for_restore(&blob, rewrite, &mut Fresh::from(next))).unwrap()
    };
    let plain = text(&rewrite, &mut next);
    assert!(plain.contains("\nscsi0: bk:300/vm-300-disk-1.raw,size=1G\n"), "{plain}");
    assert!(plain.contains("\n#scsi1: local:100/vm-100-disk-1.raw,backup=0,size=256M\n"));
    assert!(plain.contains("\nide2: none,media=cdrom\n"));
    assert!(plain.contains("\nvmgenid: 01000000-0000-0000-0000-000000000001\n"));
    assert!(plain.contains("BC:24:11:AA:BB:CC") && plain.contains("2d1d5e9c-6631") && !plain.contains("#qmdump"));
    rewrite.unique = true;
    let unique = text(&rewrite, &mut next);
    assert!(unique.contains("\nnet0: virtio=BC:24:11:02:00:00,bridge=vmbr0,firewall=1\n"), "{unique}");
    assert!(unique.contains("\nsmbios1: uuid=03000000-0000-0000-0000-000000000003,manufacturer=QQ==\n"));
}

#[test]
fn locking_leaves_everything_else_alone() {
    let text = "name: x\nzz: 1\n\n[s1]\nlock: old\n";
    let mut config = GuestConfig::parse(text.as_bytes());
    config.set_lock("backup");
    assert_eq!(config.to_bytes(), b"lock: backup\nname: x\nzz: 1\n\n[s1]\nlock: old\n");
    config.set_lock("create");
    assert_eq!(config.lock().as_deref(), Some("create"));
    assert!(config.remove_lock());
    assert_eq!(config.to_bytes(), text.as_bytes());
    assert!(!config.remove_lock());
    let mut end = GuestConfig::parse(b"cores: 1");
    end.set_lock("backup");
    assert_eq!(end.to_bytes(), b"cores: 1\nlock: backup\n");
    let mut empty = GuestConfig::default();
    empty.set_lock("backup");
    assert_eq!(empty.to_bytes(), b"lock: backup\n");
}

/// Text that looks like configuration often enough.
fn config_text() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        "(name|lock|scsi[0-9]|net0|unused1|parent|vmgenid|smbios1|efidisk0|args|agent): [ -~]{0,20}",
        "\\[(PENDING|s1|special:x|[ -~]{0,4})\\]",
        "(dir|nfs): [a-z]{0,3}",
        "[\t ](path|content|disable|nodes)[ -~]{0,8}",
        "#(qmdump#map:)?[ -~:]{0,12}",
        "[\\PC]{0,10}",
        Just(String::new()),
    ];
    (proptest::collection::vec(line, 0..12), proptest::collection::vec(any::<u8>(), 0..4), any::<bool>()).prop_map(
        |(lines, bytes, end)| {
            let mut text = lines.join("\n").into_bytes();
            text.extend(bytes);
            if end {
                text.push(b'\n');
            }
            text
        },
    )
}

proptest! {
    #[test]
    fn nothing_is_lost_and_nothing_panics(text in config_text()) {
        check(&text);
    }
}

/// What holds for every input; the fuzz target `config` checks the same.
fn check(text: &[u8]) {
    let config = GuestConfig::parse(text);
    assert_eq!(config.to_bytes(), text);
    let volumes = backup_volumes(&config);
    let blob = config_blob(&config, &volumes, |_| "raw".to_owned());
    let restored =
        rewrite_for_restore(&blob, &Rewrite { unique: true, ..Rewrite::default() }, &mut Fresh::from(Uuid::nil));
    assert!(map_lines(&restored).is_empty());
    let mut locked = config.clone();
    locked.set_lock("backup");
    assert_eq!(locked.lock().as_deref(), Some("backup"));
    assert!(locked.remove_lock());
    if config.lock().is_none() && text.ends_with(b"\n") {
        assert_eq!(locked.to_bytes(), text);
    }
    let text = String::from_utf8_lossy(text);
    let _ = (VzdumpConf::parse(&text), StorageCfg::parse(&text), UserCfg::parse(&text), HaResources::parse(&text));
    let _ = (DatacenterCfg::parse(&text), Vmlist::parse(&text), cluster_name(&text));
}

#[test]
fn corpus() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/config");
    for file in std::fs::read_dir(dir).unwrap() {
        check(&std::fs::read(file.unwrap().path()).unwrap());
    }
}
