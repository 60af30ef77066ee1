//! The NBD server: hands out images to QEMU, `nbdcopy`, the kernel and whoever else speaks the protocol, over a unix
//! socket of the same user.
//!
//! Exports have names; several clients and several requests of each are served side by side, by threads that belong to
//! the client. What a client says is never believed: it can lose its own connection and nothing else. A disk that cannot
//! be read fails the one request, with the cause in the reply and in the report.

mod answer;
mod connection;
mod error;
mod event;
mod export;
mod handshake;
mod listener;
mod output;
mod priority;
#[doc(hidden)]
pub mod rehearsal;
mod request;

pub use error::Ended;
pub use event::Event;
pub use export::{Export, Exports};
pub use listener::{ListenError, Listener};

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::host::Cancel;
use priority::Lanes;

/// The block size clients are asked to prefer; that of most file systems.
const BLOCK_SIZE: u32 = 4096;
/// How often the wish to stop is looked at.
const TICK: u16 = 100;

/// Takes what the server has to tell; called from many threads.
pub type Report = Box<dyn Fn(&Event<'_>) + Send + Sync>;

/// Limits of a server.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Connections at a time; more are closed at once.
    pub connections: usize,
    /// Requests of one connection that are carried out at a time. Each takes up to 256 KiB of memory.
    pub workers: usize,
    /// Workers of all connections together, beside the first one of each.
    pub helpers: usize,
    /// How long a client may take to choose an export.
    pub handshake: Duration,
    /// How long a client may pause in the middle of a request, or in taking an answer. Between requests it may be silent
    /// as long as it likes.
    pub patience: Duration,
    /// How long requests under way may take when the server stops.
    pub drain: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connections: 64,
            workers: 8,
            helpers: 96,
            handshake: Duration::from_secs(10),
            // A client that is stopped for a while, in a debugger or with its whole machine, comes back.
            patience: Duration::from_secs(10 * 60),
            drain: Duration::from_secs(10),
        }
    }
}

/// A server that runs in threads of its own. Dropped, it stops.
pub struct Server {
    shared: Arc<Shared>,
    socket: PathBuf,
    acceptor: Option<JoinHandle<io::Result<()>>>,
    /// A byte wakes the acceptor.
    wake: UnixStream,
}

/// What all threads of a server see.
struct Shared {
    exports: Exports,
    settings: Settings,
    report: Report,
    lanes: Lanes,
    long_read: Mutex<()>,
    /// No more requests are taken.
    stopping: AtomicBool,
    /// Clients that have opened an export.
    clients: AtomicUsize,
    /// Workers beside the first one of each connection.
    helpers: AtomicUsize,
    connections: Mutex<HashMap<u64, Arc<UnixStream>>>,
    /// A connection is gone.
    gone: Condvar,
}

