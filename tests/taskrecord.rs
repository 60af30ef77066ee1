//! The record of a task when there is no room for it: a full `/var/log` costs no backup.

mod lab;

use std::process::Command;

use lab::{Format, Guest, Node, mib};

#[test]
fn a_full_log_costs_no_backup_and_is_told_once() {
    if !lab::require("a_full_log_costs_no_backup", &["qemu-img", "mount"]) {
        return;
    }
    let node = Node::new().unwrap().guest(Guest::new(100).disk("scsi0", Format::Raw, mib(1))).unwrap();
    let log = node.path("/var/log");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=16k", "tmpfs"]).arg(&log).status().unwrap();
    assert!(mounted.success());
    // Directories take no room here.
    std::fs::create_dir_all(log.join("vzdump")).unwrap();
    let ballast = std::fs::write(log.join("ballast"), vec![1; 64 << 10]);
    assert_eq!(ballast.unwrap_err().kind(), std::io::ErrorKind::StorageFull);

    let output = node.vzdump(&["100", "--storage", "backup"]).unwrap();
    assert_eq!(output.code, 0, "{}{}", output.stdout, output.stderr);
    assert!(output.stdout.ends_with("INFO: Backup job finished successfully\n"), "{}", output.stdout);
    assert!(output.stderr.starts_with("the task's record is incomplete: "), "{}", output.stderr);
    assert_eq!(output.stderr.matches("No space left on device").count(), 1, "{}", output.stderr);
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    assert_eq!(node.archives("backup", 100).unwrap().len(), 1);

    // What fails fails for its own reason.
    let output = node.vzdump(&["999", "--storage", "backup"]).unwrap();
    assert_eq!(output.code, 255);
    assert!(output.stdout.contains("ERROR: Backup of VM 999 failed - unable to find VM '999'"), "{}", output.stdout);
    assert!(output.stderr.starts_with("job errors\nthe task's record is incomplete: "), "{}", output.stderr);

    // Without a log of its own, a task is not begun.
    std::fs::remove_file(log.join("ballast")).unwrap();
    std::fs::remove_dir_all(log.join("pve")).unwrap();
    std::fs::write(log.join("pve"), "in the way").unwrap();
    let output = node.vzdump(&["100", "--storage", "backup"]).unwrap();
    assert_eq!(output.code, 255);
    let told = "cannot start the task: unable to create output file '/var/log/pve/tasks/";
    assert!(output.stderr.starts_with(told) && output.stderr.contains("' - "), "{}", output.stderr);
    assert!(output.stdout.is_empty(), "{}", output.stdout);
    assert_eq!(node.archives("backup", 100).unwrap().len(), 1);
}
