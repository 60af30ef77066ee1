//! What the headers of an archive's members tell: read at once where there is no table of them, else when it is wanted.

use std::collections::HashMap;

use crate::archive::ArchiveError;
use crate::archive::tar::{self, Member, TarArchive, normal};
use crate::mount::acl;
use crate::mount::tree::{Builder, Number, Tree};
use crate::mount::view::Xattrs;

/// Bytes of where a symbolic link leads, at most: as the kernel has it.
const LONGEST_LINK: usize = 4095;

/// What a header tells.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Header {
    pub(super) known: bool,
    /// Whether it has extended attributes, which are read when they are wanted.
    pub(super) xattrs: bool,
    pub(super) mode: u16,
    pub(super) nanos: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: u32,
    pub(super) mtime: i64,
    pub(super) stored: u64,
}

#[derive(Default)]
pub(super) struct Known {
    pub(super) headers: Vec<Header>,
    /// Where links lead.
    pub(super) targets: HashMap<Number, Vec<u8>>,
}

/// All files; without a table of members with all that is to be known of them.
pub(super) fn read(archive: &TarArchive) -> Result<(Tree, Known), ArchiveError> {
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
    pub(super) fn note(&mut self, number: Number, member: &Member) {
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
        if member.link.is_empty() || member.kind == tar::Kind::Symlink && member.link.len() > LONGEST_LINK {
            self.targets.remove(&number);
        } else {
            self.targets.insert(number, member.link.clone());
        }
    }
}

/// The extended attributes that a header has, the access lists among them.
pub(super) fn xattrs(member: Member) -> Xattrs {
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
