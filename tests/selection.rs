//! Which guests a job backs up: all, some, a pool's, those of other nodes, those that are gone; guests that must not be backed up
//! now; and config files that are damaged. The guests have no disks, so each takes no time.

mod lab;

use anyhow::{Result, ensure};
use lab::{Guest, Node};

/// A node with guests 100, 102 and 110, a neighbour with 200, pools, and no bridge to anything.
fn node() -> Result<Node> {
    let mut node = Node::new()?;
    for vmid in [100, 102, 110] {
        node = node.guest(Guest::new(vmid).name(&format!("guest{vmid}")))?;
    }
    let other = node.path("/etc/pve/nodes/pve2/qemu-server");
    std::fs::create_dir_all(&other)?;
    std::fs::write(other.join("200.conf"), "name: far\n")?;
    let users =
        "user:root@pam:1:0:::root@example.com:::\n\npool:web:all of web:102,110,200,300:local:\npool:web/db::100::\n";
    std::fs::write(node.path("/etc/pve/user.cfg"), users)?;
    Ok(node)
}

/// Exit code, the guests whose backup was complete, standard output, standard error.
fn backup(node: &Node, words: &[&str]) -> Result<(i32, Vec<u32>, String, String)> {
    let run = node.vzdump(&[words, &["--storage", "backup"]].concat())?;
    let done = |line: &str| line.strip_prefix("INFO: Finished Backup of VM ")?.split(' ').next()?.parse().ok();
    Ok((run.code, run.stdout.lines().filter_map(done).collect(), run.stdout, run.stderr))
}

fn said(text: &str, line: &str) -> Result<()> {
    ensure!(text.lines().any(|said| said == line), "'{line}' is missing in:\n{text}");
    Ok(())
}

/// The last task in the index: its guest and how it ended.
fn last_task(node: &Node) -> Option<(String, String)> {
    let index = std::fs::read_to_string(node.path("/var/log/pve/tasks/index")).ok()?;
    let (upid, end) = index.lines().last()?.split_once(' ')?;
    Some((upid.split(':').nth(6)?.to_owned(), end.split_once(' ')?.1.to_owned()))
}

#[test]
fn guests_are_found_in_every_way() -> Result<()> {
    if !lab::require("guests_are_found_in_every_way", &["qemu-img"]) {
        return Ok(());
    }
    let node = node()?;
    // Words, guests done, guests of others that are named, the guest of the task.
    for (words, done, external, task) in [
        (&["--all"][..], &[100, 102, 110][..], "200", ""),
        (&["--exclude", "0102,110"], &[100], "200", "100"),
        (&["--all", "--exclude", "100,200"], &[102, 110], "", ""),
        (&["--all", "--node", "pve1"], &[100, 102, 110], "", ""),
        (&["--pool", "web"], &[102, 110], "200", ""),
        (&["--pool", "web/db"], &[100], "", "100"),
        (&["200", "0110"], &[110], "200", "110"),
        (&["--exclude", "100,102,110"], &[], "200", ""),
    ] {
        let (code, found, out, err) = backup(&node, words)?;
        ensure!(code == 0 && found == done, "{words:?}: {code} {found:?}\n{out}{err}");
        let skipped = out.lines().find_map(|line| line.strip_prefix("INFO: skip external VMs: "));
        ensure!(skipped.unwrap_or_default() == external, "{words:?}:\n{out}");
        said(&out, "INFO: Backup job finished successfully")?;
        ensure!(last_task(&node) == Some((task.into(), "OK".into())), "{words:?}: {:?}", last_task(&node));
    }
    Ok(())
}

