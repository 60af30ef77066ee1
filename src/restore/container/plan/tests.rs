use super::*;
use uuid::Uuid;

const STORAGES: &str = "dir: local\n\tpath /var/lib/vz\n\tcontent images,rootdir\n\nzfspool: tank\n\tpool t\n\tcontent rootdir\n\n\
    btrfs: bt\n\tpath /bt\n\tcontent rootdir\n\nlvmthin: thin\n\tvgname p\n\tcontent rootdir\n\n\
    dir: bk\n\tpath /mnt/bk\n\tcontent backup\n";
const CONFIG: &str = "#old\narch: amd64\nhostname: ct01\nmemory: 128\nmp0: local:200/vm-200-disk-1.raw,mp=/data,backup=1,size=128M\n\
    mp1: local:200/vm-200-disk-2.raw,mp=/nobackup,size=64M\nmp2: /srv,mp=/srv\nnet0: name=eth0,hwaddr=BC:24:11:00:00:01\n\
    ostype: unmanaged\nrootfs: local:200/vm-200-disk-0.raw,size=256M\nswap: 0\ntemplate: 1\nunused0: local:200/x.raw\n\
    unprivileged: 1\nlxc.cap.drop: x\n[snap]\nmemory: 1\n";

fn make(request: &Request, config: Option<&str>, existing: Option<&Existing>) -> Result<Plan, String> {
    let archived = Archived { config: config.map(|text| text.as_bytes().to_vec()), ..Archived::default() };
    let storages = StorageCfg::parse(STORAGES);
    plan(&archived, request, &storages, "pve1", existing).map_err(|refusal| refusal.to_string())
}

fn request() -> Request {
    Request { vmid: 201, ..Request::default() }
}

fn shown(plan: &Plan) -> Vec<String> {
    let line = |v: &VolumePlan| {
        let DiskPlan { key, device, storage, format, .. } = &v.disk;
        format!("{key} {storage} {format} {} {}", device.size >> 20, v.point.mp)
    };
    plan.volumes.iter().map(line).collect()
}

fn config(plan: &Plan) -> String {
    let volumes = plan.volumes.iter().map(|v| (v.disk.key.clone(), format!("{}:new", v.disk.storage))).collect();
    String::from_utf8(plan.config(&volumes, &mut Fresh::from(|| Uuid::from_u128(7 << 120)))).unwrap()
}

#[test]
fn every_volume_again_on_one_storage() {
    let plan = make(&request(), Some(CONFIG), None).unwrap();
    assert_eq!(shown(&plan), ["rootfs local raw 256 /", "mp0 local raw 128 /data", "mp1 local raw 64 /nobackup"]);
    assert_eq!(plan.warnings, ["mount point mp1 ('/nobackup') was not in the backup: it is made anew and is empty"]);
    assert_eq!(
        config(&plan),
        "#old\narch: amd64\nhostname: ct01\nmemory: 128\nmp0: local:new,mp=/data,backup=1,size=128M\n\
         mp1: local:new,mp=/nobackup,size=64M\nmp2: /srv,mp=/srv\nnet0: name=eth0,hwaddr=BC:24:11:00:00:01\n\
         ostype: unmanaged\nrootfs: local:new,size=256M\nswap: 0\nunprivileged: 1\nlxc.cap.drop: x\n"
    );
    assert_eq!((plan.template, plan.root_ids().unwrap()), (true, (100_000, 100_000)));
    let on = |storage: &str| {
        shown(&make(&Request { storage: Some(storage.into()), ..request() }, Some(CONFIG), None).unwrap())
    };
    assert_eq!(on("tank")[0], "rootfs tank subvol 256 /");
    assert_eq!((on("bt")[1].as_str(), on("thin")[2].as_str()), ("mp0 bt raw 128 /data", "mp1 thin raw 64 /nobackup"));
}

