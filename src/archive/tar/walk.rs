//! Walks the headers of tar data that passes by in pieces of any size: v7, ustar, GNU (long names, old sparse files with
//! their extension blocks) and PAX with local and global headers.
//!
//! What is ambiguous is an error: where this and GNU tar could take the same bytes for different members, what was vetted
//! would not be what is unpacked.

use super::header::{Header, Magic, more_pieces};
use super::map::{MapCheck, Tally};
use super::pax::Records;
use super::{BLOCK, Kind, Layout, Member, TarError};

/// Bytes of the longest name; the system's own limit is 4096 a call.
const LONGEST_NAME: u64 = 1 << 20;
/// Bytes of the longest extended header: names, ACLs, xattrs, the map of a sparse file.
const LONGEST_RECORDS: u64 = 16 << 20;
/// Pieces of a sparse file that are kept when maps are asked for.
const MOST_PIECES: usize = 1 << 20;

/// What the next bytes are.
enum State {
    /// A header.
    Header,
    /// More pieces of an old GNU sparse file.
    Pieces(Box<(Member, Tally)>),
    /// The map of a sparse file in front of its data.
    Map(Box<MapCheck>),
    /// Text that belongs to the next member, and what fills its last block.
    Text { of: Text, left: u64, fill: u64 },
    /// Data.
    Data(u64),
    /// Nothing but zeros.
    End,
}

#[derive(Clone, Copy)]
enum Text {
    Name,
    Link,
    Local,
    Global,
}

/// Reads headers; see the module.
pub struct Walker {
    state: State,
    offset: u64,
    maps: bool,
    block: [u8; BLOCK],
    filled: usize,
    text: Vec<u8>,
    /// What was said about the next member so far, and where that began.
    start: Option<u64>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    local: Option<Records>,
    global: Records,
}

impl Default for Walker {
    fn default() -> Self {
        Self::new()
    }
}

impl Walker {
    /// At the start of an archive.
    pub fn new() -> Self {
        Self {
            state: State::Header,
            offset: 0,
            maps: false,
            block: [0; BLOCK],
            filled: 0,
            text: Vec::new(),
            start: None,
            name: None,
            link: None,
            local: None,
            global: Records::default(),
        }
    }

    /// At `offset`, where a member begins; the maps of sparse files and all attributes are kept.
    pub(crate) fn at_member(offset: u64) -> Self {
        Self { offset, maps: true, ..Self::new() }
    }

    /// Bytes that were taken.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the mark that ends an archive was seen.
    pub fn ended(&self) -> bool {
        matches!(self.state, State::End)
    }

    /// How many of the next bytes are data, which [`Walker::skip`] may pass over without reading it.
    pub fn skippable(&self) -> u64 {
        match self.state {
            State::Data(left) => left,
            _ => 0,
        }
    }

    /// Passes over `count` bytes, at most [`Walker::skippable`].
    pub fn skip(&mut self, count: u64) {
        if let State::Data(left) = &mut self.state {
            let count = count.min(*left);
            *left -= count;
            self.offset += count;
            if *left == 0 {
                self.state = State::Header;
            }
        }
    }

