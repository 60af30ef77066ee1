use super::*;

const NASTY: &[u8] =
    b"# K\xfcche: rootfs: not=this\n#mp9: local:1/x,mp=/x\narch: amd64\nhostname: ct01\nlock: backup\n\
mp10: zfs:subvol-200-disk-3,mp=/ten,backup=1,size=8G\n\
mp2: local:200/vm-200-disk-9.raw,mp=/old,backup=1\n\
mp2: local:200/vm-200-disk-2.raw,mp=//data//./x/,backup=1,ro=1,acl=0,quota=1,mountoptions=noatime;nosuid,size=128M\n\
mp3: /mnt/bind,mp=/bind,backup=1\n\
mp4: /dev/sdb1,mp=/dev/x,backup=1\n\
mp5: mp=/five,volume=rbd:vm-200-disk-5,size=1.5G\n\
parent: one\nrootfs: local:200/vm-200-disk-0.raw,size=256M\nunused0: local:200/vm-200-disk-7.raw\nunprivileged: 1\n\
lxc.idmap: u 0 200000 1000\nlxc.idmap = g 0 300000 1000\nlxc.mount.entry: /a b none bind 0 0\n\n\
[pve:pending]\nrootfs: local:200/pending.raw\n\n[one]\nmp0: local:200/snap.raw,mp=/snap,backup=1\nlock: prepare\n\
lxc.idmap: u 0 1 1\n[vzdump]\nsnaptime: 1\n";

#[test]
fn what_a_nasty_file_says() {
    let config = ContainerConfig::parse(NASTY);
    assert_eq!(config.to_bytes(), NASTY);
    assert_eq!(
        (config.hostname().as_deref(), config.lock().as_deref(), config.is_unprivileged(), config.is_template()),
        (Some("ct01"), Some("backup"), true, false)
    );
    assert_eq!(config.snapshots(), ["one", "vzdump"]);
    let points = config.mount_points().unwrap();
    let lines: Vec<_> = points.iter().map(MountPoint::log_line).collect();
    assert_eq!(
        lines,
        [
            "including mount point rootfs ('/') in backup",
            "including mount point mp2 ('/data/x') in backup",
            "excluding bind mount point mp3 ('/bind') from backup (not a volume)",
            "excluding device mount point mp4 ('/dev/x') from backup (not a volume)",
            "excluding volume mount point mp5 ('/five') from backup (disabled)",
            "including mount point mp10 ('/ten') in backup",
        ]
    );
    let two = &points[1];
    assert_eq!(two.volid(), Some("local:200/vm-200-disk-2.raw"));
    assert!(two.is_read_only() && two.has_quota() && two.acl() == Some(false));
    assert_eq!((two.mount_options(), two.size()), (vec!["noatime", "nosuid"], Some(128 << 20)));
    assert_eq!((points[2].volid(), points[4].size()), (None, Some(3 << 29)));
    let maps: Vec<_> = config.id_map().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(maps, ["u:0:200000:1000", "g:0:300000:1000"]);
    assert_eq!(config.lxc_lines()[2], ("lxc.mount.entry".into(), "/a b none bind 0 0".into()));
}

#[test]
fn the_archives_text_is_what_holds_now() {
    let text = ContainerConfig::parse(NASTY).archive_text();
    let end = NASTY.windows(14).position(|part| part == b"\n[pve:pending]").unwrap();
    let mut wanted = NASTY[..end].to_vec();
    for gone in [&b"lock: backup\n"[..], b"parent: one\n"] {
        let at = wanted.windows(gone.len()).position(|part| part == gone).unwrap();
        wanted.drain(at..at + gone.len());
    }
    assert_eq!(text.escape_ascii().to_string(), wanted.escape_ascii().to_string());
    assert_eq!(ContainerConfig::parse(b"rootfs: a:b").archive_text(), b"rootfs: a:b\n");
    assert_eq!(ContainerConfig::parse(b"").archive_text(), b"");
}

#[test]
fn maps_of_ids() {
    let maps = |text: &str| ContainerConfig::parse(text.as_bytes()).id_map();
    assert_eq!(maps("rootfs: a:b\n").unwrap(), []);
    assert_eq!(
        maps("unprivileged: 1\n").unwrap().iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["u:0:100000:65536", "g:0:100000:65536"]
    );
    for bad in ["u 0 1", "x 0 1 1", "u 0 1 0", "u 0 4294967295 2", "u 0 1 1 1", "u -1 1 1", ""] {
        let error = maps(&format!("unprivileged: 1\nlxc.idmap: {bad}\n")).unwrap_err();
        assert!(error.to_string().contains(&format!("'lxc.idmap: {bad}'")), "{error}");
    }
}

