//! A room of its own for mounts: a thread with a mount namespace that nobody else sees. A container's volumes are mounted in it,
//! and the `tar` that reads them is started in it. When the thread and its children end, however that happens, the kernel takes
//! the mounts and their loop devices away; nothing is left on the node but an empty directory.

use std::any::Any;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::snapshot::Mountable;
use super::{COMMAND, view};
use crate::host::child::{self, Ended};
use crate::host::{Cancel, Host, sys};

/// A volume could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There is no place of our own.
    #[error("cannot make a mount namespace: {0}")]
    Room(#[source] io::Error),
    /// The container's tree has no place for it.
    #[error("mount point {key} ('{mp}') cannot be mounted: {why}")]
    Place {
        /// `mp0`
        key: String,
        /// Where it would be in the container.
        mp: String,
        /// Why not.
        why: String,
    },
    /// `mount` said no.
    #[error("mount point {key} ('{mp}') cannot be mounted: {why}")]
    Mount {
        /// `mp0`
        key: String,
        /// Where it would be in the container.
        mp: String,
        /// What was said.
        why: String,
    },
    /// It does not go away.
    #[error("unmounting '{path}' failed: {source}", path = path.display())]
    Unmount {
        /// The place.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl MountError {
    /// Whether the kernel does not let itself be asked for this: it is too old, or was told not to.
    pub fn is_refusal(&self) -> bool {
        let Self::Room(error) = self else { return false };
        let refusals = [libc::ENOSYS, libc::EINVAL, libc::EPERM, libc::EOPNOTSUPP];
        error.kind() == io::ErrorKind::Unsupported
            || error.raw_os_error().is_some_and(|errno| refusals.contains(&errno))
    }
}

/// What is mounted where.
#[derive(Debug, Clone)]
pub struct Mount {
    /// `rootfs`, `mp0`, ...
    pub key: String,
    /// Where, in the container.
    pub mp: String,
    /// What.
    pub source: Mountable,
    /// Whether nothing of it may change, the journal of its file system included: a template's, which was unmounted in order.
    pub frozen: bool,
    /// Whether the container may not write to it, and nobody else shall.
    pub read_only: bool,
    /// Whether its file system keeps quotas in files of its own: what is left of deleted files is cleared up when it is mounted,
    /// and the quotas have to follow.
    pub quota: bool,
    /// Whether ACLs are switched on or off.
    pub acl: Option<bool>,
}

type Task = Box<dyn FnOnce(&mut Mounted) -> Box<dyn Any + Send> + Send>;

/// A task, and where its answer goes.
type Errand = (Task, Sender<Box<dyn Any + Send>>);

/// The places that are mounted, in their order.
type Mounted = Vec<PathBuf>;

/// The room.
#[derive(Debug)]
pub struct Room {
    host: Host,
    tasks: Option<Sender<Errand>>,
    thread: Option<JoinHandle<()>>,
}

impl Room {
    /// Opens one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(host: &Host) -> Result<Self, MountError> {
        let (tasks, todo) = channel::<Errand>();
        let (ready, is_ready) = channel();
        let thread = std::thread::spawn(move || {
            let opened = enter();
            let failed = opened.is_err();
            if ready.send(opened).is_err() || failed {
                return;
            }
            let mut mounted = Mounted::new();
            while let Ok((task, answer)) = todo.recv() {
                // Whoever asked waits for it.
                answer.send(task(&mut mounted)).unwrap_or_default();
            }
            // What is left is taken away by the kernel with the namespace.
        });
        is_ready.recv().map_err(io::Error::other).and_then(|opened| opened).map_err(MountError::Room)?;
        Ok(Self { host: host.clone(), tasks: Some(tasks), thread: Some(thread) })
    }

    fn run<T: Send + 'static>(&self, task: impl FnOnce(&mut Mounted) -> T + Send + 'static) -> io::Result<T> {
        let (answer, answered) = channel();
        let task: Task = Box::new(move |mounted| Box::new(task(mounted)));
        let gone = || io::Error::other("the thread of the mounts is gone");
        self.tasks.as_ref().ok_or_else(gone)?.send((task, answer)).map_err(|_| gone())?;
        let answer = answered.recv().map_err(|_| gone())?;
        answer.downcast::<T>().map(|answer| *answer).map_err(|_| gone())
    }

    /// Mounts everything below `place` (a path of the node), outer places before those within them.
    ///
    /// # Errors
    /// Which one cannot be mounted, and why.
    pub fn mount(&self, place: &Path, mounts: &[Mount]) -> Result<(), MountError> {
        let (host, place) = (self.host.clone(), self.host.path(place));
        let mut mounts = mounts.to_vec();
        mounts.sort_by_key(|mount| mount.mp.split('/').filter(|part| !part.is_empty()).count());
        let work = move |mounted: &mut Mounted| {
            std::fs::create_dir_all(&place).map_err(MountError::Room)?;
            for mount in &mounts {
                let at = inside(&place, mount)?;
                mount_one(&host, mount, &at)?;
                mounted.push(at);
            }
            Ok(())
        };
        self.run(work).map_err(MountError::Room)?
    }

    /// Shows the volumes of the running container whose first process is `init` below `place`, read-only: those at `points`
    /// (key and place in the container, the root first), and nothing that is mounted in them.
    ///
    /// # Errors
    /// When the kernel cannot show them so.
    pub fn view(&self, place: &Path, init: u32, points: &[(&str, &str)]) -> Result<(), MountError> {
        let mut points: Vec<(String, String)> =
            points.iter().map(|(key, mp)| ((*key).to_owned(), (*mp).to_owned())).collect();
        points.sort_by_key(|(_, mp)| mp.split('/').filter(|part| !part.is_empty()).count());
        let places = points.iter().map(|(_, mp)| mp.clone()).collect();
        let trees = view::copies(init, places).map_err(MountError::Room)?;
        let place = self.host.path(place);
        let work = move |mounted: &mut Mounted| {
            std::fs::create_dir_all(&place).map_err(MountError::Room)?;
            for ((key, mp), tree) in points.iter().zip(trees) {
                let at = walk(&place, key, mp, false)?;
                view::attach(&tree, &at).map_err(MountError::Room)?;
                mounted.push(at);
            }
            Ok(())
        };
        self.run(work).map_err(MountError::Room)?
    }

    /// Runs `command` where the mounts are seen, as [`child::run`].
    ///
    /// # Errors
    /// When it cannot be run, or not be ended.
    pub fn finish(&self, mut command: Command, limit: Duration, cancel: &Cancel) -> io::Result<Ended> {
        let cancel = cancel.clone();
        self.run(move |_| {
            sys::end_with_thread(&mut command);
            child::run(&mut command, None, limit, &cancel)
        })?
    }

    /// Starts `command` where the mounts are seen. It ends with the room.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, mut command: Command) -> io::Result<Child> {
        self.run(move |_| {
            sys::end_with_thread(&mut command);
            command.spawn()
        })?
    }

    /// Takes the mounts away, the last one first; children have to be gone.
    ///
    /// # Errors
    /// When one stays; it goes with the room then.
    pub fn close(mut self) -> Result<(), MountError> {
        let gone = self.run(|mounted| {
            while let Some(path) = mounted.pop() {
                let lazily = |_| umount2(&path, MntFlags::MNT_DETACH);
                umount2(&path, MntFlags::UMOUNT_NOFOLLOW)
                    .or_else(lazily)
                    .map_err(|errno| MountError::Unmount { path: path.clone(), source: errno.into() })?;
            }
            Ok(())
        });
        self.end();
        gone.map_err(MountError::Room)?
    }

    fn end(&mut self) {
        drop(self.tasks.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap_or_default();
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.end();
    }
}

