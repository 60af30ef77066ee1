//! `qemu-nbd` as a child: makes a disk in one of QEMU's formats readable (or writable) over a private socket.
//!
//! The child never outlives its purpose: it is ended and reaped on drop; the kernel kills it when we are killed
//! (`setpriv --pdeathsig`); and it ends by itself with its last client. A thread of its own starts the child and stays until
//! it is gone, because the death signal is tied to the thread that forked, not to the process.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::host::{Host, private_directory};

/// How long the child may take until its socket answers; opening a disk on a slow network storage takes a while.
const START: Duration = Duration::from_secs(60);

/// Formats of QEMU that a disk may have. A list, so that nothing a config file says becomes a driver of another kind.
pub(super) const FORMATS: [&str; 8] = ["raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc"];

/// A running `qemu-nbd` that serves one disk under the export name `""`.
#[derive(Debug)]
pub struct QemuNbd {
    directory: Option<TempDir>,
    socket: PathBuf,
    pid: u32,
    /// Dropped to end the child.
    stop: Option<Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl QemuNbd {
    /// Serves the disk at `path`, which has `format` (never probed: a guest can write any header into a raw disk), until
    /// the value is dropped or the last client has left.
    ///
    /// # Errors
    /// When the program is missing, refuses the disk (its words are in the error), or does not answer in time.
    pub fn serve(host: &Host, path: &Path, format: &str, read_only: bool) -> io::Result<Self> {
        if !FORMATS.contains(&format) {
            let what = format!("disk format {format:?} is not known, use one of {}", FORMATS.join(", "));
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let directory = private_directory()?;
        let socket = directory.path().join("socket");
        let said = tempfile::tempfile()?;
        let command = command(host, path, format, read_only, &socket, &said)?;
        let (stop, stopped) = mpsc::channel();
        let (started, start) = mpsc::channel();
        let at = socket.clone();
        let keeper = std::thread::Builder::new()
            .name("qemu-nbd keeper".into())
            .spawn(move || keep(command, &at, said, &started, &stopped))?;
        // Its drop waits for the keeper, also when the start failed.
        let mut server = Self { directory: Some(directory), socket, pid: 0, stop: Some(stop), keeper: Some(keeper) };
        server.pid =
            start.recv().unwrap_or_else(|_| Err(io::Error::other("the thread that starts qemu-nbd panicked")))?;
        Ok(server)
    }

    /// The socket it listens on.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Process id of the child.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Removes the socket: whoever is connected stays so, nobody else gets in, and nothing is left on disk even if we are
    /// killed.
    pub fn close_door(&mut self) -> io::Result<()> {
        self.directory.take().map_or(Ok(()), TempDir::close)
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(keeper) = self.keeper.take() {
            // It only waits for the child; a panic there was printed already.
            drop(keeper.join());
        }
    }
}

fn command(host: &Host, path: &Path, format: &str, read_only: bool, socket: &Path, said: &File) -> io::Result<Command> {
    for program in ["setpriv", "qemu-nbd"] {
        if !host.has_command(program) {
            let what = format!("the program {program} is not installed, it is needed for disks of format {format}");
            return Err(io::Error::new(io::ErrorKind::NotFound, what));
        }
    }
    // An absolute path, because QEMU takes `word:rest` for a protocol.
    let path = std::path::absolute(path)?;
    let mut command = host.command("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "qemu-nbd", "--shared=8", "--cache=writeback", "--aio=threads"]);
    command.arg(format!("--format={format}"));
    command.arg(if read_only { "--read-only" } else { "--discard=unmap" });
    command.args([OsStr::new("--socket"), socket.as_os_str(), OsStr::new("--"), path.as_os_str()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.try_clone()?);
    // Ctrl-C is for us; we end the child in our own time.
    command.process_group(0);
    Ok(command)
}

/// The keeper's life: start the child, report, wait for the end, clean up.
fn keep(
    mut command: Command,
    socket: &Path,
    mut said: File,
    started: &Sender<io::Result<u32>>,
    stopped: &Receiver<()>,
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) => {
            let e = io::Error::new(e.kind(), format!("qemu-nbd cannot be started: {e}"));
            return drop(started.send(Err(e)));
        }
    };
    let ready = wait_ready(&mut child, socket, &mut said).map(|()| child.id());
    let go_on = ready.is_ok();
    if started.send(ready).is_ok() && go_on {
        // Nothing is ever sent; this ends when the sender is dropped.
        let _ended = stopped.recv();
    }
    end(&mut child);
}

/// Ends the child: politely first, because a disk that is open for writing wants to be closed (QEMU marks the bitmaps in
/// it as broken otherwise). A child that even KILL does not end hangs in the kernel on its storage; we go on without it.
fn end(child: &mut Child) {
    for (signal, patience) in [(Signal::SIGTERM, Duration::from_secs(5)), (Signal::SIGKILL, Duration::from_secs(10))] {
        // A child that was reaped has no number any more; it may belong to somebody else by now.
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        let _gone = kill(Pid::from_raw(child.id() as i32), signal);
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Waits until somebody greets on the socket. A client that leaves before the handshake does not count for `qemu-nbd`.
fn wait_ready(child: &mut Child, socket: &Path, said: &mut File) -> io::Result<()> {
    let deadline = Instant::now() + START;
    loop {
        if let Ok(mut stream) = UnixStream::connect(socket) {
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            if stream.read(&mut [0; 8]).is_ok_and(|n| n > 0) {
                return Ok(());
            }
        }
        if let Some(status) = child.try_wait()? {
            return Err(io::Error::other(format!("qemu-nbd ended ({status}): {}", words(said))));
        }
        if Instant::now() > deadline {
            let what = format!("qemu-nbd did not answer within {START:?}: {}", words(said));
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// What the child said, in one line.
fn words(said: &mut File) -> String {
    let mut text = Vec::new();
    let read = said.seek(SeekFrom::Start(0)).and_then(|_| said.take(4096).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    match (read, text.trim()) {
        (Err(e), _) => format!("its message cannot be read: {e}"),
        (Ok(_), "") => "it gave no reason".into(),
        (Ok(_), text) => text.lines().collect::<Vec<_>>().join("; "),
    }
}
