//! One vzdump job at a time on a node: `/var/run/vzdump.lock`, shared with the stock program.

use std::fs::{File, OpenOptions};
use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::log::Kind;
use super::upid::Upid;
use crate::host::{Cancel, Host, files};

pub(super) const LOCK: &str = "/var/run/vzdump.lock";
pub(super) const PID_FILE: &str = "/var/run/vzdump.pid";
/// How long a job may take to stop, as with the original.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// The lock was not to be had.
#[derive(Debug, thiserror::Error)]
pub enum GlobalLockError {
    /// Another job held it all the time.
    #[error("can't acquire lock '{LOCK}' - got timeout")]
    Timeout,
    /// Another job holds it, and we were told not to wait.
    #[error("can't acquire lock '{LOCK}' (wait = 0)")]
    Busy,
    /// A signal arrived while waiting.
    #[error("interrupted by signal")]
    Interrupted,
    /// The lock file cannot be used.
    #[error("can't open lock on file '{LOCK}' - {}", files::reason(.0))]
    Io(#[source] io::Error),
}

/// The right to run a job. Given back on drop, and by the kernel when the process dies.
#[derive(Debug)]
pub struct GlobalLock {
    host: Host,
    _file: Flock<File>,
}

impl GlobalLock {
    /// Takes the lock, waiting up to `patience`, and tells `say` of the wait and of how it ended. Writes `upid` to the pid file,
    /// where `vzdump --stop` looks for it.
    ///
    /// # Errors
    /// [`GlobalLockError`].
    pub fn take(
        host: &Host,
        upid: &str,
        patience: Duration,
        cancel: &Cancel,
        say: &mut dyn FnMut(Kind, &str),
    ) -> Result<Self, GlobalLockError> {
        let taken = Self::wait(host, patience, cancel, say);
        if let Err(error @ (GlobalLockError::Timeout | GlobalLockError::Busy | GlobalLockError::Io(_))) = &taken {
            say(Kind::Error, &error.to_string());
        }
        let lock = taken?;
        std::fs::write(host.path(PID_FILE), upid).map_err(GlobalLockError::Io)?;
        Ok(Self { host: host.clone(), _file: lock })
    }

    fn wait(
        host: &Host,
        patience: Duration,
        cancel: &Cancel,
        say: &mut dyn FnMut(Kind, &str),
    ) -> Result<Flock<File>, GlobalLockError> {
        let path = host.path(LOCK);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(GlobalLockError::Io)?;
        }
        let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(GlobalLockError::Io)?;
        let give_up = Instant::now() + patience;
        let mut told = false;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => {
                    if told {
                        say(Kind::Info, "got global lock");
                    }
                    return Ok(lock);
                }
                Err((back, Errno::EWOULDBLOCK)) => file = back,
                Err((_, errno)) => return Err(GlobalLockError::Io(errno.into())),
            }
            if patience.is_zero() {
                return Err(GlobalLockError::Busy);
            }
            if !std::mem::replace(&mut told, true) {
                say(Kind::Info, "trying to get global lock - waiting...");
            }
            if cancel.is_set() {
                return Err(GlobalLockError::Interrupted);
            }
            if Instant::now() >= give_up {
                return Err(GlobalLockError::Timeout);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// `vzdump --stop`: asks the job named in the pid file to stop, and waits until it is gone. No job, nothing to do.
///
/// # Errors
/// When it cannot be asked, or is still there after [`STOP_PATIENCE`].
pub fn stop_running(host: &Host) -> Result<(), StopError> {
    let text = std::fs::read_to_string(host.path(PID_FILE)).unwrap_or_default();
    // A job that was killed leaves its pid file; whoever has its process id now is not it.
    let Some(job) = text.trim().parse::<Upid>().ok().filter(Upid::is_alive) else { return Ok(()) };
    let failed = || StopError(job.pid);
    let pid = i32::try_from(job.pid).map_err(|_| failed())?;
    match kill(Pid::from_raw(pid), Signal::SIGTERM) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(_) => return Err(failed()),
    }
    let give_up = Instant::now() + STOP_PATIENCE;
    while job.is_alive() {
        if Instant::now() >= give_up {
            return Err(failed());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A running job did not stop.
#[derive(Debug, thiserror::Error)]
#[error("stopping backup process {0} failed")]
pub struct StopError(u32);

impl Drop for GlobalLock {
    fn drop(&mut self) {
        // A pid file that stays names a dead process, which readers check; nothing else depends on it.
        let _ = std::fs::remove_file(self.host.path(PID_FILE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stopping_asks_the_process_of_the_pid_file_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::with_root(dir.path().to_owned());
        stop_running(&host).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let start = crate::host::procfs::start_time(child.id()).unwrap();
        let us = Upid::for_us(&host, "vzdump", "100", "root@pam").unwrap();
        std::fs::create_dir_all(host.path("/var/run")).unwrap();
        let pid = child.id();
        let name = |pstart| Upid { pid, pstart, ..us.clone() }.to_string();
        std::fs::write(host.path(PID_FILE), name(start + 1)).unwrap();
        stop_running(&host).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "a recycled process id was asked");
        std::fs::write(host.path(PID_FILE), name(start)).unwrap();
        std::thread::scope(|scope| {
            let stopping = scope.spawn(|| stop_running(&host));
            // A child is there until it is waited for.
            assert!(!child.wait().unwrap().success());
            stopping.join().unwrap().unwrap();
        });
    }
}