/// Into a mount namespace of this thread's own. What is mounted on the node from now on is seen in it; what is mounted in it is
/// not seen on the node.
///
/// # Errors
/// When the kernel refuses.
pub fn enter() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    Ok(mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?)
}

/// The place of a mount below `root`. The container chose what lies there: nothing is followed, or it would lead out of it.
fn inside(root: &Path, mount: &Mount) -> Result<PathBuf, MountError> {
    walk(root, &mount.key, &mount.mp, true)
}

/// Whether mount point `key` at `mp` is a directory below `root`, and not a link in the container that leads somewhere else.
///
/// # Errors
/// [`MountError::Place`].
pub fn check_inside(root: &Path, key: &str, mp: &str) -> Result<(), MountError> {
    walk(root, key, mp, false).map(drop)
}

fn walk(root: &Path, key: &str, mp: &str, make: bool) -> Result<PathBuf, MountError> {
    let wrong = |why: String| MountError::Place { key: key.to_owned(), mp: mp.to_owned(), why };
    let mut at = root.to_owned();
    for part in Path::new(mp).components() {
        let Component::Normal(name) = part else { continue };
        at.push(name);
        let shown = || format!("/{}", at.strip_prefix(root).unwrap_or(&at).display());
        match at.symlink_metadata() {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(wrong(format!("'{}' is no directory in the container", shown()))),
            Err(error) if make && error.kind() == io::ErrorKind::NotFound => {
                let made = std::fs::create_dir(&at);
                made.map_err(|error| wrong(format!("'{}' is missing in the container: {error}", shown())))?;
            }
            Err(error) => return Err(wrong(format!("'{}': {error}", shown()))),
        }
    }
    Ok(at)
}

