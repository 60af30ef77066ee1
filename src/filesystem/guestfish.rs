//! File systems that are not read here (XFS, btrfs and others), read by `guestfish` of libguestfs: it mounts them in a small
//! virtual machine of its own, whose kernel meets whatever the disk holds in the place of the host's. The disk is a read-only
//! NBD export of ours; a journal that has to be played back goes into an overlay of the machine and is forgotten with it.

mod session;
mod words;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;

use super::content::{Content, Run, Runs};
use super::files::{MOST_ENTRIES, is_name};
use super::probe::BTRFS;
use super::{Entry, FileKind, FileSystem, FsError, Metadata, Node};
use crate::host::{Cancel, Host, private_directory};
use crate::image::{Extent, ExtentKind, Image, ImageError};
use crate::nbd::server::{Event, Export, Exports, Listener, Server, Settings};
use session::{Broken, LONGEST_LINE, Session};
use words::{Found, listed, quoted};

/// The program.
const PROGRAM: &str = "guestfish";
/// How long the machine may take to start: a minute without KVM, more when libguestfs builds it for the first time.
const START: Duration = Duration::from_secs(600);
/// How long one command may take; the archive may lie on a slow network.
const PATIENCE: Duration = Duration::from_secs(300);
/// Bytes of a file that are asked for at once; libguestfs has messages of 4 MiB.
const PIECE: usize = 1 << 20;
/// Files of one file system that are remembered.
const MOST_NODES: usize = 2 << 20;

/// Bytes that its temporary files need; where there are fewer, its machine would wait for more without a word.
const ROOM: u64 = 64 << 20;

/// Opens file systems with `guestfish`.
#[derive(Debug, Clone)]
pub struct Guestfish {
    host: Host,
    cancel: Cancel,
}

impl Guestfish {
    /// Found through `PATH` when it is needed; whatever it does ends when `cancel` is set.
    pub fn new(host: &Host, cancel: &Cancel) -> Self {
        Self { host: host.clone(), cancel: cancel.clone() }
    }

    /// Opens the file system that begins at the first byte of `image`, which is said to be `what`. Meanwhile signals set the
    /// flag that was given at the start: nothing of the machine is to be left behind.
    ///
    /// # Errors
    /// When the program is missing or fails, in its own words.
    pub fn open(&self, image: &Arc<dyn Image>, what: &'static str) -> Result<Arc<dyn FileSystem>, FsError> {
        if !self.host.has_command(PROGRAM) {
            return Err(FsError::NoGuestfish(what));
        }
        let begun = Instant::now();
        let failed = |why: String| FsError::Refused { what, why };
        let _minded = self.cancel.on_signals_meanwhile().map_err(|e| failed(e.to_string()))?;
        let trouble: Trouble = Arc::default();
        let mut tree = self.start(image, what, &trouble).map_err(|e| failed(said(e, &trouble)))?;
        let found = tree.stat(b"/").map_err(|e| failed(said(e, &trouble)))?;
        tree.remember(0, Vec::new(), Some(&found)).map_err(failed)?;
        let tree = Arc::new(Shared { tree: Mutex::new(tree), what, trouble });
        let note = format!(
            "{}: {PROGRAM} reads {what}; it took {:.1} s to start",
            image.name(),
            begun.elapsed().as_secs_f64()
        );
        Ok(Arc::new(Mounted { name: image.name().to_owned(), tree, note }))
    }

    /// Starts the machine and mounts the disk in it.
    fn start(&self, image: &Arc<dyn Image>, what: &str, trouble: &Trouble) -> Result<Tree, Broken> {
        let directory = private_directory()?;
        let room = statvfs(directory.path()).map_err(std::io::Error::from)?;
        if room.blocks_available() * room.fragment_size() < ROOM {
            let parent = directory.path().parent().unwrap_or(directory.path()).display();
            return Err(Broken::Ended(format!("there are not {} MiB free in '{parent}'", ROOM >> 20)));
        }
        let listener = Listener::bind(&directory.path().join("nbd")).map_err(|e| Broken::Ended(e.to_string()))?;
        let socket = listener.path().to_owned();
        let noted = Arc::clone(trouble);
        let report = move |event: &Event<'_>| {
            if let Event::Failed { error, .. } = event {
                noted.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.to_string());
            }
        };
        let settings = Settings { connections: 8, workers: 4, ..Settings::default() };
        let exports = Exports::new(vec![Export::read_only("disk", Arc::clone(image))]);
        let server = Server::start(listener, exports, settings, Box::new(report), &Cancel::new())?;
        let mut session = Session::start(&self.host, directory.path(), &self.cancel)?;
        // A list of one server.
        let server_word = [b"server:'unix:", socket.as_os_str().as_encoded_bytes(), b"'"].concat();
        let add = command(b"add", &[b"disk", b"protocol:nbd", b"format:raw", b"readonly:true", &server_word]);
        session.ask(&add, PATIENCE)?;
        session.ask(b"run", START)?;
        // Read-only, and without believing what the file system says about devices and programs; of btrfs all
        // subvolumes, and not only the one that is mounted without a word.
        let all = if what == BTRFS { ",subvolid=5" } else { "" };
        session.ask(format!("mount-options ro,nodev,nosuid,noexec{all} /dev/sda /").as_bytes(), START)?;
        // Whoever had to connect is connected: nothing is left of the socket if we are killed.
        directory.close()?;
        Ok(Tree { session, _server: server, nodes: Vec::new(), by_file: HashMap::new() })
    }
}

