use super::*;
use uuid::Uuid;

const STORAGES: &str = "dir: local\n\tpath /var/lib/vz\n\tcontent images,backup\n\ndir: bk\n\tpath /mnt/bk\n\tcontent backup\n\n\
    lvmthin: thin\n\tvgname pve\n\tthinpool data\n\tcontent images\n\nlvm: thick\n\tvgname pve\n\tcontent images\n\n\
    dir: off\n\tpath /mnt/off\n\tdisable\n";

const BLOB: &str = "boot: order=scsi0;ide2\ncores: 1\nide2: none,media=cdrom\nname: web01\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0\n\
    scsi0: local:100/vm-100-disk-0.qcow2,size=1G\nscsi1: local:100/vm-100-disk-1.raw,backup=0,size=256M\n\
    virtio0: local:100/vm-100-disk-2.raw,iothread=1,size=128M\nvmgenid: 1632e817-d8fe-41e7-9697-e035c1f6f56f\n\
    #qmdump#map:scsi0:drive-scsi0:local:qcow2:\n#qmdump#map:virtio0:drive-virtio0:local:raw:\n";

fn devices() -> Vec<Device> {
    [(1, "drive-scsi0", 1 << 30), (2, "drive-virtio0", 1 << 27)]
        .map(|(id, name, size)| Device { id, name: name.into(), size })
        .to_vec()
}

fn make(blob: &str, options: &Options, existing: Option<&Existing>) -> Result<Plan, Refusal> {
    let configs = [(CONFIG_BLOB.to_owned(), blob.as_bytes().to_vec())];
    plan(&configs, &devices(), options, &StorageCfg::parse(STORAGES), "pve1", existing)
}

fn options(storage: Option<&str>) -> Options {
    Options { vmid: 300, storage: storage.map(str::to_owned), ..Options::default() }
}

fn existing(config: &str) -> Existing {
    Existing { node: "pve1".into(), kind: Kind::Vm, running: false, config: config.into() }
}

fn config(plan: &mut Plan) -> String {
    let volumes = plan.disks.iter().map(|d| (d.key.clone(), format!("{}:new-{}", d.storage, d.key))).collect();

    String::from_utf8(plan.config(&volumes, &mut Fresh::from(|| Uuid::from_u128(7)))).unwrap()
}

#[test]
fn volumes_by_the_map_lines_and_the_storage() {
    let summary = |storage| {
        let plan = make(BLOB, &options(storage), None).unwrap();
        plan.disks
            .iter()
            .map(|d| format!("{} {} {} {}", d.key, d.storage, d.format, d.starts_zeroed))
            .collect::<Vec<_>>()
    };
    assert_eq!(summary(None), ["scsi0 local qcow2 true", "virtio0 local raw true"]);
    assert_eq!(summary(Some("thin")), ["scsi0 thin raw true", "virtio0 thin raw true"]);
    assert_eq!(summary(Some("thick")), ["scsi0 thick raw false", "virtio0 thick raw false"]);
}

#[test]
fn the_config_names_the_new_volumes_and_nothing_of_the_old_guest() {
    let mut plan = make(BLOB, &options(None), None).unwrap();
    assert_eq!(
        config(&mut plan),
        "boot: order=scsi0;ide2\ncores: 1\nide2: none,media=cdrom\nname: web01\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0\n\
         scsi0: local:new-scsi0,size=1G\n#scsi1: local:100/vm-100-disk-1.raw,backup=0,size=256M\n\
         virtio0: local:new-virtio0,iothread=1,size=128M\nvmgenid: 00000000-0000-0000-0000-000000000007\n"
    );
    assert!(plan.warnings.is_empty());
    let efi = BLOB.replace("cores: 1\n", "cores: 1\nefidisk0: local:100/vm-100-disk-9.raw,size=4M\ntemplate: 1\n");
    let mut plan = make(&efi, &options(None), None).unwrap();
    let text = config(&mut plan);
    assert!(plan.template && !text.contains("template"), "{text}");
    assert!(text.contains("\n#efidisk0: local:100/"), "{text}");
    assert_eq!(plan.warnings.len(), 1);
    let cloud = BLOB.replace("none,media=cdrom", "local:100/vm-100-cloudinit.qcow2,media=cdrom");
    let text = config(&mut make(&cloud, &options(None), None).unwrap());
    assert!(text.contains("ide2: local:300/vm-300-cloudinit.qcow2,media=cdrom"), "{text}");
}

