//! The archive step of one guest whose backups go to a Proxmox Backup Server: QEMU sends them itself, we ask it to, watch, and
//! do what comes after: notes, protection, retention and the log, through the client.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::guest_run::{GuestError, GuestRun};
use super::progress::ProgressLines;
use super::report::GuestState;
use crate::guest::held::Held;
use crate::guest::monitor::qmp_socket;
use crate::guest::pbs::{self, QemuBackupError, Status};
use crate::guest::record::Intent;
use crate::guest::vm::Vm;
use crate::host::child::{self, Ended};
use crate::schema::Mode;
use crate::schema::size::{human, percent, sparse_line, transferred_line};
use crate::storage::pbs::{PbsError, QemuBackup, Repository, Snapshot};
use crate::transfer::Progress;

/// How often QEMU is asked how far it is, as with the original.
const PAUSE: Duration = Duration::from_secs(1);
/// How often the wish to stop is looked at meanwhile.
const TICK: Duration = Duration::from_millis(50);
/// How long a call of the client may take. None of them moves a disk.
const CLIENT: Duration = Duration::from_secs(600);
/// What the client may have to say when it fails.
const LAST_WORDS: usize = 3;

impl GuestRun<'_> {
    /// Whether this guest can be backed up to the server at all; asked before anything happens to it.
    pub(super) fn check_server(&self, vm: &Vm) -> Result<(), GuestError> {
        let Some(repository) = &self.job.destination.pbs else { return Ok(()) };
        if self.job.options.fleecing.enabled {
            return Err(GuestError::NotToServer("fleecing cannot be used with"));
        }
        if vm.disks.iter().any(|disk| !disk.is_in_qemu()) {
            return Err(GuestError::NotToServer("the state of a TPM cannot be backed up to"));
        }
        if self.running && !vm.disks.is_empty() {
            pbs::support(&self.socket(), repository.has_master_key(), self.job.cancel)?;
        }
        Ok(())
    }

    /// Lets QEMU send the disks to the server, and takes everything away that this took.
    pub(super) fn send(&self, repository: &Repository, vm: &Vm, held: &mut Held) -> Result<(), GuestError> {
        let (log, Some(snapshot)) = (&self.job.log, &self.snapshot) else { return Ok(()) };
        log.info(&format!("creating Proxmox Backup Server archive '{snapshot}'"));
        let files = self.config_files(vm, held)?;
        if vm.disks.is_empty() {
            log.info("backup contains no disks");
            log.info("starting diskless backup");
            let words = repository.diskless_words(snapshot, &files.config, files.firewall.as_deref());
            self.client(repository, &["backup"], &words)?;
        } else {
            let mut ours = false;
            let sent = self.send_disks(repository, snapshot, vm, &files, held, &mut ours);
            if let Err(error) = &sent {
                log.error(&error.to_string());
                log.info("aborting backup job");
                // What cannot be cancelled now stays noted, and is tried again when the guest is let go.
                if ours {
                    match pbs::cancel(&self.socket()) {
                        Ok(_) => held.done(&Intent::QemuBackup)?,
                        Err(e) if e.is_gone() => {}
                        Err(e) => log.warn(&e.to_string()),
                    }
                }
                if self.running {
                    self.say_resumed();
                }
            }
            sent?;
            // The server has the backup: what cannot be put back is said, and tried again by whoever lets the guest go.
            if !self.running
                && let Err(error) = self.switch_off_again(held)
            {
                log.warn(&error.to_string());
            }
        }
        match std::fs::remove_dir_all(self.job.host.path(&files.dir)).map_err(failed("removing", &files.dir)) {
            Ok(()) => held.done(&Intent::Dir { path: files.dir })?,
            Err(error) => log.warn(&error.to_string()),
        }
        Ok(())
    }

    /// Sends the disks. `ours` is set while a backup that we asked for may run in QEMU: no other one is ever cancelled.
    fn send_disks(
        &self,
        repository: &Repository,
        snapshot: &Snapshot,
        vm: &Vm,
        files: &Files,
        held: &mut Held,
        ours: &mut bool,
    ) -> Result<(), GuestError> {
        let (job, log) = (self.job, &self.job.log);
        if self.mode == Mode::Stop {
            log.info("starting kvm to execute backup task");
            if !self.running {
                held.note(&Intent::Started)?;
            }
            self.power.start_paused()?;
        }
        let socket = self.socket();
        let support = pbs::support(&socket, repository.has_master_key(), job.cancel)?;
        let devices: Vec<String> = vm.disks.iter().map(crate::guest::vm::VmDisk::device).collect();
        let backup = QemuBackup {
            snapshot: *snapshot,
            devices: &devices,
            config: &files.config,
            firewall: files.firewall.as_deref(),
            speed: job.options.bwlimit * 1024,
            max_workers: job.options.performance.max_workers,
            template: vm.config.is_template(),
        };
        if repository.encrypts() {
            log.info("enabling encryption");
        }
        let arguments = repository.qemu_arguments(&backup, &support);
        let frozen = if self.mode == Mode::Stop { None } else { self.freeze(vm, held)? };
        let noted = held.note(&Intent::QemuBackup);
        let started = match noted {
            Ok(()) => {
                let started = pbs::start(&socket, arguments, job.cancel);
                // After a refusal, whatever runs in there is somebody else's.
                *ours = !matches!(&started, Err(QemuBackupError::Qemu(error)) if error.is_refusal());
                started.map_err(GuestError::from)
            }
            Err(error) => Err(error.into()),
        };
        if let Some(frozen) = frozen {
            frozen.thaw()?;
            held.done(&Intent::Frozen)?;
            log.info("issuing guest-agent 'fs-thaw' command");
        }
        if started.is_err() && !*ours {
            held.done(&Intent::QemuBackup)?;
        }
        let uuid = started?;
        log.info(&format!("started backup task '{uuid}'"));
        if self.running {
            self.go_on(held)?;
            self.say_resumed();
        }
        let watched = self.watch(&uuid, support["query-bitmap-info"] == true);
        if matches!(watched, Err(GuestError::QemuBackup(QemuBackupError::Foreign))) {
            *ours = false;
            held.done(&Intent::QemuBackup)?;
        }
        watched?;
        Ok(held.done(&Intent::QemuBackup)?)
    }

    /// Waits for the end of QEMU's backup and tells how far it is.
    fn watch(&self, uuid: &str, has_bitmaps: bool) -> Result<(), GuestError> {
        let (job, log, socket) = (self.job, &self.job.log, self.socket());
        let mut lines = ProgressLines::start();
        let (mut first, mut finishing) = (true, false);
        loop {
            let status = pbs::status(&socket, uuid, job.cancel)?;
            if std::mem::take(&mut first) {
                if has_bitmaps {
                    pbs::bitmap_lines(&socket, job.cancel)?.iter().for_each(|line| log.info(line));
                }
                if status.target < status.total {
                    let (target, total) = (human(status.target, 1), human(status.total, 1));
                    log.info(&format!("using fast incremental mode (dirty-bitmap), {target} dirty of {total} total"));
                }
            }
            let now = progress(&status);
            if !status.active {
                let (line, seconds) = lines.last(&now);
                log.info(&line);
                self.tell_end(&status, seconds);
                return Ok(());
            }
            if let Some(line) = lines.due(&now) {
                log.info(&line);
            }
            if status.finishing && !std::mem::replace(&mut finishing, true) {
                log.info("Waiting for server to finish backup validation...");
            }
            let asked = Instant::now();
            while asked.elapsed() < PAUSE {
                if job.cancel.is_set() {
                    return Err(GuestError::Interrupted);
                }
                std::thread::sleep(TICK);
            }
        }
    }

    fn tell_end(&self, status: &Status, seconds: u64) {
        let log = &self.job.log;
        if status.zero > 0 {
            log.info(&sparse_line(status.zero, status.target));
        }
        if status.reused > 0 {
            let share = percent(status.reused, status.total);
            log.info(&format!("backup was done incrementally, reused {} ({share}%)", human(status.reused, 2)));
        }
        log.info(&transferred_line(status.transferred, seconds));
    }

    /// The guest was off before: so it is again, unless somebody let it run meanwhile.
    fn switch_off_again(&self, held: &mut Held) -> Result<(), GuestError> {
        let (never_ran, status) = pbs::never_ran(&self.socket())?;
        if never_ran {
            self.job.log.info("stopping kvm after backup task");
            self.power.stop()?;
        } else {
            self.job.log.info(&format!("kvm status changed after backup ('{status}') - keep VM running"));
        }
        Ok(held.done(&Intent::Started)?)
    }

    /// Config and firewall rules as files, which QEMU and the client read.
    fn config_files(&self, vm: &Vm, held: &mut Held) -> Result<Files, GuestError> {
        use std::os::unix::fs::DirBuilderExt;
        let host = self.job.host;
        let above = self.job.options.tmpdir.clone().unwrap_or_else(|| "/var/tmp".into());
        let dir = above.join(format!("vzdumptmp{}_{}", std::process::id(), self.vmid));
        held.note(&Intent::Dir { path: dir.clone() })?;
        let real = host.path(&dir);
        std::fs::DirBuilder::new().mode(0o700).create(&real).map_err(failed("making", &real))?;
        let write = |name: &str, bytes: &[u8]| -> Result<PathBuf, GuestError> {
            let path = real.join(name);
            std::fs::write(&path, bytes).map_err(failed("writing", &path))?;
            Ok(path)
        };
        let config = write("qemu-server.conf", &vm.config_blob())?;
        let rules = host.path(format!("/etc/pve/firewall/{}.fw", self.vmid));
        let firewall = match std::fs::read(&rules) {
            Ok(text) => Some(write("qemu-server.fw", &text)?),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(failed("reading", &rules)(source)),
        };
        Ok(Files { dir, config, firewall })
    }

    /// Adds notes and protection to the finished backup, then lets the server remove what retention does not keep.
    pub(super) fn dress_snapshot(&self, repository: &Repository) -> Result<(), GuestError> {
        let (job, options, Some(snapshot)) = (self.job, self.job.options, &self.snapshot) else { return Ok(()) };
        let name = snapshot.to_string();
        self.add_notes(|text| {
            let words = [name.clone(), text.to_owned()];
            self.client(repository, &["snapshot", "notes", "update"], &words).map(drop).map_err(|e| e.to_string())
        });
        if options.protected {
            job.log.info("marking backup as protected");
            self.client(repository, &["snapshot", "protected", "update"], &[name, "true".into()])?;
        }
        let (keep, remove) = options.retention(job.destination.keep());
        if !remove {
            return Ok(());
        }
        job.log.info(&format!("prune older backups with retention: {}", keep.to_string().replace(',', ", ")));
        job.log.info(&format!("running '{}' for '{}'", "proxmox-backup-client prune", snapshot.group()));
        let answer = self.client(repository, &["prune"], &Repository::prune_words(snapshot, &keep))?;
        let listed: serde_json::Value = serde_json::from_str(&answer).map_err(|_| PbsError::Client {
            verb: "prune".into(),
            reason: "result from proxmox-backup-client is not as expected".into(),
        })?;
        let goes = |entry: &&serde_json::Value| entry["keep"] == false && entry["protected"] != true;
        match listed.as_array().into_iter().flatten().filter(goes).count() {
            0 => job.log.info("pruned 0 backup(s)"),
            removed => job.log.info(&format!("pruned {removed} backup(s) not covered by keep-retention policy")),
        }
        Ok(())
    }

    /// Closes the guest's log and, after a good backup, sends it to lie beside that.
    pub(super) fn upload_log(&self, repository: &Repository, snapshot: &Snapshot, state: GuestState) {
        let log = &self.job.log;
        let path = self.job.host.path(format!("/var/log/vzdump/qemu-{}.log", self.vmid));
        let closed = log.close_guest(None).map_err(|e| e.to_string());
        let uploaded = closed.and_then(|()| {
            if state == GuestState::Failed {
                return Ok(());
            }
            let words = [snapshot.to_string(), path.display().to_string()];
            self.client(repository, &["upload-log"], &words).map(drop).map_err(|e| e.to_string())
        });
        if let Err(reason) = uploaded {
            log.warn(&format!("uploading backup task log failed: {reason}"));
        }
    }

    /// Runs the client and gives what it printed.
    fn client(&self, repository: &Repository, verb: &[&str], words: &[String]) -> Result<String, GuestError> {
        let failed = |reason: String| PbsError::Client { verb: verb.join(" "), reason };
        let mut command = repository.client(self.job.host, verb, words);
        let ended = child::run(&mut command, None, CLIENT, self.job.cancel).map_err(|e| failed(e.to_string()))?;
        let output = match ended {
            Ended::Exited(output) => output,
            Ended::Late(limit) => return Err(failed(format!("not finished after {} seconds", limit.as_secs())).into()),
            Ended::Cancelled => return Err(GuestError::Interrupted),
        };
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines[lines.len().saturating_sub(LAST_WORDS)..].join("; ");
        Err(failed(if last.is_empty() { output.status.to_string() } else { last }).into())
    }

    fn socket(&self) -> PathBuf {
        qmp_socket(self.job.host, self.vmid.get())
    }
}

/// What of a guest is no disk, as files.
struct Files {
    dir: PathBuf,
    config: PathBuf,
    firewall: Option<PathBuf>,
}

/// In the words of the log: what is not written is what the server had, zeros among it.
fn progress(status: &Status) -> Progress {
    let unwritten = if status.reused > 0 { status.reused } else { status.zero };
    Progress { total: status.target, read: status.transferred, zero: unwritten, written: 0 }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> GuestError {
    let path = path.to_owned();
    move |source| GuestError::File { what, path, source }
}