/// The first read of the disk that failed since somebody asked: what the machine's kernel makes of it says less.
type Trouble = Arc<Mutex<Option<String>>>;

/// What went wrong, with the cause on the disk if there was one.
fn said(error: Broken, trouble: &Trouble) -> String {
    match trouble.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// The machine, and what was seen of the tree. Files of several names are known by device and inode: subvolumes of btrfs each
/// count from the beginning. Directories have one name, and the places of subvolumes in a snapshot all have the same number.
struct Tree {
    // In this order: the machine ends before the disk does.
    session: Session,
    _server: Server,
    nodes: Vec<Known>,
    by_file: HashMap<(i64, i64), Node>,
}

/// A file that was seen in a directory.
struct Known {
    parent: Node,
    name: Vec<u8>,
    /// None if it could not be had with the directory.
    metadata: Option<Metadata>,
}

impl Tree {
    /// The way from the top directory.
    fn path(&self, mut node: Node) -> Vec<u8> {
        let mut parts = Vec::new();
        while node != 0 {
            let Some(known) = self.nodes.get(node as usize) else { break };
            parts.push(known.name.as_slice());
            node = known.parent;
        }
        if parts.is_empty() {
            return b"/".to_vec();
        }
        parts.iter().rev().flat_map(|part| [b"/", *part].concat()).collect()
    }

    fn stat(&mut self, path: &[u8]) -> Result<Found, Broken> {
        let answer = self.session.ask(&command(b"lstatns", &[path]), PATIENCE)?;
        words::found(&answer).ok_or(Broken::Odd("lstatns"))
    }

    /// What is known of all `names` in a directory, in their order; none where there is a trouble with one.
    fn stats(&mut self, directory: &[u8], names: &[Vec<u8>]) -> Result<Vec<Option<Found>>, Broken> {
        let mut found = vec![None; names.len()];
        let mut batch: Vec<usize> = Vec::new();
        let (mut len, fixed) = (0, words::quoted_len(directory) + 20);
        for (number, name) in names.iter().enumerate() {
            // In a list, guestfish takes these for something else wherever they stand.
            if name.iter().any(|byte| matches!(byte, b'\'' | b'\\')) {
                let path = [directory, b"/", name].concat();
                found[number] = match self.stat(&path) {
                    Err(e @ (Broken::Ended(_) | Broken::Io(_) | Broken::Cancelled)) => return Err(e),
                    one => one.ok(),
                };
                continue;
            }
            // With the quotes and the blank.
            let more = words::quoted_len(name) + 12;
            if len + more + fixed > LONGEST_LINE {
                self.stat_batch(directory, names, &batch, &mut found)?;
                (batch, len) = (Vec::new(), 0);
            }
            batch.push(number);
            len += more;
        }
        self.stat_batch(directory, names, &batch, &mut found)?;
        Ok(found)
    }

    fn stat_batch(
        &mut self,
        directory: &[u8],
        names: &[Vec<u8>],
        batch: &[usize],
        found: &mut [Option<Found>],
    ) -> Result<(), Broken> {
        if batch.is_empty() {
            return Ok(());
        }
        let list = words::list_of(batch.iter().map(|number| names[*number].as_slice()));
        let line = [b"lstatnslist ", quoted(directory).as_slice(), b" ", list.as_slice()].concat();
        let answer = listed(&self.session.ask(&line, PATIENCE)?).filter(|answer| answer.len() == batch.len());
        for (number, one) in batch.iter().zip(answer.ok_or(Broken::Odd("lstatnslist"))?) {
            found[*number] = one;
        }
        Ok(())
    }

    /// The number of a file that was seen; the same for all names of one that has several.
    fn remember(&mut self, parent: Node, name: Vec<u8>, found: Option<&Found>) -> Result<Node, String> {
        let has_names = |found: &&Found| found.metadata.links > 1 && found.metadata.kind != FileKind::Directory;
        let file = found.filter(has_names).map(|found| (found.device, found.inode));
        if let Some(node) = file.and_then(|file| self.by_file.get(&file)) {
            return Ok(*node);
        }
        if self.nodes.len() == MOST_NODES {
            return Err(format!("there are more files than the {MOST_NODES} that are looked at in one go"));
        }
        let node = self.nodes.len() as Node;
        self.nodes.push(Known { parent, name, metadata: found.map(|found| found.metadata.clone()) });
        if let Some(file) = file {
            self.by_file.insert(file, node);
        }
        Ok(node)
    }
}

/// A command and its words.
fn command(name: &[u8], words: &[&[u8]]) -> Vec<u8> {
    let mut line = name.to_vec();
    for word in words {
        line.push(b' ');
        line.extend(quoted(word));
    }
    line
}

/// What the file system and its open files have together.
struct Shared {
    tree: Mutex<Tree>,
    what: &'static str,
    trouble: Trouble,
}

impl Shared {
    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: Broken) -> FsError {
        FsError::Guestfish(said(error, &self.trouble))
    }

    fn ask(&self, name: &[u8], node: Node, words: &[&[u8]]) -> Result<Vec<u8>, Broken> {
        let mut tree = self.tree();
        let path = tree.path(node);
        // What was read ahead in vain is nobody's trouble.
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
        tree.session.ask(&command(name, &[&[&path[..]], words].concat()), PATIENCE)
    }
}