    /// Takes the next bytes, and calls `each` with every member whose headers are complete with them.
    ///
    /// # Errors
    /// When a header is damaged, or `each` says so.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        each: &mut dyn FnMut(Member) -> Result<(), TarError>,
    ) -> Result<(), TarError> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Data(left) => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    bytes = &bytes[count..];
                    self.skip(count as u64);
                }
                State::Map(map) => {
                    let taken = map.take(bytes[0]);
                    let left = taken.map_err(|what| TarError::Damaged { offset: self.offset, what })?;
                    self.offset += 1;
                    bytes = &bytes[1..];
                    match left {
                        None => {}
                        Some(0) => self.state = State::Header,
                        Some(left) => self.state = State::Data(left),
                    }
                }
                State::End => {
                    if let Some(at) = bytes.iter().position(|byte| *byte != 0) {
                        let what = "there is more behind the mark that ends an archive".to_owned();
                        return Err(TarError::Damaged { offset: self.offset + at as u64, what });
                    }
                    self.offset += bytes.len() as u64;
                    bytes = &[];
                }
                State::Text { of, left, fill } => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    self.text.extend_from_slice(&bytes[..count]);
                    self.offset += count as u64;
                    *left -= count as u64;
                    bytes = &bytes[count..];
                    if *left == 0 {
                        let (of, fill) = (*of, *fill);
                        self.state = if fill == 0 { State::Header } else { State::Data(fill) };
                        self.text_is_complete(of)?;
                    }
                }
                State::Header | State::Pieces(_) => {
                    let count = (BLOCK - self.filled).min(bytes.len());
                    self.block[self.filled..self.filled + count].copy_from_slice(&bytes[..count]);
                    self.filled += count;
                    self.offset += count as u64;
                    bytes = &bytes[count..];
                    if self.filled == BLOCK {
                        self.filled = 0;
                        let block = self.block;
                        if let Some(member) = self.block_is_complete(&block)? {
                            each(member)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// As [`Walker::feed`], up to the first member: what is behind its headers is not looked at.
    ///
    /// # Errors
    /// When a header is damaged.
    pub(crate) fn feed_headers(&mut self, bytes: &[u8], each: &mut dyn FnMut(Member)) -> Result<(), TarError> {
        let mut found = false;
        for block in bytes.chunks(BLOCK) {
            self.feed(block, &mut |member| {
                found = true;
                each(member);
                Ok(())
            })?;
            if found {
                break;
            }
        }
        Ok(())
    }

    /// To be called behind the last byte.
    ///
    /// # Errors
    /// When the archive has no end.
    pub fn finish(&self) -> Result<(), TarError> {
        if self.ended() { Ok(()) } else { Err(TarError::Truncated { offset: self.offset }) }
    }

    /// An error in the block that was just completed.
    fn damaged(&self, what: impl Into<String>) -> TarError {
        TarError::Damaged { offset: self.offset - BLOCK as u64, what: what.into() }
    }

    fn block_is_complete(&mut self, block: &[u8; BLOCK]) -> Result<Option<Member>, TarError> {
        if let State::Pieces(sparse) = std::mem::replace(&mut self.state, State::Header) {
            let (member, tally) = *sparse;
            let (pieces, more) = more_pieces(block).map_err(|what| self.damaged(what))?;
            return self.sparse(member, tally, pieces, more);
        }
        let at = self.offset - BLOCK as u64;
        if block.iter().all(|byte| *byte == 0) {
            if self.start.is_some() {
                return Err(self.damaged("the archive ends between the headers of a member"));
            }
            self.state = State::End;
            return Ok(None);
        }
        let header = Header::parse(block).map_err(|what| self.damaged(what))?;
        let size = header.size().map_err(|what| self.damaged(what))?;
        let start = *self.start.get_or_insert(at);
        let (text, twice) = match header.kind() {
            b'L' => (Text::Name, self.name.is_some()),
            b'K' => (Text::Link, self.link.is_some()),
            b'x' | b'X' => (Text::Local, self.local.is_some()),
            b'g' => (Text::Global, false),
            _ => return self.member(&header, size, start),
        };
        let longest = if matches!(text, Text::Name | Text::Link) { LONGEST_NAME } else { LONGEST_RECORDS };
        if twice {
            return Err(self.damaged("a member has two headers of the same kind"));
        }
        if size > longest {
            return Err(self.damaged(format!("a header says it has {size} bytes, at most {longest} are read")));
        }
        self.text.clear();
        self.state = State::Text { of: text, left: size, fill: size.next_multiple_of(BLOCK as u64) - size };
        if size == 0 {
            self.state = State::Header;
            self.text_is_complete(text)?;
        }
        Ok(None)
    }

    fn text_is_complete(&mut self, of: Text) -> Result<(), TarError> {
        let text = std::mem::take(&mut self.text);
        let offset = self.start.unwrap_or(self.offset);
        let damaged = |what| TarError::Damaged { offset, what };
        match of {
            Text::Name => self.name = Some(without_end(text)),
            Text::Link => self.link = Some(without_end(text)),
            Text::Local => self.local = Some(Records::parse(&text).map_err(damaged)?),
            Text::Global => {
                let mut said = Records::parse(&text).map_err(damaged)?;
                if said.is_sparse {
                    return Err(damaged("a global header makes all files sparse".to_owned()));
                }
                self.global.path = said.path.take().or(self.global.path.take());
                self.global.link = said.link.take().or(self.global.link.take());
                self.global.size = said.size.or(self.global.size);
                // It belongs to no member.
                if self.name.is_none() && self.link.is_none() && self.local.is_none() {
                    self.start = None;
                }
            }
        }
        Ok(())
    }

    fn member(&mut self, header: &Header, size: u64, start: u64) -> Result<Option<Member>, TarError> {
        let mut local = self.local.take().unwrap_or_default();
        let (long_name, long_link) = (self.name.take(), self.link.take());
        self.start = None;
        let stored = local.size.or(self.global.size).unwrap_or(size);
        let path = local.name().or_else(|| self.global.path.clone()).or(long_name).unwrap_or_else(|| header.name());
        let link = local.link.take().or_else(|| self.global.link.clone()).or(long_link);
        let link = link.unwrap_or_else(|| header.link());
        if path.is_empty() {
            return Err(self.damaged("a member without a name"));
        }
        if path.contains(&0) || link.contains(&0) {
            return Err(self.damaged("a name with a NUL byte in it"));
        }
        let sparse = local.layout().map_err(|what| self.damaged(what))?;
        let is_directory = path.ends_with(b"/");
        let kind = match header.kind() {
            b'0' | 0 | b'7' if is_directory => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Character,
            b'4' => Kind::BlockDevice,
            b'5' | b'D' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'V' => Kind::Label,
            other => Kind::Other(other),
        };
        // Programs do not agree on whether such data is there.
        if stored > 0 && header.kind() != b'D' && !matches!(kind, Kind::File | Kind::Other(_)) {
            return Err(self.damaged(format!("a member that is no file has {stored} bytes of data")));
        }
        let attributes = self.maps.then(|| {
            let mut attributes = header.attributes();
            std::mem::take(&mut local.said).apply(&mut attributes);
            Box::new(attributes)
        });
        let links = matches!(kind, Kind::HardLink | Kind::Symlink);
        let mut member = Member {
            path,
            kind,
            link: if links { link } else { Vec::new() },
            size: stored,
            stored,
            offset: start,
            data: self.offset,
            layout: Layout::Whole,
            attributes,
        };
        if header.kind() == b'S' {
            if header.magic() != Magic::Gnu || sparse.is_some() {
                return Err(self.damaged("a sparse file in a form only GNU tar's own headers have"));
            }
            let said = header.real_size().and_then(|size| Ok((size, header.pieces()?)));
            let (size, (pieces, more)) = said.map_err(|what| self.damaged(what))?;
            member.size = size;
            member.layout = Layout::Pieces(Vec::new());
            return self.sparse(member, Tally::default(), pieces, more);
        }
        if let (Some((layout, size)), Kind::File) = (sparse, kind) {
            member.size = size;
            if let Layout::Pieces(pieces) = layout {
                member.layout = Layout::Pieces(Vec::new());
                return self.sparse(member, Tally::default(), pieces, false);
            }
            member.layout = layout;
        }
        self.data_of(member).map(Some)
    }

    fn sparse(
        &mut self,
        mut member: Member,
        mut tally: Tally,
        pieces: Vec<(u64, u64)>,
        more: bool,
    ) -> Result<Option<Member>, TarError> {
        for (at, len) in &pieces {
            tally.add(*at, *len, member.size).map_err(|what| self.damaged(what))?;
        }
        if let Layout::Pieces(all) = &mut member.layout
            && self.maps
        {
            if all.len() + pieces.len() > MOST_PIECES {
                return Err(self.damaged(format!("a sparse file has more than {MOST_PIECES} pieces")));
            }
            all.extend(pieces);
        }
        if more {
            self.state = State::Pieces(Box::new((member, tally)));
            return Ok(None);
        }
        tally.fills(member.stored).map_err(|what| self.damaged(what))?;
        member.data = self.offset;
        self.data_of(member).map(Some)
    }

    fn data_of(&mut self, member: Member) -> Result<Member, TarError> {
        let len = member.stored.checked_next_multiple_of(BLOCK as u64);
        let len = len.filter(|len| self.offset.checked_add(*len).is_some_and(|end| end < 1 << 63));
        match len {
            Some(0) if member.layout == Layout::MapInData => return Err(self.damaged("a sparse file without its map")),
            Some(0) => self.state = State::Header,
            Some(_) if member.layout == Layout::MapInData => {
                self.state = State::Map(Box::new(MapCheck::new(member.size, member.stored)));
            }
            Some(len) => self.state = State::Data(len),
            None => return Err(self.damaged(format!("a member says it has {} bytes", member.stored))),
        }
        Ok(member)
    }
}

/// Without the NUL that ends it.
fn without_end(mut name: Vec<u8>) -> Vec<u8> {
    while name.last() == Some(&0) {
        name.pop();
    }
    name
}
