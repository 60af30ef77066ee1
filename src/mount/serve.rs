//! A view as the kernel asks for it. Questions that are answered from memory are answered at once, the others by lanes of
//! threads, which read the archive.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request, Session, SessionACL,
};

use super::answer::{Lane, Patience, Refuse};
use super::place::{SOURCE, Unmounted};
use super::view::{Attributes, Kind, View, ViewError, next_of};
use super::{MountError, Place};
use crate::host::Host;
use crate::image::Image;

/// How long the kernel may remember what it was told: nothing ever changes.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Threads that read contents. More than there are processors: some wait for a disk or a network.
const READERS: usize = 6;
/// Threads that read what is not known yet about files.
const LOOKERS: usize = 2;
/// Requests the kernel has in flight for reading ahead.
const IN_FLIGHT: u16 = 32;
/// Names that are read from a directory at once.
const NAMES: usize = 256;
/// Bytes of a name.
const LONGEST_NAME: u32 = 255;

/// Takes one line for the log.
pub type Say = Arc<dyn Fn(&str) + Send + Sync>;

/// How a view is mounted.
#[derive(Clone)]
pub struct Options {
    /// Not only for the user that mounts, but for everybody the permissions of the files allow it.
    pub allow_other: bool,
    /// How long a read may take before it is an I/O error.
    pub patience: Duration,
    /// Where errors are told that nobody else hears of: whoever reads a file only gets an I/O error.
    pub say: Say,
}

/// A view that is mounted, until [`Mounted::unmount`] or somebody else's unmount.
pub struct Mounted {
    host: Host,
    place: Place,
    device: String,
    ended: Receiver<io::Result<()>>,
}

impl Mounted {
    /// Mounts `view`. When this returns, the files are there.
    ///
    /// # Errors
    /// When the system refuses, or somebody else mounted something there meanwhile.
    pub fn new(host: &Host, place: Place, view: Arc<dyn View>, options: &Options) -> Result<Self, MountError> {
        let lock = place.take()?;
        let refused = |source| MountError::Refused { directory: place.path().display().to_string(), source };
        let server = Server::new(view, options).map_err(refused)?;
        let acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
        let mut config = Config::default();
        config.acl = acl;
        let session = match place.mount(options.allow_other)? {
            Some(device) => Session::from_fd(server, device, acl, config).map_err(refused),
            None => {
                let named = [MountOption::FSName(SOURCE.to_owned()), MountOption::Subtype(SOURCE.to_owned())];
                let flags = [MountOption::RO, MountOption::NoSuid, MountOption::NoDev, MountOption::NoAtime];
                config.mount_options = named.into_iter().chain(flags).collect();
                config.mount_options.push(MountOption::DefaultPermissions);
                Session::new(server, place.path(), &config).map_err(refused)
            }
        };
        let device = place.device();
        let (sender, ended) = bounded(1);
        let serve = |session: Session<Server>| {
            let serve = move || sender.send(session.run()).unwrap_or_default();
            std::thread::Builder::new().name("mount".to_owned()).spawn(serve).map_err(refused)
        };
        let served = device.and_then(|device| session.and_then(serve).map(|_| device.unwrap_or_default()));
        // Whatever went wrong: no mount stays that nobody serves.
        let device = match served {
            Ok(device) => device,
            Err(error) => {
                place.detach(host)?;
                return Err(error);
            }
        };
        drop(lock);
        Ok(Self { host: host.clone(), place, device, ended })
    }

    /// Where it is mounted.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Gets the result when the mount is over, whoever ended it.
    pub fn ended(&self) -> &Receiver<io::Result<()>> {
        &self.ended
    }

    /// Takes the mount off. `false` when files in it are open: it is served until the last one is closed.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn unmount(&self) -> Result<bool, MountError> {
        Ok(self.place.unmount(&self.host, &self.device)? == Unmounted::Done)
    }
}

struct Server {
    inner: Arc<Inner>,
    readers: Lane,
    lookers: Lane,
    patience: Patience,
}

