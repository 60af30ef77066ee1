//! The storage side end to end: limits and retention as they show in directory and log, and storages that hang, fill, are
//! read-only or go away while a job runs. Diskless guests, so that a run takes no time.

mod lab;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::run::Output;
use lab::{Guest, Node, kib, mib};

/// A node with diskless guests 100 and 101; none where the lab's programs are missing or mounting is not allowed.
fn node(test: &str) -> Result<Option<Node>> {
    if !lab::require(test, &["qemu-img", "mount", "umount"]) || !lab_can_mount(test) {
        return Ok(None);
    }
    Ok(Some(Node::new()?.guest(Guest::new(100).name("one"))?.guest(Guest::new(101).name("two"))?))
}

fn lab_can_mount(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "{test}: only root may mount");
    println!("SKIPPED {test}: only root may mount");
    false
}

/// Runs a command of this machine that must succeed.
fn run(program: &str, words: &[&str], path: &Path) -> Result<()> {
    let done = Command::new(program).args(words).arg(path).output()?;
    ensure!(done.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let entries: Vec<_> = std::fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    let mut names: Vec<String> = entries.iter().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

fn ends(dir: &Path) -> Result<Vec<String>> {
    let names = names(dir)?;
    Ok(names.iter().map(|name| name.split_once('.').map_or("", |(_, end)| end).to_owned()).collect())
}

fn succeeded(output: &Output) -> Result<()> {
    ensure!(output.code == 0, "exit {}:\n{}{}", output.code, output.stdout, output.stderr);
    Ok(())
}

fn hook(node: &Node, body: &str) -> Result<String> {
    let path = node.path("/hook.sh");
    std::fs::write(&path, format!("#!/bin/sh\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\n{body}\n"))?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
    Ok(path.display().to_string())
}

/// A file system whose server never answers, as a dead NFS server: nobody reads the kernel's requests.
struct DeadServer {
    at: PathBuf,
    holder: Child,
}

impl DeadServer {
    fn mount(at: &Path) -> Result<Self> {
        std::fs::create_dir_all(at)?;
        let script = "exec 3<>/dev/fuse && mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 dead \"$0\" && exec sleep 600";
        let holder = Command::new("sh").args(["-c", script]).arg(at).stdout(Stdio::null()).spawn()?;
        let server = Self { at: at.to_owned(), holder };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !std::fs::read_to_string("/proc/self/mountinfo")?.contains(&at.display().to_string()) {
            ensure!(Instant::now() < deadline, "{} cannot be mounted", at.display());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }
}

impl Drop for DeadServer {
    fn drop(&mut self) {
        self.holder.kill().and_then(|()| self.holder.wait()).map(drop).unwrap_or_default();
        run("umount", &["-l"], &self.at).unwrap_or_else(|error| eprintln!("{error}"));
    }
}

#[test]
fn a_storage_that_hangs_is_an_error_and_not_a_hang() -> Result<()> {
    let Some(node) = node("a_storage_that_hangs_is_an_error_and_not_a_hang")? else { return Ok(()) };
    if !Path::new("/dev/fuse").exists() {
        assert!(std::env::var_os("CI").is_none(), "/dev/fuse is missing");
        println!("SKIPPED a_storage_that_hangs_is_an_error_and_not_a_hang: /dev/fuse missing");
        return Ok(());
    }
    let config = node.path("/etc/pve/storage.cfg");
    let text = std::fs::read_to_string(&config)?;
    let more = "dir: disk\n\tpath /mnt/dead\n\tcontent backup\n\nnfs: nas\n\tpath /mnt/dead\n\tserver s\n\texport /x\n\tcontent backup\n";
    std::fs::write(&config, text + more)?;
    let dead = DeadServer::mount(&node.path("/mnt/dead"))?;
    let place = dead.at.display().to_string();

    // All three at once: each waits for as long as a directory may take.
    let started = [["--storage", "disk"], ["--storage", "nas"], ["--dumpdir", &place]]
        .map(|words| node.spawn_vzdump(&[&["100"], &words[..]].concat()));
    let [disk, nas, dumpdir] = started.map(|run| run?.wait(Duration::from_secs(60)));
    let (disk, nas, dumpdir) = (disk?, nas?, dumpdir?);
    ensure!([disk.code, nas.code, dumpdir.code] == [255; 3], "{disk:?} {nas:?} {dumpdir:?}");
    let wanted = "could not activate storage 'disk': unable to activate storage 'disk' - directory '/mnt/dead' does not exist or is unreachable\n";
    ensure!(disk.stderr == wanted, "{}", disk.stderr);
    ensure!(nas.stderr == "could not activate storage 'nas': storage 'nas' is not online\n", "{}", nas.stderr);
    ensure!(dumpdir.stderr.starts_with(&format!("dumpdir '{place}' cannot be used: ")), "{}", dumpdir.stderr);
    drop(dead);

    // The server dies while the first guest's hook runs: that guest and the next one fail, and both are let go.
    let good = node.path("/mnt/dies");
    std::fs::create_dir_all(good.join("dump"))?;
    let script =
        "exec 3<>/dev/fuse; mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 dead \"$1\" && exec sleep 60";
    std::fs::write(node.path("/dead.sh"), script)?;
    let (dies, dead_sh) = (good.display().to_string(), node.path("/dead.sh").display().to_string());
    let body = format!("[ $1 = backup-start ] || exit 0\nsetsid sh {dead_sh} {dies} >/dev/null 2>&1 &\nsleep 1");
    // Its own mount, so that it can be taken away whatever happens.
    let script = hook(&node, &body)?;
    let output = node.vzdump(&["100", "--dumpdir", &dies, "--script", &script]);
    run("umount", &["-l"], &good)?;
    let output = output?;
    output.failed_with(&["ERROR: Backup of VM 100 failed - dumpdir '", "INFO: Backup job finished with errors"])?;
    ensure!(!std::fs::read_to_string(node.config_path(100))?.contains("lock:"), "the guest is still locked");
    Ok(())
}

#[test]
fn limits_are_checked_before_anything_is_done() -> Result<()> {
    let Some(node) = node("limits_are_checked_before_anything_is_done")? else { return Ok(()) };
    let node = node
        .storage("keep2", "/mnt/keep2", "backup", &["prune-backups keep-last=1,keep-daily=1"])?
        .storage("prot1", "/mnt/prot1", "backup", &["max-protected-backups 1"])?
        .storage("none", "/mnt/none", "backup", &["max-protected-backups 0"])?
        .storage("any", "/mnt/any", "backup", &["max-protected-backups -1"])?;
    let sentence = "ERROR: Backup of VM 100 failed - There is a max backup limit of 2 enforced by the target storage or the vzdump parameters. Either increase the limit or delete old backups.";
    for name in
        ["vzdump-qemu-100-old.vma", "vzdump-lxc-100-2025_01_01-00_00_00.tar", "vzdump-qemu-101-2025_01_01-00_00_00.vma"]
    {
        std::fs::write(node.path("/mnt/keep2/dump").join(name), "x")?;
    }
    let keep = ["100", "--storage", "keep2", "--remove", "0"];
    succeeded(&node.vzdump(&keep)?)?;
    let before = names(&node.path("/mnt/keep2/dump"))?;
    let refused = node.vzdump(&keep)?;
    refused.failed_with(&[
        "INFO: starting new backup job",
        sentence,
        "INFO: Failed at ",
        "Backup job finished with errors",
    ])?;
    ensure!(!refused.stdout.contains("Starting Backup") && refused.stderr == "job errors\n", "{}", refused.stdout);
    ensure!(names(&node.path("/mnt/keep2/dump"))? == before, "a refused backup leaves nothing");
    succeeded(&node.vzdump(&[&keep[..], &["--prune-backups", "keep-all=1"]].concat())?)?;
    succeeded(&node.vzdump(&[&keep[..], &["--protected", "1"]].concat())?)?;

    let protect = |storage: &str| node.vzdump(&["100", "--storage", storage, "--protected", "1"]);
    succeeded(&protect("prot1")?)?;
    let limited = |most: u32, storage: &str| {
        format!(
            "ERROR: Backup of VM 100 failed - The number of protected backups per guest is limited to {most} on storage '{storage}'"
        )
    };
    protect("prot1")?.failed_with(&[&limited(1, "prot1")])?;
    protect("none")?.failed_with(&[&limited(0, "none")])?;
    succeeded(&protect("any")?)?;
    succeeded(&node.vzdump(&["100", "--storage", "prot1"])?)?;
    node.assert_clean_on_disk(100);
    Ok(())
}

#[test]
fn retention_takes_what_belongs_to_an_archive_and_nothing_else() -> Result<()> {
    let Some(node) = node("retention_takes_what_belongs_to_an_archive_and_nothing_else")? else { return Ok(()) };
    let dump = node.path("/mnt/backup/dump");
    let old = |stamp: &str| format!("vzdump-qemu-100-{stamp}");
    for stamp in ["2020_01_01-00_00_00", "2021_01_01-00_00_00"] {
        for end in ["vma.zst", "log", "vma.zst.notes"] {
            std::fs::write(dump.join(format!("{}.{end}", old(stamp))), "x")?;
        }
    }
    let safe = [
        old("2021_01_01-00_00_00") + ".vma.zst.protected",
        old("golden") + ".vma.zst",
        "vzdump-qemu-101-2020_01_01-00_00_00.vma".into(),
        "vzdump-lxc-100-2020_01_01-00_00_00.tar".into(),
        // The clock was years ahead when this one was made.
        old("2099_01_01-00_00_00") + ".vma.lzo",
    ];
    for name in &safe {
        std::fs::write(dump.join(name), "x")?;
    }
    let keep = ["100", "--storage", "backup", "--prune-backups", "keep-last=1"];
    let output = node.vzdump(&keep)?;
    succeeded(&output)?;
    output.says(&[
        "INFO: prune older backups with retention: keep-last=1",
        "INFO: removing backup 'backup:backup/vzdump-qemu-100-2020_01_01-00_00_00.vma.zst'",
        "INFO: pruned 1 backup(s) not covered by keep-retention policy",
    ])?;
    let left = names(&dump)?;
    ensure!(!left.iter().any(|name| name.starts_with(&old("2020"))), "{left:?}");
    ensure!(safe.iter().all(|name| left.contains(name)), "{left:?}");
    let fresh = left.iter().filter(|name| name.ends_with(".vma")).count();
    ensure!(fresh == 2, "the backup just made stays, though another one claims to be newer: {left:?}");

    // Something that cannot be removed: said, and the guest's backup counts as failed though its archive is there.
    std::fs::create_dir(dump.join(old("2019_01_01-00_00_00") + ".vma"))?;
    let output = node.vzdump(&keep)?;
    output.failed_with(&[
        "INFO: removing backup 'backup:backup/vzdump-qemu-100-2019_01_01-00_00_00.vma'",
        "ERROR: error when removing backup 'backup:backup/vzdump-qemu-100-2019_01_01-00_00_00.vma' - removing archive ",
        "ERROR: Backup of VM 100 failed - error pruning backups - check log",
    ])?;
    node.assert_clean_on_disk(100);

    let own = node.path("/mnt/own");
    std::fs::create_dir_all(&own)?;
    std::fs::write(own.join(old("2020_01_01-00_00_00") + ".tgz"), "x")?;
    let own = own.display().to_string();
    let output = node.vzdump(&["100", "--dumpdir", &own, "--prune-backups", "keep-last=1"])?;
    succeeded(&output)?;
    output.says(&["delete old backup '/", "pruned 1 backup(s) not covered"])?;
    node.vzdump(&["101", "--dumpdir", &own, "--prune-backups", "keep-last=9"])?.says(&["INFO: pruned 0 backup(s)"])?;
    Ok(())
}

#[test]
fn full_and_read_only_storages() -> Result<()> {
    let Some(node) = node("full_and_read_only_storages")? else { return Ok(()) };
    let node = node.small_storage("small", kib(256))?.small_storage("fixed", mib(1))?;
    let dump = node.path("/mnt/small/dump");
    // The hook takes all the room that is left once the archive is being written: notes and log find none.
    let fill = format!(
        "[ $1 = backup-start ] || exit 0\nhead -c 245760 /dev/zero > {}/fill",
        node.path("/mnt/small").display()
    );
    let script = hook(&node, &fill)?;
    let notes = "n".repeat(1000) + &"{{vmid}}".repeat(2);
    let output = node.vzdump(&["100", "--storage", "small", "--script", &script, "--notes-template", &notes])?;
    output.says(&["WARN: unable to add notes - ", "No space left on device"]).or_else(|error| {
        // How many pages an empty tmpfs takes is the kernel's business; full it must be somewhere.
        output.says(&["No space left on device"]).map_err(|_| error)
    })?;
    ensure!(ends(&dump)?.iter().all(|end| end == "log" || end == "vma"), "{:?}", names(&dump)?);
    node.assert_clean_on_disk(100);

    succeeded(&node.vzdump(&["100", "--storage", "fixed"])?)?;
    let fixed = node.path("/mnt/fixed");
    run("mount", &["-o", "remount,ro"], &fixed)?;
    let output = node.vzdump(&["100", "101", "--storage", "fixed", "--prune-backups", "keep-last=1"])?;
    output.failed_with(&[
        "ERROR: Backup of VM 100 failed - creating '",
        "WARN: cannot store the log of VM 100 as '",
        "ERROR: Backup of VM 101 failed - creating '",
        "INFO: Backup job finished with errors",
    ])?;
    node.assert_clean_on_disk(100);
    node.assert_clean_on_disk(101);
    Ok(())
}

#[test]
fn a_storage_that_goes_away_is_not_written_beside() -> Result<()> {
    let Some(node) = node("a_storage_that_goes_away_is_not_written_beside")? else { return Ok(()) };
    for (storage, phase) in [("usb", "log-end"), ("stick", "backup-start"), ("card", "backup-end")] {
        // A directory of the same name lies below the mount, as it does once anybody ran without it.
        let below = node.path(&format!("/mnt/{storage}/dump"));
        std::fs::create_dir_all(&below)?;
        let at = below.parent().context("no parent")?.to_owned();
        run("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs"], &at)?;
        std::fs::create_dir_all(&below)?;
        let config = node.path("/etc/pve/storage.cfg");
        let text = std::fs::read_to_string(&config)?;
        std::fs::write(&config, text + &format!("dir: {storage}\n\tpath /mnt/{storage}\n\tcontent backup\n\n"))?;
        let script = hook(&node, &format!("[ $1 = {phase} ] && umount -l {}; exit 0", at.display()))?;
        let output = node.vzdump(&["100", "101", "--storage", storage, "--script", &script])?;
        output.failed_with(&[
            "/dump' is not on the file system any more that was mounted at '",
            "INFO: Backup job finished with errors",
        ])?;
        let first_done = output.stdout.contains("Finished Backup of VM 100");
        ensure!(first_done == (phase != "backup-start"), "{}", output.stdout);
        ensure!(names(&below)?.is_empty(), "written beside: {:?}", names(&below)?);
        node.assert_clean_on_disk(100);
        node.assert_clean_on_disk(101);
    }
    // Said in the storage's configuration, it is known before.
    let config = node.path("/etc/pve/storage.cfg");
    let text = std::fs::read_to_string(&config)?.replace("path /mnt/usb\n", "path /mnt/usb\n\tis_mountpoint 1\n");
    std::fs::write(&config, text)?;
    let output = node.vzdump(&["100", "--storage", "usb"])?;
    let wanted = "could not activate storage 'usb': unable to activate storage 'usb' - directory is expected to be a mount point but is not mounted: '/mnt/usb'\n";
    ensure!((output.code, output.stderr.as_str()) == (255, wanted), "{}", output.stderr);
    Ok(())
}

#[test]
fn the_node_mounts_what_it_is_asked_for() -> Result<()> {
    let Some(node) = node("the_node_mounts_what_it_is_asked_for")? else { return Ok(()) };
    let config = node.path("/etc/pve/storage.cfg");
    let text = std::fs::read_to_string(&config)?;
    std::fs::write(&config, text + "nfs: nas\n\tserver s\n\texport /x\n\tcontent backup\n")?;
    let at = node.path("/mnt/pve/nas");
    let pvesm = node.path("/bin/pvesm");
    std::fs::remove_file(&pvesm)?;
    let script = format!(
        "#!/bin/sh\n[ \"$*\" = 'status --storage nas' ] && mkdir -p {0} && mount -t tmpfs tmpfs {0}\n",
        at.display()
    );
    std::fs::write(&pvesm, script)?;
    std::fs::set_permissions(&pvesm, PermissionsExt::from_mode(0o755))?;
    succeeded(&node.vzdump(&["100", "--storage", "nas"])?)?;
    ensure!(ends(&at.join("dump"))? == ["log", "vma"], "{:?}", names(&at)?);
    Ok(())
}

#[test]
fn backups_of_one_second_get_names_of_their_own() -> Result<()> {
    let Some(first) = node("backups_of_one_second_get_names_of_their_own")? else { return Ok(()) };
    // Another cluster, with a guest of the same number, on the same directory.
    let second = Node::new()?.guest(Guest::new(100).name("twin"))?;
    let shared = first.path("/mnt/shared");
    std::fs::create_dir_all(&shared)?;
    let dir = shared.display().to_string();
    let mut rounds = 0;
    for _ in 0..3 {
        let runs = [&first, &second, &first, &second].map(|node| node.spawn_vzdump(&["100", "--dumpdir", &dir]));
        for run in runs {
            succeeded(&run?.wait(Duration::from_secs(60))?)?;
            rounds += 1;
        }
    }
    let left = names(&shared)?;
    let count = |end: &str| left.iter().filter(|name| name.ends_with(end)).count();
    ensure!((count(".vma"), count(".log"), left.len()) == (rounds, rounds, 2 * rounds), "{left:?}");
    Ok(())
}
