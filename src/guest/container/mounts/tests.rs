use super::*;

fn mount(key: &str, mp: &str, source: &Path) -> Mount {
    let (key, mp) = (key.to_owned(), mp.to_owned());
    Mount { key, mp, source: Mountable::Directory(source.to_owned()), ..image() }
}

/// An image that does not exist.
fn image() -> Mount {
    let (key, mp, source) = ("rootfs".to_owned(), "/".to_owned(), Mountable::Image("/nonexistent".into()));
    Mount { key, mp, source, frozen: false, read_only: false, quota: false, acl: None }
}

fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("{test}: skipped, only root may mount");
    }
    root
}

#[test]
fn what_is_mounted_is_seen_in_the_room_only() {
    if !is_root("what_is_mounted_is_seen_in_the_room_only") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (root, data, inner) = (dir.path().join("root"), dir.path().join("data"), dir.path().join("inner"));
    for path in [root.join("data"), data.join("in"), inner.clone()] {
        std::fs::create_dir_all(path).unwrap();
    }
    std::fs::write(inner.join("file"), "deep").unwrap();
    let host = Host::with_root(dir.path().to_owned());
    let room = Room::open(&host).unwrap();
    // The inner one is named first.
    let mounts = [mount("mp1", "/data/in", &inner), mount("mp0", "/data", &data), mount("rootfs", "/", &root)];
    room.mount(&super::super::mount_place(), &mounts).unwrap();
    let place = host.path(super::super::mount_place());
    let script = format!("cat '{0}/data/in/file'; touch '{0}/data/in/new' && echo written", place.display());
    let mut command = Command::new("sh");
    command.args(["-c", &script]).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    let said = room.spawn(command).unwrap().wait_with_output().unwrap();
    assert_eq!(String::from_utf8(said.stdout).unwrap(), "deep");
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0, "seen from outside");
    room.close().unwrap();
}

/// The options that the kernel shows for an image with ext4 that was not unmounted in order.
fn shown(what: &Mount) -> String {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::with_root(dir.path().to_owned());
    let room = Room::open(&host).unwrap();
    room.mount(&super::super::mount_place(), std::slice::from_ref(what)).unwrap();
    let mut command = Command::new("cat");
    command.arg("/proc/self/mounts").stdout(std::process::Stdio::piped());
    let said = String::from_utf8(room.spawn(command).unwrap().wait_with_output().unwrap().stdout).unwrap();
    room.close().unwrap();
    said.lines().find(|line| line.contains("/mnt/vzsnap0 ")).unwrap().split(' ').nth(3).unwrap().to_owned()
}

#[test]
fn settings_of_a_mount_point_hold_when_it_is_read() {
    let test = "settings_of_a_mount_point_hold_when_it_is_read";
    if !is_root(test) || Command::new("mkfs.ext4").arg("-V").output().is_err() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image");
    std::fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
    assert!(Command::new("mkfs.ext4").arg("-q").arg(&file).status().unwrap().success());
    let unclean = || {
        // The journal has to be worked off, and nobody has done it: the flag is in the superblock.
        assert!(Command::new("debugfs").args(["-w", "-R", "feature needs_recovery"]).arg(&file).output().is_ok());
    };
    let base = || Mount { source: Mountable::Image(file.clone()), ..image() };
    let has = |options: &str, word: &str| options.split(',').any(|option| option == word);
    let plain = shown(&base());
    assert!(has(&plain, "rw") && ["nodev", "nosuid", "noexec", "noatime"].iter().all(|o| has(&plain, o)), "{plain}");
    let read_only = shown(&Mount { read_only: true, ..base() });
    assert!(has(&read_only, "ro") && !has(&read_only, "norecovery"), "{read_only}");
    // Where the kernel does not let ACLs be switched off, it is read with them.
    let acl = shown(&Mount { acl: Some(false), ..base() });
    assert!(has(&acl, "rw") && has(&acl, "noatime"), "{acl}");
    let quota = shown(&Mount { quota: true, ..base() });
    // A kernel without quotas mounts it without.
    assert!(has(&quota, "usrjquota=aquota.user") || !quota.contains("quota"), "{quota}");
    // Of a template nothing changes, and nothing is worked off.
    unclean();
    let before = std::fs::read(&file).unwrap();
    let template = shown(&Mount { frozen: true, quota: true, ..base() });
    assert!(has(&template, "ro") && has(&template, "norecovery"), "{template}");
    assert!(std::fs::read(&file).unwrap() == before, "the template was written to");
    shown(&base());
    assert!(std::fs::read(&file).unwrap() != before, "nothing had to be worked off");
}

#[test]
fn what_no_file_system_knows_is_tried_last() {
    let sets = |what: &Mount| options(what).iter().map(|set| set[4..].join(",")).collect::<Vec<_>>();
    assert_eq!(sets(&image()), ["loop", "loop,nouuid"]);
    let frozen = Mount { frozen: true, acl: Some(true), quota: true, ..image() };
    let without = ["loop,ro,noload", "loop,ro,norecovery,nouuid", "loop,ro"];
    let wanted: Vec<String> = without.iter().map(|set| format!("acl,{set}")).collect();
    assert_eq!(sets(&frozen), [wanted, without.map(str::to_owned).to_vec()].concat());
    let quota = Mount { quota: true, read_only: true, source: Mountable::Device("/dev/x".into()), ..image() };
    let journal = "ro,usrjquota=aquota.user,grpjquota=aquota.group,jqfmt=vfsv0";
    assert_eq!(sets(&quota), [journal, "ro", "ro,nouuid"]);
    assert_eq!(sets(&Mount { source: Mountable::Zfs("a@b".into()), ..image() }), ["ro"]);
}

#[test]
fn a_link_in_the_container_leads_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("elsewhere");
    std::fs::create_dir_all(&target).unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir_all(root.join("real")).unwrap();
    std::os::unix::fs::symlink(&target, root.join("link")).unwrap();
    std::fs::write(root.join("file"), "").unwrap();
    for mp in ["/link", "/link/x", "/file", "/file/x"] {
        let error = inside(&root, &mount("mp0", mp, &target)).unwrap_err().to_string();
        assert!(error.contains("is no directory in the container"), "{mp}: {error}");
    }
    assert_eq!(inside(&root, &mount("mp0", "/real/new", &target)).unwrap(), root.join("real/new"));
    assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
}
