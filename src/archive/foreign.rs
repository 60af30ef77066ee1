//! Compressed archives without our index of frames: read once from start to end, then at any place. What that pass found is
//! taken from the file beside the archive when there is a good one, and kept there when that is wanted.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use super::ArchiveCause;
use super::seek::{Beside, Extra, Fingerprint, Kept, Method, Points, Seekable, Sink, scan};
use super::vma::{ClusterMap, Header, Scanner};
use crate::archive::bytes::Reading;
use crate::host::{Cancel, Host, files};

/// What our bytes in the file beside the archive begin with: a map of clusters follows, or nothing.
const VMA: &[u8; 4] = b"vma\0";
const TAR: &[u8; 4] = b"tar\0";

/// What becomes of a compressed archive that has no index of frames, and nothing beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstPass {
    /// It is not read; who wants a stream reads it once only.
    Never,
    /// It is read once, after which it can be read at any place.
    Read,
    /// The same, and what that found is kept beside it.
    Keep,
}

/// A foreign archive that is being opened.
pub(super) struct Foreign<'a> {
    pub(super) host: &'a Host,
    pub(super) path: &'a Path,
    pub(super) file: File,
    pub(super) method: Method,
    pub(super) first: FirstPass,
    pub(super) cancel: &'a Cancel,
    /// Worth a line in the log.
    pub(super) note: Option<String>,
}

impl Foreign<'_> {
    /// The archive of a virtual machine: its header, the map of its clusters and its data.
    pub(super) fn vma(&mut self) -> Result<(Header, ClusterMap, Seekable), ArchiveCause> {
        if let Some((bytes, mut map)) = self.kept(VMA)? {
            let header = Header::read(&mut Reading { bytes: &bytes, offset: 0 }).ok().map(|(header, _)| header);
            let len = map.limit();
            match header.map(|header| (ClusterMap::decode(&header, &mut map, len), header)) {
                Some((Ok(Some(map)), header)) => return Ok((header, map, bytes)),
                Some((Err(e), _)) => self.unusable(&format!("cannot be read: {e}")),
                _ => self.unusable(&"does not fit the archive"),
            }
        }
        let (mut scanner, mut wrong) = (Scanner::new(), None);
        let mut sink = |data: &[u8]| {
            scanner.feed(data).map_err(|e| {
                wrong = Some(e);
                io::ErrorKind::InvalidData.into()
            })
        };
        let passed = self.pass(&mut sink);
        if let Some(wrong) = wrong {
            return Err(wrong.into());
        }
        let (points, made_of) = passed?;
        let (header, map) = scanner.finish()?;
        let bytes = self.finish(points, &made_of, &Clusters(&map))?;
        Ok((header, map, bytes))
    }

    /// The data of an archive of a container; none when it is to be read as a stream.
    pub(super) fn tar(&mut self) -> Result<Option<Seekable>, ArchiveCause> {
        if let Some((bytes, _)) = self.kept(TAR)? {
            return Ok(Some(bytes));
        }
        if self.first == FirstPass::Never {
            return Ok(None);
        }
        let (points, made_of) = self.pass(&mut |_| Ok(()))?;
        self.finish(points, &made_of, &TAR.to_vec()).map(Some)
    }

    /// What is kept beside the archive about one of this kind, and our bytes in it.
    fn kept(&mut self, kind: &[u8; 4]) -> Result<Option<(Seekable, Kept)>, ArchiveCause> {
        let beside = match Beside::load(self.path, &self.file) {
            Ok(None) => return Ok(None),
            Ok(Some(beside)) if beside.points.method() == self.method => beside,
            Ok(Some(_)) => {
                self.unusable(&"does not fit the archive");
                return Ok(None);
            }
            Err(e) => {
                self.unusable(&e);
                return Ok(None);
            }
        };
        let (mut ours, mut found) = (beside.extra, [0; 4]);
        if ours.read_exact(&mut found).is_err() || found != *kind {
            self.unusable(&"was made of another kind of archive");
            return Ok(None);
        }
        self.note = beside.points.notes().first().cloned();
        Ok(Some((self.seekable(beside.points)?, ours)))
    }

    fn unusable(&mut self, why: &dyn Display) {
        let beside = Beside::path(self.path);
        self.note = Some(format!("'{}' {why}; the archive is read without it", beside.display()));
    }

    fn pass(&mut self, sink: Sink<'_>) -> Result<(Points, Fingerprint), ArchiveCause> {
        if self.first == FirstPass::Never {
            return Err(ArchiveCause::Open(io::ErrorKind::Unsupported.into()));
        }
        let made_of = Fingerprint::of(&self.file).map_err(ArchiveCause::Open)?;
        let file = self.file.try_clone().map_err(ArchiveCause::Open)?;
        let (points, done) = scan(self.host, &(Arc::new(file) as _), self.method, sink, self.cancel);
        done?;
        Ok((points, made_of))
    }

    /// Keeps what a pass found, if that is wanted. That it cannot be kept is no reason not to read the archive.
    fn finish(&mut self, points: Points, made_of: &Fingerprint, ours: &dyn Extra) -> Result<Seekable, ArchiveCause> {
        let mut notes: Vec<_> = self.note.take().into_iter().chain(points.notes().first().cloned()).collect();
        let beside = Beside { points, extra: ours };
        if self.first == FirstPass::Keep {
            match beside.save(self.path, &self.file, made_of) {
                Ok(true) => {}
                Ok(false) => notes.push("the archive was changed while it was read; its index is not kept".into()),
                Err(e) => {
                    let path = Beside::path(self.path);
                    notes.push(format!("'{}' cannot be written: {}", path.display(), files::reason(&e)));
                }
            }
        }
        self.note = (!notes.is_empty()).then(|| notes.join("; "));
        self.seekable(beside.points)
    }

    fn seekable(&self, points: Points) -> Result<Seekable, ArchiveCause> {
        let file = self.file.try_clone().map_err(ArchiveCause::Open)?;
        Ok(Seekable::new(self.host, Arc::new(file), points, self.cancel))
    }
}

/// What is kept of a virtual machine's archive.
struct Clusters<'a>(&'a ClusterMap);

impl Extra for Clusters<'_> {
    fn count(&self) -> u64 {
        VMA.len() as u64 + self.0.encoded_len()
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(VMA)?;
        self.0.encode(out)
    }
}
