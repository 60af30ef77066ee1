//! The view of a container's archive: its configuration, log and notes, and below `rootfs` its files as they would be
//! unpacked.
//!
//! Names, kinds and sizes come from the archive's table of members, or from going through it once. The rest, owners and
//! times and where links lead, is in the members' headers, which are read when somebody asks, and those behind them with
//! them: whoever lists one file lists the next.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use super::flat::{Flat, Owner, time};
use super::tree::{Builder, NOWHERE, Node, Number, Tree};
use super::view::{Attributes, Entry, Inode, Kind, TOP, View, ViewError, Xattrs};
use super::{MountError, acl, beside};
use crate::archive::tar::{self, BLOCK, Content, Member, TarArchive, Walker, normal, printable};
use crate::archive::{ArchiveError, Bytes, FirstPass};
use crate::host::{Cancel, Host};
use crate::image::Image;

/// What the directory of the container's files is called.
const ROOT: &str = "rootfs";
/// Inodes of the container's files begin here.
const FIRST: Inode = 1 << 32;
/// Bytes of tar data behind a header whose headers are read with it.
const AHEAD: u64 = 4 << 20;
/// Members whose headers are read at once, at most.
const AT_ONCE: usize = 1024;
/// Bytes of tar data that are read at once for headers.
const PIECE: usize = 8 * BLOCK;
/// Bytes that the headers of one member may have: two long names and extended headers.
const MOST: u64 = 64 << 20;
/// Bytes of where a symbolic link leads, at most: as the kernel has it.
const LONGEST_LINK: usize = 4095;
/// The configuration files of the archive, and what they are called here.
const CONFIGS: [(&[u8], &str); 2] = [(b"etc/vzdump/pct.conf", "pct.conf"), (b"etc/vzdump/pct.fw", "pct.fw")];

/// What a header tells.
#[derive(Debug, Clone, Copy, Default)]
struct Header {
    known: bool,
    /// Whether it has extended attributes, which are read when they are wanted.
    xattrs: bool,
    mode: u16,
    nanos: u32,
    uid: u32,
    gid: u32,
    rdev: u32,
    mtime: i64,
    stored: u64,
}

#[derive(Default)]
struct Known {
    headers: Vec<Header>,
    /// Where links lead.
    targets: HashMap<Number, Vec<u8>>,
}

/// The files of an archive.
struct Files {
    archive: String,
    bytes: Arc<dyn Bytes>,
    tree: Tree,
    by_offset: Vec<Number>,
    /// Where hard links lead, and how many names a file has that has several.
    links: HashMap<Number, Option<Number>>,
    names: HashMap<Number, u32>,
    known: RwLock<Known>,
}

/// See the module.
pub(super) struct Container {
    flat: Flat,
    files: Files,
}