struct Inner {
    view: Arc<dyn View>,
    opened: Mutex<HashMap<u64, Arc<dyn Image>>>,
    next: AtomicU64,
    /// Files whose first error was told.
    told: Mutex<HashSet<u64>>,
    say: Say,
}

impl Inner {
    fn opened(&self) -> MutexGuard<'_, HashMap<u64, Arc<dyn Image>>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the kernel gets; an error of the archive is told, the first of each file.
    fn errno(&self, inode: INodeNo, error: &ViewError) -> Errno {
        match error {
            ViewError::Missing => Errno::ENOENT,
            ViewError::Unfit => Errno::EINVAL,
            ViewError::Broken(what) => {
                if self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(inode.0) {
                    (self.say)(what);
                }
                Errno::EIO
            }
        }
    }

    fn open(&self, inode: INodeNo) -> Result<FileHandle, ViewError> {
        let image = self.view.content(inode.0)?;
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.opened().insert(handle, image);
        Ok(FileHandle(handle))
    }
}

impl Server {
    fn new(view: Arc<dyn View>, options: &Options) -> io::Result<Self> {
        let inner = Inner {
            view,
            opened: Mutex::default(),
            next: AtomicU64::new(1),
            told: Mutex::default(),
            say: Arc::clone(&options.say),
        };
        let (say, limit) = (Arc::clone(&options.say), options.patience);
        let late = move || say(&format!("the archive did not answer within {} seconds", limit.as_secs_f32()));
        Ok(Self {
            inner: Arc::new(inner),
            readers: Lane::new("read", READERS)?,
            lookers: Lane::new("look", LOOKERS)?,
            patience: Patience::new(limit, late)?,
        })
    }

    /// Answers with what `work` finds out about `inode`: at once when all of that is known, else when it is its turn.
    fn look<R: Refuse, T>(
        &self,
        inode: INodeNo,
        reply: R,
        work: impl FnOnce(&Inner) -> Result<T, ViewError> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        if self.inner.view.is_known(inode.0) {
            match work(&self.inner) {
                Ok(found) => answer(reply, found),
                Err(error) => reply.refuse(self.inner.errno(inode, &error)),
            }
        } else {
            self.look_later(inode, reply, work, answer);
        }
    }

    /// Answers when it is its turn: for what may need the archive.
    fn look_later<R: Refuse, T>(
        &self,
        inode: INodeNo,
        reply: R,
        work: impl FnOnce(&Inner) -> Result<T, ViewError> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        let (inner, waiting) = (Arc::clone(&self.inner), self.patience.begin(reply));
        self.lookers.run(move |_| {
            let found = work(&inner).map_err(|error| inner.errno(inode, &error));
            waiting.with(|reply| match found {
                Ok(found) => answer(reply, found),
                Err(errno) => reply.refuse(errno),
            });
        });
    }
}

/// Replies with a value of `size` bytes at most; 0 asks how long it is.
fn reply_sized(reply: ReplyXattr, value: &[u8], size: u32) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

