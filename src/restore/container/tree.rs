//! The tree of a container being restored: its volumes, mounted one in the other where nobody else sees them, and GNU tar,
//! which unpacks there.
//!
//! All of it happens in a thread with a mount namespace of its own, whose children inherit it. When thread and children end,
//! killed ones, too, the kernel takes the mounts away, and the loop devices below them.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::Sender;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

use crate::config::IdMap;
use crate::guest::container::mounts;
use crate::guest::container::tree::{KEEPING, QUIET};
use crate::guest::record::DIRECTORY;
use crate::host::child::{self, Ended};
use crate::host::{Cancel, Host};

/// How often we look whether tar has ended or is to.
const TICK: Duration = Duration::from_millis(20);
/// How long mounting or unmounting a volume may take: the journal of a large one that is on a slow disk.
const MOUNT: Duration = Duration::from_secs(600);
/// Members that are never unpacked: what is below `/dev` belongs to the node, and the config is in the container's own.
const LEFT_OUT: [&str; 3] = ["./dev/*", "./etc/vzdump/pct.conf", "./etc/vzdump/pct.fw"];

/// A volume and its place.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Where it lies on this machine: a block device, an image or a directory.
    pub path: PathBuf,
    /// Its place in the container: `/`, `/data`.
    pub mp: String,
}

/// The members of an archive, ready to be read once.
pub trait Members: Send {
    /// Writes all of them to `tar`, each one after it was looked at: none can reach outside of the directory tar unpacks in.
    /// Returns what was read of those named in `wanted`, in tar's format: directories that are there before tar comes to
    /// them, which it then leaves as they are.
    ///
    /// # Errors
    /// What is wrong with the archive, or that `tar` does not listen any more.
    fn feed(self: Box<Self>, tar: ChildStdin, wanted: &[String], cancel: &Cancel) -> Result<Vec<u8>, FeedError>;
}

/// Not all members reached tar.
#[derive(Debug)]
pub enum FeedError {
    /// The archive's fault: damaged, or a member that must not be unpacked.
    Archive(String),
    /// tar ended before; it says why.
    Deaf,
}

/// What is unpacked, and how.
#[derive(Debug, Clone)]
pub struct Unpack<'a> {
    /// The volumes, the root among them.
    pub volumes: &'a [Volume],
    /// How ids are mapped; empty if they are the node's.
    pub id_map: &'a [IdMap],
    /// The container's root user and group on the node.
    pub root_ids: (u32, u32),
    /// What tar could not unpack is left out.
    pub ignore_errors: bool,
}

/// Mounts the volumes, unpacks `members` and unmounts. Takes the calling thread's mount namespace away from the process's:
/// call it in a thread of its own. Lines for the log go to `say`.
///
/// # Errors
/// A sentence.
pub fn unpack(
    host: &Host,
    what: &Unpack<'_>,
    members: Box<dyn Members>,
    cancel: &Cancel,
    say: &Sender<String>,
) -> Result<(), String> {
    let top = own_mounts(host).map_err(|e| format!("a mount namespace cannot be had: {e}"))?;
    let mut volumes: Vec<&Volume> = what.volumes.iter().collect();
    // What is mounted inside of another comes after it.
    volumes.sort_by_key(|volume| volume.mp.split('/').filter(|part| !part.is_empty()).count());
    let mut mounted = Vec::new();
    for volume in volumes {
        let place = place(&top, &volume.mp);
        make_dirs(&top, &volume.mp, what.root_ids)
            .map_err(|e| format!("making the directory '{}' in the container failed: {e}", volume.mp))?;
        mount_volume(host, volume, &place, cancel)?;
        mounted.push(place);
    }
    let wanted = made_before(what.volumes);
    let tar = Tar { host, what, top: &top, cancel, say };
    let directories = tar.run(Pass::Everything(members), &wanted)?;
    if !directories.is_empty() {
        tar.run(Pass::Directories(directories), &[])?;
    }
    for place in mounted.iter().rev() {
        sync(place).map_err(|e| format!("writing the files to their volume at '{}' failed: {e}", place.display()))?;
        let mut umount = host.command("umount");
        run(umount.arg(place), cancel).map_err(|e| format!("unmounting '{}' failed: {e}", place.display()))?;
    }
    Ok(())
}