impl Container {
    /// Opens the archive. What takes long or is left out is told with `say`.
    ///
    /// # Errors
    /// When it cannot be read, or only from its start on.
    pub(super) fn open(
        host: &Host,
        path: &Path,
        cancel: &Cancel,
        owner: Owner,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self, MountError> {
        let name = path.display().to_string();
        let archive = TarArchive::open_with(host, path, FirstPass::Read, cancel)?;
        if !archive.is_random() {
            return Err(MountError::OnlyFromStart(name));
        }
        if let Some(note) = archive.note() {
            say(&note);
        }
        let (tree, known) = read(&archive)?;
        if tree.is_full {
            return Err(MountError::TooMany(name));
        }
        let Some(bytes) = archive.bytes()? else { return Err(MountError::OnlyFromStart(name)) };
        if tree.left_out > 0 {
            say(&format!("{} members are not shown: their names cannot be those of files", tree.left_out));
        }
        let by_offset = tree.by_offset();
        let (links, names, known) = (HashMap::new(), HashMap::new(), RwLock::new(known));
        let mut files = Files { archive: name, bytes, tree, by_offset, links, names, known };
        files.follow_links(cancel, say)?;
        let time = std::fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(std::time::UNIX_EPOCH);
        let mut flat = Flat::new(owner, time);
        for (member, shown) in CONFIGS {
            if let Some(number) = files.tree.find(member) {
                match files.content(number) {
                    Ok(content) => flat.add(shown, content, time),
                    Err(error) => say(&format!("{shown} is not shown: {error}")),
                }
            }
        }
        beside::add(&mut flat, path)?;
        Ok(Self { flat, files })
    }
}

/// All files; without a table of members with all that is to be known of them.
fn read(archive: &TarArchive) -> Result<(Tree, Known), ArchiveError> {
    let mut builder = Builder::new();
    let in_table = archive.each_in_table(&mut |path, kind, size, offset| {
        if kind != b'V' {
            builder.add(path, kind, size, offset);
        }
    });
    if in_table {
        let tree = builder.finish();
        let headers = vec![Header::default(); tree.len()];
        return Ok((tree, Known { headers, targets: HashMap::new() }));
    }
    let (mut builder, mut known) = (Builder::new(), Known::default());
    archive.each_member(&mut |member| {
        let kind = tar::sign(member.kind);
        if kind == b'V' {
            return;
        }
        if let Some(number) = builder.add(&normal(&member.path), kind, member.size, member.offset) {
            known.note(number, &member);
        }
    })?;
    let tree = builder.finish();
    known.headers.resize(tree.len(), Header::default());
    Ok((tree, known))
}

impl Known {
    fn note(&mut self, number: Number, member: &Member) {
        let at = number as usize;
        if self.headers.len() <= at {
            self.headers.resize(at + 1, Header::default());
        }
        let Some(said) = &member.attributes else { return };
        let (mtime, nanos) = said.mtime;
        let rdev = match member.kind {
            tar::Kind::Character | tar::Kind::BlockDevice => device(said.device),
            _ => 0,
        };
        let (mode, uid, gid, stored) = (said.mode, said.uid, said.gid, member.stored);
        let xattrs = !said.xattrs.is_empty() || said.acl.is_some() || said.default_acl.is_some();
        self.headers[at] = Header { known: true, xattrs, mode, nanos, uid, gid, rdev, mtime, stored };
        if member.link.is_empty() || member.link.len() > LONGEST_LINK {
            self.targets.remove(&number);
        } else {
            self.targets.insert(number, member.link.clone());
        }
    }
}

/// The extended attributes that a header has, the access lists among them.
fn xattrs(member: Member) -> Xattrs {
    let Some(said) = member.attributes else { return Xattrs::new() };
    let lists = [("access", &said.acl), ("default", &said.default_acl)];
    let list = |(which, text): (&str, &Option<Vec<u8>>)| {
        let value = acl::encoded(text.as_deref()?)?;
        Some((format!("system.posix_acl_{which}").into_bytes(), value))
    };
    let lists: Vec<_> = lists.into_iter().filter_map(list).collect();
    said.xattrs.into_iter().chain(lists).collect()
}

/// As the kernel has it in FUSE: 12 bits of the major number between 20 of the minor one.
fn device((major, minor): (u32, u32)) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

impl Files {
    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The header, if it was read; that of a directory that is not in the archive is made up.
    fn header(&self, number: Number, node: Node) -> Option<Header> {
        if node.offset == NOWHERE {
            return Some(Header { known: true, mode: 0o755, ..Header::default() });
        }
        self.known().headers.get(number as usize).copied().filter(|header| header.known)
    }

    fn broken(&self, number: Number, why: impl std::fmt::Display) -> ViewError {
        let path = printable(&self.tree.path(number));
        ViewError::Broken(format!("'{path}' in archive '{}' cannot be read: {why}", self.archive))
    }

    /// The member whose headers begin at `offset`.
    fn member(&self, number: Number, offset: u64) -> Result<Member, ViewError> {
        let mut walker = Walker::at_member(offset);
        let (mut found, mut buf, mut at) = (None, vec![0; PIECE], offset);
        while found.is_none() {
            let left = self.bytes.len().saturating_sub(at).min(offset.saturating_add(MOST).saturating_sub(at));
            let count = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            if count == 0 || walker.ended() {
                return Err(self.broken(number, "its headers are not where they should be"));
            }
            self.bytes.read_at(&mut buf[..count], at).map_err(|e| self.broken(number, e))?;
            at += count as u64;
            let walked = walker.feed_headers(&buf[..count], &mut |member| {
                found.get_or_insert(member);
            });
            walked.map_err(|e| self.broken(number, e))?;
        }
        let member = found.ok_or_else(|| self.broken(number, "it is not there"))?;
        // The table is a guide: what it leads to has to be what was looked for.
        let node = self.tree.node(number).ok_or(ViewError::Missing)?;
        if member.size != node.size
            || tar::sign(member.kind) != node.kind
            || normal(&member.path) != self.tree.path(number)
        {
            return Err(self.broken(number, "the archive's table of members is wrong about it"));
        }
        Ok(member)
    }