impl Filesystem for Server {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_ASYNC_DIO,
        ];
        for capability in wanted {
            // An older kernel does without.
            config.add_capabilities(capability).unwrap_or_default();
        }
        config.set_max_background(IN_FLIGHT).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.inner.view.lookup(parent.0, name.as_bytes()) {
            Ok(inode) => self.look(
                INodeNo(inode),
                reply,
                move |inner| inner.view.attributes(inode),
                |reply, found| reply.entry(&FOR_EVER, &attr(&found), Generation(0)),
            ),
            Err(error) => reply.error(self.inner.errno(parent, &error)),
        }
    }

    fn getattr(&self, _req: &Request, inode: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.look(
            inode,
            reply,
            move |inner| inner.view.attributes(inode.0),
            |reply, found| reply.attr(&FOR_EVER, &attr(&found)),
        );
    }

    fn readlink(&self, _req: &Request, inode: INodeNo, reply: ReplyData) {
        self.look(inode, reply, move |inner| inner.view.link(inode.0), |reply, link| reply.data(&link));
    }

    fn open(&self, _req: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let keep = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
        self.look_later(inode, reply, move |inner| inner.open(inode), move |reply, handle| reply.opened(handle, keep));
    }

    fn release(
        &self,
        _req: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.inner.opened().remove(&handle.0);
        reply.ok();
    }

    fn read(
        &self,
        _req: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(image) = self.inner.opened().get(&handle.0).cloned() else { return reply.error(Errno::EBADF) };
        let (inner, waiting) = (Arc::clone(&self.inner), self.patience.begin(reply));
        self.readers.run(move |buf| {
            let len = image.size().saturating_sub(offset).min(size.into()) as usize;
            if buf.len() < len {
                buf.resize(len, 0);
            }
            let read = if len == 0 { Ok(()) } else { image.read_at(&mut buf[..len], offset) };
            let read = read.map_err(|error| inner.errno(inode, &ViewError::Broken(error.to_string())));
            waiting.with(|reply| match read {
                Ok(()) => reply.data(&buf[..len]),
                Err(errno) => reply.error(errno),
            });
        });
    }

    fn lseek(&self, _req: &Request, inode: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let Some(image) = self.inner.opened().get(&handle.0).cloned() else { return reply.error(Errno::EBADF) };
        let wanted = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let (inner, waiting) = (Arc::clone(&self.inner), self.patience.begin(reply));
        self.readers.run(move |_| {
            let found = next_of(image.as_ref(), offset, wanted);
            let found = found.map_err(|error| inner.errno(inode, &ViewError::Broken(error.to_string())));
            waiting.with(|reply| match found {
                Ok(Some(at)) => reply.offset(at.cast_signed()),
                Ok(None) => reply.error(Errno::ENXIO),
                Err(errno) => reply.error(errno),
            });
        });
    }

    fn opendir(&self, _req: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn readdir(&self, _req: &Request, inode: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let view = &self.inner.view;
        // The numbers of entries: the directory, the one above, then what is in it.
        for (number, (name, directory)) in [(".", inode), ("..", INodeNo(view.parent(inode.0)))].into_iter().enumerate()
        {
            let next = number as u64 + 1;
            if next > offset && reply.add(directory, next, FileType::Directory, name) {
                return reply.ok();
            }
        }
        let mut at = offset.max(2);
        loop {
            let names = match view.entries(inode.0, at - 2, NAMES) {
                Ok(names) => names,
                Err(error) => return reply.error(self.inner.errno(inode, &error)),
            };
            let last = names.len() < NAMES;
            for entry in names {
                at += 1;
                if reply.add(INodeNo(entry.inode), at, kind(entry.kind), OsStr::from_bytes(&entry.name)) {
                    return reply.ok();
                }
            }
            if last {
                return reply.ok();
            }
        }
    }

    fn statfs(&self, _req: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 4096, LONGEST_NAME, 4096);
    }

    fn getxattr(&self, _req: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.as_bytes().to_vec();
        self.look(
            inode,
            reply,
            move |inner| inner.view.xattrs(inode.0),
            move |reply, found| match found.iter().find(|(known, _)| *known == name) {
                Some((_, value)) => reply_sized(reply, value, size),
                None => reply.error(Errno::ENODATA),
            },
        );
    }

    fn listxattr(&self, _req: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        self.look(
            inode,
            reply,
            move |inner| inner.view.xattrs(inode.0),
            move |reply, found| {
                let names: Vec<u8> = found.iter().flat_map(|(name, _)| name.iter().copied().chain([0])).collect();
                reply_sized(reply, &names, size);
            },
        );
    }
}

fn attr(found: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(found.inode),
        size: found.size,
        blocks: found.data.div_ceil(512),
        atime: found.mtime,
        mtime: found.mtime,
        ctime: found.mtime,
        crtime: found.mtime,
        kind: kind(found.kind),
        perm: found.mode,
        nlink: found.links,
        uid: found.uid,
        gid: found.gid,
        rdev: found.rdev,
        blksize: 4096,
        flags: 0,
    }
}

fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Character => FileType::CharDevice,
        Kind::Block => FileType::BlockDevice,
    }
}
