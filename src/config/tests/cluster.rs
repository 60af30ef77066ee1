//! The files of the cluster: every type of storage, pools, high availability, the list of guests, limits.

use std::path::Path;

use super::*;
use crate::schema::Vmid;

fn vmid(number: u32) -> Vmid {
    Vmid::new(number).unwrap()
}

#[test]
fn every_type_of_storage() {
    // Type and what its section has, its directory, its mount point, its content by default, whether images are files.
    let table = [
        ("dir", "path /d", Some("/d"), None, "images,rootdir", true),
        ("dir", "path /d\n\tis_mountpoint 1", Some("/d"), Some("/d"), "images,rootdir", true),
        ("dir", "path /d/e\n\tis_mountpoint /d", Some("/d/e"), Some("/d"), "images,rootdir", true),
        ("dir", "path /d\n\tis_mountpoint 0", Some("/d"), None, "images,rootdir", true),
        ("nfs", "export /x\n\tserver s", Some("/mnt/pve/s1"), Some("/mnt/pve/s1"), "images", true),
        ("cifs", "share x\n\tpath /c", Some("/c"), Some("/c"), "images", true),
        ("cephfs", "monhost a", Some("/mnt/pve/s1"), Some("/mnt/pve/s1"), "backup", false),
        ("glusterfs", "volume v", Some("/mnt/pve/s1"), Some("/mnt/pve/s1"), "images", true),
        ("btrfs", "path /b", Some("/b"), None, "images,rootdir", false),
        ("lvm", "vgname v", None, None, "images", false),
        ("lvmthin", "vgname v\n\tthinpool t", None, None, "images,rootdir", false),
        ("zfspool", "pool rpool/data", None, None, "images,rootdir", false),
        ("rbd", "pool p", None, None, "images", false),
        ("pbs", "datastore d\n\tserver s", None, None, "backup", false),
        ("iscsi", "portal p\n\ttarget t", None, None, "images", false),
        // A plugin of somebody else's may use `path` for what it likes.
        ("theirs", "path /t", None, None, "images,rootdir", false),
    ];
    for (kind, lines, path, mount, content, files) in table {
        let cfg = StorageCfg::parse(&format!("{kind}: s1\n\t{lines}\n\tour-own 7\n"));
        let storage = cfg.get("s1").unwrap();
        assert_eq!((storage.kind.as_str(), cfg.warnings.len()), (kind, 0));
        assert_eq!(storage.path().as_deref(), path.map(Path::new), "{kind}");
        assert_eq!(storage.mount_point().as_deref(), mount.map(Path::new), "{kind}");
        assert_eq!(storage.content().join(","), content, "{kind}");
        assert_eq!(storage.has_image_files(), files, "{kind}");
        assert_eq!(storage.dump_dir(), path.map(|path| Path::new(path).join("dump")), "{kind}");
        assert_eq!(storage.get("our-own"), Some("7"), "{kind}");
        let backups = content.contains("backup");
        assert_eq!(storage.check_backup_content().is_ok(), backups, "{kind}");
    }
}