    /// Reads the header, and those of the members behind it.
    fn learn(&self, number: Number, node: Node) -> Result<Header, ViewError> {
        let first = self.by_offset.partition_point(|other| self.offset(*other) < node.offset);
        let near = |other: &&Number| self.offset(**other) < node.offset + AHEAD;
        let mut read = vec![(number, self.member(number, node.offset)?)];
        for other in self.by_offset[first..].iter().take_while(near).take(AT_ONCE) {
            let known =
                *other == number || self.known().headers.get(*other as usize).is_some_and(|header| header.known);
            if known {
                continue;
            }
            // Whoever asks for that one hears what is wrong.
            let Ok(member) = self.member(*other, self.offset(*other)) else { break };
            read.push((*other, member));
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for (number, member) in read {
            known.note(number, &member);
        }
        known.headers.get(number as usize).copied().ok_or(ViewError::Missing)
    }

    fn offset(&self, number: Number) -> u64 {
        self.tree.node(number).map_or(NOWHERE, |node| node.offset)
    }

    /// Finds out where hard links lead: the files are one, with several names.
    fn follow_links(&mut self, cancel: &Cancel, say: &mut dyn FnMut(&str)) -> Result<(), MountError> {
        let is_link = |number: &Number| self.tree.node(*number).is_some_and(|node| node.kind == b'h');
        let all: Vec<Number> = self.by_offset.iter().copied().filter(is_link).collect();
        let mut lost = 0;
        for number in all {
            if cancel.is_set() {
                return Err(MountError::Cancelled);
            }
            // One that is hidden by a later file of its name is no name of anything.
            if self.tree.find(&self.tree.path(number)) != Some(number) {
                continue;
            }
            let target = self.target(number);
            lost += u64::from(target.is_none());
            self.links.insert(number, target);
            if let Some(target) = target {
                *self.names.entry(target).or_insert(1) += 1;
            }
        }
        if lost > 0 {
            say(&format!("{lost} hard links lead to nothing in the archive and cannot be read"));
        }
        Ok(())
    }

    /// The file that a hard link is another name of: one before it in the archive.
    fn target(&self, number: Number) -> Option<Number> {
        let node = self.tree.node(number)?;
        if self.header(number, node).is_none() {
            self.learn(number, node).ok()?;
        }
        let link = self.known().targets.get(&number)?.clone();
        let target = self.tree.find(&normal(&link))?;
        let found = self.tree.node(target)?;
        if found.offset >= node.offset || found.kind == b'd' {
            return None;
        }
        // Those before it are known already.
        self.links.get(&target).copied().unwrap_or(Some(target))
    }

    /// The file itself, of a hard link that which it leads to.
    fn resolved(&self, number: Number) -> Result<Number, ViewError> {
        match self.links.get(&number) {
            None => Ok(number),
            Some(Some(target)) => Ok(*target),
            Some(None) => Err(self.broken(number, "the file it is another name of is not there")),
        }
    }

    fn content(&self, number: Number) -> Result<Arc<dyn Image>, ViewError> {
        let number = self.resolved(number)?;
        let node = self.tree.node(number).ok_or(ViewError::Missing)?;
        if kind(node.kind) != Kind::File {
            return Err(ViewError::Unfit);
        }
        let member = self.member(number, node.offset)?;
        let name = format!("'{}' in archive '{}'", printable(&self.tree.path(number)), self.archive);
        let content = Content::new(Arc::clone(&self.bytes), &member, &name);
        Ok(Arc::new(content.map_err(|e| self.broken(number, e))?))
    }

    /// What the header tells, read now if it was not before.
    fn told(&self, number: Number) -> Result<(Node, Header), ViewError> {
        let node = self.tree.node(number).ok_or(ViewError::Missing)?;
        let header = match self.header(number, node) {
            Some(header) => header,
            None => self.learn(number, node)?,
        };
        Ok((node, header))
    }
}

fn kind(sign: u8) -> Kind {
    match sign {
        b'd' => Kind::Directory,
        b'l' => Kind::Symlink,
        b'c' => Kind::Character,
        b'b' => Kind::Block,
        b'p' => Kind::Fifo,
        _ => Kind::File,
    }
}

/// The number of a file of the container; none of one at the top.
fn number(inode: Inode) -> Option<Number> {
    inode.checked_sub(FIRST).and_then(|number| Number::try_from(number).ok())
}

fn inode(number: Number) -> Inode {
    FIRST + Inode::from(number)
}

impl View for Container {
    fn is_known(&self, inode: Inode) -> bool {
        let Some(number) = number(inode) else { return self.flat.is_known(inode) };
        // Extended attributes are read anew each time.
        let known = |node| self.files.header(number, node).is_some_and(|header| !header.xattrs);
        self.files.tree.node(number).is_none_or(known)
    }

