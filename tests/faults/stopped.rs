//! Runs that are told to stop, and a guest that ends under a run.

use super::{KEYS, SOON, VMID, copying, node, sentence};
use crate::lab::Guest;
use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

const HOOK: &str = "#!/bin/sh\necho \"HOOK: $*\"\n";

#[test]
fn terminated_interrupted_or_without_its_qemu() -> Result<()> {
    let Some(node) = node("terminated_interrupted_or_without_its_qemu", |_| Ok(()), Guest::new(VMID))? else {
        return Ok(());
    };
    let hook = node.path("/tmp/hook");
    std::fs::write(&hook, HOOK)?;
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755))?;
    let script = hook.display().to_string();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let run = copying(&node, &["--compress", "zstd", "--script", &script])?;
        let begun = Instant::now();
        run.signal(signal)?;
        let output = run.wait(SOON)?;
        println!("{signal}: ended after {:.2} s: {}", begun.elapsed().as_secs_f64(), sentence(&output));
        output.failed_with(&[
            "INFO: started backup task",
            "INFO: resuming VM again",
            "ERROR: interrupted by signal",
            "INFO: aborting backup job",
            "INFO: resuming VM again",
            "ERROR: Backup of VM 100 failed - interrupted by signal",
            "INFO: Failed at ",
            "INFO: HOOK: backup-abort snapshot 100",
            "INFO: HOOK: log-end snapshot 100",
            "INFO: HOOK: job-abort",
            "ERROR: Backup job failed - interrupted by signal",
        ])?;
        assert_eq!(output.stderr, "interrupted by signal\n");
        assert!(!output.stdout.contains("job-end"), "{}", output.stdout);
        node.unharmed(VMID)?;
        assert!(node.archives("backup", VMID)?.is_empty());
    }

    let run = copying(&node, &["--compress", "zstd"])?;
    let begun = Instant::now();
    kill(Pid::from_raw(node.qemu_pid(VMID).unwrap_or_default()), Signal::SIGKILL)?;
    let output = run.wait(SOON)?;
    println!("QEMU killed: ended after {:.2} s: {}", begun.elapsed().as_secs_f64(), sentence(&output));
    output.failed_with(&["ERROR: ", "INFO: aborting backup job", "ERROR: Backup of VM 100 failed - "])?;
    assert_eq!(output.stderr, "job errors\n");
    node.assert_clean_on_disk(VMID);
    assert!(node.archives("backup", VMID)?.is_empty());

    node.start(VMID)?;
    println!("{}", node.backup_is_good(VMID, &KEYS)?);
    Ok(())
}
