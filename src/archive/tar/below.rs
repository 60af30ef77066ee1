//! Everything below a directory of an archive: what there is, and the content of all of it in one go through the archive.

use std::collections::BTreeMap;
use std::io::{self, Read};

use super::archive::{Listed, MemberError, TarArchive};
use super::sparse::Expanded;
use super::{BLOCK, Member, TarError, Walker, normal, table};
use crate::archive::{ArchiveCause, ArchiveError};

/// Bytes that are rather read than jumped over.
const NEAR: u64 = 16 << 20;

/// Members by their normal names, and where they begin.
pub type Below = BTreeMap<Vec<u8>, (u64, Listed)>;

/// Takes a member and its content, holes as zeros.
pub type TakeMember<'a, E> = dyn FnMut(&Member, &mut dyn Read) -> Result<(), E> + 'a;

impl TarArchive {
    /// The member `path` and everything below it; `""` is the top directory. Of a name that occurs twice, the last one counts.
    ///
    /// # Errors
    /// When there is nothing of that name, or the archive cannot be read.
    pub fn below(&self, path: &[u8]) -> Result<Below, MemberError> {
        let path = normal(path);
        let mut found = Below::new();
        let add = |found: &mut Below, name: &[u8], kind: u8, size: u64, offset: u64| {
            let rest = name.strip_prefix(path.as_slice());
            let is_below = path.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
            if is_below && found.get(name).is_none_or(|(known, _)| *known <= offset) {
                let listed = Listed { name: name.to_vec(), kind: kind.into(), size };
                found.insert(name.to_vec(), (offset, listed));
            }
        };
        let in_table = self.each_in_table(&mut |name, kind, size, offset| add(&mut found, name, kind, size, offset));
        if !in_table {
            found.clear();
            self.each_member(&mut |member| {
                let name = normal(&member.path);
                add(&mut found, &name, table::sign(member.kind), member.size, member.offset);
            })?;
        }
        if found.is_empty() && !path.is_empty() {
            return Err(self.missing(&path));
        }
        Ok(found)
    }

    /// Gives the members at these places, which are sorted, with their content to `take`.
    ///
    /// # Errors
    /// When the archive cannot be read, or what `take` says.
    pub fn take_members<E: From<ArchiveError>>(&self, places: &[u64], take: &mut TakeMember<'_, E>) -> Result<(), E> {
        let mut data: Option<Counted> = None;
        for place in places {
            // Forward through a stream, however far it is; else only over what is not worth a jump.
            let near = |at: u64| *place >= at && (!self.is_random() || place - at <= NEAR);
            let mut from = match data.take().filter(|data| near(data.at)) {
                Some(data) => data,
                None => Counted { data: self.data(*place)?, at: *place },
            };
            let failed = |source| self.failed(ArchiveCause::TarRead { offset: *place, source });
            let gap = place - from.at;
            if io::copy(&mut (&mut from).take(gap), &mut io::sink()).map_err(failed)? < gap {
                return Err(self.failed(TarError::Truncated { offset: from.at }).into());
            }
            let member = self.member_at(&mut from, *place)?;
            let mut content = Expanded::new(&member, (&mut from).take(member.stored)).map_err(failed)?;
            take(&member, &mut content)?;
            drop(content);
            data = Some(from);
        }
        Ok(())
    }

    /// The member whose headers come next.
    fn member_at(&self, data: &mut Counted, place: u64) -> Result<Member, ArchiveError> {
        let (mut walker, mut found, mut block) = (Walker::at_member(place), None, [0; BLOCK]);
        while found.is_none() && !walker.ended() {
            let read = data.read_exact(&mut block);
            read.map_err(|source| self.failed(ArchiveCause::TarRead { offset: walker.offset(), source }))?;
            let walked = walker.feed(&block, &mut |member| {
                found = Some(member);
                Ok(())
            });
            walked.map_err(|e| self.failed(e))?;
        }
        found.ok_or_else(|| self.failed(TarError::Damaged { offset: place, what: "no member is there".to_owned() }))
    }
}

/// Tar data, and how much of it was read.
struct Counted {
    data: Box<dyn Read + Send>,
    at: u64,
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.data.read(buf)?;
        self.at += count as u64;
        Ok(count)
    }
}
