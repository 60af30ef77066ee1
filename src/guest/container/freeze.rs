//! Lets a container stand still through the freezer of its control group, of either version, and go on again. A frozen container
//! is thawed whatever happens: by us, at its deadline by a thread of its own, after a kill by the guardian from the record.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::host::Cancel;

/// How long its processes may take to stand still.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often we look.
const TICK: Duration = Duration::from_millis(2);

/// A container could not be frozen or thawed.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// Its control group is not one of a container.
    #[error("CT {vmid} cannot be frozen: process {pid} is in no control group of a container with a freezer")]
    NoFreezer {
        /// The container.
        vmid: u32,
        /// Its first process.
        pid: u32,
    },
    /// The job was told to stop meanwhile; it runs on.
    #[error("interrupted by signal")]
    Interrupted,
    /// Some process did not stop.
    #[error("CT {0} could not be frozen in time; it runs on")]
    Slow(u32),
    /// It stood still for too long.
    #[error("CT {vmid} stood still for {seconds} seconds and was let go before the backup had its instant")]
    Late {
        /// The container.
        vmid: u32,
        /// How long.
        seconds: u64,
    },
    /// The freezer cannot be read or written.
    #[error("freezer '{path}' of CT {vmid}: {source}", path = path.display())]
    Io {
        /// The container.
        vmid: u32,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The freezer of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freezer {
    vmid: u32,
    /// `cgroup.freeze` or `freezer.state`.
    file: PathBuf,
}

impl Freezer {
    /// The freezer of container `vmid`, whose first process is `pid`.
    ///
    /// # Errors
    /// When it has none.
    pub fn of(vmid: u32, pid: u32) -> Result<Self, FreezeError> {
        let read = |path: String| {
            std::fs::read_to_string(&path).map_err(|source| FreezeError::Io { vmid, path: path.into(), source })
        };
        let (groups, mounts) = (read(format!("/proc/{pid}/cgroup"))?, read("/proc/self/mounts".into())?);
        let file = candidates(vmid, &groups, &mounts).into_iter().find(|file| file.exists());
        file.map(|file| Self { vmid, file }).ok_or(FreezeError::NoFreezer { vmid, pid })
    }

    /// The file that freezes and thaws.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Whether it stands still already, by somebody else's will.
    ///
    /// # Errors
    /// When nobody can say.
    pub fn is_frozen(&self) -> Result<bool, FreezeError> {
        is_frozen(&self.file).map_err(|source| self.io(source))
    }

    /// Freezes the container for at most `most`: then it is let go in any case. Note the freeze before.
    ///
    /// # Errors
    /// When not all its processes stand still in time, or `cancel` is set; it runs on then.
    pub fn freeze(&self, most: Duration, cancel: &Cancel) -> Result<Frozen, FreezeError> {
        let frozen = Frozen::guard(self.clone(), most);
        let word = if is_first_version(&self.file) { "FROZEN" } else { "1" };
        std::fs::write(&self.file, word).map_err(|source| self.io(source))?;
        let give_up = Instant::now() + PATIENCE.min(most);
        while !self.is_frozen()? {
            if Instant::now() > give_up || cancel.is_set() {
                frozen.thaw()?;
                return Err(if cancel.is_set() { FreezeError::Interrupted } else { FreezeError::Slow(self.vmid) });
            }
            std::thread::sleep(TICK);
        }
        Ok(frozen)
    }

    fn io(&self, source: io::Error) -> FreezeError {
        FreezeError::Io { vmid: self.vmid, path: self.file.clone(), source }
    }
}

/// A container that stands still until this goes, or its time is over.
#[derive(Debug)]
pub struct Frozen {
    freezer: Freezer,
    begun: Instant,
    late: Arc<AtomicBool>,
    /// Closed to send the thread home.
    watch: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Frozen {
    fn guard(freezer: Freezer, most: Duration) -> Self {
        let (end, ended) = channel();
        let late = Arc::new(AtomicBool::new(false));
        let (file, flag) = (freezer.file.clone(), Arc::clone(&late));
        let thread = std::thread::spawn(move || {
            if ended.recv_timeout(most) == Err(RecvTimeoutError::Timeout) {
                flag.store(true, Ordering::SeqCst);
                // Whoever froze it tries again, and says what went wrong.
                thaw(&file).map(drop).unwrap_or_default();
            }
        });
        Self { freezer, begun: Instant::now(), late, watch: Some((end, thread)) }
    }

    /// Lets the container go on; how long it stood still.
    ///
    /// # Errors
    /// When it cannot be thawed, or when it was let go before because its time was over.
    pub fn thaw(mut self) -> Result<Duration, FreezeError> {
        let thawed = self.end();
        let (vmid, stood) = (self.freezer.vmid, self.begun.elapsed());
        thawed.map_err(|source| self.freezer.io(source))?;
        if self.late.load(Ordering::SeqCst) {
            return Err(FreezeError::Late { vmid, seconds: stood.as_secs() });
        }
        Ok(stood)
    }

    fn end(&mut self) -> io::Result<()> {
        let thawed = thaw(&self.freezer.file).map(drop);
        if let Some((end, thread)) = self.watch.take() {
            drop(end);
            // It only sleeps or writes one word.
            thread.join().unwrap_or_default();
        }
        thawed
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if self.watch.is_some() {
            // What fails here is still noted, and tried again when the guest is let go.
            self.end().unwrap_or_default();
        }
    }
}

fn is_first_version(file: &Path) -> bool {
    file.ends_with("freezer.state")
}

fn is_frozen(file: &Path) -> io::Result<bool> {
    if is_first_version(file) {
        return Ok(std::fs::read_to_string(file)?.trim() == "FROZEN");
    }
    let events = std::fs::read_to_string(file.with_file_name("cgroup.events"))?;
    Ok(events.lines().any(|line| line.trim() == "frozen 1"))
}

/// Thaws what the freezer `file` froze; whether there was something to thaw. One that is gone needs no thawing.
///
/// # Errors
/// When it cannot be read or written.
pub fn thaw(file: &Path) -> io::Result<bool> {
    let word = if is_first_version(file) { "THAWED" } else { "0" };
    let done = std::fs::read_to_string(file).and_then(|before| {
        if before.trim() == word {
            return Ok(false);
        }
        std::fs::write(file, word).map(|()| true)
    });
    match done {
        // The container is gone, and its control group with it.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(false),
        other => other,
    }
}

/// The files that may freeze the container, by `/proc/<pid>/cgroup` and the list of mounts. Never one of a group that is more
/// than the container: its own processes may be in groups below it.
fn candidates(vmid: u32, groups: &str, mounts: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let Some(group) = payload(vmid, group) else { continue };
        let (kind, option, file) = match controllers {
            "" => ("cgroup2", "", "cgroup.freeze"),
            _ if controllers.split(',').any(|controller| controller == "freezer") => {
                ("cgroup", "freezer", "freezer.state")
            }
            _ => continue,
        };
        for mount in mounts.lines() {
            let words: Vec<&str> = mount.split(' ').collect();
            let [_, at, of, options, ..] = words[..] else { continue };
            if of == kind && (option.is_empty() || options.split(',').any(|word| word == option)) {
                found.push(Path::new(at).join(&group).join(file));
                break;
            }
        }
    }
    found
}

/// The group of the whole container: `lxc/<vmid>` on a node, `lxc.payload.<vmid>` where LXC itself chose it.
fn payload(vmid: u32, group: &str) -> Option<String> {
    let parts: Vec<&str> = group.split('/').filter(|part| !part.is_empty()).collect();
    let id = vmid.to_string();
    // A name that was taken gets a number: lxc.payload.200-1.
    let is = |name: &str| name == id || name.strip_prefix(&id).is_some_and(|rest| rest.starts_with('-'));
    let at = parts.iter().enumerate().find_map(|(at, part)| match *part {
        "lxc" | "lxc.payload" if parts.get(at + 1).is_some_and(|next| is(next)) => Some(at + 1),
        part if part.strip_prefix("lxc.payload.").is_some_and(is) => Some(at),
        _ => None,
    });
    at.map(|at| parts[..=at].join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
        cgroup /sys/fs/cgroup/freezer cgroup rw,relatime,freezer 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";

    #[test]
    fn the_group_of_the_whole_container_and_no_other() {
        let of =
            |groups: &str| candidates(200, groups, MOUNTS).iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
        assert_eq!(of("0::/lxc/200/ns/init.scope\n"), ["/sys/fs/cgroup/unified/lxc/200/cgroup.freeze"]);
        assert_eq!(
            of("6:freezer:/lxc.payload.200\n1:cpu:/lxc.payload.200\n0::/lxc.payload.200/x\n"),
            [
                "/sys/fs/cgroup/freezer/lxc.payload.200/freezer.state",
                "/sys/fs/cgroup/unified/lxc.payload.200/cgroup.freeze"
            ]
        );
        assert_eq!(
            of("6:freezer:/a/lxc.payload.200-1\n"),
            ["/sys/fs/cgroup/freezer/a/lxc.payload.200-1/freezer.state"]
        );
        for other in
            ["0::/\n", "6:freezer:/\n", "0::/lxc/2000/ns\n", "0::/lxc.payload.20\n", "0::/lxc.monitor.200\n", ""]
        {
            assert!(of(other).is_empty(), "{other}");
        }
    }

    /// A freezer of files, in place of the kernel's.
    fn freezer(dir: &Path, events: &str) -> Freezer {
        std::fs::write(dir.join("cgroup.events"), events).unwrap();
        std::fs::write(dir.join("cgroup.freeze"), "0\n").unwrap();
        Freezer { vmid: 200, file: dir.join("cgroup.freeze") }
    }

    #[test]
    fn whoever_is_frozen_is_thawed() {
        let dir = tempfile::tempdir().unwrap();
        let freezer = freezer(dir.path(), "populated 1\nfrozen 1\n");
        let state = || std::fs::read_to_string(dir.path().join("cgroup.freeze")).unwrap();
        let frozen = freezer.freeze(Duration::from_secs(60), &Cancel::new()).unwrap();
        assert_eq!(state(), "1");
        frozen.thaw().unwrap();
        assert_eq!(state(), "0");
        drop(freezer.freeze(Duration::from_secs(60), &Cancel::new()).unwrap());
        assert_eq!(state(), "0");
        // Its time is over: let go by the thread, and said.
        let frozen = freezer.freeze(Duration::from_millis(20), &Cancel::new()).unwrap();
        let give_up = Instant::now() + Duration::from_secs(20);
        while state() == "1" {
            assert!(Instant::now() < give_up);
            std::thread::sleep(TICK);
        }
        assert!(matches!(frozen.thaw(), Err(FreezeError::Late { vmid: 200, .. })));
        assert!(!thaw(&dir.path().join("cgroup.freeze")).unwrap());
        assert!(!thaw(Path::new("/nowhere/cgroup.freeze")).unwrap());
    }

    #[test]
    fn one_that_does_not_stand_still_runs_on() {
        let dir = tempfile::tempdir().unwrap();
        let freezer = freezer(dir.path(), "populated 1\nfrozen 0\n");
        let error = freezer.freeze(Duration::from_millis(50), &Cancel::new()).unwrap_err();
        assert!(matches!(error, FreezeError::Slow(200) | FreezeError::Late { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(dir.path().join("cgroup.freeze")).unwrap(), "0");
    }
}
