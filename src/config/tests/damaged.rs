//! Files that are cut in the middle, have line ends of DOS, are huge or no text: every parser takes them, and what it read before
//! the damage is what stands there.

use std::time::{Duration, Instant};

use super::*;
use crate::schema::Vmid;

const STORAGES: &str = "dir: local\n\tpath /var/lib/vz\n\tcontent backup,images\n\tprune-backups keep-last=3\n\n\
                        nfs: far\n\tserver 10.0.0.1\n\texport /x\n\tnodes pve1,pve2\n\tunknown-key with some words\n\tdisable\n";
const USERS: &str = "user:root@pam:1:0:::a@b.c:::\n\npool:p:a b:100,101:local:\npool:p/q::102::\n";
const HA: &str = "vm: 100\n\tstate started\n\tgroup x\n\nct: 101\n\tstate stopped\n";
const DATACENTER: &str = "keyboard: de\nbwlimit: default=100,restore=50\nemail_from: a@b.c\nnew-key: kept\n";
const VZDUMP: &str = "# defaults\nmode: stop\nexclude-path: /a '/b c'\nour-key: x\nprune-backups: keep-last=3\n";

/// Everything that is read from text.
fn parse_all(text: &str) {
    VzdumpConf::parse(text);
    StorageCfg::parse(text);
    UserCfg::parse(text);
    HaResources::parse(text);
    DatacenterCfg::parse(text);
    Vmlist::parse(text);
    cluster_name(text);
    Sections::parse(text, |kind, id| (kind.to_owned(), id.to_owned()));
}

#[test]
fn cut_at_every_byte() {
    for whole in [STORAGES, USERS, HA, DATACENTER, VZDUMP, GUEST] {
        (0..whole.len()).for_each(|end| parse_all(&whole[..end]));
        // In the middle of what follows a good beginning, with half a character.
        for end in 0..whole.len() {
            let bytes = [&whole.as_bytes()[..end], b"\xe2\x82"].concat();
            parse_all(&String::from_utf8_lossy(&bytes));
            check(&bytes);
        }
    }
    // What a cut leaves of storages is the beginning of what was there.
    let all = StorageCfg::parse(STORAGES);
    for end in 0..STORAGES.len() {
        for storage in StorageCfg::parse(&STORAGES[..end]).storages {
            let Some(original) = all.get(&storage.id) else { continue };
            let kept = storage.properties().count();
            let same = storage.properties().zip(original.properties()).filter(|(ours, theirs)| ours == theirs).count();
            assert!(storage.id == "local" && kept == 3 || same + 1 >= kept, "{storage:?}");
        }
    }
}

#[test]
fn line_ends_of_dos() {
    let dos = |text: &str| text.replace('\n', "\r\n");
    assert_eq!(StorageCfg::parse(&dos(STORAGES)), StorageCfg::parse(STORAGES));
    assert_eq!(UserCfg::parse(&dos(USERS)), UserCfg::parse(USERS));
    assert_eq!(HaResources::parse(&dos(HA)), HaResources::parse(HA));
    assert_eq!(DatacenterCfg::parse(&dos(DATACENTER)), DatacenterCfg::parse(DATACENTER));
    assert_eq!(VzdumpConf::parse(&dos(VZDUMP)), VzdumpConf::parse(VZDUMP));
    let (guest, plain) = (GuestConfig::parse(dos(GUEST).as_bytes()), GuestConfig::parse(GUEST.as_bytes()));
    for section in [Section::Main, Section::Pending, Section::Snapshot("s1".into())] {
        assert_eq!(guest.properties(&section), plain.properties(&section));
    }
    assert_eq!(disks(&guest), disks(&plain));
    assert_eq!((guest.lock(), guest.snapshots()), (plain.lock(), plain.snapshots()));
    assert_eq!(guest.to_bytes(), dos(GUEST).as_bytes());
}

