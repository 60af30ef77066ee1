//! A room of its own for mounts: a thread with a mount namespace that nobody else sees. A container's volumes are mounted in it,
//! and the `tar` that reads them is started in it. When the thread and its children end, however that happens, the kernel takes
//! the mounts and their loop devices away; nothing is left on the node but an empty directory.

use std::any::Any;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::COMMAND;
use super::snapshot::Mountable;
use crate::host::{Host, child, sys};

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
    let mut options = vec!["nodev", "nosuid", "noexec", "noatime"];
    options.extend(what.acl.map(|acl| if acl { "acl" } else { "noacl" }));
    let (kind, source) = match &what.source {
        Mountable::Zfs(snapshot) => (Some("zfs"), PathBuf::from(snapshot)),
        Mountable::Image(path) => {
            options.push("loop");
            (None, path.clone())
        }
        Mountable::Device(path) | Mountable::Directory(path) => (None, path.clone()),
    };
    // A file system that was not unmounted in order shows its files only when its journal is worked off. The kernel does that for
    // one that is mounted read-only, too, if what it lies on can be written: not so a loop device that is read-only.
    // Mounted writable, ext4 would wait 20 seconds for another node that might have it (`mmp`, which a node's volumes have).
    if what.frozen || !matches!(what.source, Mountable::Image(_)) {
        options.push("ro");
    }
    let try_mount = |options: &[&str]| {
        let mut command = host.command("mount");
        command.env("LC_ALL", "C");
        if let Some(kind) = kind {
            command.args(["-t", kind]);
        }
        let command = command.arg("-o").arg(options.join(",")).arg(&source).arg(at);
        child::said(command, Stdio::null(), Some(COMMAND)).map(drop)
    };
    // XFS has to be told that the original of a snapshot is mounted elsewhere.
    let also = |first: String| {
        let options = [options.as_slice(), &["nouuid"]].concat();
        if kind.is_some() { Err(first) } else { try_mount(&options).map_err(|_| first) }
    };
    try_mount(&options).or_else(also).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(key: &str, mp: &str, source: &Path) -> Mount {
        let (key, mp) = (key.to_owned(), mp.to_owned());
        Mount { key, mp, source: Mountable::Directory(source.to_owned()), frozen: true, acl: None }
    }

    fn is_root(test: &str) -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            eprintln!("{test}: skipped, only root may mount");
        }
        root
    }

    #[test]
    fn what_is_mounted_is_seen_in_the_room_only() {
        if !is_root("what_is_mounted_is_seen_in_the_room_only") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (root, data, inner) = (dir.path().join("root"), dir.path().join("data"), dir.path().join("inner"));
        for path in [root.join("data"), data.join("in"), inner.clone()] {
            std::fs::create_dir_all(path).unwrap();
        }
        std::fs::write(inner.join("file"), "deep").unwrap();
        let host = Host::with_root(dir.path().to_owned());
        let room = Room::open(&host).unwrap();
        // The inner one is named first.
        let mounts = [mount("mp1", "/data/in", &inner), mount("mp0", "/data", &data), mount("rootfs", "/", &root)];
        room.mount(&super::super::mount_place(), &mounts).unwrap();
        let place = host.path(super::super::mount_place());
        let script = format!("cat '{0}/data/in/file'; touch '{0}/data/in/new' && echo written", place.display());
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
        let said = room.spawn(command).unwrap().wait_with_output().unwrap();
        assert_eq!(String::from_utf8(said.stdout).unwrap(), "deep");
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0, "seen from outside");
        room.close().unwrap();
    }

    #[test]
    fn a_link_in_the_container_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("elsewhere");
        std::fs::create_dir_all(&target).unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("real")).unwrap();
        std::os::unix::fs::symlink(&target, root.join("link")).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        for mp in ["/link", "/link/x", "/file", "/file/x"] {
            let error = inside(&root, &mount("mp0", mp, &target)).unwrap_err().to_string();
            assert!(error.contains("is no directory in the container"), "{mp}: {error}");
        }
        assert_eq!(inside(&root, &mount("mp0", "/real/new", &target)).unwrap(), root.join("real/new"));
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
    }
}