impl Server {
    /// Starts to serve `exports` on the socket, until `cancel` is set or [`Self::stop`] is called.
    ///
    /// # Errors
    /// When threads or descriptors have run out.
    pub fn start(
        listener: Listener,
        exports: Exports,
        settings: Settings,
        report: Report,
        cancel: &Cancel,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            exports,
            settings,
            report,
            lanes: Lanes::default(),
            long_read: Mutex::default(),
            stopping: AtomicBool::new(false),
            clients: AtomicUsize::new(0),
            helpers: AtomicUsize::new(0),
            connections: Mutex::default(),
            gone: Condvar::new(),
        });
        let socket = listener.path().to_owned();
        let (wake, woken) = UnixStream::pair()?;
        let (ours, cancel) = (Arc::clone(&shared), cancel.clone());
        let acceptor = std::thread::Builder::new().name("nbd acceptor".into()).spawn(move || {
            let accepted = accept(&ours, &listener, &woken, &cancel);
            // Nobody else gets in from here on.
            drop(listener);
            let ended = end(&ours);
            accepted.and(ended)
        })?;
        Ok(Self { shared, socket, acceptor: Some(acceptor), wake })
    }

    /// The socket's file.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// How many clients have opened an export just now.
    pub fn clients(&self) -> usize {
        self.shared.clients.load(Ordering::SeqCst)
    }

    /// Takes no more requests, lets those under way be answered, removes the socket and ends all threads.
    ///
    /// # Errors
    /// When the socket failed before, or when a disk does not answer: its threads are then left behind.
    pub fn stop(mut self) -> io::Result<()> {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.join()
    }

    /// Waits until the `Cancel` given at the start is set, then ends as [`Self::stop`] does.
    ///
    /// # Errors
    /// As [`Self::stop`].
    pub fn wait(mut self) -> io::Result<()> {
        self.join()
    }

    fn join(&mut self) -> io::Result<()> {
        let Some(acceptor) = self.acceptor.take() else { return Ok(()) };
        if self.shared.stopping.load(Ordering::SeqCst) {
            // If it is gone already it need not be woken.
            self.wake.write_all(&[0]).unwrap_or_default();
        }
        acceptor.join().unwrap_or_else(|_| Err(io::Error::other("the thread that takes connections panicked")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Whoever wants to know calls `stop`.
        self.join().unwrap_or_default();
    }
}

/// Takes connections until somebody wants to stop.
fn accept(shared: &Arc<Shared>, listener: &Listener, mut woken: &UnixStream, cancel: &Cancel) -> io::Result<()> {
    let mut client = 0;
    while !cancel.is_set() && !shared.stopping.load(Ordering::SeqCst) {
        let mut fds = [listener.as_fd(), woken.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::from(TICK)) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        if fds[1].any().unwrap_or_default() {
            // Whoever wakes has said why before.
            let _byte = woken.read(&mut [0])?;
            continue;
        }
        match listener.accept() {
            Ok(Some(stream)) => {
                client += 1;
                admit(shared, client, stream);
            }
            Ok(None) => {}
            Err(error) => {
                // Out of descriptors or memory: others may give some back.
                (shared.report)(&Event::Refused { reason: error.to_string() });
                std::thread::sleep(Duration::from_millis(u64::from(TICK)));
            }
        }
    }
    Ok(())
}

/// Starts the thread of a connection. A stream that is not taken is closed.
fn admit(shared: &Arc<Shared>, client: u64, stream: UnixStream) {
    let stream = Arc::new(stream);
    let most = shared.settings.connections;
    let mut connections = shared.connections();
    if connections.len() >= most {
        drop(connections);
        return (shared.report)(&Event::Refused { reason: format!("{most} clients are connected already") });
    }
    connections.insert(client, Arc::clone(&stream));
    drop(connections);
    let entry = Entry { shared: Arc::clone(shared), client, stream };
    let started = std::thread::Builder::new().name(format!("nbd client {client}")).spawn(move || {
        connection::serve(&entry.shared, client, &entry.stream);
    });
    if let Err(error) = started {
        (shared.report)(&Event::Refused { reason: error.to_string() });
    }
}

/// A connection in the list, as long as its thread runs.
struct Entry {
    shared: Arc<Shared>,
    client: u64,
    stream: Arc<UnixStream>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        connection::hang_up(&self.stream, Shutdown::Both);
        self.shared.connections().remove(&self.client);
        self.shared.gone.notify_all();
    }
}

/// Lets what is under way come to its end: first politely, then without the clients.
fn end(shared: &Shared) -> io::Result<()> {
    shared.stopping.store(true, Ordering::SeqCst);
    for how in [Shutdown::Read, Shutdown::Both] {
        let connections = shared.connections();
        connections.values().for_each(|stream| connection::hang_up(stream, how));
        let left = shared.gone.wait_timeout_while(connections, shared.settings.drain, |left| !left.is_empty());
        if left.unwrap_or_else(PoisonError::into_inner).0.is_empty() {
            return Ok(());
        }
    }
    let what = format!("{} connections wait for a disk that does not answer", shared.connections().len());
    Err(io::Error::new(io::ErrorKind::TimedOut, what))
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Arc<UnixStream>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