#[test]
fn properties_of_storages() {
    let cfg = StorageCfg::parse(
        "dir: a\n\tpath /a\n\tcontent backup,iso\n\tcontent-dirs backup=sub/there,iso=i\n\tnodes pve1,pve2\n\tdisable\n\
         \tmax-protected-backups -1\n\tprune-backups keep-last=3,keep-daily=13\n\tshared 1\n\n\
         DIR: b\n\tpath /b\n\tdisable 0\n\tcontent backup\n\tcontent none\n\tprune-backups keep-last=x\nnfs: c\n\tserver s\n",
    );
    assert_eq!(cfg.warnings, Vec::<String>::new());
    let [a, b, c, local] = cfg.storages.as_slice() else { panic!("{cfg:?}") };
    assert_eq!(a.dump_dir().as_deref(), Some(Path::new("/a/sub/there")));
    assert_eq!(a.content_dir("vztmpl").as_deref(), Some(Path::new("/a/template/cache")));
    assert_eq!(a.prune_backups().unwrap().unwrap().to_string(), "keep-daily=13,keep-last=3");
    assert_eq!(a.max_protected_backups(), None);
    assert!(a.is_disabled() && !b.is_disabled() && !c.is_disabled());
    assert_eq!(cfg.usable("a", "pve1").unwrap_err(), StorageError::Disabled("a".into()));
    assert!(a.is_on_node("pve2") && !a.is_on_node("pve") && b.is_on_node("pve"));
    // The last of two counts; a retention that cannot be read is an error, never "keep none".
    assert_eq!((b.kind.as_str(), b.content().join(",")), ("dir", "none".to_owned()));
    assert!(b.prune_backups().is_err());
    assert_eq!((c.id.as_str(), local.id.as_str()), ("c", "local"));
    assert_eq!(cfg.usable("d", "pve1").unwrap_err().to_string(), "storage 'd' does not exist");
}

#[test]
fn bad_lines_are_named() {
    let cfg = StorageCfg::parse("junk\n\tlost 1\n# c\ndir: a\n\tpath /a\n\ndir: a\n\tpath /b\ndir x\n");
    assert_eq!(
        cfg.warnings,
        [
            "file /etc/pve/storage.cfg line 1 - ignore config line: junk",
            "file /etc/pve/storage.cfg line 2 - ignore config line: lost 1",
            "file /etc/pve/storage.cfg line 7 (skip section 'a'): there is one of this name already",
            "file /etc/pve/storage.cfg line 9 - ignore config line: dir x",
        ]
    );
    assert_eq!(cfg.get("a").unwrap().path().as_deref(), Some(Path::new("/a")));
}

#[test]
fn a_path_that_is_no_text_is_not_another_directory() {
    let cfg = StorageCfg::parse(&String::from_utf8_lossy(
        b"dir: a\n\tpath /mnt/K\xfcche\n\tcomment \xff\n\ndir: b\n\tpath /b\n\tcomment \xfc\n",
    ));
    assert_eq!(
        cfg.usable("a", "n").unwrap_err().to_string(),
        "storage 'a' cannot be used: its path is not valid UTF-8"
    );
    assert!(cfg.usable("b", "n").is_ok());
}

#[test]
fn pools() {
    let users = UserCfg::parse(
        "user:root@pam:1:0::::::\ntoken:root@pam!x:0:1::\n\
         pool:one:with%3A colon:100,101;102 103:local,bk:\npool: a/b/c : :104, 100,x,7,99999999999:\n\
         pool:a/b/c/d::105::\npool:::106::\npool:old:c:107\npool:empty::::\nacl:1:/pool/one:u@pve:PVEAdmin:\nnonsense\n",
    );
    let numbers =
        |name: &str| users.pool(name).map(|pool| pool.vmids.iter().map(|vmid| vmid.get()).collect::<Vec<_>>());
    assert_eq!(numbers("one"), Some(vec![100, 101, 102, 103]));
    assert_eq!(numbers("a/b/c"), Some(vec![104]));
    // Their names make the pools around them; guests of the inner one are not theirs.
    assert_eq!((numbers("a"), numbers("a/b")), (Some(vec![]), Some(vec![])));
    assert_eq!((numbers("a/b/c/d"), numbers(""), numbers("nosuch")), (None, None, None));
    assert_eq!((numbers("old"), numbers("empty")), (Some(vec![107]), Some(vec![])));
    assert_eq!(
        users.warnings,
        [
            "user config - ignore duplicate vmid '100' in pool 'a/b/c'",
            "user config - ignore invalid vmid 'x' in pool 'a/b/c'",
            "user config - ignore invalid vmid '99999999999' in pool 'a/b/c'",
            "user config - ignore pool 'a/b/c/d' - invalid characters in pool name",
            "user config - ignore pool '' - invalid characters in pool name",
        ]
    );
}

