//! The records of POSIX extended headers, as far as they change what a member is. Of the others (times, xattrs, ACLs) only
//! the form is checked: they are shown, and what unpacks them is GNU tar.

use super::Layout;
use super::attributes::Said;

/// What extended headers say about a member.
#[derive(Debug, Clone, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    version: (u64, u64),
    /// Pieces announced, of the formats 0.0 and 0.1.
    announced: Option<u64>,
    pieces: Vec<(u64, u64)>,
    piece_at: Option<u64>,
    pub(super) is_sparse: bool,
    /// What is said about the file besides.
    pub(super) said: Said,
}

impl Records {
    /// Reads `LENGTH KEY=VALUE\n` after each other.
    pub(super) fn parse(mut text: &[u8]) -> Result<Self, String> {
        let mut records = Self::default();
        while !text.is_empty() {
            let bad = || "an extended header has a record that is none".to_owned();
            let space = text.iter().take(20).position(|byte| *byte == b' ').ok_or_else(bad)?;
            let len = decimal(&text[..space]).and_then(|len| usize::try_from(len).ok()).ok_or_else(bad)?;
            let record = text.get(space + 1..len).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(bad)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            records.take(&record[..equals], &record[equals + 1..])?;
            text = &text[len..];
        }
        Ok(records)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let number = || {
            decimal(value).ok_or_else(|| {
                format!("'{}' in an extended header is no number: '{}'", key.escape_ascii(), value.escape_ascii())
            })
        };
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            _ => {
                let Some(key) = key.strip_prefix(b"GNU.sparse.") else {
                    self.said.take(key, value);
                    return Ok(());
                };
                self.is_sparse = true;
                match key {
                    b"name" => self.sparse_name = Some(value.to_vec()),
                    b"size" | b"realsize" => self.sparse_size = Some(number()?),
                    b"major" => self.version.0 = number()?,
                    b"minor" => self.version.1 = number()?,
                    b"numblocks" if self.announced.is_some() => return Err("a sparse file has two maps".to_owned()),
                    b"numblocks" => self.announced = Some(number()?),
                    b"offset" => self.piece_at = Some(number()?),
                    b"numbytes" => {
                        let at = self.piece_at.take().ok_or("a piece of a sparse file has no offset")?;
                        self.piece(at, number()?)?;
                    }
                    b"map" if value.is_empty() => {}
                    b"map" => {
                        let mut numbers = value.split(|byte| *byte == b',').map(decimal);
                        while let Some(at) = numbers.next() {
                            let pair = at.zip(numbers.next().flatten());
                            let (at, len) = pair.ok_or("the map of a sparse file has something that is no number")?;
                            self.piece(at, len)?;
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn piece(&mut self, at: u64, len: u64) -> Result<(), String> {
        // GNU tar takes as many as were announced before them.
        if self.announced.is_none_or(|announced| self.pieces.len() as u64 >= announced) {
            return Err("a sparse file has more pieces than it announces".to_owned());
        }
        self.pieces.push((at, len));
        Ok(())
    }

    /// The name these records give. That of a sparse file counts more: `path` is a stopgap for other programs.
    pub(super) fn name(&mut self) -> Option<Vec<u8>> {
        self.sparse_name.take().or(self.path.take())
    }

    /// How the data lies in the file, and how large that is, if these records make it a sparse one.
    pub(super) fn layout(&mut self) -> Result<Option<(Layout, u64)>, String> {
        if !self.is_sparse {
            return Ok(None);
        }
        let size = self.sparse_size.ok_or("a sparse file without its size")?;
        let pieces = std::mem::take(&mut self.pieces);
        match self.version {
            (1, 0) if self.announced.is_none() => Ok(Some((Layout::MapInData, size))),
            (0, _) if self.announced == Some(pieces.len() as u64) => Ok(Some((Layout::Pieces(pieces), size))),
            (0, _) => Err("a sparse file has fewer pieces than it announces".to_owned()),
            (major, minor) => Err(format!("a sparse file of the unknown format {major}.{minor}")),
        }
    }
}

pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}