fn mount_one(host: &Host, what: &Mount, at: &Path) -> Result<(), MountError> {
    let wrong = |why: String| MountError::Mount { key: what.key.clone(), mp: what.mp.clone(), why };
    if let Mountable::Directory(from) = &what.source {
        let none = None::<&str>;
        // Mounted first and made read-only then: the kernel ignores the wish at the first call.
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOATIME;
        return mount(Some(from.as_path()), at, none, MsFlags::MS_BIND, none)
            .and_then(|()| mount(none, at, none, read_only, none))
            .map_err(|errno| wrong(format!("'{}': {errno}", from.display())));
    }
    let (kind, source) = match &what.source {
        Mountable::Zfs(snapshot) => (Some("zfs"), PathBuf::from(snapshot)),
        Mountable::Image(path) | Mountable::Device(path) | Mountable::Directory(path) => (None, path.clone()),
    };
    let try_mount = |options: &[&str]| {
        let mut command = host.command("mount");
        command.env("LC_ALL", "C");
        if let Some(kind) = kind {
            command.args(["-t", kind]);
        }
        let command = command.arg("-o").arg(options.join(",")).arg(&source).arg(at);
        child::said(command, Stdio::null(), Some(COMMAND)).map(drop)
    };
    let mut first = Err(String::new());
    for (number, options) in options(what).iter().enumerate() {
        let mounted = try_mount(options);
        if mounted.is_ok() {
            return Ok(());
        }
        if number == 0 {
            first = mounted;
        }
    }
    first.map_err(wrong)
}

/// The options to try one after the other, the best ones first: no file system knows them all. What `mountoptions` may say
/// changes nothing that is read, or is among them anyhow.
fn options(what: &Mount) -> Vec<Vec<&'static str>> {
    let Some(acl) = what.acl else { return options_with(what, &[]) };
    // Newer kernels do not know the words for ext4 any more, or refuse them.
    let mut sets = options_with(what, if acl { &["acl"] } else { &["noacl"] });
    sets.extend(options_with(what, &[]));
    sets
}

fn options_with(what: &Mount, acl: &[&'static str]) -> Vec<Vec<&'static str>> {
    let mut always = vec!["nodev", "nosuid", "noexec", "noatime"];
    always.extend(acl);
    if let Mountable::Image(_) = what.source {
        always.push("loop");
    }
    let with = |more: &[&'static str]| [always.as_slice(), more].concat();
    if let Mountable::Zfs(_) = what.source {
        return vec![with(&["ro"])];
    }
    if what.frozen {
        // ext4, XFS, and what has no journal that could be left alone.
        return vec![with(&["ro", "noload"]), with(&["ro", "norecovery", "nouuid"]), with(&["ro"])];
    }
    // A file system that was not unmounted in order shows its files only when its journal is worked off. The kernel does that for
    // one that is mounted read-only, too, if what it lies on can be written: not so a loop device that is read-only. A block
    // device is mounted read-only: writable, ext4 would wait 20 seconds for another node that might have it (`mmp`, which a node's
    // volumes have).
    let mut sets = Vec::new();
    let is_image = matches!(what.source, Mountable::Image(_));
    let read_only: &[&str] = if what.read_only || !is_image { &["ro"] } else { &[] };
    if what.quota {
        let quota = ["usrjquota=aquota.user", "grpjquota=aquota.group", "jqfmt=vfsv0"];
        sets.push(with(&[read_only, &quota].concat()));
    }
    sets.push(with(read_only));
    // XFS has to be told that the original of a snapshot is mounted elsewhere.
    sets.push(with(&[read_only, &["nouuid"]].concat()));
    if what.read_only && is_image {
        sets.push(with(&[]));
    }
    sets
}

#[cfg(test)]
mod tests;
