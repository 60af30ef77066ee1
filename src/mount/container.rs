//! The view of a container's archive: its configuration, log and notes, and below `rootfs` its files as they would be
//! unpacked.
//!
//! Names, kinds and sizes come from the archive's table of members, or from going through it once. The rest, owners and
//! times and where links lead, is in the members' headers.

mod files;
mod headers;

use std::path::Path;
use std::sync::Arc;

use self::files::{Files, kind};
use self::headers::{read, xattrs};
use super::flat::{Flat, Owner, time};
use super::tree::Number;
use super::view::{Attributes, Entry, Inode, Kind, TOP, View, ViewError, Xattrs};
use super::{MountError, beside};
use crate::archive::FirstPass;
use crate::archive::tar::TarArchive;
use crate::host::{Cancel, Host};
use crate::image::Image;

/// What the directory of the container's files is called.
const ROOT: &str = "rootfs";
/// Inodes of the container's files begin here.
const FIRST: Inode = 1 << 32;
/// The configuration files of the archive, and what they are called here.
const CONFIGS: [(&[u8], &str); 2] = [(b"etc/vzdump/pct.conf", "pct.conf"), (b"etc/vzdump/pct.fw", "pct.fw")];

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
        let mut files = Files::new(name, bytes, tree, known);
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