    fn attributes(&self, asked: Inode) -> Result<Attributes, ViewError> {
        let Some(number) = number(asked) else { return self.flat.attributes(asked) };
        let number = self.files.resolved(number)?;
        let (node, header) = self.files.told(number)?;
        let kind = kind(node.kind);
        let link = || self.files.known().targets.get(&number).map_or(0, |target| target.len() as u64);
        let (size, data) = match kind {
            Kind::File => (node.size, header.stored.min(node.size)),
            Kind::Symlink => (link(), 0),
            _ => (0, 0),
        };
        Ok(Attributes {
            inode: inode(number),
            kind,
            mode: header.mode,
            uid: header.uid,
            gid: header.gid,
            size,
            data,
            mtime: time(header.mtime, header.nanos),
            links: self.files.names.get(&number).copied().unwrap_or(if kind == Kind::Directory { 2 } else { 1 }),
            rdev: header.rdev,
        })
    }

    fn lookup(&self, directory: Inode, name: &[u8]) -> Result<Inode, ViewError> {
        if directory == TOP && name == ROOT.as_bytes() {
            return Ok(inode(0));
        }
        let Some(number) = number(directory) else { return self.flat.lookup(directory, name) };
        let found = self.files.tree.child(number, name).ok_or(ViewError::Missing)?;
        self.files.resolved(found).map(inode)
    }

    fn entries(&self, directory: Inode, from: u64, most: usize) -> Result<Vec<Entry>, ViewError> {
        let Some(number) = number(directory) else {
            let mut entries = self.flat.entries(directory, from, most)?;
            let end = from + entries.len() as u64 == self.flat.len() as u64;
            if directory == TOP && entries.len() < most && end {
                entries.push(Entry { inode: inode(0), kind: Kind::Directory, name: ROOT.into() });
            }
            return Ok(entries);
        };
        let children = self.files.tree.children(number).iter();
        let entry = |child: &Number| {
            let own = self.files.tree.node(*child)?;
            let found = self.files.resolved(*child).unwrap_or(*child);
            let kind = kind(self.files.tree.node(found)?.kind);
            Some(Entry { inode: inode(found), kind, name: self.files.tree.name(own).to_vec() })
        };
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        Ok(children.skip(from).take(most).filter_map(entry).collect())
    }

    fn parent(&self, directory: Inode) -> Inode {
        match number(directory) {
            None | Some(0) => TOP,
            Some(number) => inode(self.files.tree.parent(number)),
        }
    }

    fn content(&self, inode: Inode) -> Result<Arc<dyn Image>, ViewError> {
        match number(inode) {
            None => self.flat.content(inode),
            Some(number) => self.files.content(number),
        }
    }

    fn link(&self, inode: Inode) -> Result<Vec<u8>, ViewError> {
        let Some(number) = number(inode) else { return self.flat.link(inode) };
        let (node, _) = self.files.told(number)?;
        if node.kind != b'l' {
            return Err(ViewError::Unfit);
        }
        let target = self.files.known().targets.get(&number).cloned();
        target.ok_or_else(|| self.files.broken(number, "where it leads is longer than a link can be"))
    }

    fn xattrs(&self, inode: Inode) -> Result<Xattrs, ViewError> {
        let Some(number) = number(inode) else { return self.flat.xattrs(inode) };
        let (node, header) = self.files.told(number)?;
        if !header.xattrs {
            return Ok(Xattrs::new());
        }
        Ok(xattrs(self.files.member(number, node.offset)?))
    }
}
