//! The limits of a job, end to end: bandwidth, I/O priority, and how long a guest may take to switch itself off.

mod lab;

use anyhow::{Context, Result, ensure};
use lab::container_node::require_container;
use lab::run::Running;
use lab::{Container, Format, Guest, Node, leash, mib};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);
const VMID: u32 = 101;

fn fill(node: &Node, key: &str, bytes: u64) -> Result<()> {
    let data: Vec<u8> = (0..bytes).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1).collect();
    let (path, format) = node.disk(VMID, key)?;
    let raw = node.path("/tmp/data");
    std::fs::write(&raw, data)?;
    let raw = raw.display().to_string();
    let image = path.display().to_string();
    node.ok("qemu-img", &["convert", "-n", "-f", "raw", "-O", &format, &raw, &image]).map(drop)
}

/// The shortest time counts; that it is not much longer either is what the limiter's own tests say, with a clock of theirs.
#[test]
fn bwlimit_holds_for_data_and_for_zeros() -> Result<()> {
    let (data, zeros, limit) = (mib(3), mib(9), 4096);
    let node =
        Node::new()?.guest(Guest::new(VMID).disk("scsi0", Format::Raw, data).disk("scsi1", Format::Raw, zeros))?;
    fill(&node, "scsi0", data)?;
    let begun = Instant::now();
    let output = node.ok("vzdump", &[&VMID.to_string(), "--storage", "backup", "--bwlimit", &limit.to_string()])?;
    let took = begun.elapsed();
    let ideal = Duration::from_secs_f64((data + zeros) as f64 / (limit * 1024) as f64);
    ensure!(took >= ideal * 95 / 100, "12 MiB at 4 MiB/s in {took:?}, ideal {ideal:?}");
    output.says(&["bandwidth limit: 4096 KiB/s", "transferred 12.00 MiB in "])?;
    node.assert_clean_on_disk(VMID);
    Ok(())
}

/// `ionice -p` of every thread of `pid`.
fn priorities(pid: i32) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let ids = threads.map(|entry| entry.file_name().to_string_lossy().into_owned());
    ids.filter_map(|id| {
        let said = Command::new("ionice").args(["-p", &id]).output().ok()?;
        // A thread that ended meanwhile has none.
        said.status.success().then(|| String::from_utf8_lossy(&said.stdout).trim().to_owned())
    })
    .collect()
}

/// The priorities of the node's processes by name, until `programs` were all seen or the run has ended. `qm` and what it starts
/// are the guest's own.
fn seen_priorities(node: &Node, run: &mut Running, programs: &[&str]) -> Result<BTreeMap<String, Vec<String>>> {
    let mut seen = BTreeMap::new();
    while run.is_running()? && !programs.iter().all(|name| seen.contains_key(*name)) {
        for pid in leash::processes(node.root())? {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
            let found = priorities(pid);
            if !found.is_empty() && !name.starts_with("qm") {
                seen.insert(name, found);
            }
        }
    }
    Ok(seen)
}

#[test]
fn ionice_is_for_the_process_and_its_children() -> Result<()> {
    if !lab::require("ionice_is_for_the_process_and_its_children", &["ionice", "lzop", "qemu-nbd", "qemu-img"]) {
        return Ok(());
    }
    let node = Node::new()?.guest(Guest::new(VMID).disk("scsi0", Format::Qcow2, mib(4)))?;
    fill(&node, "scsi0", mib(4))?;
    let id = VMID.to_string();
    for (ionice, wanted) in [("7", "best-effort: prio 7"), ("0", "best-effort: prio 0"), ("8", "idle")] {
        let words = [&id, "--storage", "backup", "--ionice", ionice, "--bwlimit", "2048", "--compress", "lzo"];
        let mut run = node.spawn_vzdump(&words)?;
        run.wait_for("started backup task", SOON)?;
        let programs = ["vzdump", "lzop", "qemu-nbd"];
        let seen = seen_priorities(&node, &mut run, &programs)?;
        let output = run.wait(SOON)?;
        ensure!(output.code == 0, "{}{}", output.stdout, output.stderr);
        output.says(&[&format!("ionice priority: {ionice}")])?;
        println!("ionice {ionice}: {seen:?}");
        for name in programs {
            let found = seen.get(name).with_context(|| format!("{name} was never seen: {seen:?}"))?;
            ensure!(found.iter().all(|priority| priority == wanted), "--ionice {ionice}: {name} has {found:?}");
        }
    }
    Ok(())
}

