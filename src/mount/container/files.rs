//! The files of a container's archive: where their members lie, what their headers tell, and where hard links lead.
//!
//! Headers are read when somebody asks, and those behind them with them: whoever lists one file lists the next.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use super::headers::{Header, Known};
use crate::archive::Bytes;
use crate::archive::tar::{self, BLOCK, Content, Member, Walker, normal, printable};
use crate::host::Cancel;
use crate::image::Image;
use crate::mount::MountError;
use crate::mount::tree::{NOWHERE, Node, Number, Tree};
use crate::mount::view::{Kind, ViewError};

/// Bytes of tar data behind a header whose headers are read with it.
const AHEAD: u64 = 4 << 20;
/// Members whose headers are read at once, at most.
const AT_ONCE: usize = 1024;
/// Bytes of tar data that are read at once for headers.
const PIECE: usize = 8 * BLOCK;
/// Bytes that the headers of one member may have: two long names and extended headers.
const MOST: u64 = 64 << 20;

/// The files of an archive.
pub(super) struct Files {
    archive: String,
    bytes: Arc<dyn Bytes>,
    pub(super) tree: Tree,
    by_offset: Vec<Number>,
    /// Where hard links lead, and how many names a file has that has several.
    links: HashMap<Number, Option<Number>>,
    pub(super) names: HashMap<Number, u32>,
    known: RwLock<Known>,
}

impl Files {
    /// `tree` has been made of the archive called `archive`, `bytes` are its tar data.
    pub(super) fn new(archive: String, bytes: Arc<dyn Bytes>, tree: Tree, known: Known) -> Self {
        let by_offset = tree.by_offset();
        let (links, names, known) = (HashMap::new(), HashMap::new(), RwLock::new(known));
        Self { archive, bytes, tree, by_offset, links, names, known }
    }

    pub(super) fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The header, if it was read; that of a directory that is not in the archive is made up.
    pub(super) fn header(&self, number: Number, node: Node) -> Option<Header> {
        if node.offset == NOWHERE {
            return Some(Header { known: true, mode: 0o755, ..Header::default() });
        }
        self.known().headers.get(number as usize).copied().filter(|header| header.known)
    }

    pub(super) fn broken(&self, number: Number, why: impl std::fmt::Display) -> ViewError {
        let path = printable(&self.tree.path(number));
        ViewError::Broken(format!("'{path}' in archive '{}' cannot be read: {why}", self.archive))
    }

    /// The member whose headers begin at `offset`.
    pub(super) fn member(&self, number: Number, offset: u64) -> Result<Member, ViewError> {
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
        if node.kind != b'd' && member.size != node.size
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
    pub(super) fn follow_links(&mut self, cancel: &Cancel, say: &mut dyn FnMut(&str)) -> Result<(), MountError> {
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
        // It is known now.
        let tree = &self.tree;
        let is_symlink = |number: &Number| tree.node(*number).is_some_and(|node| node.kind == b'l');
        let known = self.known.get_mut().unwrap_or_else(PoisonError::into_inner);
        known.targets.retain(|number, _| is_symlink(number));
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
    pub(super) fn resolved(&self, number: Number) -> Result<Number, ViewError> {
        match self.links.get(&number) {
            None => Ok(number),
            Some(Some(target)) => Ok(*target),
            Some(None) => Err(self.broken(number, "the file it is another name of is not there")),
        }
    }

    pub(super) fn content(&self, number: Number) -> Result<Arc<dyn Image>, ViewError> {
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
    pub(super) fn told(&self, number: Number) -> Result<(Node, Header), ViewError> {
        let node = self.tree.node(number).ok_or(ViewError::Missing)?;
        let header = match self.header(number, node) {
            Some(header) => header,
            None => self.learn(number, node)?,
        };
        Ok((node, header))
    }
}

/// What a sign of the table of members stands for.
pub(super) fn kind(sign: u8) -> Kind {
    match sign {
        b'd' => Kind::Directory,
        b'l' => Kind::Symlink,
        b'c' => Kind::Character,
        b'b' => Kind::Block,
        b'p' => Kind::Fifo,
        _ => Kind::File,
    }
}