#[test]
fn pools_of_the_recorded_node() {
    let Some(golden) = golden() else { return };
    let users = UserCfg::parse(&std::fs::read_to_string(golden.join("node/etc/pve/user.cfg")).unwrap());
    assert_eq!(users.pool("mypool").unwrap().vmids, [vmid(100), vmid(101)].into());
    let datacenter = std::fs::read_to_string(golden.join("node/etc/pve/datacenter.cfg")).unwrap();
    assert_eq!(DatacenterCfg::parse(&datacenter), DatacenterCfg::parse("keyboard: en-us"));
}

#[test]
fn high_availability() {
    let ha = HaResources::parse(
        "vm: 100\n\tstate started\n\nct:101\n\tgroup g\n\tstate enabled\nvm: 102\n\nvm: 103\n\tstate stopped\n\n\
         vm: 104\n\tstate disabled\n\nvm: 105\n\tstate ignored\n\nfs: 106\n\tstate started\n\nvm: 107\r\n\tstate started\r\n",
    );
    let kept: Vec<u32> = (100..110).filter(|number| ha.keeps_running(vmid(*number))).collect();
    assert_eq!(kept, [100, 101, 102, 107]);
}

#[test]
fn list_of_guests() {
    let list = Vmlist::parse(r#"{"version":3,"ids":{"100":{"node":"a","type":"qemu","version":1},"9":{}}}"#);
    assert_eq!(list, None, "half understood is not understood");
    let list = Vmlist::parse(r#"{"ids":{"200":{"node":"b","type":"lxc"},"100":{"node":"a","type":"qemu","new":[]}}}"#);
    let list = list.unwrap();
    let all: Vec<_> = list.iter().map(|(vmid, at)| (vmid.get(), at.node.as_str(), at.kind.as_str())).collect();
    assert_eq!(all, [(100, "a", "qemu"), (200, "b", "lxc")]);
    assert_eq!(Vmlist::parse(r#"{"version":1,"ids":{}}"#), Some(Vmlist::default()));
    for text in ["", "{}", "[]", "null", "{\"ids\":[]}", &"[".repeat(100_000)] {
        assert_eq!(Vmlist::parse(text), None);
        assert_eq!(cluster_name(text), None);
    }
}

#[test]
fn limits_of_storages_and_cluster() {
    let datacenter = DatacenterCfg::parse(
        "# bwlimit: restore=1\r\nkeyboard: de\r\nbwlimit: default=900,restore=400\r\nemail_from: pve@x.y\r\nmac_prefix: 02:AB\r\nnonsense\r\n",
    );
    assert_eq!((datacenter.email_from(), datacenter.mac_prefix()), (Some("pve@x.y"), Some("02:AB")));
    let storages = StorageCfg::parse(
        "dir: own\n\tpath /a\n\tbwlimit restore=100,default=7\n\ndir: default\n\tpath /a\n\tbwlimit clone=5,default=50\n\n\
         dir: none\n\tpath /a\n\tbwlimit restore=0\n\ndir: other\n\tpath /a\n\tbwlimit clone=5\n\n\
         dir: less\n\tpath /a\n\tbwlimit restore=0.2\n\ndir: bad\n\tpath /a\n\tbwlimit restore=-1,default=x\n",
    );
    let of = |id: &str, operation: &str| bandwidth_limit(operation, storages.get(id), &datacenter);
    assert_eq!((of("own", "restore"), of("own", "clone")), (Some(100), Some(7)));
    assert_eq!((of("default", "restore"), of("default", "clone")), (Some(50), Some(5)));
    // No limit, said by the storage, stands above the cluster's; nothing said does not.
    assert_eq!((of("none", "restore"), of("other", "restore"), of("local", "clone")), (None, Some(400), Some(900)));
    assert_eq!((of("less", "restore"), of("bad", "restore"), of("nosuch", "restore")), (Some(1), Some(400), Some(400)));
    assert_eq!(bandwidth_limit("restore", None, &DatacenterCfg::default()), None);
}
