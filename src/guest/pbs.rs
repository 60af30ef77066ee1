//! A backup that QEMU itself sends to a Proxmox Backup Server: the `backup` command of PVE's QEMU, asked for, watched and
//! cancelled. Each question is a short connection of its own, because others need the monitor, too.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::host::Cancel;
use crate::qemu::{QemuError, Qmp};

/// How long the monitor may be in use by somebody else.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long QEMU may take to reach the server; as with the original.
const CONNECT: Duration = Duration::from_secs(125);
/// How long a cancelled backup may take to end.
const ENDING: Duration = Duration::from_secs(60);

/// QEMU did not do the backup.
#[derive(Debug, thiserror::Error)]
pub enum QemuBackupError {
    /// A QEMU without the command, as everywhere but on PVE.
    #[error(
        "PBS backups are not supported by the running QEMU version. Please make sure you've installed the latest version and the VM has been restarted."
    )]
    Unsupported,
    /// Its libraries are too old for a master key.
    #[error("master key configured but running QEMU version does not support master keys")]
    NoMasterKey,
    /// The backup failed; QEMU's own words.
    #[error("{0}")]
    Failed(String),
    /// Somebody else's backup took the place of ours.
    #[error("got unexpected uuid")]
    Foreign,
    /// The monitor failed.
    #[error(transparent)]
    Qemu(#[from] QemuError),
}

/// How far a backup is, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether it still runs.
    pub active: bool,
    /// Size of all disks.
    pub total: u64,
    /// What of it has to be read: all, or what changed since the last backup.
    pub target: u64,
    /// Done of that.
    pub transferred: u64,
    /// Zeros among it.
    pub zero: u64,
    /// What the server had already.
    pub reused: u64,
    /// Everything is sent, and the server looks at it.
    pub finishing: bool,
}

/// What the QEMU behind `socket` can do.
///
/// # Errors
/// [`QemuBackupError::Unsupported`]; [`QemuBackupError::NoMasterKey`] when one is needed.
pub fn support(socket: &Path, master_key: bool, cancel: &Cancel) -> Result<Value, QemuBackupError> {
    let mut qmp = Qmp::connect_unless(socket, PATIENCE, cancel)?;
    let support = match qmp.execute("query-proxmox-support", json!({})) {
        Err(QemuError::Command { class, .. }) if class == "CommandNotFound" => {
            return Err(QemuBackupError::Unsupported);
        }
        other => other?,
    };
    if master_key && support["pbs-masterkey"] != true {
        return Err(QemuBackupError::NoMasterKey);
    }
    Ok(support)
}

/// Starts the backup; gives its UUID.
///
/// # Errors
/// When QEMU refuses or cannot reach the server. Without an answer in time it may still begin: [`cancel`] it then.
pub fn start(socket: &Path, arguments: Value, cancel: &Cancel) -> Result<String, QemuBackupError> {
    let mut qmp = Qmp::connect_unless(socket, PATIENCE, cancel)?;
    let answer = qmp.execute_unless("backup", arguments, CONNECT, cancel)?;
    let uuid = answer["UUID"].as_str().ok_or_else(|| QemuBackupError::Failed("got no uuid for backup task".into()))?;
    Ok(uuid.to_owned())
}

/// How far the backup `uuid` is.
///
/// # Errors
/// When it failed, or is not there any more.
pub fn status(socket: &Path, uuid: &str, cancel: &Cancel) -> Result<Status, QemuBackupError> {
    let mut qmp = Qmp::connect_unless(socket, PATIENCE, cancel)?;
    read_status(&qmp.execute("query-backup", json!({}))?, uuid)
}

fn read_status(answer: &Value, uuid: &str) -> Result<Status, QemuBackupError> {
    if answer["uuid"] != uuid {
        return Err(QemuBackupError::Foreign);
    }
    let number = |key: &str| answer[key].as_u64().unwrap_or_default();
    let active = match answer["status"].as_str().unwrap_or("unknown") {
        "active" => true,
        "done" => false,
        "error" => {
            let words = answer["errmsg"].as_str().unwrap_or("unknown error");
            return Err(QemuBackupError::Failed(words.to_owned()));
        }
        other => return Err(QemuBackupError::Failed(format!("got unexpected status '{other}'"))),
    };
    let total = number("total");
    let target = answer["dirty"].as_u64().filter(|dirty| *dirty < total).unwrap_or(total);
    Ok(Status {
        active,
        total,
        target,
        transferred: number("transferred"),
        zero: number("zero-bytes"),
        reused: number("reused"),
        finishing: answer["finishing"] == true,
    })
}