#[test]
fn what_was_given_stands_above_the_backup() {
    let settings = [("memory", "256"), ("hostname", "new")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let given = Request {
        rootfs: Some("thin:0.5".into()),
        mount_points: [(0, "local:1,mp=/data/,ro=1".into()), (3, "/x,mp=/y".into())].into(),
        unprivileged: Some(false),
        unique: true,
        description: Some("50% of: it\nKüche\n\nend\r\n".into()),
        settings: settings.into(),
        ..request()
    };
    let plan = make(&given, Some(CONFIG), None).unwrap();
    assert_eq!(shown(&plan), ["rootfs thin raw 512 /", "mp0 local raw 1024 /data"]);
    assert_eq!(plan.warnings.len(), 2, "{:?}", plan.warnings);
    assert_eq!(
        config(&plan),
        "#50%25 of%3A it\n#K%C3%BCche\n#\n#end%0D\narch: amd64\nhostname: new\nmemory: 256\nmp0: local:new,mp=/data,ro=1,size=1G\nmp3: /x,mp=/y\n\
         net0: name=eth0,hwaddr=BC:24:11:07:00:00\nostype: unmanaged\nrootfs: thin:new,size=512M\nswap: 0\nlxc.cap.drop: x\n"
    );
    assert_eq!(plan.root_ids().unwrap(), (0, 0));
    // Without a config everything has to be given.
    let plan = make(&Request { rootfs: Some("local:1".into()), ..request() }, None, None).unwrap();
    assert_eq!(
        config(&plan),
        "arch: amd64\nhostname: CT201\nmemory: 512\nostype: unmanaged\nrootfs: local:new,size=1G\nswap: 512\n"
    );
    // Files of a mount point that is not made go into the root.
    let plan = make(&Request { rootfs: Some("local:1".into()), ..request() }, Some(CONFIG), None).unwrap();
    assert!(
        plan.warnings[0].contains("mp0 ('/data') of the backup is left out") && plan.warnings[0].ends_with("around it")
    );
}

#[test]
fn what_cannot_be_restored() {
    let refusal = |request: &Request, config: Option<&str>| make(request, config, None).unwrap_err();
    assert!(refusal(&request(), None).contains("--rootfs <storage>:<GiB>"));
    for (rootfs, why) in [
        ("local:200/vm-200-disk-0.raw", "a restore makes new volumes"),
        ("/srv", "has to be a new volume"),
        ("local", "is no '<storage>:<GiB>'"),
        ("nosuch:1", "storage 'nosuch' does not exist"),
        ("bk:1", "storage 'bk' does not support container directories"),
        ("local:-1", "a restore makes new volumes"),
    ] {
        let said = refusal(&Request { rootfs: Some(rootfs.into()), ..request() }, None);
        assert!(said.contains(why), "{rootfs}: {said}");
    }
    for (config, why) in [
        ("rootfs: local:200/x.raw\n", "unable to detect disk size - please specify rootfs (size)"),
        ("rootfs: /srv\n", "restoring rootfs to bind mount is only possible by specifying -rootfs manually!"),
        (
            "rootfs: local:200/x.raw,size=1G\nmp0: local:a,mp=/x,size=1G\nmp1: local:b,mp=//x/,size=1G\n",
            "both mounted at '/x'",
        ),
        ("rootfs: local:200/x.raw,size=1G\nlxc.idmap: u 5 100000 10\n", "says nothing about id 0"),
    ] {
        let said = refusal(&request(), Some(config));
        assert!(said.contains(why), "{config}: {said}");
    }
}

#[test]
fn an_overwritten_container_loses_its_volumes() {
    let old = "mp0: local:201/vm-201-disk-1.raw,mp=/a\nmp1: /srv,mp=/b\nrootfs: volume=local:201/vm-201-disk-0.raw\n\
        unused0: local:201/vm-201-disk-5.raw\nmp2: local:7/vm-7-disk-0.raw,mp=/c\n\n[s]\nrootfs: local:201/vm-201-disk-9.raw\n";
    let existing = Existing { node: "pve1".into(), kind: Kind::Container, running: false, config: old.into() };
    let forced = Request { force: true, ..request() };
    let plan = make(&forced, Some(CONFIG), Some(&existing)).unwrap();
    let volids = [0, 1, 5, 9].map(|n| format!("local:201/vm-201-disk-{n}.raw"));
    assert_eq!(plan.replaced, volids);
    assert!(plan.overwrite && plan.warnings.iter().any(|w| w.contains("snapshots of CT 201 are lost")));
    let refusal = |request: &Request, existing: &Existing| make(request, Some(CONFIG), Some(existing)).unwrap_err();
    assert_eq!(refusal(&request(), &existing), "unable to restore CT 201 - CT 201 already exists on node 'pve1'");
    let running = Existing { running: true, ..existing.clone() };
    assert_eq!(refusal(&forced, &running), "unable to restore CT 201 - can't overwrite running container");
    let vm = Existing { kind: Kind::Vm, ..existing };
    assert_eq!(refusal(&forced, &vm), "unable to restore CT 201 - VM 201 already exists on node 'pve1'");
}
