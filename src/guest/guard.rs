//! The guardian of one guest: a small process that stands beside a run and undoes at once what the run left if it is
//! killed, so that a paused or frozen guest stands still for milliseconds and not until somebody runs us again.
//!
//! The run holds the only write end of a pipe; when it closes without the word `done`, the run is gone. Guardian and the
//! next run may want to recover at the same time: the lock on the record decides.

use super::record::{Orphan, RecordError};
use super::recover::{GuestActions, LockClaim, Report, recover};
use crate::host::Host;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The last word of a run that ends in order.
const DONE: &[u8] = b"done";
/// What the guardian says when it stands.
const READY: &[u8] = b"ready\n";
/// How long a guardian may take to stand.
const START: Duration = Duration::from_secs(10);
/// How long it goes on trying to undo what cannot be undone at once.
const PERSISTENCE: Duration = Duration::from_secs(3600);
/// How long it waits before it tries again, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How long a killed run may take to let go of its record: the kernel closes its files one after the other.
const LET_GO: Duration = Duration::from_secs(20);

/// A guardian process, from the side of the run it watches.
#[derive(Debug)]
pub struct Guard {
    child: Child,
}

impl Guard {
    /// Starts the guardian of guest `vmid` from our own program and waits until it stands.
    ///
    /// # Errors
    /// When it cannot be started or does not answer.
    pub fn spawn(host: &Host, vmid: u32) -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("guard").arg(vmid.to_string()).env(Host::ROOT_VAR, host.root());
        Self::spawn_command(command)
    }

    /// As [`Guard::spawn`], with the program and arguments given.
    ///
    /// # Errors
    /// As [`Guard::spawn`].
    pub fn spawn_command(mut command: Command) -> io::Result<Self> {
        // Our stdout may be the archive itself: the guardian must not have it.
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut guard = Self { child };
        match guard.wait_ready() {
            Ok(()) => Ok(guard),
            Err(e) => {
                let ended = guard.child.kill().and_then(|()| guard.child.wait());
                let more = ended.err().map(|e| format!("; and it could not be stopped: {e}")).unwrap_or_default();
                Err(io::Error::new(e.kind(), format!("the guardian process did not start: {e}{more}")))
            }
        }
    }

    fn wait_ready(&mut self) -> io::Result<()> {
        let Some(mut out) = self.child.stdout.take() else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let millis = PollTimeout::try_from(START).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(out.as_fd(), PollFlags::POLLIN)], millis)? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it did not answer in ten seconds"));
        }
        let mut word = [0; READY.len()];
        out.read_exact(&mut word)?;
        if word == READY { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "it said something else")) }
    }

    /// The run has undone everything itself: sends the guardian home and waits for it.
    ///
    /// # Errors
    /// When the guardian is gone already.
    pub fn done(mut self) -> io::Result<()> {
        let told = match self.child.stdin.take() {
            Some(mut pipe) => pipe.write_all(DONE),
            None => Ok(()),
        };
        self.child.wait()?;
        told
    }
}

impl Drop for Guard {
    /// Without [`Guard::done`] the guardian does its work, as soon as the record is let go of.
    fn drop(&mut self) {
        drop(self.child.stdin.take());
    }
}

/// The guardian's own side: leaves the run's session, says it stands, waits, recovers. `None` when there was nothing to do.
///
/// # Errors
/// When standard input or the record cannot be read.
pub fn stand(host: &Host, vmid: u32, actions: &dyn GuestActions) -> Result<Option<Report>, RecordError> {
    let io_err =
        |op: &'static str| move |source| RecordError::Io { vmid, op, path: "the guardian's pipe".into(), source };
    leave_session().map_err(io_err("prepare"))?;
    let mut out = io::stdout();
    out.write_all(READY).and_then(|()| out.flush()).map_err(io_err("answer on"))?;
    let mut words = Vec::new();
    io::stdin().read_to_end(&mut words).map_err(io_err("read"))?;
    if words == DONE {
        return Ok(None);
    }
    let Some(mut orphan) = Orphan::take(host, vmid, LET_GO)? else { return Ok(None) };
    let give_up = Instant::now() + PERSISTENCE;
    let mut claim = LockClaim::Certain;
    let mut done = Vec::new();
    let mut pause = PAUSES.0;
    loop {
        let mut report = recover(host, &mut orphan, actions, claim);
        done.append(&mut report.done);
        report.done.clone_from(&done);
        if report.failed.is_empty() {
            orphan.clear()?;
            return Ok(Some(report));
        }
        if Instant::now() > give_up {
            return Ok(Some(report));
        }
        // A monitor that is in use, a storage that hangs: tried again later. Meanwhile a new run may take the guest over.
        drop(orphan);
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSES.1);
        match Orphan::take(host, vmid, LET_GO)? {
            Some(left) => orphan = left,
            None => return Ok(Some(report)),
        }
        claim = LockClaim::UnlessVzdumpRuns;
    }
}

/// A signal to the run's process group or the end of its terminal must not take the guardian along, and files that the
/// run's caller left open must not be kept open by it.
fn leave_session() -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM};
    for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGPIPE] {
        signal_hook::flag::register(signal, std::sync::Arc::default())?;
    }
    let inherited: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in inherited {
        // Only files that survived exec: ours are opened close-on-exec, among them the one that lists this directory.
        let flags = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
        if !flags.is_empty() && !close_on_exec(&flags) {
            nix::unistd::close(fd)?;
        }
    }
    match nix::unistd::setsid() {
        // Already the leader of a group: nothing to leave.
        Ok(_) | Err(nix::errno::Errno::EPERM) => std::env::set_current_dir("/"),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether `/proc/self/fdinfo/<fd>` has the O_CLOEXEC bit (02000000) set.
fn close_on_exec(fdinfo: &str) -> bool {
    fdinfo
        .lines()
        .find_map(|l| l.strip_prefix("flags:"))
        .and_then(|f| u64::from_str_radix(f.trim(), 8).ok())
        .is_none_or(|flags| flags & 0o2_000_000 != 0)
}
