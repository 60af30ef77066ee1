//! One vzdump job at a time on a node: `/var/run/vzdump.lock`, shared with the stock program.

use std::fs::{File, OpenOptions};
use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::host::{Cancel, Host};

const LOCK: &str = "/var/run/vzdump.lock";
const PID_FILE: &str = "/var/run/vzdump.pid";

/// The lock was not to be had.
#[derive(Debug, thiserror::Error)]
pub enum GlobalLockError {
    /// Another job held it all the time.
    #[error("can't acquire lock '{path}' - got timeout")]
    Timeout {
        /// The lock file.
        path: String,
    },
    /// A signal arrived while waiting.
    #[error("interrupted by signal")]
    Interrupted,
    /// The lock file cannot be used.
    #[error("can't acquire lock '{path}' - {source}")]
    Io {
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The right to run a job. Given back on drop, and by the kernel when the process dies.
#[derive(Debug)]
pub struct GlobalLock {
    host: Host,
    _file: Flock<File>,
}

impl GlobalLock {
    /// Takes the lock, waiting up to `patience`; calls `waiting` once if there is something to wait for. Writes `upid` to
    /// the pid file, where `vzdump --stop` looks for it.
    ///
    /// # Errors
    /// [`GlobalLockError`].
    pub fn take(
        host: &Host,
        upid: &str,
        patience: Duration,
        cancel: &Cancel,
        mut waiting: impl FnMut(),
    ) -> Result<Self, GlobalLockError> {
        let path = host.path(LOCK);
        let io_error = |source| GlobalLockError::Io { path: path.display().to_string(), source };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(io_error)?;
        }
        let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(io_error)?;
        let give_up = Instant::now() + patience;
        let mut told = false;
        let lock = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => break lock,
                Err((back, Errno::EWOULDBLOCK)) => file = back,
                Err((_, errno)) => return Err(io_error(errno.into())),
            }
            if !std::mem::replace(&mut told, true) {
                waiting();
            }
            if cancel.is_set() {
                return Err(GlobalLockError::Interrupted);
            }
            if Instant::now() >= give_up {
                return Err(GlobalLockError::Timeout { path: path.display().to_string() });
            }
            std::thread::sleep(Duration::from_millis(200));
        };
        std::fs::write(host.path(PID_FILE), upid).map_err(io_error)?;
        Ok(Self { host: host.clone(), _file: lock })
    }
}

impl Drop for GlobalLock {
    fn drop(&mut self) {
        // A pid file that stays names a dead process, which readers check; nothing else depends on it.
        let _ = std::fs::remove_file(self.host.path(PID_FILE));
    }
}
