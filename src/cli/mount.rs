//! `vzkeep mount`: an archive as a directory. The files are there when the command returns; a process in the background
//! serves them until somebody unmounts the directory.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use crossbeam_channel::{Receiver, select_biased, unbounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{FAILED, complain, sentence};
use crate::host::{Cancel, Host};
use crate::job::syslog::{Level, Syslog};
use crate::mount::{self, Mounted, Options, Place, Say};

/// What the process in the background says when the files are there.
const READY: &str = "mounted\n";
/// How long a read of the archive may take: longer than a network file system needs to come back.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is looked whether somebody still waits for the mount.
const TICK_MS: u16 = 200;

/// Show an archive as a directory: configuration, log, notes, and each disk and its partitions as files, a container's files
/// as a tree
///
/// The files can be stat()ed, read at any place, and are sparse; nothing can be written. Returns when they are there; a
/// process in the background serves them until 'umount DIRECTORY'. What it has to complain about later goes to the system
/// log.
#[derive(Debug, Args)]
pub struct Mount {
    /// The archive, a path or a volume such as local:backup/<name>
    archive: PathBuf,
    /// An empty directory
    directory: PathBuf,
    /// Stay in the foreground until the directory is unmounted; Ctrl-C unmounts it
    #[arg(short, long)]
    foreground: bool,
    /// Let other users in as well: those who may read the archive, by its permissions
    #[arg(long)]
    allow_other: bool,
    /// Used by the program itself for the process in the background
    #[arg(long, hide = true, conflicts_with = "foreground")]
    in_background: bool,
}

/// Mounts, and serves the mount in this process or in another one.
pub fn run(args: &Mount) -> ExitCode {
    let done = if args.foreground || args.in_background { serve(args) } else { start(args) };
    match done {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("{}\n", sentence(&error)));
            ExitCode::from(FAILED)
        }
    }
}

/// Starts the process that serves, and waits until it can be told how that went.
fn start(args: &Mount) -> Result<ExitCode> {
    // Ourselves, by the first name. Until the mount stands, it gets the Ctrl-C that we get.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("vzkeep").args(["mount", "--in-background"]);
    if args.allow_other {
        command.arg("--allow-other");
    }
    command.arg("--").arg(&args.archive).arg(&args.directory).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start the process that serves the mount")?;
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut said).context("cannot hear whether the archive is mounted")?;
    }
    if said == READY {
        return Ok(ExitCode::SUCCESS);
    }
    // It has said why.
    child.wait().context("cannot wait for the process that serves the mount")?;
    Ok(ExitCode::from(FAILED))
}

fn serve(args: &Mount) -> Result<ExitCode> {
    let host = Host::from_env();
    let (cancel, mounted) = (Cancel::new(), Arc::new(AtomicBool::new(false)));
    let signals = listen(&cancel, &mounted)?;
    if args.in_background {
        watch_caller(&cancel, &mounted)?;
    }
    let archive = super::place::place_of_archive(&host, &args.archive)?;
    let directory = host.path(std::path::absolute(&args.directory).unwrap_or_else(|_| args.directory.clone()));
    let mut tell = |line: &str| complain(&format!("{line}\n"));
    let place = Place::find(&host, &directory, &mut tell)?;
    let view = mount::open(&host, &archive, &cancel, &mut tell)?;
    let log = log(&host, &archive, args.in_background);
    let options = Options { allow_other: args.allow_other, patience: PATIENCE, say: Arc::clone(&log) };
    let files = Mounted::new(&host, place, view, &options)?;
    mounted.store(true, Ordering::SeqCst);
    if args.in_background
        && let Err(error) = detach()
    {
        // Nobody would know of it.
        files.unmount()?;
        return Err(error);
    }
    wait(&files, &signals, &log)
}

/// Serves until the mount is over; a first signal unmounts, a second one ends what is still open.
fn wait(files: &Mounted, signals: &Receiver<()>, log: &Say) -> Result<ExitCode> {
    let mut asked = false;
    loop {
        select_biased! {
            recv(files.ended()) -> ended => {
                ended.context("the mount ended without saying why").and_then(|ended| ended.context("the mount ended"))?;
                return Ok(ExitCode::SUCCESS);
            }
            recv(signals) -> _ => {
                if asked {
                    return Ok(ExitCode::from(FAILED));
                }
                asked = true;
                if !files.unmount()? {
                    let directory = files.place().path().display();
                    log(&format!(
                        "'{directory}' was in use: it is unmounted, and its open files are served until they are closed; \
                         another signal ends that"
                    ));
                }
            }
        }
    }
}

/// Signals come one by one; before there is a mount, one is the wish not to have it.
fn listen(cancel: &Cancel, mounted: &Arc<AtomicBool>) -> Result<Receiver<()>> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT]).context("cannot listen for signals")?;
    let (sender, receiver) = unbounded();
    let (cancel, mounted) = (cancel.clone(), Arc::clone(mounted));
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for _ in signals.forever() {
            // What is open stays readable.
            if !mounted.load(Ordering::SeqCst) {
                cancel.set();
            }
            if sender.send(()).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// Gives up when the one who waits for the mount goes away before it stands.
fn watch_caller(cancel: &Cancel, mounted: &Arc<AtomicBool>) -> Result<()> {
    let pipe = std::io::stdout().as_fd().try_clone_to_owned().context("no standard output")?;
    let (cancel, mounted) = (cancel.clone(), Arc::clone(mounted));
    std::thread::Builder::new().name("caller".to_owned()).spawn(move || {
        while !mounted.load(Ordering::SeqCst) {
            let mut polled = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
            let gone = poll(&mut polled, PollTimeout::from(TICK_MS)).is_ok_and(|count| count > 0);
            if gone && !mounted.load(Ordering::SeqCst) {
                cancel.set();
                return;
            }
        }
    })?;
    Ok(())
}

/// Tells the caller that the files are there, and lets go of everything that is its.
fn detach() -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(READY.as_bytes()).and_then(|()| out.flush()).context("nobody waits for the mount any more")?;
    nix::unistd::setsid().context("cannot leave the session")?;
    std::env::set_current_dir("/").context("cannot leave the directory")?;
    let null: File = OpenOptions::new().read(true).write(true).open("/dev/null").context("no /dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    // Last: this is what the caller waits for.
    nix::unistd::dup2_stdout(&null)?;
    Ok(())
}

/// Where later errors go.
fn log(host: &Host, archive: &Path, in_background: bool) -> Say {
    if !in_background {
        return Arc::new(|line| complain(&format!("{line}\n")));
    }
    let (syslog, archive) = (Mutex::new(Syslog::open(host, "vzkeep")), archive.display().to_string());
    Arc::new(move |line| {
        let mut syslog = syslog.lock().unwrap_or_else(PoisonError::into_inner);
        syslog.line(Level::Error, &format!("mount of '{archive}': {line}"));
    })
}
