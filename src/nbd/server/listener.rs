//! The socket file: made so that only its owner can connect, never in the place of a server that lives, and removed at
//! the end.
//!
//! What a killed server leaves is its socket file, on which nobody answers; it is replaced. Two servers that start at the
//! same time do not take each other's new file for a dead one, because looking and replacing happens under a lock on the
//! directory.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::sys::stat::{Mode, fchmod};

/// The lock is held for as long as it takes to make a file.
const LOCK: Duration = Duration::from_secs(5);
const BACKLOG: i32 = 64;

/// A unix socket that clients can connect to. Its file goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, so that no other one is removed in its place.
    file: (u64, u64),
}

/// The socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another server has it.
    #[error("a server is listening on {} already", .0.display())]
    InUse(PathBuf),
    /// Something else has the name.
    #[error("{} exists and is no socket", .0.display())]
    Occupied(PathBuf),
    /// The kernel has room for less.
    #[error("the path {} has {} bytes, but that of a socket can have {MAX_PATH} at most", .0.display(), .0.as_os_str().len())]
    TooLong(PathBuf),
    /// Everything else.
    #[error("cannot listen on {}: {source}", path.display())]
    Failed {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The room in `sockaddr_un`, less the zero at its end.
const MAX_PATH: usize = 107;

impl Listener {
    /// Listens on a socket at `path`, which is made, or replaces one that nobody listens on.
    ///
    /// # Errors
    /// When something else has the path, or it cannot be made.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let failed = |source: io::Error| ListenError::Failed { path: path.to_owned(), source };
        let path = std::path::absolute(path).map_err(failed)?;
        if path.as_os_str().len() > MAX_PATH {
            return Err(ListenError::TooLong(path));
        }
        let address = UnixAddr::new(&path).map_err(|e| failed(e.into()))?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        let _lock = lock(parent).map_err(failed)?;
        let socket = stream_socket(SockFlag::empty()).map_err(|e| failed(e.into()))?;
        // Taken over by the file: nobody else connects, not even for a moment.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| failed(e.into()))?;
        let done = match bind(socket.as_raw_fd(), &address) {
            Err(Errno::EADDRINUSE) => {
                remove_dead(&path, &address)?;
                bind(socket.as_raw_fd(), &address)
            }
            other => other,
        };
        let start = || -> io::Result<Metadata> {
            done?;
            let file = std::fs::symlink_metadata(&path)?;
            listen(&socket, Backlog::new(BACKLOG)?)?;
            Ok(file)
        };
        let file = start().map_err(failed)?;
        let socket = UnixListener::from(socket);
        let listener = Self { socket, path, file: (file.dev(), file.ino()) };
        listener.socket.set_nonblocking(true).map_err(failed)?;
        Ok(listener)
    }

    /// The socket's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next client that waits; `None` when there is none.
    pub(super) fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.socket.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                Ok(Some(stream))
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.file);
        if ours {
            // A file that cannot be removed is replaced by the next run.
            std::fs::remove_file(&self.path).unwrap_or_default();
        }
    }
}

fn stream_socket(flags: SockFlag) -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | flags, None)
}

/// Removes the file at `path` if it is a socket that nobody listens on.
fn remove_dead(path: &Path, address: &UnixAddr) -> Result<(), ListenError> {
    let failed = |source: io::Error| ListenError::Failed { path: path.to_owned(), source };
    let file = std::fs::symlink_metadata(path).map_err(failed)?;
    if !file.file_type().is_socket() {
        return Err(ListenError::Occupied(path.to_owned()));
    }
    // Does not wait: a server whose queue is full lives as well.
    let knock = stream_socket(SockFlag::SOCK_NONBLOCK).map_err(|e| failed(e.into()))?;
    match connect(knock.as_raw_fd(), address) {
        Ok(()) | Err(Errno::EAGAIN) => Err(ListenError::InUse(path.to_owned())),
        Err(Errno::ECONNREFUSED) => std::fs::remove_file(path).map_err(failed),
        Err(e) => Err(failed(e.into())),
    }
}

fn lock(directory: &Path) -> io::Result<Flock<File>> {
    let mut file = File::open(directory)?;
    let end = Instant::now() + LOCK;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK)) if Instant::now() < end => file,
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "another program keeps its directory locked"));
            }
            Err((_, e)) => return Err(e.into()),
        };
        std::thread::sleep(Duration::from_millis(5));
    }
}