/// What became of the bitmaps that remember what changed, a line per disk.
///
/// # Errors
/// When QEMU cannot tell.
pub fn bitmap_lines(socket: &Path, cancel: &Cancel) -> Result<Vec<String>, QemuBackupError> {
    let mut qmp = Qmp::connect_unless(socket, PATIENCE, cancel)?;
    let answer = qmp.execute("query-pbs-bitmap-info", json!({}))?;
    let mut lines: Vec<String> = answer.as_array().into_iter().flatten().map(bitmap_line).collect();
    lines.sort();
    Ok(lines)
}

fn bitmap_line(info: &Value) -> String {
    use crate::schema::size::human;
    let drive = info["drive"].as_str().unwrap_or_default();
    let number = |key: &str| info[key].as_u64().unwrap_or_default();
    let state = match info["action"].as_str().unwrap_or_default() {
        "not-used" => "disabled (no support)".to_owned(),
        "not-used-removed" => "disabled (old bitmap cleared)".to_owned(),
        "new" => "created new".to_owned(),
        "used" if number("dirty") == 0 => "OK (drive clean)".to_owned(),
        "used" => format!("OK ({} of {} dirty)", human(number("dirty"), 1), human(number("size"), 1)),
        "invalid" => "existing bitmap was invalid and has been cleared".to_owned(),
        _ => "unknown".to_owned(),
    };
    format!("{}: dirty-bitmap status: {state}", drive.strip_prefix("drive-").unwrap_or(drive))
}

/// Ends whatever backup runs in the QEMU behind `socket`, and waits until it has ended. Returns whether one ran. A QEMU
/// without such backups has none.
///
/// # Errors
/// When the monitor cannot be had, or the backup does not end.
pub fn cancel(socket: &Path) -> Result<bool, QemuError> {
    let give_up = Instant::now() + ENDING;
    let mut ran = false;
    loop {
        let mut qmp = Qmp::connect(socket, PATIENCE)?;
        match qmp.execute("query-backup", json!({})) {
            Ok(answer) if answer["status"] == "active" => {}
            Ok(_) => return Ok(ran),
            Err(QemuError::Command { class, .. }) if class == "CommandNotFound" => return Ok(false),
            Err(e) => return Err(e),
        }
        if !ran {
            qmp.execute_within("backup-cancel", json!({}), ENDING)?;
            ran = true;
        } else if Instant::now() > give_up {
            let waited = ENDING;
            return Err(QemuError::Timeout {
                what: "QMP",
                path: socket.into(),
                command: "backup-cancel".into(),
                waited,
            });
        }
        drop(qmp);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Whether the guest behind `socket` has not run since its QEMU was started.
///
/// # Errors
/// When the monitor cannot be had.
pub fn never_ran(socket: &Path) -> Result<(bool, String), QemuError> {
    let state = Qmp::connect(socket, PATIENCE)?.execute("query-status", json!({}))?;
    let status = state["status"].as_str().unwrap_or_default().to_owned();
    Ok((status == "prelaunch", status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_ours_or_an_error() {
        let recorded = json!({
            "total": 402_653_184, "zero-bytes": 134_217_728, "finishing": false, "uuid": "u", "status": "active",
            "dirty": 402_653_184, "reused": 0, "transferred": 148_242_432, "start-time": 1_795_340_120,
        });
        let status = read_status(&recorded, "u").unwrap();
        assert!(status.active && status.target == status.total && status.transferred == 148_242_432);
        assert!(matches!(read_status(&recorded, "v"), Err(QemuBackupError::Foreign)));
        let failed = json!({"uuid": "u", "status": "error", "errmsg": "backup write data failed: broken pipe"});
        assert_eq!(read_status(&failed, "u").unwrap_err().to_string(), "backup write data failed: broken pipe");
        assert!(read_status(&json!({"uuid": "u"}), "u").is_err());
        let changed = json!({"uuid": "u", "status": "done", "total": 100, "dirty": 7});
        assert_eq!(read_status(&changed, "u").unwrap().target, 7);
    }

    #[test]
    fn bitmaps_in_words() {
        let line = |info| bitmap_line(&info);
        let used = json!({"drive": "drive-scsi0", "action": "used", "dirty": 1 << 20, "size": 1_u64 << 30});
        assert_eq!(line(used), "scsi0: dirty-bitmap status: OK (1.0 MiB of 1.0 GiB dirty)");
        assert_eq!(line(json!({"drive": "drive-scsi0", "action": "new"})), "scsi0: dirty-bitmap status: created new");
        assert_eq!(
            line(json!({"drive": "drive-a", "action": "used", "dirty": 0})),
            "a: dirty-bitmap status: OK (drive clean)"
        );
    }
}