#[test]
fn what_is_decided_before_there_is_a_task() -> Result<()> {
    if !lab::require("what_is_decided_before_there_is_a_task", &["qemu-img"]) {
        return Ok(());
    }
    let node = node()?;
    std::fs::write(node.path("/etc/vzdump.conf"), "all: 1\npool: web\nexclude: 100\n")?;
    for (words, code, err) in [
        (&["--pool", "nosuch"][..], 255, "pool 'nosuch' does not exist\n"),
        (&["--all", "--stdout"], 255, "you can only backup a single VM with option --stdout\n"),
        (&["200"], 0, ""),
        (&["200", "--node", "pve1"], 0, ""),
        (&["--all", "--node", "pve2"], 0, ""),
        // What vzdump.conf selects counts for nothing.
        (
            &["--quiet"],
            255,
            "400 Parameter verification failed.\nvmid: property is missing\nvzdump {<vmid>} [OPTIONS]\n",
        ),
    ] {
        let run = node.vzdump(words)?;
        ensure!((run.code, run.stdout.as_str(), run.stderr.as_str()) == (code, "", err), "{words:?}: {run:?}");
    }
    // A list that the cluster's file system left half written must not hide guests, a cut pool must not lose them.
    std::fs::write(node.path("/etc/pve/.vmlist"), r#"{"ids":{"100":{"node":"pve1","#)?;
    std::fs::write(node.path("/etc/pve/user.cfg"), "pool:web:all of web:102,1")?;
    let run = node.vzdump(&["--pool", "web"])?;
    let wanted = "pool 'web' is cut off in the middle in '/etc/pve/user.cfg': which guests it has is not known\n";
    ensure!((run.code, run.stderr.as_str()) == (255, wanted), "{run:?}");
    ensure!(last_task(&node).is_none(), "{:?}", last_task(&node));
    ensure!(backup(&node, &["--all"])?.1 == [100, 102, 110]);
    // The list knows a node whose directory is not there.
    std::fs::write(
        node.path("/etc/pve/.vmlist"),
        r#"{"version":1,"ids":{"100":{"node":"pve1","type":"qemu"},"900":{"node":"pve9","type":"qemu"}}}"#,
    )?;
    let (_, done, out, _) = backup(&node, &["--all"])?;
    ensure!(done == [100], "{out}");
    said(&out, "INFO: skip external VMs: 900")
}

#[test]
fn guests_that_cannot_be_backed_up_fail_where_it_is_seen() -> Result<()> {
    if !lab::require("guests_that_cannot_be_backed_up_fail_where_it_is_seen", &["qemu-img"]) {
        return Ok(());
    }
    let node = node()?;
    std::fs::write(node.path("/etc/pve/nodes/pve1/lxc/120.conf"), "hostname: ct\n")?;
    std::fs::create_dir_all(node.path("/etc/pve/ha"))?;
    std::fs::write(node.path("/etc/pve/ha/resources.cfg"), "vm: 100\n\tstate started\n\nvm: 102\n\tstate stopped\n")?;
    let (code, done, out, err) = backup(&node, &["100", "102", "120", "999", "--mode", "stop"])?;
    ensure!(code == 255 && done == [102] && err.ends_with("job errors\n"), "{code} {done:?}\n{out}{err}");
    said(
        &out,
        "ERROR: Backup of VM 100 failed - Cannot execute a backup with stop mode on a HA managed and enabled Service. Use \
         snapshot mode or disable the Service.",
    )?;
    said(&out, "ERROR: Backup of VM 999 failed - unable to find VM '999'")?;
    said(&out, "ERROR: Backup of VM 120 failed - the container's config has no 'rootfs'")?;
    ensure!(!out.contains("Starting Backup of VM 100"), "{out}");
    ensure!(backup(&node, &["100"])?.1 == [100], "in snapshot mode it may be backed up");

    // Every lock; one in a snapshot holds nobody.
    let words =
        ["backup", "clone", "create", "migrate", "rollback", "snapshot", "snapshot-delete", "suspended", "suspending"];
    for (number, word) in words.iter().enumerate() {
        std::fs::write(node.config_path(500 + u32::try_from(number)?), format!("lock: {word}\nname: x\n"))?;
    }
    std::fs::write(node.config_path(600), "name: free\n\n[s1]\nlock: snapshot\n")?;
    let (code, done, out, _) = backup(&node, &["--exclude", "100,102,110,120"])?;
    ensure!(code == 255 && done == [600], "{code} {done:?}\n{out}");
    for (number, word) in words.iter().enumerate() {
        said(&out, &format!("ERROR: Backup of VM {} failed - VM is locked ({word})", 500 + number))?;
        let config = std::fs::read_to_string(node.config_path(500 + u32::try_from(number)?))?;
        ensure!(config == format!("lock: {word}\nname: x\n"), "{config}");
    }
    Ok(())
}

#[test]
fn a_guest_that_vanishes_fails_and_the_others_go_on() -> Result<()> {
    if !lab::require("a_guest_that_vanishes_fails_and_the_others_go_on", &["qemu-img"]) {
        return Ok(());
    }
    let node = node()?;
    let hook = node.path("/tmp/hook");
    let write = |phase: &str| -> Result<()> {
        let config = node.config_path(102);
        std::fs::write(&config, "name: short\n")?;
        std::fs::write(
            &hook,
            format!("#!/bin/sh\nif [ \"$1\" = {phase} ]; then /bin/rm -f '{}'; fi\n", config.display()),
        )?;
        Ok(std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755))?)
    };
    for (phase, words) in [
        ("job-init", "unable to find VM '102'"),
        ("job-start", "unable to find configuration file for VM 102 on node 'pve1'"),
    ] {
        write(phase)?;
        let script = hook.display().to_string();
        let (code, done, out, err) = backup(&node, &["--all", "--script", &script])?;
        ensure!(code == 255 && done == [100, 110], "{phase}: {code} {done:?}\n{out}{err}");
        said(&out, &format!("ERROR: Backup of VM 102 failed - {words}"))?;
        said(&out, "INFO: Backup job finished with errors")?;
        ensure!(node.archives("backup", 102)?.is_empty());
    }
    Ok(())
}

