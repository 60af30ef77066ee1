//! Configuration files from outside: nothing panics, nothing is lost. The corpus also runs as a plain test.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vzkeep::config::{
    DatacenterCfg, Fresh, GuestConfig, HaResources, Rewrite, StorageCfg, UserCfg, Vmlist, VzdumpConf, backup_volumes,
    cluster_name, config_blob, map_lines, rewrite_for_restore,
};

fuzz_target!(|text: &[u8]| {
    let config = GuestConfig::parse(text);
    assert_eq!(config.to_bytes(), text);
    let blob = config_blob(&config, &backup_volumes(&config), |_| "raw".to_owned());
    let rewrite = Rewrite { unique: true, ..Rewrite::default() };
    let restored = rewrite_for_restore(&blob, &rewrite, &mut Fresh::random());
    assert!(map_lines(&restored).is_empty());
    let mut locked = config.clone();
    locked.set_lock("backup");
    assert!(locked.remove_lock());
    let text = String::from_utf8_lossy(text);
    VzdumpConf::parse(&text);
    StorageCfg::parse(&text);
    UserCfg::parse(&text);
    HaResources::parse(&text);
    DatacenterCfg::parse(&text);
    Vmlist::parse(&text);
    cluster_name(&text);
});