/// A container of directories with a file of so many bytes.
fn container(container: Container, bytes: u64) -> Result<Node> {
    let node = Node::new()?.container(container.rootfs(0).subvolume())?;
    let data = lab::Dice::seeded(7).bytes(usize::try_from(bytes)?);
    std::fs::write(node.ct_volume(VMID, "rootfs")?.join("data"), data)?;
    Ok(node)
}

#[test]
fn bwlimit_holds_for_a_container_that_says_how_far_it_is() -> Result<()> {
    if !require_container("bwlimit_holds_for_a_container_that_says_how_far_it_is") {
        return Ok(());
    }
    let (bytes, limit) = (mib(6), 512);
    let node = container(Container::new(VMID), bytes)?;
    let begun = Instant::now();
    let output = node.ok("vzdump", &[&VMID.to_string(), "--storage", "backup", "--bwlimit", &limit.to_string()])?;
    let took = begun.elapsed();
    let ideal = Duration::from_secs_f64(bytes as f64 / (limit * 1024) as f64);
    ensure!(took >= ideal * 95 / 100, "6 MiB at 512 KiB/s in {took:?}, ideal {ideal:?}");
    let line = output.stdout.lines().find(|line| line.contains(" files in "));
    let line = line.with_context(|| format!("nothing says how far it is:\n{}", output.stdout))?;
    ensure!(line.starts_with("INFO: ") && line.contains(" MiB, ") && line.contains("/s, write: "), "{line}");
    Ok(())
}

#[test]
fn ionice_is_for_the_programs_of_a_container() -> Result<()> {
    let test = "ionice_is_for_the_programs_of_a_container";
    if !require_container(test) || !lab::require(test, &["ionice", "lzop", "lxc-usernsexec"]) {
        return Ok(());
    }
    let node = container(Container::new(VMID).unprivileged(), mib(10))?;
    let id = VMID.to_string();
    for (ionice, wanted) in [("3", "best-effort: prio 3"), ("8", "idle")] {
        let words = [&id, "--storage", "backup", "--ionice", ionice, "--bwlimit", "1024", "--compress", "lzo"];
        let mut run = node.spawn_vzdump(&words)?;
        run.wait_for("creating vzdump archive", SOON)?;
        let programs = ["vzdump", "lzop", "tar"];
        let seen = seen_priorities(&node, &mut run, &programs)?;
        let output = run.wait(SOON)?;
        ensure!(output.code == 0, "{}{}", output.stdout, output.stderr);
        println!("ionice {ionice}: {seen:?}");
        for name in programs {
            let found = seen.get(name).with_context(|| format!("{name} was never seen: {seen:?}"))?;
            ensure!(found.iter().all(|priority| priority == wanted), "--ionice {ionice}: {name} has {found:?}");
        }
    }
    Ok(())
}

/// A guest that does not boot at all ignores its power button.
#[test]
fn a_guest_that_ignores_its_power_button_goes_on_running() -> Result<()> {
    if !lab::programs::require_guest("a_guest_that_ignores_its_power_button_goes_on_running") {
        return Ok(());
    }
    let guest = Guest::new(VMID).disk("scsi0", Format::Raw, mib(4)).line("args", "").line("memory", "32");
    let node = Node::new()?.guest(guest)?;
    node.switch_on(VMID)?;
    let qemu = node.qemu_pid(VMID);
    let output = node.vzdump(&[&VMID.to_string(), "--storage", "backup", "--mode", "stop", "--stopwait", "0"])?;
    output.failed_with(&[
        "INFO: stopping virtual guest",
        "INFO: VM quit/powerdown failed - got timeout",
        "ERROR: Backup of VM 101 failed - command 'qm shutdown 101 --skiplock --keepActive --timeout 0' failed: exit code 255",
    ])?;
    ensure!(output.stderr == "job errors\n", "{}", output.stderr);
    ensure!(node.qemu_pid(VMID) == qemu, "the guest was restarted");
    node.assert_clean(VMID);
    ensure!(node.archives("backup", VMID)?.is_empty(), "an archive");
    Ok(())
}

#[test]
fn lockwait_zero_does_not_wait() -> Result<()> {
    let node = Node::new()?.guest(Guest::new(VMID).disk("scsi0", Format::Raw, mib(1)))?;
    let lock = std::fs::File::create(node.path("/var/run/vzdump.lock"))?;
    let _held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).map_err(|(_, e)| e)?;
    let output = node.spawn_vzdump(&[&VMID.to_string(), "--storage", "backup", "--lockwait", "0"])?.wait(SOON)?;
    ensure!(output.code == 255 && output.stderr.contains("can't acquire lock"), "{}{}", output.stdout, output.stderr);
    node.assert_clean_on_disk(VMID);
    Ok(())
}