/// Ten million bytes of each file's own lines, and of one line. A parser that looks back over all it read would take hours; the
/// bound only tells those.
#[test]
fn ten_megabytes() {
    const SIZE: usize = 10_000_000;
    let begun = Instant::now();
    let numbered = |line: fn(usize) -> String| {
        let mut text = String::with_capacity(SIZE + 100);
        (0..)
            .map(line)
            .take_while(|line| {
                text.push_str(line);
                text.len() < SIZE
            })
            .for_each(drop);
        text
    };
    let storages = numbered(|n| format!("dir: s{n}\n\tpath /mnt/{n}\n\tcontent backup\n\n"));
    let cfg = StorageCfg::parse(&storages);
    assert!(cfg.storages.len() > 200_000 && cfg.warnings.is_empty());
    assert_eq!(cfg.get("s200000").unwrap().path().unwrap(), std::path::Path::new("/mnt/200000"));
    assert!(StorageCfg::parse(&numbered(|_| "junk\n".into())).warnings.len() > 1_000_000);
    let users = UserCfg::parse(&numbered(|n| format!("pool:p{n}::{}:local:\n", n + 100)));
    assert_eq!(users.pool("p100000").unwrap().vmids, [Vmid::new(100_100).unwrap()].into());
    let ha = HaResources::parse(&numbered(|n| format!("vm: {n}\n\tstate started\n\n")));
    assert!(ha.keeps_running(Vmid::new(100_000).unwrap()));
    DatacenterCfg::parse(&numbered(|n| format!("key{n}: value\n")));
    let conf = VzdumpConf::parse(&numbered(|n| format!("exclude-path: /a/{n}\n")));
    assert!(conf.params.items(&crate::schema::tables::VZDUMP, "exclude-path").len() > 100_000);
    let guest = numbered(|n| format!("[s{n}]\nscsi0: local:100/vm-100-disk-0.raw,size=1G\nsnaptime: 7\n"));
    let config = GuestConfig::parse(format!("scsi0: local:100/vm-100-disk-0.raw,size=1G\n{guest}").as_bytes());
    assert!(config.snapshots().len() > 100_000 && disks(&config).len() == 1);
    assert_eq!(config_blob(&config, &backup_volumes(&config), |_| "raw".to_owned()).len(), 84);
    for byte in ["x", "\t", ":", ",", "[", "{", "\r", "\u{0}"] {
        parse_all(&byte.repeat(SIZE));
    }
    assert!(begun.elapsed() < Duration::from_secs(300), "{:?}", begun.elapsed());
}

fn property() -> impl Strategy<Value = (String, String)> {
    ("[a-zA-Z][a-zA-Z0-9_-]{0,12}", "([!-~äß]( ?[!-~äß]){0,8})?")
}

proptest! {
    /// Known or not, every property of every section is there as it was written.
    #[test]
    fn sections_lose_nothing(sections in proptest::collection::vec((
        "[a-z]{1,6}", proptest::collection::vec(property(), 0..5), any::<bool>(), any::<bool>(),
    ), 0..6)) {
        let mut text = String::new();
        for (number, (kind, properties, spaced, dos)) in sections.iter().enumerate() {
            let end = if *dos { "\r\n" } else { "\n" };
            text += &format!("# note{end}{kind}: id{number}{end}");
            for (key, value) in properties {
                text += &format!("{}{key} {value}{end}", if *spaced { "    " } else { "\t" });
            }
            text += if *spaced { end } else { "" };
        }
        let parsed = Sections::parse(&text, |_, id| id.to_owned());
        prop_assert_eq!(parsed.faults.len(), 0);
        let read: Vec<_> = parsed.sections.iter().map(|section| {
            let properties = section.properties().map(|(key, value)| (key.to_owned(), value.to_owned()));
            (section.kind.clone(), properties.collect::<Vec<_>>())
        }).collect();
        let written: Vec<_> = sections.into_iter().map(|(kind, properties, ..)| (kind, properties)).collect();
        prop_assert_eq!(read, written);
    }

    #[test]
    fn nothing_panics(text in "(\\PC|[\t\r\n:,;/= \\[\\]{}\"]|vm: |pool:|\tstate |bwlimit ){0,60}") {
        parse_all(&text);
    }
}