#[test]
fn what_cannot_be_understood_is_never_left_out() {
    for (line, why) in [
        ("", "no 'rootfs'"),
        ("#rootfs: a:b\n[one]\nrootfs: a:b\n", "no 'rootfs'"),
        ("rootfs: \n", "names no volume"),
        ("rootfs: size=1G\n", "names no volume"),
        ("rootfs: a:b\nmp0: a:c\n", "no 'mp="),
        ("rootfs: a:b\nmp0: a:c,mp=/\n", "below '/'"),
        ("rootfs: a:b\nmp0: a:c,mp=\n", "below '/'"),
        ("rootfs: a:b\nmp0: a:c,mp=/a/../../b\n", "without '..'"),
        ("rootfs: a:b\nmp0: a:c,mp=/x,backup=1,backup=0\n", "twice"),
        ("rootfs: a:b\nmp0: a:c,mp=/x,a:d\n", "twice"),
        ("rootfs: a:b\nmp999: ,mp=/x\n", "names no volume"),
    ] {
        let error = ContainerConfig::parse(line.as_bytes()).mount_points().unwrap_err().to_string();
        assert!(error.contains(why), "{line}: {error}");
    }
    // Names that only look like one.
    let config = ContainerConfig::parse(b"rootfs: a:b\nmpx: a:c\nmp: a:c\nmemory: 1\nmp-1: x\n");
    assert_eq!(config.mount_points().unwrap().len(), 1);
}

#[test]
fn lines_are_set_and_removed() {
    let mut config = ContainerConfig::parse(NASTY);
    for mut point in config.mount_points().unwrap() {
        if let Source::Volume(_) = point.source {
            point.source = Source::Volume(format!("new:{}", point.key));
            point.set_size(1 << 30);
            config.set(&point.key.clone(), &point.to_string());
        }
    }
    config.set("hostname", "ct02");
    config.set("nameserver", "::1");
    assert!(config.remove("lock") && !config.remove("lock") && config.remove("unused0"));
    assert!(config.remove_snapshot("vzdump") && !config.remove_snapshot("vzdump"));
    let text = config.to_bytes().escape_ascii().to_string().replace("\\n", "\n");
    assert_eq!(
        text,
        "# K\\xfcche: rootfs: not=this\n#mp9: local:1/x,mp=/x\narch: amd64\nhostname: ct02\n\
         mp10: new:mp10,mp=/ten,backup=1,size=1G\n\
         mp2: new:mp2,mp=/data/x,backup=1,ro=1,acl=0,quota=1,mountoptions=noatime;nosuid,size=1G\n\
         mp3: /mnt/bind,mp=/bind,backup=1\nmp4: /dev/sdb1,mp=/dev/x,backup=1\n\
         mp5: new:mp5,mp=/five,size=1G\nnameserver: ::1\nparent: one\nrootfs: new:rootfs,size=1G\nunprivileged: 1\n\
         lxc.idmap: u 0 200000 1000\nlxc.idmap = g 0 300000 1000\nlxc.mount.entry: /a b none bind 0 0\n\n\
         [pve:pending]\nrootfs: local:200/pending.raw\n\n[one]\nmp0: local:200/snap.raw,mp=/snap,backup=1\n\
         lock: prepare\nlxc.idmap: u 0 1 1\n"
    );
    assert!(config.remove_lxc_lines() && config.lxc_lines().is_empty());
    let mut short = ContainerConfig::parse(b"rootfs: a:b");
    short.set("swap", "0");
    short.set("arch", "amd64");
    assert_eq!(short.to_bytes(), b"arch: amd64\nrootfs: a:b\nswap: 0\n");
}

#[test]
fn a_removed_snapshot_leaves_no_child_behind() {
    let text = b"rootfs: a:0\nparent: vzdump\nunused0: a:old\nunused1: /x\n[one]\nrootfs: a:0\n\n\
        [vzdump]\nparent: one\nmp0: volume=a:1,mp=/x\nmp1: /bind,mp=/y\nrootfs: a:0\n[two]\nparent: vzdump\n";
    let mut config = ContainerConfig::parse(text);
    assert_eq!(config.aside("vzdump"), ["a:old", "a:1", "a:0"]);
    assert!(config.remove_snapshot("vzdump"));
    let wanted = "rootfs: a:0\nparent: one\nunused0: a:old\nunused1: /x\n[one]\nrootfs: a:0\n\n[two]\nparent: one\n";
    assert_eq!(String::from_utf8(config.to_bytes()).unwrap(), wanted);
    // What a killed run left without the section.
    let mut config = ContainerConfig::parse(b"parent: vzdump\nrootfs: a:0\n");
    assert!(config.remove_snapshot("vzdump") && !config.remove_snapshot("vzdump"));
    assert_eq!(config.to_bytes(), b"rootfs: a:0\n");
}
