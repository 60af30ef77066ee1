//! Storages that are full: the target, and the place where old blocks of a writing guest are kept.

use super::{KEYS, VMID, node, sentence};
use crate::lab::{Guest, kib};
use anyhow::Result;

#[test]
fn full_target_and_full_fleecing_space() -> Result<()> {
    let Some(node) = node("full_target_and_full_fleecing_space", |_| Ok(()), Guest::new(VMID))? else {
        return Ok(());
    };
    let node = node.small_storage("full", kib(640))?;
    let output = node.vzdump(&["100", "--storage", "full", "--compress", "0"])?;
    println!("target full: {}", sentence(&output));
    output.failed_with(&[
        "INFO: started backup task",
        "INFO: resuming VM again",
        "No space left on device",
        "INFO: aborting backup job",
        "INFO: resuming VM again",
        "ERROR: Backup of VM 100 failed - ",
        "INFO: Failed at ",
        "INFO: Backup job finished with errors",
    ])?;
    assert!(sentence(&output).contains("/mnt/full/dump/"), "{}", sentence(&output));
    assert_eq!(output.stderr, "job errors\n");
    node.unharmed(VMID)?;
    let left: Vec<_> = std::fs::read_dir(node.path("/mnt/full/dump"))?.collect::<Result<_, _>>()?;
    assert!(left.len() == 1 && left[0].path().extension().is_some_and(|e| e == "log"), "{left:?}");
    node.witness(VMID, "reset")?;

    // Temporary files of the run and the guest's old blocks share a place that is too small for them.
    let node = node.small_storage("tiny", kib(512))?;
    let tiny = node.path("/mnt/tiny").display().to_string();
    let slow = ["100", "--storage", "backup", "--bwlimit", "500", "--tmpdir"];
    let output = node.vzdump(&[&slow[..], &[&tiny]].concat())?;
    println!("fleecing directory full: {}", sentence(&output));
    output.failed_with(&["ERROR: ", "INFO: aborting backup job", "ERROR: Backup of VM 100 failed - "])?;
    let said = sentence(&output);
    assert!(said.contains("drive-") && said.contains("fleecing"), "{said}");
    assert!(
        std::fs::read_dir(&tiny)?
            .filter_map(Result::ok)
            .all(|e| ["dump", "images"].contains(&&*e.file_name().to_string_lossy()))
    );
    node.unharmed(VMID)?;
    let report = node.witness(VMID, "status")?;
    println!("the guest's longest write took {} ms", report.since_reset.as_millis());

    let output =
        node.vzdump(&["100", "--storage", "backup", "--bwlimit", "500", "--fleecing", "enabled=1,storage=tiny"])?;
    println!("fleecing storage full: {}", sentence(&output));
    output.failed_with(&["ERROR: ", "INFO: aborting backup job", "ERROR: Backup of VM 100 failed - "])?;
    assert!(sentence(&output).contains("fleec"), "{}", sentence(&output));
    node.unharmed(VMID)?;

    assert!(node.archives("backup", VMID)?.is_empty());
    println!("{}", node.backup_is_good(VMID, &KEYS)?);
    Ok(())
}