#[test]
fn damaged_files_of_the_node() -> Result<()> {
    if !lab::require("damaged_files_of_the_node", &["qemu-img"]) {
        return Ok(());
    }
    let node = node()?;
    // Line ends of DOS, bytes that are no text.
    std::fs::write(node.path("/etc/vzdump.conf"), b"# K\xfcche\r\ncompress: zstd\r\nnonsense\r\n")?;
    let storages = std::fs::read(node.path("/etc/pve/storage.cfg"))?;
    let dos = String::from_utf8(storages.clone())?.replace('\n', "\r\n");
    std::fs::write(
        node.path("/etc/pve/storage.cfg"),
        [dos.as_bytes(), b"dir: kk\r\n\tpath /mnt/K\xfcche\r\n"].concat(),
    )?;
    std::fs::write(node.config_path(100), b"#K\xfcche\r\nname: dos\r\n")?;
    let (code, done, out, err) = backup(&node, &["100"])?;
    ensure!(code == 0 && done == [100] && err.contains("ignore config line: nonsense"), "{code}\n{out}{err}");
    said(&out, "INFO: VM Name: dos")?;
    ensure!(std::fs::read(node.config_path(100))? == b"#K\xfcche\r\nname: dos\r\n", "the config changed");
    let run = node.vzdump(&["100", "--storage", "kk"])?;
    ensure!(
        run.code == 255 && run.stderr.contains("storage 'kk' cannot be used: its path is not valid UTF-8"),
        "{run:?}"
    );
    ensure!(!node.path("/mnt").read_dir()?.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with('K')));
    // Ten megabytes of other storages, then of nonsense: named, but not each line.
    let mut huge = String::from_utf8(storages)?;
    for number in 0..150_000 {
        huge += &format!("dir: s{number}\n\tpath /mnt/{number}\n\tcontent backup,images\n\n");
    }
    huge += &"nonsense\n".repeat(1000);
    std::fs::write(node.path("/etc/pve/storage.cfg"), &huge)?;
    let (code, done, out, err) = backup(&node, &["110"])?;
    ensure!(code == 0 && done == [110], "{code}\n{out}{err}");
    said(&out, "... and 980 more lines of this kind")
}
