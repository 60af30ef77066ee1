use super::*;

fn vmid(number: u32) -> Vmid {
    Vmid::new(number).unwrap()
}

fn numbers(vmids: &[Vmid]) -> Vec<u32> {
    vmids.iter().map(|vmid| vmid.get()).collect()
}

/// Two nodes, a VM and a container on each, and pools in pools.
fn cluster() -> (Vmlist, UserCfg) {
    let mut vmlist = Vmlist::default();
    for (number, node, kind) in
        [(100, "pve1", "qemu"), (112, "pve1", "lxc"), (200, "pve2", "qemu"), (99999, "pve1", "qemu")]
    {
        vmlist.insert(vmid(number), node, kind);
    }
    let users = "user:root@pam:1:0:::a@b.c:::\n\npool:a::112,100,300:local:\npool:a/b/c::200:: \npool:empty::::\n";
    (vmlist, UserCfg::parse(users))
}

/// The guests of this node and those of others, or the error.
fn selected(line: &[&str]) -> Result<(Vec<u32>, Vec<u32>), String> {
    let args: Vec<String> = line.iter().map(|word| (*word).to_owned()).collect();
    let wanted = Wanted::new(&VzdumpRequest::parse(&args).unwrap());
    let (vmlist, users) = cluster();
    let selection = select(&wanted, &vmlist, &users, "pve1").map_err(|error| error.to_string())?;
    assert_eq!(wanted.runs_with(&selection), wanted.all || !selection.local.is_empty());
    Ok((numbers(&selection.local), numbers(&selection.external)))
}

#[test]
fn every_way_to_name_guests() {
    for (line, local, external) in [
        // Named: by number, zeros dropped, repetitions kept, those of no node with us.
        (&["112", "0100"][..], &[100, 112][..], &[][..]),
        (&["100,100"], &[100, 100], &[]),
        (&["999", "100", "200"], &[100, 999], &[200]),
        (&["200"], &[], &[200]),
        (&["200", "100", "--node", "pve1"], &[100], &[]),
        // All, by number and not by spelling.
        (&["--all"], &[100, 112, 99999], &[200]),
        (&["--all", "--node", "pve1"], &[100, 112, 99999], &[]),
        (&["--all", "--exclude", "112,200,0100"], &[99999], &[]),
        (&["--exclude", "99999;112"], &[100], &[200]),
        (&["--exclude", "100 112 99999"], &[], &[200]),
        // A pool: its own guests that still exist, whatever else is said.
        (&["--pool", "a"], &[100, 112], &[]),
        (&["--pool", "a", "--exclude", "100"], &[100, 112], &[]),
        (&["--pool", "a", "--all"], &[100, 112], &[]),
        (&["--pool", "a/b"], &[], &[]),
        (&["--pool", "a/b/c"], &[], &[200]),
        (&["--pool", "empty"], &[], &[]),
        // Nothing at all is asked for.
        (&["--stop"], &[], &[]),
    ] {
        assert_eq!(selected(line), Ok((local.to_vec(), external.to_vec())), "{line:?}");
    }
    assert_eq!(selected(&["--pool", "nosuch"]), Err("pool 'nosuch' does not exist".into()));
    // No pool is not a pool without name.
    assert!(VzdumpRequest::parse(&["--pool".into(), String::new()]).is_err());
}

#[test]
fn a_pool_that_is_cut_off_is_no_pool() {
    let (vmlist, _) = cluster();
    let wanted = Wanted { pool: Some("p".into()), ..Wanted::default() };
    let whole = "pool:o::99999::\npool:p:some text:100,112::\n";
    for end in 0..=whole.len() {
        let text = &whole[..end];
        let found = select(&wanted, &vmlist, &UserCfg::parse(text), "pve1");
        let line = text.strip_prefix("pool:o::99999::\n").unwrap_or_default();
        // A line that lacks nothing but its end is whole; what comes before the name's end is no such pool.
        match line {
            "pool:p:some text:100,112::" | "pool:p:some text:100,112::\n" => {
                assert_eq!(numbers(&found.unwrap().local), [100, 112], "{text:?}");
            }
            _ if line.len() >= "pool:p".len() => {
                assert_eq!(found, Err(SelectionError::CutPool("p".into())), "{text:?}");
            }
            _ => assert_eq!(found, Err(SelectionError::NoPool("p".into())), "{text:?}"),
        }
    }
}

#[test]
fn the_task_is_listed_under_its_only_guest() {
    let selection = |local: &[u32]| Selection {
        local: local.iter().map(|number| vmid(*number)).collect(),
        external: vec![vmid(200)],
    };
    assert_eq!(selection(&[100]).task_id(), Some(vmid(100)));
    assert_eq!(selection(&[]).task_id(), None);
    assert_eq!(selection(&[100, 100]).task_id(), None);
}