#[test]
fn storages_that_cannot_be_used() {
    let refusal = |storage| make(BLOB, &options(Some(storage)), None).unwrap_err().to_string();
    assert_eq!(refusal("nosuch"), "storage 'nosuch' does not exist");
    assert_eq!(refusal("off"), "storage 'off' is disabled");
    assert_eq!(refusal("bk"), "Content type 'images' is not available on storage 'bk'");
}

#[test]
fn archives_that_do_not_fit_their_config() {
    let refusal = |blob: &str| make(blob, &options(None), None).unwrap_err();
    let more = format!("{BLOB}#qmdump#map:sata0:drive-sata0:local:raw:\n");
    assert_eq!(refusal(&more), Refusal::NoDevice("drive-sata0".into()));
    assert_eq!(refusal("name: web01\n"), Refusal::Stray("drive-scsi0".into()));
    let none = plan(&[], &devices(), &options(None), &StorageCfg::parse(STORAGES), "pve1", None).unwrap_err();
    assert_eq!(none, Refusal::NoConfig);
    // Without map lines, as other programs write archives, the device's name says which disk it is.
    let unmapped: String = BLOB.split_inclusive('\n').filter(|l| !l.starts_with("#qmdump")).collect();
    let plan = make(&unmapped, &options(None), None).unwrap();
    let formats: Vec<_> = plan.disks.iter().map(|d| (d.key.as_str(), d.format.as_str())).collect();
    assert_eq!(formats, [("scsi0", "qcow2"), ("virtio0", "raw")]);
}

#[test]
fn an_existing_guest_is_refused_unless_forced_and_at_rest() {
    let guest = existing("name: old\n");
    let refusal = |options: &Options, guest: &Existing| make(BLOB, options, Some(guest)).unwrap_err().to_string();
    assert_eq!(refusal(&options(None), &guest), "unable to restore VM 300 - VM 300 already exists on node 'pve1'");
    let force = Options { force: true, ..options(None) };
    assert_eq!(
        refusal(&force, &Existing { running: true, ..guest.clone() }),
        "unable to restore VM 300 - vm is running"
    );
    assert_eq!(refusal(&force, &existing("lock: backup\n")), "unable to restore VM 300 - VM is locked (backup)");
    assert_eq!(refusal(&force, &existing("protection: 1\n")), "unable to restore VM 300 - protection mode enabled");
    assert!(refusal(&force, &Existing { node: "pve2".into(), ..guest.clone() }).ends_with("exists on node 'pve2'"));
    assert!(refusal(&force, &Existing { kind: Kind::Container, ..guest.clone() }).contains("CT 300 already exists"));
    assert!(make(BLOB, &force, Some(&guest)).is_ok());
}

#[test]
fn what_becomes_of_the_volumes_of_an_overwritten_guest() {
    let force = Options { force: true, ..options(None) };
    let guest = existing(
        "ide2: local:iso/x.iso,media=cdrom\nscsi0: local:300/vm-300-disk-0.raw\nscsi5: local:300/vm-300-disk-5.raw\n\
         sata0: other:77/vm-77-disk-0.raw\nunused0: local:300/vm-300-disk-6.raw\n\n\
         [snap]\nscsi0: local:300/vm-300-disk-0.raw\nvmstate: local:300/vm-300-state-snap.raw\n",
    );
    let mut plan = make(BLOB, &force, Some(&guest)).unwrap();
    assert!(plan.overwrite);
    assert_eq!(plan.replaced, ["local:300/vm-300-disk-0.raw", "local:300/vm-300-state-snap.raw"]);
    assert_eq!(plan.kept, ["local:300/vm-300-disk-5.raw", "local:300/vm-300-disk-6.raw"]);
    let text = config(&mut plan);
    assert!(text.ends_with("unused0: local:300/vm-300-disk-5.raw\nunused1: local:300/vm-300-disk-6.raw\n"), "{text}");
}

#[test]
fn owners_by_name() {
    assert_eq!(owner("local:100/vm-100-disk-0.raw"), Some(100));
    assert_eq!(owner("local:103/base-103-disk-0.qcow2/300/vm-300-disk-0.qcow2"), Some(300));
    assert_eq!(owner("thin:vm-7-disk-0"), Some(7));
    assert_eq!(owner("local:iso/x.iso"), None);
    assert_eq!(owner("/dev/sda"), None);
}