/// A file system that is mounted in the machine.
struct Mounted {
    name: String,
    tree: Arc<Shared>,
    note: String,
}

impl FileSystem for Mounted {
    fn kind(&self) -> &'static str {
        self.tree.what
    }

    fn note(&self) -> Option<String> {
        Some(self.note.clone())
    }

    fn root(&self) -> Node {
        0
    }

    fn metadata(&self, node: Node) -> Result<Metadata, FsError> {
        let mut tree = self.tree.tree();
        if let Some(metadata) = tree.nodes.get(node as usize).and_then(|known| known.metadata.clone()) {
            return Ok(metadata);
        }
        let path = tree.path(node);
        let found = tree.stat(&path).map_err(|e| self.tree.failed(e))?;
        Ok(found.metadata)
    }

    fn read_dir(&self, node: Node) -> Result<Vec<Entry>, FsError> {
        let answer = self.tree.ask(b"ls0", node, &[b"-"]).map_err(|e| self.tree.failed(e))?;
        let names: Vec<Vec<u8>> =
            answer.split(|byte| *byte == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect();
        let unfit = |why: &str| FsError::Guestfish(why.to_owned());
        if names.len() > MOST_ENTRIES {
            return Err(unfit("a directory has more entries than are read"));
        }
        if !names.iter().all(|name| is_name(name)) {
            return Err(unfit("a directory has an entry whose name cannot be one"));
        }
        let mut tree = self.tree.tree();
        let path = tree.path(node);
        let found = tree.stats(&path, &names).map_err(|e| self.tree.failed(e))?;
        let entries = names.into_iter().zip(found).map(|(name, found)| {
            let node = tree.remember(node, name.clone(), found.as_ref()).map_err(|why| unfit(&why))?;
            Ok(Entry { name, node })
        });
        entries.collect()
    }

    fn read_link(&self, node: Node) -> Result<Vec<u8>, FsError> {
        let mut target = self.tree.ask(b"readlink", node, &[]).map_err(|e| self.tree.failed(e))?;
        // Its end of the line.
        target.pop();
        Ok(target)
    }

    fn open(&self, node: Node) -> Result<Content, FsError> {
        let metadata = self.metadata(node)?;
        let path = super::bytes::shown(&self.tree.tree().path(node));
        if metadata.kind != FileKind::File {
            return Err(FsError::Unfit { path, what: "no regular file" });
        }
        let size = metadata.size;
        let name = format!("{}{path}", self.name);
        let file = Arc::new(FileImage { name, size, node, tree: Arc::clone(&self.tree) });
        // Where its holes are, libguestfs does not tell.
        let mut runs = Runs::default();
        if size > 0 {
            runs.push(Run { at: 0, len: size, disk: 0 }).map_err(|why| FsError::damaged("file system", why))?;
        }
        Ok(Content::runs(file, size, runs))
    }
}

/// A file in the machine, as something to read at any place.
struct FileImage {
    name: String,
    size: u64,
    node: Node,
    tree: Arc<Shared>,
}

impl Image for FileImage {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        Ok(vec![Extent { offset: range.start, len: range.end - range.start, kind: ExtentKind::Data }])
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let mut offset = offset;
        for part in buf.chunks_mut(PIECE) {
            let (count, from) = (part.len().to_string(), offset.to_string());
            let read = self.tree.ask(b"pread", self.node, &[count.as_bytes(), from.as_bytes()]);
            let failed =
                |source| ImageError { image: self.name.clone(), op: "read", offset, len: part.len() as u64, source };
            let bytes = read.map_err(|e| failed(std::io::Error::other(said(e, &self.tree.trouble))))?;
            if bytes.len() != part.len() {
                let why = format!("{PROGRAM} gave {} bytes", bytes.len());
                return Err(failed(std::io::Error::other(why)));
            }
            part.copy_from_slice(&bytes);
            offset += part.len() as u64;
        }
        Ok(())
    }
}