/// Gives this thread mounts of its own, and an empty directory in them that nobody else sees.
fn own_mounts(host: &Host) -> io::Result<PathBuf> {
    mounts::enter()?;
    // Over the directory of our records, which is there, and which no program that is started here needs. Open to all: the
    // root of an unprivileged container has to get through.
    let dir = host.path(DIRECTORY);
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), &dir, Some("tmpfs"), flags, Some("mode=755,size=1m"))?;
    let top = dir.join("rootfs");
    std::fs::create_dir(&top)?;
    Ok(top)
}

fn place(top: &Path, mp: &str) -> PathBuf {
    let below = mp.trim_matches('/');
    if below.is_empty() { top.to_owned() } else { top.join(below) }
}

/// The names, as an archive has them, of all directories that are there before tar comes to them.
fn made_before(volumes: &[Volume]) -> Vec<String> {
    let mut names = Vec::new();
    for volume in volumes {
        let mut name = String::from("./");
        let mut push = |name: &String| {
            if !names.contains(name) {
                names.push(name.clone());
            }
        };
        push(&name);
        for part in volume.mp.split('/').filter(|part| !part.is_empty()) {
            name.push_str(part);
            name.push('/');
            push(&name);
        }
    }
    names
}

/// Makes the directory of a mount point, as the container's root would have done. The volumes are new: there are no links.
fn make_dirs(top: &Path, mp: &str, (user, group): (u32, u32)) -> io::Result<()> {
    let mut dir = top.to_owned();
    for part in mp.split('/').filter(|part| !part.is_empty()) {
        dir.push(part);
        match std::fs::create_dir(&dir) {
            Ok(()) => std::os::unix::fs::lchown(&dir, Some(user), Some(group))?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.symlink_metadata()?.is_dir() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn mount_volume(host: &Host, volume: &Volume, place: &Path, cancel: &Cancel) -> Result<(), String> {
    let kind = volume.path.metadata().map_err(|e| format!("'{}': {e}", volume.path.display()))?.file_type();
    let mut command = host.command("mount");
    if kind.is_dir() {
        command.arg("--bind");
    } else {
        // Nothing is run from it here, whatever the archive says.
        command.args(["-o", if kind.is_file() { "loop,nodev,nosuid,noexec" } else { "nodev,nosuid,noexec" }]);
    }
    command.arg(&volume.path).arg(place);
    run(&mut command, cancel).map_err(|e| format!("mounting '{}' failed: {e}", volume.path.display()))
}

/// Only now errors of a disk that writes late are seen.
fn sync(place: &Path) -> io::Result<()> {
    let dir = std::fs::File::open(place)?;
    Ok(nix::unistd::syncfs(dir.as_fd())?)
}

/// Runs a short command.
///
/// # Errors
/// What it complained about.
pub(super) fn run(command: &mut Command, cancel: &Cancel) -> Result<(), String> {
    match child::run(command, None, MOUNT, cancel).map_err(|e| e.to_string())? {
        Ended::Exited(output) if output.status.success() => Ok(()),
        Ended::Exited(output) => Err(output.complaint().replace('\n', "; ")),
        Ended::Late(limit) => Err(format!("it did not end in {} seconds", limit.as_secs())),
        Ended::Cancelled => Err("interrupted by signal".into()),
    }
}

/// What tar is given.
enum Pass {
    /// The whole archive, of which what is there already is skipped.
    Everything(Box<dyn Members>),
    /// Directories that were there before, whose owners and times are still missing.
    Directories(Vec<u8>),
}

struct Tar<'a> {
    host: &'a Host,
    what: &'a Unpack<'a>,
    top: &'a Path,
    cancel: &'a Cancel,
    say: &'a Sender<String>,
}

impl Tar<'_> {
    /// Words of the command: under the map of ids where there is one.
    fn words(&self, whole: bool) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        if !self.what.id_map.is_empty() {
            words.push("lxc-usernsexec".into());
            for map in self.what.id_map {
                words.extend(["-m".into(), map.to_string()]);
            }
            words.push("--".into());
        }
        words.extend(["tar", "xpf", "-"].map(str::to_owned));
        let totals = KEEPING.iter().filter(|flag| whole || **flag != "--totals");
        words.extend(totals.chain(&QUIET).map(|&flag| flag.to_owned()));
        words.extend(["-C".into(), self.top.display().to_string()]);
        if whole {
            words.extend(["--skip-old-files", "--anchored"].map(str::to_owned));
            words.extend(LEFT_OUT.iter().flat_map(|name| ["--exclude".to_owned(), (*name).to_owned()]));
        } else {
            words.push("--no-recursion".into());
        }
        words
    }

    fn run(&self, pass: Pass, wanted: &[String]) -> Result<Vec<u8>, String> {
        let words = self.words(matches!(pass, Pass::Everything(_)));
        let shown = || format!("command '{}' failed", words.join(" "));
        let mut command = self.host.command(&words[0]);
        // Its words are compared and shown; another language is no help.
        command.args(&words[1..]).env("LC_ALL", "C");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut tar = command.spawn().map_err(|e| format!("{}: {e}", shown()))?;
        let group = child::group(&tar).map_err(|e| format!("{}: {e}", shown()))?;
        let (Some(stdin), Some(stderr)) = (tar.stdin.take(), tar.stderr.take()) else {
            return Err(format!("{}: no pipes", shown()));
        };
        let (status, fed) = std::thread::scope(|scope| {
            let feeder = scope.spawn(move || match pass {
                Pass::Everything(members) => members.feed(stdin, wanted, self.cancel),
                Pass::Directories(bytes) => {
                    let mut stdin = stdin;
                    stdin.write_all(&bytes).map_or(Err(FeedError::Deaf), |()| Ok(Vec::new()))
                }
            });
            scope.spawn(move || {
                for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line).into_owned();
                    // Nobody listens only when the restore has failed already.
                    self.say.send(line).unwrap_or_default();
                }
            });
            let status = loop {
                match tar.try_wait() {
                    Ok(None) if self.cancel.is_set() => {
                        child::signal_group(group, Signal::SIGKILL).unwrap_or_default();
                        child::reap(&mut tar);
                        break Err("interrupted by signal".to_owned());
                    }
                    Ok(None) => std::thread::sleep(TICK),
                    Ok(Some(status)) => break Ok(status),
                    Err(e) => break Err(e.to_string()),
                }
            };
            (status, feeder.join())
        });
        let fed = fed.map_err(|_| "the thread that reads the archive panicked".to_owned())?;
        let status = status?;
        let ended = if status.success() { Ok(()) } else { Err(format!("{}: {}", shown(), exit(status))) };
        match (fed, ended) {
            (Ok(directories), Ok(())) => Ok(directories),
            // tar complained about some members, and has read all of them.
            (Ok(directories), Err(why)) if self.what.ignore_errors && matches!(status.code(), Some(1 | 2)) => {
                self.say.send(format!("WARN: not everything could be unpacked: {why}")).unwrap_or_default();
                Ok(directories)
            }
            (Ok(_) | Err(FeedError::Deaf), Err(why)) => Err(why),
            (Err(FeedError::Archive(why)), _) => Err(why),
            (Err(FeedError::Deaf), Ok(())) => Err(format!("{}: it ended before the archive did", shown())),
        }
    }
}

/// `exit code 2`
fn exit(status: std::process::ExitStatus) -> String {
    status.code().map_or_else(|| status.to_string(), |code| format!("exit code {code}"))
}
